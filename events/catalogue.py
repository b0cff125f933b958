"""Every event: what its data holds, its schema version, and how older data is read.

An event is a past-tense fact. Its type is one subject token (``completed``), unique within its aggregate (``tasks``,
``workers``). Stored events are never edited: when a model changes, its schema number goes up and an *upcaster* turns the
older data into the newer when it is read, so that a log written today is readable for ever (``tests/golden``). A type or
schema that is not listed here was written by a newer program: reading it raises, because skipping it would fold a lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from eventq.events.claim_events import Answered, Claimed
from eventq.events.data import JSON, EventData
from eventq.events.errors import UnknownEvent
from eventq.events.queue_events import QueueAdmitted, QueueConfigured, QueuePaused, QueueResumed
from eventq.events.schedule_events import (
    ScheduleCreated,
    ScheduleDeleted,
    ScheduleErased,
    SchedulePaused,
    ScheduleResumed,
    ScheduleTicked,
    ScheduleTriggered,
    ScheduleUpdated,
)
from eventq.events.task_events import (
    Cancelled,
    CancelRequested,
    Cleaned,
    Completed,
    Erased,
    Failed,
    Gone,
    Paused,
    PauseRequested,
    Queued,
    Resumed,
    Retrying,
    Started,
    Submitted,
    TimedOut,
    Updated,
)
from eventq.events.worker_events import (
    CapacityChanged,
    WorkerDraining,
    WorkerLost,
    WorkerPaused,
    WorkerRegistered,
    WorkerResumed,
    WorkerStopped,
)
from eventq.events.workflow_events import (
    NodeApproved,
    NodeRejected,
    WorkflowAdvanced,
    WorkflowCancelled,
    WorkflowCancelRequested,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowErased,
    WorkflowExpired,
    WorkflowFailed,
    WorkflowRetried,
    WorkflowSignalled,
    WorkflowTimedOut,
)

Upcaster = Callable[[dict[str, JSON]], dict[str, JSON]]


@dataclass(frozen=True, slots=True)
class EventType:
    """One entry of the catalogue. ``upcasters[n]`` turns data of schema ``n`` into data of schema ``n + 1``."""

    aggregate: str
    name: str
    model: type[EventData]
    schema: int = 1
    upcasters: dict[int, Upcaster] = field(default_factory=dict[int, Upcaster])


def _as_it_was(data: dict[str, JSON]) -> dict[str, JSON]:
    """Only optional fields came, or further values of old ones: older data is read as it stands."""
    return data


_GREW: dict[int, Upcaster] = {1: _as_it_was}

_TYPES = (
    EventType("tasks", "submitted", Submitted, 2, _GREW),
    EventType("tasks", "updated", Updated),
    EventType("tasks", "queued", Queued, 2, _GREW),
    EventType("tasks", "started", Started),
    EventType("tasks", "retrying", Retrying, 2, _GREW),
    EventType("tasks", "completed", Completed),
    EventType("tasks", "failed", Failed, 2, _GREW),
    EventType("tasks", "timed_out", TimedOut, 2, _GREW),
    EventType("tasks", "cancel_requested", CancelRequested),
    EventType("tasks", "cancelled", Cancelled, 2, _GREW),
    EventType("tasks", "pause_requested", PauseRequested),
    EventType("tasks", "paused", Paused),
    EventType("tasks", "resumed", Resumed),
    EventType("tasks", "cleaned", Cleaned),
    EventType("tasks", "erased", Erased),
    EventType("tasks", "gone", Gone),
    EventType("workers", "registered", WorkerRegistered, 2, _GREW),
    EventType("workers", "paused", WorkerPaused),
    EventType("workers", "resumed", WorkerResumed),
    EventType("workers", "draining", WorkerDraining),
    EventType("workers", "capacity_changed", CapacityChanged),
    EventType("workers", "stopped", WorkerStopped),
    EventType("workers", "lost", WorkerLost),
    EventType("system", "claimed", Claimed),
    EventType("system", "answered", Answered),
    EventType("queues", "configured", QueueConfigured),
    EventType("queues", "paused", QueuePaused),
    EventType("queues", "resumed", QueueResumed),
    EventType("queues", "admitted", QueueAdmitted),
    EventType("schedules", "created", ScheduleCreated),
    EventType("schedules", "updated", ScheduleUpdated),
    EventType("schedules", "paused", SchedulePaused),
    EventType("schedules", "resumed", ScheduleResumed),
    EventType("schedules", "ticked", ScheduleTicked),
    EventType("schedules", "triggered", ScheduleTriggered),
    EventType("schedules", "deleted", ScheduleDeleted),
    EventType("schedules", "erased", ScheduleErased),
    EventType("schedules", "gone", Gone),
    EventType("workflows", "created", WorkflowCreated),
    EventType("workflows", "advanced", WorkflowAdvanced),
    EventType("workflows", "approved", NodeApproved),
    EventType("workflows", "rejected", NodeRejected),
    EventType("workflows", "signalled", WorkflowSignalled),
    EventType("workflows", "cancel_requested", WorkflowCancelRequested),
    EventType("workflows", "expired", WorkflowExpired),
    EventType("workflows", "retried", WorkflowRetried),
    EventType("workflows", "completed", WorkflowCompleted),
    EventType("workflows", "failed", WorkflowFailed),
    EventType("workflows", "cancelled", WorkflowCancelled),
    EventType("workflows", "timed_out", WorkflowTimedOut),
    EventType("workflows", "erased", WorkflowErased),
    EventType("workflows", "gone", Gone),
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
