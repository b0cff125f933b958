"""The rules of a worker's life: it registers, may be paused, resized and drained, and stops or is lost.

Heartbeats are presence, not history; only their absence is an event. A worker that was called lost and yet lives says so by
registering again, and is what it was told to be before. A new start forgets that: who starts a worker wants it to work.

| before it registers | who registers                 | status after | capacity after        |
|---------------------|-------------------------------|--------------|-----------------------|
| absent, stopped     | anybody                       | ``ACTIVE``   | the registration's    |
| lost while active   | the same                      | ``ACTIVE``   | that it had when lost |
| lost while paused   | the same                      | ``PAUSED``   | that it had when lost |
| lost while draining | the same                      | ``DRAINING`` | that it had when lost |
| lost, as whatever   | another under its id          | ``ACTIVE``   | the registration's    |

The same: a process of the same pid (ids of processes are never used again), or a worker over HTTP, which is known by its id
alone. Lost twice in a row it is still what it was told before the first time, or since.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from eventq.events.aggregate import State, modelled
from eventq.events.data import EventData
from eventq.events.errors import IllegalTransition, WorkerNotFound
from eventq.events.worker_events import (
    CapacityChanged,
    WorkerDraining,
    WorkerLost,
    WorkerPaused,
    WorkerRegistered,
    WorkerResumed,
    WorkerStopped,
)


class WorkerStatus(StrEnum):
    """``ACTIVE`` takes work; ``PAUSED`` and ``DRAINING`` only finish what they have; the others are gone."""

    ABSENT = "ABSENT"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    LOST = "LOST"


LIVING = frozenset({WorkerStatus.ACTIVE, WorkerStatus.PAUSED, WorkerStatus.DRAINING})
GONE = frozenset({WorkerStatus.ABSENT, WorkerStatus.STOPPED, WorkerStatus.LOST})


class Worker(State):
    """The fold of a worker's events. ``ended_at``, ``end_reason``: when and why it stopped or was lost; ``returns_as``: what
    it is again when it comes back from being lost."""

    status: WorkerStatus = WorkerStatus.ABSENT
    kind: Literal["process", "http"] = "process"
    hostname: str = ""
    pid: int = 0
    pool: str = ""
    queues: tuple[str, ...] = ()
    capacity: int = 0
    devices: tuple[str, ...] = ()
    registered_at: datetime | None = None
    ended_at: datetime | None = None
    end_reason: str | None = None
    returns_as: WorkerStatus = WorkerStatus.ACTIVE


@dataclass(frozen=True, slots=True)
class RegisterWorker:
    """A worker begins to take work, or says that it still lives after it was called lost."""

    registration: WorkerRegistered


@dataclass(frozen=True, slots=True)
class PauseWorker:
    """Somebody wants it to take no new work."""

    requested_by: str


@dataclass(frozen=True, slots=True)
class ResumeWorker:
    """Somebody wants it to take work again."""

    requested_by: str


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Somebody wants it to finish what it has and end."""

    requested_by: str


@dataclass(frozen=True, slots=True)
class ChangeCapacity:
    """Somebody wants it to run at most so many attempts at once."""

    capacity: int
    requested_by: str


@dataclass(frozen=True, slots=True)
class StopWorker:
    """It ends of its own accord."""

    reason: str


@dataclass(frozen=True, slots=True)
class LoseWorker:
    """It is gone without a word. Said by whoever found it, never by the worker itself. ``version``: the version that was
    found silent; of several who found out, the later ones must not call lost a worker that has come back since."""

    version: int
    evidence: Literal["disconnected", "presence_lapsed"]
    running: tuple[str, ...]


WorkerCommand = RegisterWorker | PauseWorker | ResumeWorker | DrainWorker | ChangeCapacity | StopWorker | LoseWorker

