"""From events to rows: a pure function of what is known and what comes next. No I/O, no clock, no order that can vary.

A batch is folded from the states before it, and gives the rows to write and the states after it. Where one batch ends and
the next begins changes nothing in the tables: the tests hold every split of every history to that. So a task that is
submitted, run and completed within one batch is one inserted row, and the same task spread over three batches is
an inserted row and two updates, with the same row in the end.

The fold is also where damage shows. Every event says its version and the id of the event before it; an event that does not
continue what is known raises :class:`LogDamaged` and nothing of its batch is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from eventq.events.catalogue import TYPE_OF, read_data
from eventq.events.data import EventData
from eventq.events.envelope import Event, Stored
from eventq.events.errors import LogDamaged, UnknownEvent
from eventq.events.report import Progress, Report
from eventq.events.task import ABSENT, Task, evolve, timeout_error
from eventq.events.task_events import (
    Cancelled,
    Cleaned,
    Completed,
    Erased,
    Failed,
    Paused,
    Queued,
    Retrying,
    Started,
    Submitted,
    TimedOut,
    Updated,
)
from eventq.events.worker_events import TaskDeclaration, WorkerRegistered
from eventq.events.workflow_events import WorkflowAdvanced
from eventq.projections.tables import TABLE_OF, Row, naive, to_json
from eventq.projections.workflow_fold import NODE_BEGIN, NODE_CHANGE, NODE_KEY, FoldedNodes

Action = Literal["insert", "update", "upsert"]

EVENT_COLUMNS = (
    "position", "aggregate", "aggregate_id", "version", "type", "time", "attempt", "source", "event_id", "previous",
    "causation_id", "correlation_id", "traceparent", "schema", "data",
)  # fmt: skip

TASK_FIXED = (
    "task_id", "created_at", "created_position", "original_task_id", "origin", "parent_task_id", "workflow_id", "node",
    "schedule_id", "unique_key", "requested_by",
)  # fmt: skip
"""Columns that the ``submitted`` event settles for good."""

TASK_SPEC = (
    "task_name", "pool", "queue", "priority", "key", "max_retries", "timeout_s", "queue_timeout_s", "heartbeat_timeout_s",
    "result_ttl_s", "scheduled_at", "tags", "metadata", "args", "kwargs", "input",
)  # fmt: skip
"""Columns that the ``submitted`` event settles until an ``updated`` one does."""

TASK_MOVING = (
    "status", "reason", "version", "attempt", "failures", "losses", "lost", "ready", "spec", "gated", "worker_id",
    "cancel_requested_by", "cancel_reason", "pause_requested_by", "pause_reason", "due_at", "start_by", "cleaned", "erased",
    "event_id", "started_at", "updated_at", "position",
)  # fmt: skip
"""Columns that any event may change."""

TASK_OUTCOME = ("result", "output", "error", "completed_at", "duration_s")
"""Columns that only the end of an attempt changes: written then, so that states in memory need not hold results."""

TASK_COLUMNS = TASK_FIXED + TASK_SPEC + TASK_MOVING + TASK_OUTCOME

TASK_CLEANED = ("task_id", "result", "output")
TASK_ERASED = ("task_id", "args", "kwargs", "input", "tags", "metadata", "result", "output", "error")
"""Columns that a task loses when its result is given up, and when all that it carried is destroyed."""

ATTEMPT_BEGIN = ("task_id", "attempt", "worker_id", "hostname", "device", "started_at", "position")
ATTEMPT_END = ("ended_at", "outcome", "error")

DECLARATION_COLUMNS = ("name", "declaration", "worker_id", "declared_at", "position")
PROGRESS_COLUMNS = ("task_id", "attempt", "done", "total", "unit", "message", "time", "position")
LOG_COLUMNS = ("position", "task_id", "attempt", "time", "level", "message", "fields")

NO_OUTCOME: Row = (None,) * len(TASK_OUTCOME)
NOT_ENDED: Row = (None,) * len(ATTEMPT_END)


class TaskState(NamedTuple):
    """What the fold must know of a task to go on: its state, and when its newest attempt started (naive UTC)."""

    task: Task
    started_at: datetime | None


@dataclass(frozen=True, slots=True)
class Write:
    """Rows for one table, to be inserted, replaced by primary key, or updated where ``key`` matches."""

    table: str
    action: Action
    columns: tuple[str, ...]
    rows: Sequence[Row]
    key: tuple[str, ...] = ()


@dataclass(slots=True)
class TaskWork:
    """A task while a batch goes over it. ``fixed``: set where the batch holds its ``submitted`` event; ``spec``: where it
    holds that or an ``updated`` one."""

    task: Task
    started_at: datetime | None
    fixed: Row | None = None
    spec: Row | None = None
    outcome: Row | None = None
    updated_at: datetime | None = None
    position: int = 0


StateKey = tuple[str, str]
"""Which state of a kind other than tasks: the kind's name and the id."""


