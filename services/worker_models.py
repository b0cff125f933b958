"""What the routes of workers take and answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from eventq.events.data import BlobRef
from eventq.events.ids import check_pool
from eventq.events.limits import (
    ERROR_MESSAGE_MAX_CHARS,
    PRIORITY_DEFAULT,
    RETRIES_MAX,
    TIMEOUT_MAX_S,
    TRACEBACK_MAX_CHARS,
    WORKER_CAPACITY_MAX,
)
from eventq.events.retry import RetryPolicy
from eventq.events.task import Status
from eventq.events.worker import WorkerStatus
from eventq.services.answers import Answer
from eventq.services.http_limits import OFFSET_MAX, PAGE_DEFAULT, PAGE_MAX
from eventq.services.schemas import POSITION_MAX, Closed, Priority, QueueName, TaskId, TaskName, checked

HOSTNAME_MAX_CHARS = 255
QUEUES_SERVED_MAX = 100
TASKS_DECLARED_MAX = 200
LEASE_MAX = 100
LEASE_WAIT_MAX_S = 30.0
DOC_MAX_CHARS = 4_000


PoolName = Annotated[str, checked(check_pool, "pool")]
Capacity = Annotated[int, Field(ge=1, le=WORKER_CAPACITY_MAX)]
WorkerId = TaskId


class RegisterQuery(Closed):
    """Where the worker runs, and how much at once; one that comes back from being lost keeps the capacity it had."""

    hostname: str = Field(min_length=1, max_length=HOSTNAME_MAX_CHARS)
    capacity: Capacity = 5


class DeclaredTask(Closed):
    """A task that the worker can run. ``arguments``: a JSON Schema of the named arguments, without references,
    `patternProperties`, look-around and back references."""

    name: TaskName
    queue: QueueName = "default"
    priority: Priority = PRIORITY_DEFAULT
    max_retries: int = Field(0, ge=0, le=RETRIES_MAX)
    timeout_seconds: float | None = Field(None, gt=0, le=TIMEOUT_MAX_S)
    retry: RetryPolicy = Field(default_factory=RetryPolicy)
    parameters: list[str] = Field(default_factory=list[str], max_length=100, description="Order of positional arguments.")
    arguments: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})
    doc: str = Field("", max_length=DOC_MAX_CHARS)


class RegisterRequest(Closed):
    """What the worker serves. ``worker_id``: of a worker that was called lost and registers again."""

    pool: PoolName = "cpu"
    queues: list[QueueName] = Field(default_factory=list[str], max_length=QUEUES_SERVED_MAX, description="Empty: all.")
    tasks: list[DeclaredTask] = Field(default_factory=list[DeclaredTask], max_length=TASKS_DECLARED_MAX)
    worker_id: WorkerId | None = None


class WorkerPath(Closed):
    """One worker."""

    worker_id: WorkerId


class WorkerTaskPath(Closed):
    """One task in the hands of one worker."""

    worker_id: WorkerId
    task_id: TaskId


class WorkerListQuery(Closed):
    """Which workers."""

    status: list[Literal["ACTIVE", "PAUSED", "DRAINING", "STOPPED", "LOST"]] = Field(
        default_factory=list[Literal["ACTIVE", "PAUSED", "DRAINING", "STOPPED", "LOST"]], description="Repeat it for several."
    )
    pool: PoolName | None = None
    limit: int = Field(PAGE_DEFAULT, ge=1, le=PAGE_MAX)
    offset: int = Field(0, ge=0, le=OFFSET_MAX)


class CapacityRequest(Closed):
    """How many tasks it may run at once from now on."""

    capacity: Capacity


class WorkerAnswer(Answer):
    """A worker. ``current_load``: tasks it holds; ``kind``: `process`, or `http` for one that leases its work."""

    worker_id: str
    hostname: str
    status: WorkerStatus
    capacity: int
    current_load: int
    kind: str
    pool: str
    queues: list[str]
    registered_at: datetime | None
    ended_at: datetime | None
    end_reason: str | None
    version: int


class WorkerListAnswer(Answer):
    """A page of workers, newest first. ``total``: all that match."""

    total: int
    limit: int
    offset: int
    workers: list[WorkerAnswer]


class WorkerStatusAnswer(WorkerAnswer):
    """A worker now. ``running``: ids of the tasks that it holds, the newest thousand; ``last_heartbeat``: null where it lapsed,
    or never came."""

    current_tasks: int
    running: list[str]
    last_heartbeat: datetime | None
    is_draining: bool


class WorkerCommandAnswer(Answer):
    """The command is in the worker's history; a process obeys within a second."""

    worker_id: str
    status: Literal["paused", "resumed", "draining"]
    version: int