WORKER_ACCEPTS: dict[type[WorkerCommand], frozenset[WorkerStatus]] = {
    RegisterWorker: GONE,
    PauseWorker: frozenset({WorkerStatus.ACTIVE, WorkerStatus.PAUSED}),
    ResumeWorker: frozenset({WorkerStatus.ACTIVE, WorkerStatus.PAUSED}),
    DrainWorker: LIVING,
    ChangeCapacity: frozenset({WorkerStatus.ACTIVE, WorkerStatus.PAUSED}),
    StopWorker: LIVING,
    LoseWorker: LIVING,
}
"""Which statuses admit which command."""


def decide_worker(command: WorkerCommand, worker: Worker) -> list[EventData]:
    """What follows; empty where the command is already fulfilled. Raises :class:`IllegalTransition`."""
    if worker.status not in WORKER_ACCEPTS[type(command)]:
        raise IllegalTransition(
            f"cannot {_VERB[type(command)]} a worker with status {worker.status}", status=str(worker.status)
        )
    match command:
        case RegisterWorker():
            return [command.registration]
        case PauseWorker():
            paused = worker.status is WorkerStatus.PAUSED
            return [] if paused else [WorkerPaused(requested_by=command.requested_by)]
        case ResumeWorker():
            active = worker.status is WorkerStatus.ACTIVE
            return [] if active else [WorkerResumed(requested_by=command.requested_by)]
        case DrainWorker():
            draining = worker.status is WorkerStatus.DRAINING
            return [] if draining else [WorkerDraining(requested_by=command.requested_by)]
        case ChangeCapacity():
            same = command.capacity == worker.capacity
            return [] if same else [CapacityChanged(capacity=command.capacity, requested_by=command.requested_by)]
        case StopWorker():
            return [WorkerStopped(reason=command.reason)]
        case LoseWorker():
            if command.version != worker.version:
                return []
            return [WorkerLost(evidence=command.evidence, running=list(command.running))]


_VERB: dict[type[WorkerCommand], str] = {
    RegisterWorker: "register",
    PauseWorker: "pause",
    ResumeWorker: "resume",
    DrainWorker: "drain",
    ChangeCapacity: "change the capacity of",
    StopWorker: "stop",
    LoseWorker: "call lost",
}


def evolve_worker(worker: Worker, event_id: str, at: datetime, data: EventData) -> Worker:
    """The worker after its next event."""
    match data:
        case WorkerRegistered():
            back = _comes_back(worker, data)
            return worker.after(
                event_id,
                status=worker.returns_as if back else WorkerStatus.ACTIVE,
                kind=data.kind,
                hostname=data.hostname,
                pid=data.pid,
                pool=data.pool,
                queues=tuple(data.queues),
                capacity=worker.capacity if back else data.capacity,
                devices=tuple(data.devices),
                registered_at=at,
                ended_at=None,
                end_reason=None,
                returns_as=WorkerStatus.ACTIVE,
            )
        case WorkerPaused():
            return worker.after(event_id, status=WorkerStatus.PAUSED)
        case WorkerResumed():
            return worker.after(event_id, status=WorkerStatus.ACTIVE)
        case WorkerDraining():
            return worker.after(event_id, status=WorkerStatus.DRAINING)
        case CapacityChanged():
            return worker.after(event_id, capacity=data.capacity)
        case WorkerStopped():
            return worker.after(event_id, status=WorkerStatus.STOPPED, ended_at=at, end_reason=data.reason)
        case WorkerLost():
            return worker.after(
                event_id, status=WorkerStatus.LOST, ended_at=at, end_reason=data.evidence, returns_as=worker.status
            )
        case _:
            raise IllegalTransition(f"{type(data).__name__} is not an event of a worker")


def _comes_back(worker: Worker, data: WorkerRegistered) -> bool:
    """Whether it is the worker itself that registers, which was called lost and yet lives."""
    return worker.status is WorkerStatus.LOST and (data.kind, data.pid) == (worker.kind, worker.pid)


WORKERS = modelled("workers", Worker, decide_worker, evolve_worker, WorkerNotFound, (RegisterWorker,))

NO_WORKER = WORKERS.absent
