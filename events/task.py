"""The rules of a task's life: pure functions over values. No I/O, no clock, no randomness.

``decide(command, task)`` answers the data of the events that the command leads to, or refuses by raising; ``evolve(task,
event)`` folds one stored event. What may follow what stands in one table, ``ACCEPTS``; a refused command changes nothing.

Three invariants carry the whole design:

* **A version is written once.** Every event of a task is appended as version ``task.version + 1`` on the condition that
  nobody has written it. Of two that decide at once, one wins; the other reads again and decides again.
* **The attempt number is the fence.** A worker's report names its attempt. When the lease was taken over, the number has
  moved on (or nobody holds the task any more), and the report is refused however late it comes.
* **One event makes a task ready, and is the work item.** ``ready`` names its version. Whatever changes what is to be run,
  or where, or whether, writes a newer version, which makes older work items worthless.

The fold of a task is small and travels as ``state`` in each of its events, so the last event is enough to decide upon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, assert_never

from eventq.events.aggregate import Aggregate
from eventq.events.commands import (
    AdmitTask,
    CancelTask,
    CleanTask,
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ConfirmPause,
    EraseTask,
    ExpireLease,
    ExpireQueueWait,
    FailAttempt,
    HoldTask,
    InterruptAttempt,
    PauseTask,
    PromoteTask,
    RequeueTask,
    ResumeTask,
    StartAttempt,
    SubmitTask,
    TimeOutAttempt,
    UpdateTask,
)
from eventq.events.data import ErrorInfo, EventData
from eventq.events.errors import IllegalTransition, StaleAttempt, TaskNotFound, UnknownEvent
from eventq.events.limits import LOSSES_MAX
from eventq.events.subjects import Route
from eventq.events.task_events import (
    Cancelled,
    CancelRequested,
    Cleaned,
    Completed,
    Erased,
    Failed,
    LostAttempt,
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


class Status(StrEnum):
    """Where a task is in its life. ``ABSENT`` is never stored: it is the state before the first event."""

    ABSENT = "ABSENT"
    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    RETRYING = "RETRYING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.TIMED_OUT, Status.CANCELLED})
WAITING = frozenset({Status.SCHEDULED, Status.PENDING, Status.RETRYING})
HOLDING = frozenset({Status.RUNNING, Status.PAUSED})
"""Statuses in which a worker may have the task in its hands; of a paused one only where its attempt is frozen."""


class Task(NamedTuple):
    """The fold of a task's events: all that deciding needs, and nothing else.

    ``ready``: version of the event that made the task ready, 0 while it is not, or waits at its queue's gate; once started
    it stays, and a work item of any other version is stale. ``spec``: version of the event with the submission that holds.
    ``failures``: attempts that failed or timed out; ``losses``: attempts whose worker was lost, by name in ``lost``;
    ``attempt``: all that started. ``due_at``: when a scheduled or retrying task will be ready, kept while it is paused.
    ``start_by``: when a ready task that nobody has started yet times out. ``gated``: it needs its queue's admission.
    """

    status: Status = Status.ABSENT
    version: int = 0
    event_id: str | None = None
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    lost: tuple[str, ...] = ()
    ready: int = 0
    spec: int = 1
    task_name: str = ""
    pool: str = ""
    queue: str = ""
    priority: int = 0
    key: str | None = None
    gated: bool = False
    max_retries: int = 0
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    heartbeat_timeout_s: float | None = None
    result_ttl_s: float | None = None
    due_at: datetime | None = None
    start_by: datetime | None = None
    worker_id: str | None = None
    cancel_requested_by: str | None = None
    cancel_reason: str | None = None
    pause_requested_by: str | None = None
    pause_reason: str | None = None
    reason: str | None = None
    workflow_id: str | None = None
    node: str | None = None
    parent_task_id: str | None = None
    cleaned: bool = False
    erased: bool = False

    @property
    def finished(self) -> bool:
        """No attempt will follow, ever."""
        return self.status in TERMINAL

    @property
    def frozen(self) -> bool:
        """It is paused with an attempt that stands still in its worker."""
        return self.status is Status.PAUSED and self.worker_id is not None

    @property
    def held(self) -> bool:
        """It is ready but for its queue's admission."""
        return self.status is Status.PENDING and self.ready == 0

    @property
    def in_hand(self) -> bool:
        """A worker has an attempt of it, running or frozen."""
        return self.status is Status.RUNNING or self.frozen


ABSENT = Task()
_DEFAULTS = tuple(Task._field_defaults.items())
_STATUSES = {status.value: status for status in Status}