class CapacityAnswer(Answer):
    """Its new capacity."""

    worker_id: str
    capacity: int
    version: int


# Work over HTTP


class HeldAttempt(Closed):
    """One attempt that the worker says it runs."""

    task_id: TaskId
    attempt: int = Field(ge=1, le=POSITION_MAX)


class HeartbeatRequest(Closed):
    """All that the worker runs now: what it does not list is given to others."""

    running: list[HeldAttempt] = Field(default_factory=list[HeldAttempt], max_length=WORKER_CAPACITY_MAX)


class AttemptAnswer(Answer):
    """One attempt."""

    task_id: str
    attempt: int


class HeartbeatAnswer(Answer):
    """What to obey. ``cancel`` and ``pause``: stop these and confirm with ``cancelled`` or ``release``; what is to be cancelled
    and goes on is taken away after 30 s. ``revoked``: no longer the worker's own, stop without a report. ``ttl_seconds``:
    without a heartbeat for so long it is lost."""

    worker_id: str
    status: WorkerStatus
    capacity: int
    cancel: list[AttemptAnswer]
    pause: list[AttemptAnswer]
    revoked: list[AttemptAnswer]
    ttl_seconds: float


class LeaseRequest(Closed):
    """How many tasks at most, and how long to wait for the first; a worker that is full or paused waits as well."""

    max: int = Field(default=1, ge=1, le=LEASE_MAX)
    wait_seconds: float = Field(default=0.0, ge=0, le=LEASE_WAIT_MAX_S)


class LeasedTask(Answer):
    """A task that is the worker's now. ``args`` and ``kwargs`` are null where ``input`` refers to them as a blob of
    ``{"args": [...], "kwargs": {...}}``, to be fetched from ``input_url``."""

    task_id: str
    attempt: int
    task_name: str
    args: list[Any] | None
    kwargs: dict[str, Any] | None
    input: BlobRef | None
    input_url: str | None
    timeout_s: float | None
    queue_name: str
    priority: int
    version: int


class LeaseAnswer(Answer):
    """What was leased: nothing where there was nothing, or where the worker has no free capacity or may take nothing."""

    worker_id: str
    status: WorkerStatus
    tasks: list[LeasedTask]


class AttemptRequest(Closed):
    """Which attempt is reported about."""

    attempt: int = Field(ge=1, le=POSITION_MAX)


class ProgressRequest(AttemptRequest):
    """How far it is."""

    done: float = Field(ge=0)
    total: float | None = Field(None, ge=0)
    unit: str | None = Field(None, max_length=64)
    message: str | None = Field(None, max_length=500)


class CompleteRequest(AttemptRequest):
    """The result, any JSON value."""

    result: Any = None


class ErrorRequest(Closed):
    """What went wrong."""

    type: str = Field(min_length=1, max_length=200)
    message: str = Field("", max_length=ERROR_MESSAGE_MAX_CHARS)
    traceback: str | None = Field(None, max_length=TRACEBACK_MAX_CHARS)


class FailRequest(AttemptRequest):
    """The error, and whether and when another attempt can help. Left out: the task's retry policy says when."""

    error: ErrorRequest
    retryable: bool = True
    retry_after_seconds: float | None = Field(None, ge=0, le=TIMEOUT_MAX_S)


class ReportAnswer(Answer):
    """The task after the report."""

    task_id: str
    attempt: int
    status: Status
    version: int
