"""What the native API answers. Times are RFC 3339 in UTC with a ``Z``. Answers may gain fields, and never lose one."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eventq.events.data import BlobRef, ErrorInfo
from eventq.events.task import Status


class Answer(BaseModel):
    """An answer: every field is there, null where there is nothing to say."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class Links(Answer):
    """Where to go on from a task."""

    self: str
    timeline: str
    original: str | None = None


class ProgressAnswer(Answer):
    """How far the current attempt is. ``total``: null where it is not known."""

    done: float
    total: float | None
    unit: str | None
    message: str | None
    attempt: int
    updated_at: datetime


class SubmitAnswer(Answer):
    """The accepted task. ``version``: as in ``ETag``; pass it as ``min_version`` to read it on any replica."""

    task_id: str
    task_name: str
    status: Status
    priority: int
    queue_name: str
    created_at: datetime
    scheduled_at: datetime | None
    version: int
    original_task_id: str | None
    duplicate: bool = Field(default=False, description="An unfinished task of the same unique key, instead of a new one.")
    reason: str | None = None
    result: Any = None
    output: BlobRef | None = None
    error: ErrorInfo | None = Field(default=None, description="As `result`: only where the answer waited for the outcome.")
    links: Links


class TaskAnswer(Answer):
    """A task. ``retry_count``: attempts that failed; ``as_of``: the position that the answer is true for."""

    task_id: str
    task_name: str
    status: Status
    reason: str | None
    priority: int
    queue_name: str
    pool: str
    worker_id: str | None
    created_at: datetime
    scheduled_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    due_at: datetime | None
    updated_at: datetime
    attempt: int
    retry_count: int
    max_retries: int
    timeout_seconds: float | None
    queue_timeout_seconds: float | None
    heartbeat_timeout_seconds: float | None
    result_ttl_seconds: float | None
    start_by: datetime | None
    key: str | None
    tags: list[str]
    metadata: dict[str, str]
    held: bool = Field(description="It is ready, and waits for its queue's admission.")
    cancel_requested: bool
    pause_requested: bool
    task_args: list[Any] | None
    task_kwargs: dict[str, Any] | None
    input: BlobRef | None
    progress: ProgressAnswer | None
    result: Any
    output: BlobRef | None
    error: ErrorInfo | None
    original_task_id: str | None
    origin: str | None
    parent_task_id: str | None
    subtasks: list[str] | None = Field(default=None, description="Ids of the tasks that it spawned; null in lists.")
    workflow_id: str | None
    node: str | None
    schedule_id: str | None
    cleaned: bool
    erased: bool
    version: int
    as_of: int
    links: Links


class TaskListAnswer(Answer):
    """A page of tasks. ``total``: all that match."""

    total: int
    limit: int
    offset: int
    tasks: list[TaskAnswer]
    as_of: int


class ControlAnswer(Answer):
    """What became of a cancel, a pause or a resume."""

    task_id: str
    status: Status
    message: str
    version: int


class AgainAnswer(Answer):
    """The new task that repeats ``original_task_id``."""

    task_id: str
    status: Status
    original_task_id: str
    version: int
    reason: str | None = None
    result: Any = None
    output: BlobRef | None = None
    error: ErrorInfo | None = Field(default=None, description="As `result`: only where the answer waited for the outcome.")
    links: Links


class TimelineEvent(Answer):
    """One event of a task's history, in the order of the log."""

    timestamp: datetime
    event_type: str
    details: dict[str, Any]
    version: int
    position: int
    attempt: int
    source: str
    event_id: str


class TimelineAttempt(Answer):
    """One execution. ``outcome``: null while it runs."""

    attempt: int
    worker_id: str
    hostname: str
    device: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    error: ErrorInfo | None


class TimelineLog(Answer):
    """One line that the task's code wrote."""

    timestamp: datetime
    attempt: int
    level: str
    message: str
    fields: dict[str, Any]


class TimelineAnswer(Answer):
    """The whole story of a task."""

    task_id: str
    task_name: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    duration_seconds: float | None
    events: list[TimelineEvent]
    attempts: list[TimelineAttempt]
    progress: ProgressAnswer | None
    logs: list[TimelineLog]
    version: int
    as_of: int


class Timing(Answer):
    """Durations in seconds, from the last start to the end; null where a task has not finished."""

    task1_duration: float | None
    task2_duration: float | None


class CompareAnswer(Answer):
    """What two tasks have in common."""

    same_function: bool
    same_args: bool
    same_priority: bool
    same_status: bool
    same_result: bool
    timing: Timing


class HealthAnswer(Answer):
    """``redis`` is the documented name of the broker's check and always equals ``broker``."""

    status: str = Field(
        description="`healthy`, `degraded` (works, but no worker takes the tasks that wait, or reads are late) or `unhealthy`."
    )
    version: str
    checks: dict[str, str]
    problems: dict[str, str]


class ProbeAnswer(Answer):
    """For load balancers and supervisors."""

    status: Literal["ok", "not ready"]
    problems: list[str] = Field(default_factory=list)


class TableAnswer(Answer):
    """One table of the projection."""

    rows: int
    sha256: str


class DifferenceAnswer(Answer):
    """The first row of a table that is not what the log says; ``position``: of the event it comes from."""

    table: str
    key: str
    position: int
    in_projection: bool
    in_log: bool


class VerifyAnswer(Answer):
    """Whether the projection equals the fold of the log up to ``position``."""

    equal: bool
    position: int
    seconds: float
    tables: dict[str, TableAnswer]
    differences: list[DifferenceAnswer]


class RebuildAnswer(Answer):
    """A rebuilt projection: up to ``position``, from so many messages."""

    position: int
    messages: int
    seconds: float


class ErrorDetail(Answer):
    """One of several findings."""

    field: str
    problem: str
    limit: Any = None
    found: Any = None
    hint: str | None = None


class ErrorAnswer(Answer):
    """Every error: a sentence for people, a stable code for programs, and the request's id for the log."""

    detail: str
    code: str
    request_id: str
    timestamp: datetime
    field: str | None = None
    limit: Any = None
    found: Any = None
    hint: str | None = None
    errors: list[ErrorDetail] | None = None