ACCEPTS: dict[type[Command], frozenset[Status]] = {
    SubmitTask: frozenset({Status.ABSENT}),
    StartAttempt: frozenset({Status.PENDING}),
    CompleteAttempt: HOLDING,
    FailAttempt: HOLDING,
    TimeOutAttempt: HOLDING,
    InterruptAttempt: HOLDING,
    ExpireLease: HOLDING,
    PromoteTask: frozenset({Status.SCHEDULED, Status.RETRYING}),
    RequeueTask: frozenset({Status.PENDING}),
    HoldTask: frozenset({Status.PENDING}),
    AdmitTask: frozenset({Status.PENDING}),
    ExpireQueueWait: frozenset({Status.PENDING}),
    CancelTask: WAITING | HOLDING,
    ConfirmCancel: HOLDING,
    PauseTask: WAITING | HOLDING,
    ConfirmPause: frozenset({Status.RUNNING}),
    ResumeTask: HOLDING,
    UpdateTask: frozenset({Status.SCHEDULED, Status.PENDING, Status.PAUSED}),
    CleanTask: TERMINAL,
    EraseTask: TERMINAL,
}
"""Which statuses admit which command. The diagram in ``docs/lifecycle.md`` is drawn from this table and ``decide``."""


def decide(command: Command, task: Task) -> list[EventData]:
    """The data of the events that follow; empty where the command is already fulfilled.

    Raises :class:`IllegalTransition` where the task's state does not admit the command and :class:`StaleAttempt` where a
    report names an attempt that is not the current one.
    """
    if task.status not in ACCEPTS[type(command)]:
        raise _refused(command, task)
    match command:
        case SubmitTask():
            return [command.submission]
        case StartAttempt():
            if task.held:
                raise _refused(command, task, "waits for its queue's admission")
            return [Started(worker_id=command.worker_id, hostname=command.hostname, device=command.device)]
        case PromoteTask():
            return _promote(command, task)
        case RequeueTask() | HoldTask() | AdmitTask():
            return _requeue(command, task)
        case ExpireQueueWait():
            return _expire_wait(command, task)
        case CancelTask():
            return _cancel(command, task)
        case PauseTask():
            return _pause(command, task)
        case ResumeTask():
            return [_resume(command, task)]
        case UpdateTask():
            if task.attempt > 0:
                raise _refused(command, task, "has been started")
            return [Updated(submission=command.submission, changed=list(command.changed), requested_by=command.requested_by)]
        case CleanTask():
            done = Cleaned(requested_by=command.requested_by, reason=command.reason)
            return [] if task.cleaned or task.erased else [done]
        case EraseTask():
            events, blobs = list(command.events), list(command.blobs)
            gone = Erased(requested_by=command.requested_by, reason=command.reason, events=events, blobs=blobs)
            return [] if task.erased else [gone]
        case _:
            if command.attempt != task.attempt or not task.in_hand:
                raise StaleAttempt(reported=command.attempt, current=task.attempt)
            return [_end_attempt(command, task)]


def _refused(command: Command, task: Task, why: str | None = None) -> IllegalTransition:
    """``why``: what stands against it beside the status."""
    verb = _VERB[type(command)]
    what = f"a task with status {task.status}" if why is None else f"a task that {why}"
    return IllegalTransition(f"cannot {verb} {what}", status=str(task.status))


def _ready(task: Task, reason: Any, worker_id: str | None = None) -> Queued:
    """The task may run: at once, or once its queue's gate lets it through."""
    return Queued(reason=reason, held=task.gated, worker_id=worker_id)


def _promote(command: PromoteTask, task: Task) -> list[EventData]:
    too_early = task.due_at is not None and command.now < task.due_at
    if command.version != task.version or too_early:
        return []
    return [_ready(task, "due" if task.status is Status.SCHEDULED else "retry_due")]


def _requeue(command: RequeueTask | HoldTask | AdmitTask, task: Task) -> list[EventData]:
    """Make the work item anew, or worthless, or one at all; nothing where it is so already or somebody came first."""
    if command.version != task.version:
        return []
    match command:
        case RequeueTask():
            return [] if task.held else [Queued(reason="reconciled")]
        case HoldTask():
            return [] if task.held else [Queued(reason="limited", held=True)]
        case AdmitTask():
            return [Queued(reason="admitted")] if task.held else []


def _expire_wait(command: ExpireQueueWait, task: Task) -> list[EventData]:
    if task.start_by is None or command.now < task.start_by:
        return []
    return [TimedOut(reason="queue_timeout", after_s=task.queue_timeout_s or 0.0)]