@dataclass(slots=True)
class Folded:
    """What a batch comes to: rows to write, and the states after it."""

    events: list[Row] = field(default_factory=list[Row])
    begun: dict[tuple[str, int], Row] = field(default_factory=dict[tuple[str, int], Row])
    ended: dict[tuple[str, int], Row] = field(default_factory=dict[tuple[str, int], Row])
    declarations: dict[str, Row] = field(default_factory=dict[str, Row])
    states: dict[StateKey, Any] = field(default_factory=dict[StateKey, Any])
    positions: dict[StateKey, int] = field(default_factory=dict[StateKey, int])
    tasks: dict[str, TaskWork] = field(default_factory=dict[str, TaskWork])
    cleaned: dict[str, Row] = field(default_factory=dict[str, Row])
    erased: dict[str, Row] = field(default_factory=dict[str, Row])
    emptied: bool = False
    """Whether something was destroyed."""
    erased_events: list[Row] = field(default_factory=list[Row])
    erased_errors: list[Row] = field(default_factory=list[Row])
    nodes: FoldedNodes = field(default_factory=FoldedNodes)
    silenced: list[str] = field(default_factory=list[str])
    """Tasks whose progress and log lines are to be dropped."""

    def task_states(self) -> dict[str, TaskState]:
        """The state after the batch of each task that it touched."""
        return {task_id: TaskState(work.task, work.started_at) for task_id, work in self.tasks.items()}

    def versions(self) -> dict[str, int]:
        """The version after the batch of each task, or other thing with a history, that it touched, by its id."""
        versions = {task_id: work.task.version for task_id, work in self.tasks.items()}
        return versions | {version_key(*key): state.version for key, state in self.states.items()}

    def writes(self) -> list[Write]:
        """All rows of the batch, in the order in which they must be written: what was destroyed is, after it was made."""
        begun, ended = self.begun, self.ended
        created: list[Row] = []
        moved: list[Row] = []
        respecified: list[Row] = []
        outcomes: list[Row] = []
        for task_id, work in self.tasks.items():
            if work.fixed is not None and work.spec is not None:
                created.append(work.fixed + work.spec + _moving(work) + (work.outcome or NO_OUTCOME))
                continue
            if work.outcome is None:
                moved.append((task_id, *_moving(work)))
            else:
                outcomes.append((task_id, *_moving(work), *work.outcome))
            if work.spec is not None:
                respecified.append((task_id, *work.spec))
        attempts = [row + ended.get(key, NOT_ENDED) for key, row in begun.items()]
        attempt_ends = [key + row for key, row in ended.items() if key not in begun]
        writes = [
            Write("events", "insert", EVENT_COLUMNS, self.events),
            Write("tasks", "insert", TASK_COLUMNS, created),
            Write("tasks", "update", ("task_id", *TASK_MOVING), moved, ("task_id",)),
            Write("tasks", "update", ("task_id", *TASK_SPEC), respecified, ("task_id",)),
            Write("tasks", "update", ("task_id", *TASK_MOVING, *TASK_OUTCOME), outcomes, ("task_id",)),
            Write("attempts", "insert", ATTEMPT_BEGIN + ATTEMPT_END, attempts),
            Write("attempts", "update", ("task_id", "attempt", *ATTEMPT_END), attempt_ends, ("task_id", "attempt")),
            Write("task_declarations", "upsert", DECLARATION_COLUMNS, list(self.declarations.values())),
            *self._state_writes(),
            Write("workflow_nodes", "upsert", NODE_BEGIN + NODE_CHANGE, self.nodes.rows_begun()),
            Write("workflow_nodes", "update", NODE_KEY + NODE_CHANGE, self.nodes.rows_changed(), NODE_KEY),
            Write("tasks", "update", TASK_CLEANED, list(self.cleaned.values()), ("task_id",)),
            Write("tasks", "update", TASK_ERASED, list(self.erased.values()), ("task_id",)),
            Write("events", "update", ("position", "data"), self.erased_events, ("position",)),
            Write("attempts", "update", ("task_id", "attempt", "error"), self.erased_errors, ("task_id", "attempt")),
        ]
        return [write for write in writes if write.rows]

    def _state_writes(self) -> list[Write]:
        rows: dict[str, list[Row]] = {}
        for (kind, aggregate_id), state in self.states.items():
            row = TABLE_OF[kind].row(aggregate_id, state, self.positions[kind, aggregate_id])
            rows.setdefault(kind, []).append(row)
        return [Write(TABLE_OF[kind].name, "upsert", TABLE_OF[kind].all_columns, found) for kind, found in rows.items()]


