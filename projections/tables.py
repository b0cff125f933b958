"""How the states of queues, workers and other kinds stand in tables: one row each, which holds the state whole.

Tasks are too many and too large for that: ``fold`` writes of them what changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic

import orjson

from eventq.events.aggregate import Aggregate, M
from eventq.events.claim import CLAIMS, Claim
from eventq.events.queue import QUEUES, Queue
from eventq.events.schedule import SCHEDULES, Schedule
from eventq.events.worker import WORKERS, Worker
from eventq.events.workflow import WORKFLOWS, Workflow

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class StateTable(Generic[M]):
    """The table of one kind. ``id_column``: its primary key; ``columns`` and ``values``: what can be asked for by SQL."""

    kind: Aggregate[M]
    name: str
    id_column: str
    columns: tuple[str, ...]
    values: Callable[[M], Row]

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Every column, in the order of :meth:`row`. ``state``: the whole, from which folding goes on."""
        return (self.id_column, "version", "event_id", "position", "state", *self.columns)

    def row(self, aggregate_id: str, state: M, position: int) -> Row:
        """The row of one of them. ``position``: of its newest event."""
        return (aggregate_id, state.version, state.event_id, position, to_json(state.whole()), *self.values(state))


def naive(at: datetime) -> datetime:
    """An aware time as the tables hold it: UTC without saying so."""
    utc = at if at.tzinfo is UTC else at.astimezone(UTC)
    return datetime.combine(utc, utc.time())  # what `replace(tzinfo=None)` answers, in a fifth of its time


def to_json(value: Any) -> str:
    """``value`` as JSON text."""
    return orjson.dumps(value).decode()


def _time(at: datetime | None) -> datetime | None:
    return None if at is None else naive(at)


def _worker(worker: Worker) -> Row:
    return (
        worker.status.value, worker.kind, worker.hostname, worker.pid, worker.pool, to_json(worker.queues), worker.capacity,
        to_json(worker.devices), _time(worker.registered_at), _time(worker.ended_at), worker.end_reason,
    )  # fmt: skip


def _queue(queue: Queue) -> Row:
    return (queue.paused_by, queue.paused_reason, queue.limits.model_dump_json())


def _claim(claim: Claim) -> Row:
    return (claim.task_id,)


def _schedule(schedule: Schedule) -> Row:
    task_name = schedule.required_spec.task.task_name
    return (schedule.status.value, task_name, _time(schedule.next_at), _time(schedule.last_at), _time(schedule.created_at))


def _workflow(workflow: Workflow) -> Row:
    return (workflow.status.value, workflow.name, _time(workflow.created_at), _time(workflow.ended_at))


_TABLES: tuple[StateTable[Any], ...] = (
    StateTable(
        WORKERS,
        "workers",
        "worker_id",
        (
            "status",
            "kind",
            "hostname",
            "pid",
            "pool",
            "queues",
            "capacity",
            "devices",
            "registered_at",
            "ended_at",
            "end_reason",
        ),
        _worker,
    ),
    StateTable(CLAIMS, "claims", "claim_id", ("task_id",), _claim),
    StateTable(QUEUES, "queues", "queue", ("paused_by", "paused_reason", "limits"), _queue),
    StateTable(SCHEDULES, "schedules", "schedule_id", ("status", "task_name", "next_at", "last_at", "created_at"), _schedule),
    StateTable(WORKFLOWS, "workflows", "workflow_id", ("status", "name", "created_at", "ended_at"), _workflow),
)

TABLE_OF: dict[str, StateTable[Any]] = {table.kind.name: table for table in _TABLES}
"""By the first token of a kind's subjects."""