def _cancel(command: CancelTask, task: Task) -> list[EventData]:
    if not task.in_hand:
        return [Cancelled(requested_by=command.requested_by, reason=command.reason)]
    if task.cancel_requested_by is not None:
        return []
    return [CancelRequested(requested_by=command.requested_by, reason=command.reason)]


def _pause(command: PauseTask, task: Task) -> list[EventData]:
    if task.in_hand and task.cancel_requested_by is not None:
        raise _refused(command, task, "is being cancelled")
    if task.pause_requested_by is not None:
        return []
    pause = PauseRequested if task.in_hand else Paused
    return [pause(requested_by=command.requested_by, reason=command.reason)]


def _resume(command: ResumeTask, task: Task) -> EventData:
    if task.status is Status.RUNNING and task.pause_requested_by is None:
        raise _refused(command, task)
    if task.in_hand or (task.due_at is not None and command.now < task.due_at):
        return Resumed(requested_by=command.requested_by)
    return _ready(task, "resumed")


AttemptReport = CompleteAttempt | FailAttempt | TimeOutAttempt | InterruptAttempt | ExpireLease | ConfirmCancel | ConfirmPause


def _end_attempt(report: AttemptReport, task: Task) -> EventData:
    match report:
        case CompleteAttempt():
            return Completed(result=report.result, output=report.output, duration_s=report.duration_s)
        case ConfirmCancel():
            return _cancelled(task, report.steps)
        case ConfirmPause():
            if task.pause_requested_by is None:
                raise _refused(report, task, "nobody asked to pause")
            if task.cancel_requested_by is not None and not report.frozen:
                return _cancelled(task)  # it was asked for later, and nobody is left who could confirm it
            return _paused(task, frozen=report.frozen)
        case FailAttempt():
            return _retry(report, task, report.error, "error") or Failed(
                error=report.error,
                reason="not_retryable" if report.retry_in_s is None else "attempts_exhausted",
            )
        case TimeOutAttempt():
            return _retry(report, task, timeout_error(report.reason, report.after_s), report.reason) or TimedOut(
                reason=report.reason, after_s=report.after_s, steps=list(report.steps)
            )
        case InterruptAttempt():
            if task.cancel_requested_by is not None:
                return _cancelled(task)
            if task.frozen or task.pause_requested_by is not None:
                return _paused(task)
            return Queued(reason="interrupted", worker_id=task.worker_id)
        case ExpireLease():
            return _lose(task)
        case _:
            assert_never(report)


def timeout_error(reason: str, after_s: float) -> ErrorInfo:
    """What is said of an attempt that was stopped, or a task that was given up, after a time."""
    match reason:
        case "execution_timeout":
            return ErrorInfo(type="ExecutionTimeout", message=f"stopped after {after_s:g} s")
        case "heartbeat_timeout":
            return ErrorInfo(type="HeartbeatTimeout", message=f"stopped: it had said nothing for {after_s:g} s")
        case _:
            return ErrorInfo(type="QueueTimeout", message=f"no worker started it within {after_s:g} s")


def _retry(report: FailAttempt | TimeOutAttempt, task: Task, error: ErrorInfo, reason: Any) -> EventData | None:
    """What follows a failure while a retry is left; a task that somebody wants cancelled is not retried."""
    steps = report.steps if isinstance(report, TimeOutAttempt) else ()
    if task.cancel_requested_by is not None:
        return _cancelled(task, steps)
    if report.retry_in_s is None or task.failures >= task.max_retries:
        return None
    due_at = report.now + timedelta(seconds=report.retry_in_s)
    return Retrying(error=error, reason=reason, due_at=due_at, steps=list(steps))


def _lose(task: Task) -> EventData:
    if task.cancel_requested_by is not None:
        return _cancelled(task)
    if task.losses + 1 >= LOSSES_MAX:
        error = ErrorInfo(type="WorkerLost", message=f"{task.losses + 1} workers were lost while running this task")
        return Failed(error=error, reason="poison", evidence=_evidence(task))
    if task.frozen or task.pause_requested_by is not None:
        return _paused(task, lost=True)
    return Queued(reason="worker_lost", worker_id=task.worker_id)


def _evidence(task: Task) -> list[LostAttempt]:
    lost = (*task.lost, _loss(task))
    return [LostAttempt(attempt=int(attempt), worker_id=worker) for attempt, _, worker in (one.partition(":") for one in lost)]


def _loss(task: Task) -> str:
    return f"{task.attempt}:{task.worker_id}"


