"""The rules of a worker's life: it registers once and stops once. Heartbeats are presence, not history."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from eventq.events.catalogue import EventData, WorkerRegistered, WorkerStopped
from eventq.events.errors import IllegalTransition


class WorkerStatus(StrEnum):
    """``ACTIVE`` from registration on; whether its process still lives is a question to presence."""

    ABSENT = "ABSENT"
    ACTIVE = "ACTIVE"
    STOPPED = "STOPPED"


@dataclass(frozen=True, slots=True)
class Worker:
    """The fold of a worker's events."""

    status: WorkerStatus = WorkerStatus.ABSENT
    version: int = 0
    event_id: str | None = None


NO_WORKER = Worker()


def evolve_worker(worker: Worker, event_id: str, data: EventData) -> Worker:
    """The worker after its next event."""
    match data:
        case WorkerRegistered():
            status = WorkerStatus.ACTIVE
        case WorkerStopped():
            status = WorkerStatus.STOPPED
        case _:
            raise IllegalTransition(f"{type(data).__name__} is not an event of a worker")
    return Worker(status=status, version=worker.version + 1, event_id=event_id)


def worker_summary(worker: Worker) -> dict[str, Any]:
    """The worker as the ``state`` of its last event."""
    return {"status": worker.status, "version": worker.version, "event_id": worker.event_id}