def version_key(kind: str, aggregate_id: str) -> str:
    """What a version is remembered under: a task's id as it is, others with their kind before it."""
    return aggregate_id if kind == "tasks" else f"{kind}.{aggregate_id}"


def fold(batch: Iterable[Stored], tasks: Mapping[str, TaskState], states: Mapping[StateKey, Any]) -> Folded:
    """Fold ``batch`` onto the states before it. Neither argument is changed.

    ``tasks`` and ``states`` must hold all whose first event in the batch is not its version 1. Raises :class:`LogDamaged`
    where an event does not continue its history.
    """
    folded = Folded()
    for position, event in ((stored.position, stored.event) for stored in batch):
        at = naive(event.time)
        folded.events.append(_event_row(position, event, at))
        if event.aggregate == "tasks":
            _fold_task(folded, tasks, position, event, at)
        else:
            _fold_state(folded, states, position, event, at)
    return folded


def check_contiguous(after: int, positions: Iterable[int]) -> None:
    """Raise :class:`LogDamaged` where ``positions`` do not go on from ``after`` one by one.

    Nothing but what was erased is ever deleted from EVENTS, and of that what is left stands here; so a position that does not
    exist is an event that the broker lost. If it took all that a task had in the gap, no other check would see it.
    """
    expected = after
    for position in positions:
        expected += 1
        if position != expected:
            raise LogDamaged(
                f"positions {expected} to {position - 1} of the log do not exist: their events were lost",
                position=expected,
                found=position,
            )


