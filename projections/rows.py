"""What reads answer: rows of the projection as typed, immutable values. All times are aware UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import orjson

from eventq.events.data import JSON, BlobRef, ErrorInfo
from eventq.events.task import Status


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """The newest progress line of a task's current attempt. ``time``: the worker's clock."""

    attempt: int
    done: float
    total: float | None
    unit: str | None
    message: str | None
    time: datetime


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One task. ``as_of``: the position in EVENTS that it was read at; ``position``: that of its newest event.

    ``args`` and ``kwargs`` are empty where ``input`` refers to them, ``result`` is ``None`` where ``output`` does.
    """

    task_id: str
    task_name: str
    status: Status
    reason: str | None
    pool: str
    queue: str
    priority: int
    version: int
    attempt: int
    failures: int
    losses: int
    ready: int
    gated: bool
    key: str | None
    max_retries: int
    timeout_s: float | None
    queue_timeout_s: float | None
    heartbeat_timeout_s: float | None
    result_ttl_s: float | None
    worker_id: str | None
    cancel_requested_by: str | None
    cancel_reason: str | None
    pause_requested_by: str | None
    pause_reason: str | None
    created_at: datetime
    scheduled_at: datetime | None
    due_at: datetime | None
    start_by: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime
    duration_s: float | None
    created_position: int
    position: int
    event_id: str
    tags: list[str]
    metadata: dict[str, str]
    args: list[JSON]
    kwargs: dict[str, JSON]
    input: BlobRef | None
    result: JSON
    output: BlobRef | None
    error: ErrorInfo | None
    original_task_id: str | None
    origin: str | None
    parent_task_id: str | None
    workflow_id: str | None
    node: str | None
    schedule_id: str | None
    requested_by: str | None
    cleaned: bool
    erased: bool
    progress: ProgressRow | None = None
    as_of: int = 0


@dataclass(frozen=True, slots=True)
class TaskPage:
    """One page of a list. ``total``: of all that match, at the same moment as ``rows``."""

    total: int
    rows: list[TaskRow]
    as_of: int


@dataclass(frozen=True, slots=True)
class Matching:
    """Which tasks match, by id, each with its version. ``total``: how many match in all, of which these are the first."""

    total: int
    tasks: list[tuple[str, int]]
    as_of: int


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event of a task. ``data``: as today's schema has it."""

    position: int
    version: int
    type: str
    time: datetime
    attempt: int
    source: str
    event_id: str
    previous: str | None
    causation_id: str | None
    correlation_id: str | None
    traceparent: str | None
    data: dict[str, JSON]


@dataclass(frozen=True, slots=True)
class LogRow:
    """One line that task code wrote. ``position``: in PROGRESS."""

    position: int
    attempt: int
    time: datetime
    level: str
    message: str
    fields: dict[str, JSON]


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One execution. ``outcome``: completed, failed, timed_out, cancelled, interrupted or worker_lost; ``None``: running."""

    attempt: int
    worker_id: str
    hostname: str
    device: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: ErrorInfo | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """All that is known of a task, read at one moment; empty where there is no such task."""

    events: list[EventRow]
    attempts: list[AttemptRow]
    logs: list[LogRow]
    as_of: int


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker. ``status``: as in ``WorkerStatus``; presence tells whether it lives. ``running``: tasks it holds now."""

    worker_id: str
    status: str
    kind: str
    hostname: str
    pid: int
    pool: str
    queues: list[str]
    capacity: int
    devices: list[str]
    registered_at: datetime
    ended_at: datetime | None
    end_reason: str | None
    running: int
    version: int


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks: all conditions hold, an empty one is none. ``tags``: all of them; ``metadata``: all these pairs. A time
    ``after`` is included, one ``before`` is not. ``cleaned``: with or without those whose result was given up, ``None``: both;
    ``unretried``: only those that can be and that no retry repeats."""

    statuses: tuple[Status, ...] = ()
    priority: int | None = None
    queue: str | None = None
    pool: str | None = None
    task_name: str | None = None
    worker_id: str | None = None
    key: str | None = None
    reason: str | None = None
    tags: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    workflow_id: str | None = None
    schedule_id: str | None = None
    parent_task_id: str | None = None
    original_task_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    updated_after: datetime | None = None
    updated_before: datetime | None = None
    cleaned: bool | None = None
    unretried: bool = False


_MODELS: dict[str, type[BlobRef] | type[ErrorInfo]] = {"input": BlobRef, "output": BlobRef, "error": ErrorInfo}
_JSON = frozenset({"args", "kwargs", "result", "data", "fields", "queues", "devices", "tags", "metadata"})
_TASK_NAMES = frozenset(f.name for f in fields(TaskRow))


def values_of(record: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The columns named, with JSON parsed and times made aware."""
    return {name: _value(name, value) for name, value in record.items() if name in names}


def task_row(record: Mapping[str, Any], as_of: int, progress: ProgressRow | None = None) -> TaskRow:
    """A row of ``tasks`` by column names."""
    values = values_of(record, _TASK_NAMES)
    values["status"] = Status(values["status"])
    return TaskRow(**values, progress=progress, as_of=as_of)


def _value(name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)
    if name in _JSON:
        return orjson.loads(value)
    if (model := _MODELS.get(name)) is not None:
        return model.model_validate_json(value)
    return value
