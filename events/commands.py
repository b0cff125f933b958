"""Every command to a task: an imperative request that the rules may refuse. Commands are not stored; what they lead to is.

Times are aware UTC datetimes and are passed in, as is everything random: the rules read no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from eventq.events.data import JSON, BlobRef, ErrorInfo
from eventq.events.task_events import ErasedEvent, Submitted

TimeoutReason = Literal["execution_timeout", "heartbeat_timeout"]


@dataclass(frozen=True, slots=True)
class SubmitTask:
    """Create the task. Runs as soon as a worker is free, or from ``submission.scheduled_at`` where that lies ahead."""

    submission: Submitted
    now: datetime


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """A worker claims the ready event it pulled."""

    worker_id: str
    hostname: str
    device: str


@dataclass(frozen=True, slots=True)
class CompleteAttempt:
    """The attempt's function returned. One of ``result`` (inline JSON) and ``output`` (a blob holding the JSON)."""

    attempt: int
    result: JSON
    output: BlobRef | None
    duration_s: float


@dataclass(frozen=True, slots=True)
class FailAttempt:
    """The attempt ended with an error. ``retry_in_s``: the drawn delay; ``None`` where no retry can help."""

    attempt: int
    error: ErrorInfo
    retry_in_s: float | None
    now: datetime


@dataclass(frozen=True, slots=True)
class TimeOutAttempt:
    """The attempt ran for longer than the task's ``timeout_s``, or said nothing for ``heartbeat_timeout_s``, and was stopped.
    ``steps``: what was done to stop it."""

    attempt: int
    after_s: float
    retry_in_s: float | None
    now: datetime
    reason: TimeoutReason = "execution_timeout"
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InterruptAttempt:
    """The worker stops before the attempt is done (graceful shutdown). Costs neither a retry nor a loss."""

    attempt: int


@dataclass(frozen=True, slots=True)
class ExpireLease:
    """The attempt's worker is gone: its lease lapsed. Said by whoever found it, never by the worker itself."""

    attempt: int


@dataclass(frozen=True, slots=True)
class PromoteTask:
    """The time of a scheduled or retrying task has come. ``version``: the version whose timer fired."""

    version: int
    now: datetime


@dataclass(frozen=True, slots=True)
class RequeueTask:
    """The work item of a waiting task was lost: make it ready again. ``version``: the version that was found waiting."""

    version: int


@dataclass(frozen=True, slots=True)
class CancelTask:
    """Somebody wants the task not to run, or not to run on."""

    requested_by: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ConfirmCancel:
    """The worker stopped the attempt whose cancellation was asked for. ``steps``: what was done to stop it."""

    attempt: int
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PauseTask:
    """Somebody wants the task not to run until it is resumed."""

    requested_by: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ConfirmPause:
    """The worker paused the attempt. ``frozen``: it stands still and can go on; else it has ended."""

    attempt: int
    frozen: bool


@dataclass(frozen=True, slots=True)
class ResumeTask:
    """Somebody wants a paused task to run again, when its time has come."""

    requested_by: str
    now: datetime


@dataclass(frozen=True, slots=True)
class UpdateTask:
    """Somebody wants a task that has not been started to be another. ``submission``: the whole of what is to hold."""

    submission: Submitted
    changed: tuple[str, ...]
    requested_by: str
    now: datetime


@dataclass(frozen=True, slots=True)
class HoldTask:
    """The queue got limits: a ready task must wait for admission. ``version``: the version that was found ready."""

    version: int


@dataclass(frozen=True, slots=True)
class AdmitTask:
    """The task's queue let it through. ``version``: the version that it waited with."""

    version: int


@dataclass(frozen=True, slots=True)
class ExpireQueueWait:
    """The time in which the task had to be started may be over."""

    now: datetime


@dataclass(frozen=True, slots=True)
class CleanTask:
    """The result of a finished task is given up. ``reason``: somebody asked for it, or the result's time is over."""

    requested_by: str
    reason: Literal["requested", "result_ttl"]


@dataclass(frozen=True, slots=True)
class EraseTask:
    """All that a finished task carried is destroyed. ``reason``: of who asks, which stays in the log; ``events``: what is to be
    left of each of the task's events, in their order; ``blobs``: keys of its arguments in the blob store, to be deleted."""

    requested_by: str
    reason: str | None
    events: tuple[ErasedEvent, ...]
    blobs: tuple[str, ...] = ()


Command = (
    SubmitTask
    | StartAttempt
    | CompleteAttempt
    | FailAttempt
    | TimeOutAttempt
    | InterruptAttempt
    | ExpireLease
    | PromoteTask
    | RequeueTask
    | CancelTask
    | ConfirmCancel
    | PauseTask
    | ConfirmPause
    | ResumeTask
    | UpdateTask
    | HoldTask
    | AdmitTask
    | ExpireQueueWait
    | CleanTask
    | EraseTask
)