def _fold_task(folded: Folded, known: Mapping[str, TaskState], position: int, event: Event, at: datetime) -> None:
    task_id, data = event.aggregate_id, event.data
    work = folded.tasks.get(task_id)
    if work is None:
        state = known.get(task_id)
        work = TaskWork(ABSENT, None) if state is None else TaskWork(state.task, state.started_at)
        folded.tasks[task_id] = work
    before = work.task
    if event.version != before.version + 1 or event.previous != before.event_id:
        raise _broken_link(position, event, before.version, before.event_id)
    after = evolve(before, event.id, event.time, data)
    if event.attempt != after.attempt:
        raise LogDamaged(
            f"position {position}: event {event.subject} says attempt {event.attempt}, its history makes it {after.attempt}",
            position=position,
            event_id=event.id,
        )
    work.task, work.updated_at, work.position = after, at, position
    if isinstance(data, Submitted):
        work.fixed = _fixed(task_id, data, at, position)
        work.spec = _spec(data)
    elif isinstance(data, Updated):
        work.spec = _spec(data.submission)
    elif isinstance(data, Started):
        work.started_at = at
        key = (task_id, after.attempt)
        folded.begun[key] = (*key, data.worker_id, data.hostname, data.device, at, position)
    elif before.in_hand and not after.in_hand:
        folded.ended[(task_id, after.attempt)] = (at, _outcome_word(data), _error(data))
    if after.finished and not before.finished:
        work.outcome = _outcome(data, at)
    elif isinstance(data, Retrying):
        work.outcome = _outcome(data, None)
    elif isinstance(data, Cleaned | Erased):
        _give_up(folded, task_id, after, data)


def _give_up(folded: Folded, task_id: str, task: Task, data: Cleaned | Erased) -> None:
    """Drop what a finished task leaves behind, from every table that has some of it."""
    folded.silenced.append(task_id)
    if isinstance(data, Cleaned):
        folded.cleaned[task_id] = (task_id, None, None)
        return
    folded.erased[task_id] = (task_id, "[]", "{}", None, "[]", "{}", None, None, None)
    folded.erased_errors += ((task_id, attempt, None) for attempt in range(1, task.attempt + 1))
    _empty_events(folded, "tasks", data)


def _empty_events(folded: Folded, kind: str, data: Erased) -> None:
    folded.emptied = True
    for position, event in ((left.position, left.event) for left in data.events):
        left = read_data(kind, event["type"], event["schema"], event["data"])
        folded.erased_events.append((position, left.model_dump_json()))


def _fold_state(folded: Folded, known: Mapping[StateKey, Any], position: int, event: Event, at: datetime) -> None:
    table = TABLE_OF.get(event.aggregate)
    if table is None:
        raise UnknownEvent(f"position {position}: nothing is known of {event.aggregate}", type=event.type)
    key = (event.aggregate, event.aggregate_id)
    before = folded.states.get(key) or known.get(key, table.kind.absent)
    if event.version != before.version + 1 or event.previous != before.event_id:
        raise _broken_link(position, event, before.version, before.event_id)
    folded.states[key] = table.kind.evolve(before, event.id, event.time, event.data)
    folded.positions[key] = position
    if isinstance(event.data, WorkflowAdvanced):
        folded.nodes.fold(event.aggregate_id, folded.states[key].run, position, at, event.data)
    if isinstance(event.data, Erased):
        _empty_events(folded, event.aggregate, event.data)
    if isinstance(event.data, WorkerRegistered):
        for declared in event.data.tasks:
            folded.declarations[declared.name] = _declaration(declared, event.aggregate_id, at, position)


def _declaration(declared: TaskDeclaration, worker_id: str, at: datetime, position: int) -> Row:
    return (declared.name, declared.model_dump_json(), worker_id, at, position)


def _broken_link(position: int, event: Event, version: int, event_id: str | None) -> LogDamaged:
    return LogDamaged(
        f"position {position}: event {event.subject} is version {event.version} and follows {event.previous}, but what is "
        f"known of {event.aggregate_id} ends with version {version}, event {event_id}: events were lost, changed or rewound",
        position=position,
        event_id=event.id,
        aggregate_id=event.aggregate_id,
        expected=version + 1,
        found=event.version,
    )


def _event_row(position: int, event: Event, at: datetime) -> Row:
    data, trace = event.data, event.trace
    return (
        position, event.aggregate, event.aggregate_id, event.version, event.type, at, event.attempt,
        event.source, event.id, event.previous, trace.causation_id, trace.correlation_id, trace.traceparent,
        TYPE_OF[type(data)].schema, data.model_dump_json(),
    )  # fmt: skip


