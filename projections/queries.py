"""Typed reads of the projection, off the event loop. Every read sees one moment and says which: ``as_of``.

Reads run in a few threads, each with a cursor of its own. All that one read answers comes out of one DuckDB transaction:
rows, totals and position belong together, whatever the projector commits meanwhile. How fresh that moment must be is not
asked here but before, of :mod:`eventq.projections.freshness`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, TypeVar, cast

import orjson

from eventq.events.catalogue import read_data
from eventq.events.envelope import Event, Stored, Trace
from eventq.events.errors import InvalidInput
from eventq.events.schedule import ScheduleStatus
from eventq.events.worker import WorkerStatus
from eventq.events.worker_events import TaskDeclaration
from eventq.events.workflow import WorkflowStatus
from eventq.projections.fold import fold, version_key
from eventq.projections.queue_queries import LineFacts, QueuePage, line_facts, one_queue, queue_page
from eventq.projections.rows import (
    AttemptRow,
    EventRow,
    LogRow,
    Matching,
    ProgressRow,
    TaskFilter,
    TaskPage,
    TaskRow,
    Timeline,
    WorkerRow,
    task_row,
    values_of,
)
from eventq.projections.schedule_queries import SchedulePage, ScheduleRow, get_schedule, list_schedules
from eventq.projections.store import Snapshot, Store
from eventq.projections.tables import TABLE_OF, naive
from eventq.projections.worker_queries import WorkerPage, list_workers, living_workers
from eventq.projections.workflow_queries import (
    NodeTask,
    WorkflowPage,
    WorkflowStory,
    get_workflow,
    list_workflows,
    node_tasks,
    workflow_events,
)

__all__ = [
    "AttemptRow",
    "EventRow",
    "LogRow",
    "Matching",
    "ProgressRow",
    "Queries",
    "TaskFilter",
    "TaskPage",
    "TaskRow",
    "Timeline",
    "WorkerRow",
]

THREADS = 4
PAGE_MAX = 1_000
OFFSET_MAX = 10_000_000
EVENTS_OF_TASK_MAX = 10_000
LOGS_OF_TASK_MAX = 1_000

SORTABLE = frozenset(
    {
        "created_at", "started_at", "completed_at", "updated_at", "scheduled_at", "due_at", "priority", "status",
        "task_name", "queue", "pool", "worker_id", "version", "position",
    }
)  # fmt: skip
"""What a list may be sorted by. Ties are broken by task id, so that pages neither skip nor repeat."""

_CONDITIONS = {
    "statuses": "status IN (SELECT unnest($statuses))",
    "priority": "priority = $priority",
    "queue": "queue = $queue",
    "pool": "pool = $pool",
    "task_name": "task_name = $task_name",
    "worker_id": "worker_id = $worker_id",
    "key": "key = $key",
    "reason": "reason = $reason",
    "tags": "list_has_all(CAST(CAST(tags AS JSON) AS VARCHAR[]), $tags)",
    "metadata": "",  # one condition for each pair
    "workflow_id": "workflow_id = $workflow_id",
    "schedule_id": "schedule_id = $schedule_id",
    "parent_task_id": "parent_task_id = $parent_task_id",
    "original_task_id": "original_task_id = $original_task_id",
    "created_after": "created_at >= $created_after",
    "created_before": "created_at < $created_before",
    "updated_after": "updated_at >= $updated_after",
    "updated_before": "updated_at < $updated_before",
    "cleaned": "cleaned = $cleaned",
    "unretried": "(NOT erased AND task_id NOT IN (SELECT original_task_id FROM tasks WHERE origin = 'retry')) = $unretried",
}

T = TypeVar("T")


def _named_statements() -> dict[str, str]:
    text = files("eventq.projections").joinpath("queries.sql").read_text()
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (part.strip().rstrip(";") for part in parts[1::2]), strict=True))


_SQL = _named_statements()


def _names(row_type: type[Any]) -> frozenset[str]:
    return frozenset(f.name for f in fields(row_type))


_EVENT, _LOG, _ATTEMPT = _names(EventRow), _names(LogRow), _names(AttemptRow)
_PROGRESS = _names(ProgressRow)


class Queries:
    """Reads of one store. ``close`` ends its threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="query")

    def close(self) -> None:
        """End the threads; reads in progress finish first."""
        self._threads.shutdown()

    async def get_task(self, task_id: str) -> TaskRow | None:
        """The task, ``None`` where the projection has none of that id."""
        return await self._read(lambda snapshot: _get_task(snapshot, task_id))

    async def get_task_as_of(
        self, task_id: str, *, position: int | None = None, time: datetime | None = None
    ) -> TaskRow | None:
        """The task as it was at ``position`` or ``time`` (aware), folded from its events with the rules that are used
        today; ``None`` where it did not exist. Without progress, which has no history."""
        return await self._read(lambda snapshot: _get_task_as_of(snapshot, task_id, position, time))

    async def list_tasks(
        self,
        wanted: TaskFilter = TaskFilter(),  # noqa: B008  # immutable
        *,
        sort_by: str = "created_at",
        descending: bool = True,
        limit: int = 50,
        offset: int = 0,
    ) -> TaskPage:
        """One page of the tasks that match. Raises ``InvalidInput`` for a sort field or page that is not allowed."""
        if sort_by not in SORTABLE:
            raise InvalidInput("sort_by", f"must be one of {', '.join(sorted(SORTABLE))}", found=sort_by[:80])
        if not 0 <= limit <= PAGE_MAX:
            raise InvalidInput("limit", f"must be between 0 and {PAGE_MAX}", limit=PAGE_MAX, found=limit)
        if not 0 <= offset <= OFFSET_MAX:
            raise InvalidInput("offset", f"must be between 0 and {OFFSET_MAX}", limit=OFFSET_MAX, found=offset)
        direction = "DESC" if descending else "ASC"
        order = f"{sort_by} {direction} NULLS LAST, task_id {direction}"
        return await self._read(lambda snapshot: _list_tasks(snapshot, wanted, order, limit, offset))

    async def matching(self, wanted: TaskFilter, *, limit: int) -> Matching:
        """The ids and versions of the first ``limit`` tasks that match, in order of their ids."""
        return await self._read(lambda snapshot: _matching(snapshot, wanted, limit))

    async def subtasks(self, task_id: str, *, as_of: int) -> list[str]:
        """Ids of the tasks that a task had spawned at position ``as_of``, oldest first, at most a thousand."""
        wanted = {"task_id": task_id, "as_of": as_of}
        rows = await self._read(lambda snapshot: snapshot.rows(_SQL["subtasks"], wanted))
        return [row[0] for row in rows]

    async def retries_of(self, task_ids: Sequence[str]) -> dict[str, str]:
        """Of those of these tasks that were retried, the newest task that repeats them."""
        return dict(await self._read(lambda snapshot: snapshot.rows(_SQL["retries_of"], {"task_ids": list(task_ids)})))

    async def inputs_in_use(self, keys: Sequence[str], *, besides: str) -> set[str]:
        """Those of these blobs that hold arguments of tasks, but for the task ``besides``, or of schedules that there are."""
        wanted = {"keys": list(keys), "besides": besides}
        rows = await self._read(lambda snapshot: snapshot.rows(_SQL["inputs_in_use"], wanted))
        return {row[0] for row in rows}

    async def timeline(self, task_id: str) -> Timeline:
        """A task's events, attempts and newest log lines, each oldest first."""
        return await self._read(lambda snapshot: _timeline(snapshot, task_id))

    async def attempts(self, task_id: str) -> list[AttemptRow]:
        """A task's executions, oldest first."""
        return await self._read(lambda snapshot: _attempts(snapshot, _life(snapshot, task_id)))

    async def declarations(self) -> dict[str, TaskDeclaration]:
        """What workers declared last of each task name."""
        rows = await self._read(lambda snapshot: snapshot.rows(_SQL["declarations"]))
        return {name: TaskDeclaration.model_validate_json(declaration) for name, declaration in rows}

    async def list_workers(
        self, statuses: Collection[WorkerStatus] = (), *, pool: str | None = None, limit: int = 50, offset: int = 0
    ) -> WorkerPage:
        """One page of the workers that ever registered, of these statuses (none: of any) and of this pool, newest first."""
        return await self._read(lambda snapshot: list_workers(snapshot, statuses, pool, limit, offset))

    async def living_workers(self) -> list[WorkerRow]:
        """All workers that are not known to have gone, however many. Whether they still live is a question to presence."""
        return await self._read(living_workers)

    async def counts(self) -> dict[tuple[str, str, str], int]:
        """How many tasks there are by (pool, queue, status)."""
        rows = await self._read(lambda snapshot: snapshot.rows(_SQL["counts"]))
        return {(pool, queue, status): count for pool, queue, status, count in rows}

    async def queue_page(self, now: datetime, served: Collection[str], *, limit: int, offset: int) -> QueuePage:
        """Queues, also those that are only ``served``, with all that there is to say of them at ``now``."""
        return await self._read(lambda snapshot: queue_page(snapshot, now, served, limit, offset))

    async def queue(self, now: datetime, name: str) -> QueuePage:
        """The queue of this name, if there is one, as a page."""
        return await self._read(lambda snapshot: one_queue(snapshot, now, name))

    async def line_facts(self, task: TaskRow) -> LineFacts:
        """What stands before ``task``."""
        return await self._read(lambda snapshot: line_facts(snapshot, task))

    async def get_schedule(self, schedule_id: str) -> ScheduleRow | None:
        """The schedule, deleted or not; ``None`` where the projection has none of that id."""
        return await self._read(lambda snapshot: get_schedule(snapshot, schedule_id))

    async def list_schedules(
        self, statuses: tuple[ScheduleStatus, ...], *, task_name: str | None = None, limit: int = 50, offset: int = 0
    ) -> SchedulePage:
        """One page of the schedules of these statuses, newest first."""
        return await self._read(lambda snapshot: list_schedules(snapshot, statuses, task_name, limit, offset))

    async def get_workflow(self, workflow_id: str) -> WorkflowStory | None:
        """The workflow with its nodes; ``None`` where the projection has none of that id."""
        return await self._read(lambda snapshot: get_workflow(snapshot, workflow_id))

    async def node_tasks(self, task_ids: Sequence[str]) -> dict[str, NodeTask]:
        """Those of these tasks of workflows that there are, by id."""
        return await self._read(lambda snapshot: node_tasks(snapshot, task_ids))

    async def list_workflows(
        self, statuses: Sequence[WorkflowStatus], *, name: str | None = None, limit: int = 50, offset: int = 0
    ) -> WorkflowPage:
        """One page of the workflows of these statuses (none: of any), newest first."""
        return await self._read(lambda snapshot: list_workflows(snapshot, statuses, name, limit, offset))

    async def workflow_events(self, workflow_id: str) -> list[EventRow]:
        """The workflow's own events, oldest first."""
        return await self._read(lambda snapshot: workflow_events(snapshot, workflow_id))

    async def position(self) -> int:
        """The position in EVENTS up to which the tables are the fold of the log."""
        return await self._read(lambda snapshot: snapshot.position)

    async def _read(self, question: Callable[[Snapshot], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, question)

    def _ask(self, question: Callable[[Snapshot], T]) -> T:
        with self._store.read() as snapshot:
            return question(snapshot)


def versions_of(store: Store, keys: Sequence[str]) -> dict[str, int]:
    """The versions in the tables by their keys (see ``version_key``), of those that stand there. Blocks: for a thread."""
    ids: dict[str, list[str]] = {}
    for key in keys:
        kind, dot, aggregate_id = key.rpartition(".")
        ids.setdefault(kind if dot else "tasks", []).append(aggregate_id)
    found: dict[str, int] = {}
    with store.read() as snapshot:
        for kind, wanted in ids.items():
            table, column = ("tasks", "task_id") if kind == "tasks" else (TABLE_OF[kind].name, TABLE_OF[kind].id_column)
            rows = snapshot.rows(f"SELECT {column}, version FROM {table} WHERE {column} IN (SELECT unnest($1))", [wanted])
            found |= {version_key(kind, aggregate_id): version for aggregate_id, version in rows}
    return found


def _get_task(snapshot: Snapshot, task_id: str) -> TaskRow | None:
    records = snapshot.records(_SQL["get_task"], {"task_id": task_id})
    return _with_progress(snapshot, records)[0] if records else None


def _list_tasks(snapshot: Snapshot, wanted: TaskFilter, order: str, limit: int, offset: int) -> TaskPage:
    conditions, parameters = _conditions(wanted)
    total = snapshot.rows(f"SELECT count(*) FROM tasks{conditions}", parameters)[0][0]
    records = snapshot.records(
        f"SELECT * FROM tasks{conditions} ORDER BY {order} LIMIT $limit OFFSET $offset",
        parameters | {"limit": limit, "offset": offset},
    )
    return TaskPage(total, _with_progress(snapshot, records), snapshot.position)


def _conditions(wanted: TaskFilter) -> tuple[str, dict[str, Any]]:
    parameters: dict[str, Any] = {}
    where: list[str] = []
    for name, condition in _CONDITIONS.items():
        value = getattr(wanted, name)
        if value is None or value == () or (value is False and name == "unretried"):
            continue
        if name == "metadata":
            for number, (key, text) in enumerate(wanted.metadata):
                where.append(f"json_extract_string(metadata, $metadata_path_{number}) = $metadata_value_{number}")
                parameters |= {f"metadata_path_{number}": f"/{_pointed(key)}", f"metadata_value_{number}": text}
            continue
        where.append(condition)
        parameters[name] = _parameter(value)
    return (f" WHERE {' AND '.join(where)}" if where else ""), parameters


def _parameter(value: Any) -> Any:
    if isinstance(value, datetime):
        return naive(value)
    if isinstance(value, tuple):
        return [str(one) for one in cast("tuple[object, ...]", value)]
    return value


def _pointed(key: str) -> str:
    """As a step of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def _matching(snapshot: Snapshot, wanted: TaskFilter, limit: int) -> Matching:
    conditions, parameters = _conditions(wanted)
    total = snapshot.rows(f"SELECT count(*) FROM tasks{conditions}", parameters)[0][0]
    rows = snapshot.rows(
        f"SELECT task_id, version FROM tasks{conditions} ORDER BY task_id LIMIT $limit", parameters | {"limit": limit}
    )
    return Matching(total, [(task_id, version) for task_id, version in rows], snapshot.position)


def _with_progress(snapshot: Snapshot, records: list[dict[str, Any]]) -> list[TaskRow]:
    """Rows with their progress, where it is of the task's current attempt: a stale worker's is not the task's."""
    found = snapshot.records(_SQL["progress_of"], {"task_ids": [record["task_id"] for record in records]})
    by_attempt = {(row["task_id"], row["attempt"]): ProgressRow(**values_of(row, _PROGRESS)) for row in found}
    as_of = snapshot.position
    return [task_row(record, as_of, by_attempt.get((record["task_id"], record["attempt"]))) for record in records]


def _life(snapshot: Snapshot, task_id: str) -> dict[str, Any]:
    """The task's id and the positions of its first and last event: an empty range where there is no such task."""
    records = snapshot.records(_SQL["get_task"], {"task_id": task_id})
    first, last = (records[0]["created_position"], records[0]["position"]) if records else (1, 0)
    return {"task_id": task_id, "first": first, "last": last}


def _event_records(snapshot: Snapshot, life: dict[str, Any]) -> list[dict[str, Any]]:
    return snapshot.records(_SQL["events_of"], life | {"limit": EVENTS_OF_TASK_MAX})


def _attempts(snapshot: Snapshot, life: dict[str, Any]) -> list[AttemptRow]:
    return [AttemptRow(**values_of(record, _ATTEMPT)) for record in snapshot.records(_SQL["attempts_of"], life)]


def _timeline(snapshot: Snapshot, task_id: str) -> Timeline:
    life = _life(snapshot, task_id)
    logs = snapshot.records(_SQL["newest_logs_of"], {"task_id": task_id, "limit": LOGS_OF_TASK_MAX})
    return Timeline(
        events=[EventRow(**values_of(record, _EVENT)) for record in _event_records(snapshot, life)],
        attempts=_attempts(snapshot, life),
        logs=[LogRow(**values_of(record, _LOG)) for record in reversed(logs)],
        as_of=snapshot.position,
    )


def _get_task_as_of(snapshot: Snapshot, task_id: str, position: int | None, time: datetime | None) -> TaskRow | None:
    past: list[Stored] = []
    for row in _event_records(snapshot, _life(snapshot, task_id)):
        stored = _stored(row)
        if (position is not None and stored.position > position) or (time is not None and stored.event.time > time):
            break
        past.append(stored)
    if not past:
        return None
    record: dict[str, Any] = {}
    for write in fold(past, {}, {}).writes():
        if write.table == "tasks":
            record |= zip(write.columns, write.rows[0], strict=True)
    return task_row(record, past[-1].position if position is None else position)


def _stored(record: dict[str, Any]) -> Stored:
    event = Event(
        id=record["event_id"],
        source=record["source"],
        aggregate="tasks",
        aggregate_id=record["aggregate_id"],
        type=record["type"],
        schema=record["schema"],
        time=record["time"].replace(tzinfo=UTC),
        version=record["version"],
        previous=record["previous"],
        attempt=record["attempt"],
        trace=Trace(record["causation_id"], record["correlation_id"], record["traceparent"]),
        state={},
        data=read_data("tasks", record["type"], record["schema"], orjson.loads(record["data"])),
    )
    return Stored(record["position"], event)
