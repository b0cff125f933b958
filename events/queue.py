"""The rules of a queue: its limits, its pauses, its gate. Pure, like a task's.

A queue with limits is *gated*: its tasks wait, held, until the queue admits them. Admission is an event of the queue itself,
so that of two gates that decide at once one wins; then each admitted task becomes ``queued`` and with that a work item. What
is admitted and not yet out of the workers' hands is counted from the log (``services/gate.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from eventq.events.aggregate import State, modelled
from eventq.events.data import EventData
from eventq.events.errors import IllegalTransition, QueueNotFound
from eventq.events.queue_events import Admission, QueueAdmitted, QueueConfigured, QueueLimits, QueuePaused, QueueResumed

NO_LIMITS = QueueLimits()


class Queue(State):
    """The fold of a queue's events. A queue that was never configured or paused has none, and no limits."""

    limits: QueueLimits = NO_LIMITS
    configured_by: str | None = None
    paused_at: datetime | None = None
    paused_by: str | None = None
    paused_reason: str | None = None

    @property
    def gated(self) -> bool:
        """Whether its tasks need admission."""
        return self.limits.gated

    @property
    def paused(self) -> bool:
        """Whether its tasks are not started."""
        return self.paused_by is not None


@dataclass(frozen=True, slots=True)
class ConfigureQueue:
    """Somebody sets all limits of the queue."""

    limits: QueueLimits
    requested_by: str


@dataclass(frozen=True, slots=True)
class PauseQueue:
    """Somebody wants no task of the queue to be started."""

    requested_by: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ResumeQueue:
    """Somebody wants its tasks to be started again."""

    requested_by: str


@dataclass(frozen=True, slots=True)
class AdmitTasks:
    """The gate lets these through. ``version``: of the queue that it counted on: any other event of the queue in between,
    another gate's admission above all, makes the count worthless."""

    version: int
    tasks: tuple[Admission, ...]


QueueCommand = ConfigureQueue | PauseQueue | ResumeQueue | AdmitTasks


def decide_queue(command: QueueCommand, queue: Queue) -> list[EventData]:
    """What follows; empty where the command is already fulfilled. Raises :class:`IllegalTransition` for
    admissions that are stale, or to a paused queue."""
    match command:
        case ConfigureQueue():
            same = command.limits == queue.limits
            return [] if same else [QueueConfigured(limits=command.limits, requested_by=command.requested_by)]
        case PauseQueue():
            return [] if queue.paused else [QueuePaused(requested_by=command.requested_by, reason=command.reason)]
        case ResumeQueue():
            return [QueueResumed(requested_by=command.requested_by)] if queue.paused else []
        case AdmitTasks():
            if command.version != queue.version:
                raise IllegalTransition("cannot admit on an outdated view of the queue", status=f"version {queue.version}")
            if queue.paused:
                raise IllegalTransition("cannot admit while the queue is paused", status="PAUSED")
            return [QueueAdmitted(tasks=list(command.tasks))] if command.tasks else []


def evolve_queue(queue: Queue, event_id: str, at: datetime, data: EventData) -> Queue:
    """The queue after its next event."""
    match data:
        case QueueConfigured():
            return queue.after(event_id, limits=data.limits, configured_by=data.requested_by)
        case QueuePaused():
            return queue.after(event_id, paused_at=at, paused_by=data.requested_by, paused_reason=data.reason)
        case QueueResumed():
            return queue.after(event_id, paused_at=None, paused_by=None, paused_reason=None)
        case QueueAdmitted():
            return queue.after(event_id)
        case _:
            raise IllegalTransition(f"{type(data).__name__} is not an event of a queue")


QUEUES = modelled(
    "queues", Queue, decide_queue, evolve_queue, QueueNotFound, (ConfigureQueue, PauseQueue, ResumeQueue, AdmitTasks)
)