def _cancelled(task: Task, steps: Iterable[str] = ()) -> Cancelled:
    return Cancelled(
        requested_by=task.cancel_requested_by or "unknown",
        reason=task.cancel_reason,
        confirmed_by=task.worker_id,
        steps=list(steps),
    )


def _paused(task: Task, *, frozen: bool = False, lost: bool = False) -> Paused:
    """An attempt ended or stands still because of a pause; it keeps who wanted it and why. ``lost``: with its worker."""
    return Paused(
        requested_by=task.pause_requested_by or "unknown",
        reason=task.pause_reason,
        frozen=frozen,
        lost=lost,
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
    HoldTask: "hold",
    AdmitTask: "admit",
    ExpireQueueWait: "time out",
    CancelTask: "cancel",
    ConfirmCancel: "confirm the cancellation of",
    PauseTask: "pause",
    ConfirmPause: "confirm the pause of",
    ResumeTask: "resume",
    UpdateTask: "update",
    CleanTask: "clean up",
    EraseTask: "erase",
}


def evolve(task: Task, event_id: str, at: datetime, data: EventData) -> Task:
    """The task after its next event: version + 1, whatever the event is. ``at``: the event's own time."""
    version = task.version + 1
    match data:
        case Submitted():
            return _specified(ABSENT, data, at, version, event_id)
        case Updated():
            return _updated(task, data, at, version, event_id)
        case Started():
            return task._replace(
                status=Status.RUNNING,
                version=version,
                event_id=event_id,
                attempt=task.attempt + 1,
                worker_id=data.worker_id,
                start_by=None,
                reason=None,
            )
        case Queued():
            lost = data.reason == "worker_lost"
            return task._replace(
                status=Status.PENDING,
                version=version,
                event_id=event_id,
                ready=0 if data.held else version,
                gated=task.gated or data.held,
                due_at=None,
                start_by=_start_by(task, task.queue_timeout_s, at),
                worker_id=None,
                pause_requested_by=None,
                pause_reason=None,
                reason=data.reason,
                losses=task.losses + lost,
                lost=(*task.lost, _loss(task)) if lost else task.lost,
            )
        case Retrying():
            return task._replace(
                status=Status.PAUSED if task.pause_requested_by is not None else Status.RETRYING,
                version=version,
                event_id=event_id,
                failures=task.failures + 1,
                due_at=data.due_at,
                worker_id=None,
                reason=data.reason,
            )
        case CancelRequested():
            return task._replace(
                version=version,
                event_id=event_id,
                cancel_requested_by=data.requested_by,
                cancel_reason=data.reason,
            )
        case PauseRequested():
            return task._replace(
                version=version, event_id=event_id, pause_requested_by=data.requested_by, pause_reason=data.reason
            )
        case Paused():
            return task._replace(
                status=Status.PAUSED,
                version=version,
                event_id=event_id,
                ready=task.ready if data.frozen else 0,
                start_by=None,
                worker_id=task.worker_id if data.frozen else None,
                pause_requested_by=data.requested_by,
                pause_reason=data.reason,
                reason=data.reason,
                losses=task.losses + data.lost,
                lost=(*task.lost, _loss(task)) if data.lost else task.lost,
            )
        case Resumed():
            return task._replace(
                status=_resumed_status(task),
                version=version,
                event_id=event_id,
                pause_requested_by=None,
                pause_reason=None,
                reason=None,
            )
        case Cleaned():
            return task._replace(version=version, event_id=event_id, cleaned=True)
        case Erased():
            by_hand = task.status is Status.CANCELLED  # else it is a code
            return task._replace(
                version=version,
                event_id=event_id,
                cancel_reason=None,
                pause_reason=None,
                reason=None if by_hand else task.reason,
                erased=True,
            )
        case Completed() | Failed() | TimedOut() | Cancelled():
            return _finished(task, data, version, event_id)
        case _:
            raise IllegalTransition(f"{type(data).__name__} is not an event of a task")