def _fixed(task_id: str, data: Submitted, at: datetime, position: int) -> Row:
    return (
        task_id, at, position, data.original_task_id, data.origin, data.parent_task_id, data.workflow_id, data.node,
        data.schedule_id, data.unique_key, data.requested_by,
    )  # fmt: skip


def _spec(data: Submitted) -> Row:
    scheduled_at = None if data.scheduled_at is None else naive(data.scheduled_at)
    return (
        data.task_name, data.pool, data.queue, data.priority, data.key, data.max_retries, data.timeout_s,
        data.queue_timeout_s, data.heartbeat_timeout_s, data.result_ttl_s, scheduled_at, to_json(data.tags),
        to_json(data.metadata), to_json(data.args), to_json(data.kwargs), _model_json(data.input),
    )  # fmt: skip


def _moving(work: TaskWork) -> Row:
    task = work.task
    return (
        task.status.value, task.reason, task.version, task.attempt, task.failures, task.losses, to_json(task.lost),
        task.ready, task.spec, task.gated, task.worker_id, task.cancel_requested_by, task.cancel_reason,
        task.pause_requested_by, task.pause_reason, None if task.due_at is None else naive(task.due_at),
        None if task.start_by is None else naive(task.start_by), task.cleaned, task.erased, task.event_id,
        work.started_at, work.updated_at, work.position,
    )  # fmt: skip


def _outcome(data: EventData, completed_at: datetime | None) -> Row:
    if isinstance(data, Completed):
        result = None if data.output is not None else to_json(data.result)
        return (result, _model_json(data.output), None, completed_at, data.duration_s)
    return (None, None, _error(data), completed_at, None)


def _outcome_word(data: EventData) -> str:
    """What an attempt ended with, in one word of the ``attempts`` table."""
    match data:
        case Completed():
            return "completed"
        case Failed():
            return "worker_lost" if data.reason == "poison" else "failed"
        case Retrying():
            return "failed" if data.reason == "error" else "timed_out"
        case TimedOut():
            return "timed_out"
        case Queued():
            return data.reason
        case Cancelled():
            return "cancelled"
        case Paused():
            return "worker_lost" if data.lost else "paused"
        case _:
            return TYPE_OF[type(data)].name


def _error(data: EventData) -> str | None:
    if isinstance(data, Failed | Retrying):
        return data.error.model_dump_json()
    if isinstance(data, TimedOut):
        return timeout_error(data.reason, data.after_s).model_dump_json()
    return None


@dataclass(slots=True)
class FoldedReports:
    """What a batch of PROGRESS comes to. Only the newest line of the highest attempt is kept of a task's progress, so a
    worker that lost its attempt and still talks is not shown; whether the attempt is the task's current one is asked when
    it is read, because PROGRESS and EVENTS have no order between them."""

    progress: dict[str, Row] = field(default_factory=dict[str, Row])
    logs: list[Row] = field(default_factory=list[Row])


def fold_reports(batch: Iterable[tuple[int, Report]]) -> FoldedReports:
    """Fold (position, line) pairs in order of position."""
    folded = FoldedReports()
    for position, report in batch:
        data, at = report.data, naive(report.time)
        if isinstance(data, Progress):
            kept = folded.progress.get(report.task_id)
            if kept is None or report.attempt >= kept[1]:
                folded.progress[report.task_id] = (
                    report.task_id, report.attempt, data.done, data.total, data.unit, data.message, at, position,
                )  # fmt: skip
        else:
            folded.logs += (
                (position, report.task_id, report.attempt, naive(line.at), line.level, line.message, to_json(line.fields))
                for line in data.lines
            )
    return folded


def _model_json(model: EventData | None) -> str | None:
    return None if model is None else model.model_dump_json()
