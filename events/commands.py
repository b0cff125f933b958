"""Every command: an imperative request that the rules may refuse. Commands are not stored; what they lead to is.

Times are aware UTC datetimes and are passed in, as is everything random: the rules read no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from eventq.events.catalogue import JSON, BlobRef, ErrorInfo, Submitted


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
    """The attempt ran for longer than the task's ``timeout_s`` and was stopped."""

    attempt: int
    after_s: float
    retry_in_s: float | None
    now: datetime


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
    """The worker stopped the attempt whose cancellation was asked for."""

    attempt: int


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
)
