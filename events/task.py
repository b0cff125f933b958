"""The rules of a task's life: pure functions over values. No I/O, no clock, no randomness.

``decide(command, task)`` answers the data of the events that the command leads to, or refuses by raising; ``evolve(task,
event)`` folds one stored event. What may follow what stands in one table, ``ACCEPTS``; a refused command changes nothing.

Two invariants carry the whole design:

* **A version is written once.** Every event of a task is appended as version ``task.version + 1`` on the condition that
  nobody has written it. Of two that decide at once, one wins; the other reads again and decides again.
* **The attempt number is the fence.** A worker's report names its attempt. When the lease was taken over, the number has
  moved on (or the task is no longer running), and the report is refused however late it comes.

The fold of a task is small and travels as ``state`` in each of its events, so the last event is enough to decide upon.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, assert_never

from eventq.events.catalogue import (
    Cancelled,
    CancelRequested,
    Completed,
    ErrorInfo,
    EventData,
    Failed,
    Queued,
    Retrying,
    Started,
    Submitted,
    TimedOut,
)
from eventq.events.commands import (
    CancelTask,
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ExpireLease,
    FailAttempt,
    InterruptAttempt,
    PromoteTask,
    RequeueTask,
    StartAttempt,
    SubmitTask,
    TimeOutAttempt,
)
from eventq.events.errors import IllegalTransition, StaleAttempt, UnknownEvent
from eventq.events.limits import LOSSES_MAX


class Status(StrEnum):
    """Where a task is in its life. ``ABSENT`` is never stored: it is the state before the first event."""

    ABSENT = "ABSENT"
    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    RETRYING = "RETRYING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.TIMED_OUT, Status.CANCELLED})
WAITING = frozenset({Status.SCHEDULED, Status.PENDING, Status.RETRYING})


@dataclass(frozen=True, slots=True)
class Task:
    """The fold of a task's events: all that deciding needs, and nothing else.

    ``ready``: version of the last event that made the task ready (0: none yet); a work item of any other version is stale.
    ``failures``: attempts that failed or timed out; ``losses``: attempts whose worker was lost; ``attempt``: all that started.
    """

    status: Status = Status.ABSENT
    version: int = 0
    event_id: str | None = None
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    ready: int = 0
    task_name: str = ""
    pool: str = ""
    queue: str = ""
    priority: int = 0
    max_retries: int = 0
    timeout_s: float | None = None
    due_at: datetime | None = None
    worker_id: str | None = None
    cancel_requested_by: str | None = None
    cancel_reason: str | None = None
    reason: str | None = None

    @property
    def finished(self) -> bool:
        """No event will follow."""
        return self.status in TERMINAL


ABSENT = Task()
_DEFAULTS = tuple((f.name, f.default) for f in fields(Task))

ACCEPTS: dict[type[Command], frozenset[Status]] = {
    SubmitTask: frozenset({Status.ABSENT}),
    StartAttempt: frozenset({Status.PENDING}),
    CompleteAttempt: frozenset({Status.RUNNING}),
    FailAttempt: frozenset({Status.RUNNING}),
    TimeOutAttempt: frozenset({Status.RUNNING}),
    InterruptAttempt: frozenset({Status.RUNNING}),
    ExpireLease: frozenset({Status.RUNNING}),
    PromoteTask: frozenset({Status.SCHEDULED, Status.RETRYING}),
    RequeueTask: frozenset({Status.PENDING}),
    CancelTask: WAITING | {Status.RUNNING},
    ConfirmCancel: frozenset({Status.RUNNING}),
}
"""Which statuses admit which command. The diagram in ``docs/lifecycle.md`` is drawn from this table and ``decide``."""


def decide(command: Command, task: Task) -> list[EventData]:
    """The data of the events that follow; empty where the command is already fulfilled.

    Raises :class:`IllegalTransition` where the status does not admit the command and :class:`StaleAttempt` where a
    report names an attempt that is not the current one.
    """
    if task.status not in ACCEPTS[type(command)]:
        raise IllegalTransition(f"cannot {_VERB[type(command)]} a task with status {task.status}", status=str(task.status))
    match command:
        case SubmitTask():
            return [command.submission]
        case StartAttempt():
            return [Started(worker_id=command.worker_id, hostname=command.hostname, device=command.device)]
        case PromoteTask():
            return _promote(command, task)
        case RequeueTask():
            return [Queued(reason="reconciled")] if command.version == task.version else []
        case CancelTask():
            return _cancel(command, task)
        case _:
            if command.attempt != task.attempt:
                raise StaleAttempt(reported=command.attempt, current=task.attempt)
            return [_end_attempt(command, task)]


def _promote(command: PromoteTask, task: Task) -> list[EventData]:
    too_early = task.due_at is not None and command.now < task.due_at
    if command.version != task.version or too_early:
        return []
    return [Queued(reason="due" if task.status is Status.SCHEDULED else "retry_due")]


def _cancel(command: CancelTask, task: Task) -> list[EventData]:
    if task.status is not Status.RUNNING:
        return [Cancelled(requested_by=command.requested_by, reason=command.reason)]
    if task.cancel_requested_by is not None:
        return []
    return [CancelRequested(requested_by=command.requested_by, reason=command.reason)]


AttemptReport = CompleteAttempt | FailAttempt | TimeOutAttempt | InterruptAttempt | ExpireLease | ConfirmCancel


def _end_attempt(report: AttemptReport, task: Task) -> EventData:
    match report:
        case CompleteAttempt():
            return Completed(result=report.result, output=report.output, duration_s=report.duration_s)
        case ConfirmCancel():
            return _cancelled(task)
        case FailAttempt():
            return _retry(report, task, report.error, "error") or Failed(
                error=report.error,
                reason="not_retryable" if report.retry_in_s is None else "attempts_exhausted",
            )
        case TimeOutAttempt():
            error = ErrorInfo(type="ExecutionTimeout", message=f"stopped after {report.after_s:g} s")
            return _retry(report, task, error, "execution_timeout") or TimedOut(
                reason="execution_timeout", after_s=report.after_s
            )
        case InterruptAttempt():
            return _cancelled(task) if task.cancel_requested_by else Queued(reason="interrupted", worker_id=task.worker_id)
        case ExpireLease():
            return _lose(task)
        case _:
            assert_never(report)


def _retry(report: FailAttempt | TimeOutAttempt, task: Task, error: ErrorInfo, reason: Any) -> EventData | None:
    """What follows a failure while a retry is left; a task that somebody wants cancelled is not retried."""
    if task.cancel_requested_by is not None:
        return _cancelled(task)
    if report.retry_in_s is None or task.failures >= task.max_retries:
        return None
    return Retrying(error=error, reason=reason, due_at=report.now + timedelta(seconds=report.retry_in_s))


def _lose(task: Task) -> EventData:
    if task.cancel_requested_by is not None:
        return _cancelled(task)
    if task.losses + 1 >= LOSSES_MAX:
        error = ErrorInfo(type="WorkerLost", message=f"{task.losses + 1} workers were lost while running this task")
        return Failed(error=error, reason="poison")
    return Queued(reason="worker_lost", worker_id=task.worker_id)


def _cancelled(task: Task) -> Cancelled:
    return Cancelled(
        requested_by=task.cancel_requested_by or "unknown",
        reason=task.cancel_reason,
        confirmed_by=task.worker_id,
    )


_VERB: dict[type[Command], str] = {
    SubmitTask: "submit",
    StartAttempt: "start",
    CompleteAttempt: "complete",
    FailAttempt: "fail",
    TimeOutAttempt: "time out",
    InterruptAttempt: "interrupt",
    ExpireLease: "expire the lease of",
    PromoteTask: "promote",
    RequeueTask: "requeue",
    CancelTask: "cancel",
    ConfirmCancel: "confirm the cancellation of",
}


def makes_ready(data: EventData, at: datetime) -> bool:
    """Whether an event of this data, written at ``at``, is itself the work item: a worker may run the task now."""
    if isinstance(data, Submitted):
        return data.scheduled_at is None or data.scheduled_at <= at
    return isinstance(data, Queued)


def evolve(task: Task, event_id: str, at: datetime, data: EventData) -> Task:
    """The task after its next event: version + 1, whatever the event is. ``at``: the event's own time."""
    version = task.version + 1
    match data:
        case Submitted():
            ready = makes_ready(data, at)
            return Task(
                status=Status.PENDING if ready else Status.SCHEDULED,
                version=version,
                event_id=event_id,
                ready=version if ready else 0,
                task_name=data.task_name,
                pool=data.pool,
                queue=data.queue,
                priority=data.priority,
                max_retries=data.max_retries,
                timeout_s=data.timeout_s,
                due_at=None if ready else data.scheduled_at,
            )
        case Started():
            return replace(
                task,
                status=Status.RUNNING,
                version=version,
                event_id=event_id,
                attempt=task.attempt + 1,
                worker_id=data.worker_id,
                reason=None,
            )
        case Queued():
            return replace(
                task,
                status=Status.PENDING,
                version=version,
                event_id=event_id,
                ready=version,
                due_at=None,
                worker_id=None,
                reason=data.reason,
                losses=task.losses + (data.reason == "worker_lost"),
            )
        case Retrying():
            return replace(
                task,
                status=Status.RETRYING,
                version=version,
                event_id=event_id,
                failures=task.failures + 1,
                due_at=data.due_at,
                worker_id=None,
                reason=data.reason,
            )
        case CancelRequested():
            return replace(
                task,
                version=version,
                event_id=event_id,
                cancel_requested_by=data.requested_by,
                cancel_reason=data.reason,
            )
        case Completed():
            return replace(task, status=Status.COMPLETED, version=version, event_id=event_id, reason=None)
        case Failed():
            return replace(
                task,
                status=Status.FAILED,
                version=version,
                event_id=event_id,
                reason=data.reason,
                failures=task.failures + (data.reason != "poison"),
                losses=task.losses + (data.reason == "poison"),
            )
        case TimedOut():
            return replace(
                task,
                status=Status.TIMED_OUT,
                version=version,
                event_id=event_id,
                failures=task.failures + 1,
                reason=data.reason,
            )
        case Cancelled():
            return replace(
                task,
                status=Status.CANCELLED,
                version=version,
                event_id=event_id,
                due_at=None,
                reason=data.reason,
                cancel_requested_by=data.requested_by,
            )
        case _:
            raise IllegalTransition(f"{type(data).__name__} is not an event of a task")


def replay(events: Iterable[tuple[str, datetime, EventData]]) -> Task:
    """Fold a whole history, given as (event id, time, data) in order of version."""
    task = ABSENT
    for event_id, at, data in events:
        task = evolve(task, event_id, at, data)
    return task


def summary(task: Task) -> dict[str, Any]:
    """The task as the ``state`` of its last event: plain JSON values, defaults left out."""
    found: dict[str, Any] = {}
    for name, default in _DEFAULTS:
        if (value := getattr(task, name)) != default:
            found[name] = value
    return found


def from_summary(state: dict[str, Any]) -> Task:
    """The inverse of :func:`summary`."""
    known: dict[str, Any] = {**state, "status": Status(state.get("status", Status.ABSENT))}
    if isinstance(due_at := known.get("due_at"), str):
        known["due_at"] = datetime.fromisoformat(due_at)
    try:
        return Task(**known)
    except TypeError as error:
        raise UnknownEvent(f"the task's state was written by a newer version of eventq: {error}") from error