def _specified(task: Task, wanted: Submitted, at: datetime, version: int, event_id: str) -> Task:
    """The task as ``wanted`` says, waiting for its time or ready."""
    due = wanted.scheduled_at is None or wanted.scheduled_at <= at
    make: Callable[..., Task] = Task if task is ABSENT else task._replace  # the same of nothing, but quicker
    return make(
        status=Status.PENDING if due else Status.SCHEDULED,
        version=version,
        event_id=event_id,
        ready=version if due and not wanted.gated else 0,
        spec=version,
        task_name=wanted.task_name,
        pool=wanted.pool,
        queue=wanted.queue,
        priority=wanted.priority,
        key=wanted.key,
        gated=wanted.gated,
        max_retries=wanted.max_retries,
        timeout_s=wanted.timeout_s,
        queue_timeout_s=wanted.queue_timeout_s,
        heartbeat_timeout_s=wanted.heartbeat_timeout_s,
        result_ttl_s=wanted.result_ttl_s,
        due_at=None if due else wanted.scheduled_at,
        start_by=_start_by(task, wanted.queue_timeout_s, at) if due else None,
        workflow_id=wanted.workflow_id,
        node=wanted.node,
        parent_task_id=wanted.parent_task_id,
    )


def _updated(task: Task, data: Updated, at: datetime, version: int, event_id: str) -> Task:
    """As newly submitted, but that a paused task stays paused, that an unchanged wait is not begun anew, and that a queue's
    gate is not passed by (also where the queue got its limits after the submission)."""
    wanted = data.submission
    if task.gated and wanted.queue == task.queue:
        wanted = wanted.model_copy(update={"gated": True})
    same_wait = wanted.queue_timeout_s == task.queue_timeout_s
    after = _specified(task if same_wait else task._replace(start_by=None), wanted, at, version, event_id)
    if task.status is not Status.PAUSED:
        return after
    return after._replace(status=Status.PAUSED, ready=0, start_by=None)


def _start_by(task: Task, queue_timeout_s: float | None, at: datetime) -> datetime | None:
    """Until when a task that is ready since ``at`` must be started. Only the first start counts, and being admitted or
    made ready again does not begin the wait anew."""
    if queue_timeout_s is None or task.attempt > 0:
        return None
    return task.start_by or at + timedelta(seconds=queue_timeout_s)


def _resumed_status(task: Task) -> Status:
    if task.in_hand:
        return Status.RUNNING
    return Status.RETRYING if task.attempt > 0 else Status.SCHEDULED


def _finished(task: Task, data: Completed | Failed | TimedOut | Cancelled, version: int, event_id: str) -> Task:
    ended: dict[str, Any] = {"version": version, "event_id": event_id, "due_at": None, "start_by": None}
    match data:
        case Completed():
            return task._replace(status=Status.COMPLETED, reason=None, **ended)
        case Failed():
            poison = data.reason == "poison"
            return task._replace(
                status=Status.FAILED,
                reason=data.reason,
                failures=task.failures + (not poison),
                losses=task.losses + poison,
                lost=(*task.lost, _loss(task)) if poison else task.lost,
                **ended,
            )
        case TimedOut():
            in_queue = data.reason == "queue_timeout"
            failures = task.failures + (not in_queue)
            return task._replace(status=Status.TIMED_OUT, reason=data.reason, failures=failures, **ended)
        case Cancelled():
            by = data.requested_by
            return task._replace(status=Status.CANCELLED, reason=data.reason, cancel_requested_by=by, **ended)


def replay(events: Iterable[tuple[str, datetime, EventData]]) -> Task:
    """Fold a whole history, given as (event id, time, data) in order of version."""
    task = ABSENT
    for event_id, at, data in events:
        task = evolve(task, event_id, at, data)
    return task


def summary(task: Task) -> dict[str, Any]:
    """The task as the ``state`` of its last event: plain JSON values, defaults left out."""
    return {name: value for (name, default), value in zip(_DEFAULTS, task, strict=True) if value != default}


def from_summary(state: dict[str, Any]) -> Task:
    """The inverse of :func:`summary`. Raises :class:`UnknownEvent` for what a newer program wrote."""
    known: dict[str, Any] = dict(state)
    try:
        known["status"] = _STATUSES[state.get("status", "ABSENT")]
        for name in ("due_at", "start_by"):
            if isinstance(at := known.get(name), str):
                known[name] = datetime.fromisoformat(at)
        if "lost" in known:
            known["lost"] = tuple(known["lost"])
        return Task(**known)
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownEvent(f"the task's state was written by a newer version of eventq: {error!r}") from error


def route_of(task: Task) -> Route | None:
    """Where the event that led to ``task`` is work, if it is."""
    return Route(task.pool, task.queue, task.priority) if task.ready == task.version else None


TASKS = Aggregate(
    name="tasks",
    absent=ABSENT,
    decide=decide,
    evolve=evolve,
    summary=summary,
    from_summary=from_summary,
    not_found=TaskNotFound,
    creates=(SubmitTask,),
    attempt=lambda task: task.attempt,
    route=route_of,
)
