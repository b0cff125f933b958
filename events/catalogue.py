"""Every event: what its data holds, its schema version, and how older data is read.

An event is a past-tense fact. Its type is one subject token (``completed``), unique within its aggregate (``tasks``,
``workers``). Stored events are never edited: when a model changes, its schema number goes up and an *upcaster* turns the
older data into the newer when it is read, so that a log written today is readable for ever (``tests/golden``). A type or
schema that is not listed here was written by a newer program: reading it raises, because skipping it would fold a lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from eventq.events.errors import UnknownEvent
from eventq.events.retry import RetryPolicy

JSON = Any
"""A JSON value: ``None``, ``bool``, ``int``, ``float``, ``str``, or lists and string-keyed dicts of those."""


class EventData(BaseModel):
    """Base of all event data: immutable, and closed, so that a misspelt field cannot slip into the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BlobRef(EventData):
    """Where a payload above 64 KiB lies, and what it must be: a reader checks size and digest."""

    key: str
    sha256: str
    size_bytes: int
    media_type: str = "application/octet-stream"


class ErrorInfo(EventData):
    """What an attempt ended with: the exception's class name, its message, and the user's part of the traceback."""

    type: str
    message: str
    traceback: str | None = None


class Submitted(EventData):
    """A task was accepted. The whole of what was asked for: everything later refers back to this event.

    ``args`` and ``kwargs`` are empty where ``input`` holds them as a blob of ``{"args": [...], "kwargs": {...}}``.
    ``original_task_id`` and ``origin`` link a task made by retry or replay to the one it repeats.
    """

    task_name: str
    args: list[JSON] = []
    kwargs: dict[str, JSON] = {}
    input: BlobRef | None = None
    pool: str
    queue: str
    priority: int
    max_retries: int
    timeout_s: float | None = None
    scheduled_at: datetime | None = None
    original_task_id: str | None = None
    origin: Literal["retry", "replay"] | None = None
    requested_by: str | None = None


class Queued(EventData):
    """The task became ready to run (again). ``worker_id``: who held it before, where somebody did."""

    reason: Literal["due", "retry_due", "interrupted", "worker_lost", "reconciled"]
    worker_id: str | None = None


class Started(EventData):
    """A worker holds the attempt from here on. ``device``: ``cpu``, ``cuda:0``, ..."""

    worker_id: str
    hostname: str
    device: str


class Retrying(EventData):
    """The attempt failed or timed out and another will be made from ``due_at`` on."""

    error: ErrorInfo
    reason: Literal["error", "execution_timeout"]
    due_at: datetime


class Completed(EventData):
    """The task is done. ``output`` refers to the result where it is too large to stand inline in ``result``."""

    result: JSON = None
    output: BlobRef | None = None
    duration_s: float


class Failed(EventData):
    """The task ended with an error. ``attempts_exhausted``: no retry was left; ``not_retryable``: none could help;
    ``poison``: it cost too many workers their lives."""

    error: ErrorInfo
    reason: Literal["attempts_exhausted", "not_retryable", "poison"]


class TimedOut(EventData):
    """The last attempt ran longer than ``timeout_s`` and was stopped."""

    reason: Literal["execution_timeout"]
    after_s: float


class CancelRequested(EventData):
    """Somebody asked for a running task to stop; its worker is told and will confirm."""

    requested_by: str
    reason: str | None = None


class Cancelled(EventData):
    """The task will not run, or not run on. ``confirmed_by``: the worker that stopped it; ``None`` where none had begun."""

    requested_by: str
    reason: str | None = None
    confirmed_by: str | None = None


class TaskDeclaration(EventData):
    """What a worker says of one task it can run: enough for any process to check a submission against it.

    ``parameters``: the order in which positional arguments are bound; ``arguments``: a JSON Schema of the named ones.
    """

    name: str
    pool: str
    queue: str
    priority: int
    max_retries: int
    timeout_s: float | None
    retry: RetryPolicy
    parameters: list[str]
    arguments: dict[str, JSON]
    doc: str = ""


class WorkerRegistered(EventData):
    """A worker process began to take work."""

    hostname: str
    pid: int
    pool: str
    queues: list[str]
    capacity: int
    devices: list[str]
    tasks: list[TaskDeclaration]


class WorkerStopped(EventData):
    """A worker process ended of its own accord, its work finished or handed back."""

    reason: str


Upcaster = Callable[[dict[str, JSON]], dict[str, JSON]]


@dataclass(frozen=True, slots=True)
class EventType:
    """One entry of the catalogue. ``upcasters[n]`` turns data of schema ``n`` into data of schema ``n + 1``."""

    aggregate: str
    name: str
    model: type[EventData]
    schema: int = 1
    upcasters: dict[int, Upcaster] = field(default_factory=dict[int, Upcaster])


_TYPES = (
    EventType("tasks", "submitted", Submitted),
    EventType("tasks", "queued", Queued),
    EventType("tasks", "started", Started),
    EventType("tasks", "retrying", Retrying),
    EventType("tasks", "completed", Completed),
    EventType("tasks", "failed", Failed),
    EventType("tasks", "timed_out", TimedOut),
    EventType("tasks", "cancel_requested", CancelRequested),
    EventType("tasks", "cancelled", Cancelled),
    EventType("workers", "registered", WorkerRegistered),
    EventType("workers", "stopped", WorkerStopped),
)

CATALOGUE: dict[tuple[str, str], EventType] = {(t.aggregate, t.name): t for t in _TYPES}
TYPE_OF: dict[type[EventData], EventType] = {t.model: t for t in _TYPES}


def read_data(aggregate: str, name: str, schema: int, data: dict[str, JSON]) -> EventData:
    """The data of a stored event as today's model. Raises :class:`UnknownEvent` for what a newer program wrote."""
    known = CATALOGUE.get((aggregate, name))
    if known is None:
        raise UnknownEvent(f"event type {aggregate}/{name} is unknown to this version of eventq", type=name)
    if schema > known.schema:
        raise UnknownEvent(
            f"event {aggregate}/{name} has schema {schema}, this version of eventq reads up to {known.schema}",
            type=name,
            found=schema,
            limit=known.schema,
        )
    for step in range(schema, known.schema):
        data = known.upcasters[step](data)
    return known.model.model_validate(data)
