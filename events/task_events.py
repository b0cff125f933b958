"""The events of a task. ``docs/lifecycle.md`` says who writes each, and what may follow it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from eventq.events.data import JSON, BlobRef, ErrorInfo, EventData
from eventq.events.retry import RetryPolicy


class Idempotency(EventData):
    """The ``Idempotency-Key`` that a task was submitted under, as digests: of the key, and of the request it came with."""

    key_sha256: str
    request_sha256: str


class Submitted(EventData):
    """A task was accepted. The whole of what was asked for: everything later refers back to this event, or to the newest
    ``Updated``, which holds the whole again.

    ``args`` and ``kwargs`` are empty where ``input`` holds them as a blob of ``{"args": [...], "kwargs": {...}}``.
    ``key``: whose task it is or what it uses; limits for each key and fair sharing go by it. ``gated``: the queue has
    limits, so the task waits until it is admitted. ``queue_timeout_s``: how long it may be ready without being started;
    ``timeout_s``: how long an attempt may take; ``heartbeat_timeout_s``: how long an attempt may say nothing;
    ``result_ttl_s``: how long the result is kept once finished. ``retry``: replaces the declaration's policy.
    ``original_task_id`` and ``origin`` link a task made by retry or replay to the one it repeats, ``parent_task_id`` a task
    to the running one that spawned it, ``workflow_id`` and ``node`` to the step it carries out, ``schedule_id`` to the
    schedule whose tick it is.
    """

    task_name: str
    args: list[JSON] = Field(default_factory=list)
    kwargs: dict[str, JSON] = Field(default_factory=dict)
    input: BlobRef | None = None
    pool: str
    queue: str
    priority: int
    max_retries: int
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    heartbeat_timeout_s: float | None = None
    result_ttl_s: float | None = None
    retry: RetryPolicy | None = None
    scheduled_at: datetime | None = None
    key: str | None = None
    gated: bool = False
    tags: list[str] = Field(default_factory=list)
    metadata: dict[str, str] = Field(default_factory=dict)
    unique_key: str | None = None
    idempotency: Idempotency | None = None
    original_task_id: str | None = None
    origin: Literal["retry", "replay"] | None = None
    parent_task_id: str | None = None
    workflow_id: str | None = None
    node: str | None = None
    schedule_id: str | None = None
    requested_by: str | None = None

    def wire(self) -> dict[str, Any]:
        """As in :meth:`EventData.wire`, without what is as usual: the most frequent event, with the most fields."""
        return self.model_dump(exclude_defaults=True)


class Updated(EventData):
    """A task that had not been started was changed. ``submission``: the whole of what holds from now on; ``changed``: the
    names of its fields that differ from before."""

    submission: Submitted
    changed: list[str]
    requested_by: str


class Queued(EventData):
    """The task became ready to run (again). ``held``: it waits at its queue's gate and is no work item yet.
    ``worker_id``: who held it before, where somebody did.

    ``due``, ``retry_due``, ``resumed``: its time has come; ``interrupted``, ``worker_lost``: its attempt ended with its
    worker; ``reconciled``: its work item was lost; ``limited``: the queue got limits, so it must wait for admission;
    ``admitted``: it was let through.
    """

    reason: Literal["due", "retry_due", "resumed", "interrupted", "worker_lost", "reconciled", "limited", "admitted"]
    held: bool = False
    worker_id: str | None = None


class Started(EventData):
    """A worker holds the attempt from here on. ``device``: ``cpu``, ``cuda:0``, ..."""

    worker_id: str
    hostname: str
    device: str


class Retrying(EventData):
    """The attempt failed or timed out and another will be made from ``due_at`` on. ``steps``: as in ``TimedOut``."""

    error: ErrorInfo
    reason: Literal["error", "execution_timeout", "heartbeat_timeout"]
    due_at: datetime
    steps: list[str] = Field(default_factory=list)


class Completed(EventData):
    """The task is done. ``output`` refers to the result where it is too large to stand inline in ``result``."""

    result: JSON = None
    output: BlobRef | None = None
    duration_s: float


class LostAttempt(EventData):
    """One attempt whose worker was lost: evidence against a task that kills workers."""

    attempt: int
    worker_id: str


class Failed(EventData):
    """The task ended with an error. ``attempts_exhausted``: no retry was left; ``not_retryable``: none could help;
    ``poison``: it cost too many workers their lives, which ``evidence`` names."""

    error: ErrorInfo
    reason: Literal["attempts_exhausted", "not_retryable", "poison"]
    evidence: list[LostAttempt] = Field(default_factory=list[LostAttempt])


class TimedOut(EventData):
    """The last attempt ran longer than ``timeout_s`` or said nothing for ``heartbeat_timeout_s`` and was stopped, or the
    task was ready for ``queue_timeout_s`` and nobody started it. ``after_s``: how long that was. ``steps``: what was done to
    stop the attempt, in order: ``asked``, ``SIGTERM``, ``SIGKILL``."""

    reason: Literal["execution_timeout", "heartbeat_timeout", "queue_timeout"]
    after_s: float
    steps: list[str] = Field(default_factory=list)


class CancelRequested(EventData):
    """Somebody asked for a running task to stop; its worker is told and will confirm."""

    requested_by: str
    reason: str | None = None


class Cancelled(EventData):
    """The task will not run, or not run on. ``confirmed_by``: the worker that stopped it; ``None`` where none had begun.
    ``steps``: as in ``TimedOut``; ``revoked`` where an HTTP worker did not stop it, and it was taken away."""

    requested_by: str
    reason: str | None = None
    confirmed_by: str | None = None
    steps: list[str] = Field(default_factory=list)


class PauseRequested(EventData):
    """Somebody asked for a running task to pause; its worker is told and will confirm."""

    requested_by: str
    reason: str | None = None


class Paused(EventData):
    """The task does not run until it is resumed. ``frozen``: its attempt stands still in its worker and goes on later;
    else there is none, and a later one begins anew. ``confirmed_by``: the worker that had it, where one did; ``lost``: that
    worker was lost."""

    requested_by: str
    reason: str | None = None
    frozen: bool = False
    lost: bool = False
    confirmed_by: str | None = None


class Resumed(EventData):
    """A paused task waits for its time again, or its frozen attempt goes on, or a pause was withdrawn before it took
    effect. One that is ready at once gets ``Queued`` instead."""

    requested_by: str


class Cleaned(EventData):
    """The result, files and progress of a finished task were given up: on request, or because ``result_ttl_s`` is over."""

    requested_by: str
    reason: Literal["requested", "result_ttl"]


class ErasedEvent(EventData):
    """One stored event of which only this is left: where it stood, and the event without what it carried."""

    position: int
    subject: str
    event: dict[str, JSON]


class Gone(EventData):
    """No event of the history: it holds the place of an erased one, at the same version, so that nobody who saw the history
    long ago writes there. Stored together with the ``erased`` event; whoever folds leaves it out.

    ``position``: where the erased event stood, or still does; ``newest``: the version that the history had reached. A broker
    that has no room left may have stored it without the ``erased`` event: then nothing was erased, and these two lead on to
    what was to be.
    """

    position: int
    newest: int


class Erased(EventData):
    """All that a finished task carried was destroyed: in the log, in the blob store, in every projection. ``events``: what
    is left of each destroyed event, so that history stays whole; the first of them is destroyed last. ``blobs``: keys of its
    arguments that were deleted with it. Who gave tasks their arguments has events of the same form."""

    requested_by: str
    reason: str | None = None
    events: list[ErasedEvent]
    blobs: list[str] = Field(default_factory=list)
