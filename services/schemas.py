"""JSON in and out of the native API, as ``docs/api.md`` describes it. Times are RFC 3339 in UTC with a ``Z``.

Requests are closed and strict: an unknown field, or a string where a number belongs, is refused by name. Answers may
gain fields.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from eventq.events.catalogue import BlobRef, ErrorInfo
from eventq.events.errors import InvalidInput
from eventq.events.ids import check_id, check_name, check_task_name
from eventq.events.limits import PRIORITY_MAX, PRIORITY_MIN, REASON_MAX_CHARS, RETRIES_MAX, TIMEOUT_MAX_S
from eventq.events.task import Status
from eventq.services.http_limits import OFFSET_MAX, PAGE_DEFAULT, PAGE_MAX

POSITION_MAX = 2**63 - 1
YEAR_MIN, YEAR_MAX = 1970, 9998


class Closed(BaseModel):
    """A request: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _checked(check: Any, field: str) -> AfterValidator:
    """A check of ``events.ids`` as a pydantic validator: only its sentence passes, pydantic knows the place."""

    def validate(value: str) -> str:
        try:
            return str(check(value, field))
        except InvalidInput as error:
            raise ValueError(error.detail.removeprefix(f"{field}: ")) from None

    return AfterValidator(validate)


def _utc(value: Any) -> Any:
    """An RFC 3339 time; one without an offset is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("should be an RFC 3339 time such as 2026-01-25T14:30:00Z") from None
    if not isinstance(value, datetime):
        raise ValueError("should be an RFC 3339 time as a string")
    if not YEAR_MIN <= value.year <= YEAR_MAX:
        raise ValueError(f"should lie between the years {YEAR_MIN} and {YEAR_MAX}")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _moment(value: Any) -> Any:
    """``as_of``: a position (digits) or a time."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        if not 0 <= (position := int(value)) <= POSITION_MAX:
            raise ValueError(f"should be a position up to {POSITION_MAX} or an RFC 3339 time")
        return position
    return _utc(value)


Utc = Annotated[datetime, BeforeValidator(_utc)]
Moment = Annotated[int | datetime, BeforeValidator(_moment)]
TaskId = Annotated[str, _checked(check_id, "task_id")]
TaskName = Annotated[str, _checked(check_task_name, "task_name")]
QueueName = Annotated[str, _checked(check_name, "queue_name")]
Priority = Annotated[int, Field(ge=PRIORITY_MIN, le=PRIORITY_MAX)]
StatusName = Literal["SCHEDULED", "PENDING", "RUNNING", "RETRYING", "COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"]


class SubmitRequest(Closed):
    """What to run. Left out: the task's own declaration decides."""

    task_name: TaskName
    task_args: list[Any] = Field(default_factory=list, max_length=1000)
    task_kwargs: dict[str, Any] = Field(default_factory=dict)
    priority: Priority | None = Field(None, description="Larger is more urgent.")
    queue_name: QueueName | None = None
    max_retries: int | None = Field(None, ge=0, le=RETRIES_MAX)
    timeout_seconds: float | None = Field(None, gt=0, le=TIMEOUT_MAX_S, description="For one attempt.")
    scheduled_at: Utc | None = Field(None, description="Not before this time; without an offset it is UTC.")


class SubmitQuery(Closed):
    """Accepted for the documented clients; submitting never waits for the result."""

    asynchronous: bool = Field(True, alias="async", description="Only `true` has a meaning yet.")


class TaskPath(Closed):
    """One task."""

    task_id: TaskId


class TwoTasksPath(Closed):
    """Two tasks."""

    task_id1: TaskId
    task_id2: TaskId


class GetQuery(Closed):
    """What the answer must include, and as of when."""

    min_version: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this version is visible.")
    min_position: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this position is visible.")
    as_of: Moment | None = Field(None, description="The task as it was at this position or time.")


class ReadQuery(Closed):
    """What the answer must include."""

    min_version: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this version is visible.")
    min_position: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this position is visible.")


class ListQuery(Closed):
    """Which tasks, in which order."""

    status: list[StatusName] = Field(default_factory=list[StatusName], description="Repeat it for several.")
    priority: Priority | None = None
    queue_name: QueueName | None = None
    task_name: TaskName | None = None
    limit: int = Field(PAGE_DEFAULT, ge=1, le=PAGE_MAX)
    offset: int = Field(0, ge=0, le=OFFSET_MAX)
    sort_by: Literal["created_at", "started_at", "completed_at", "updated_at", "priority", "status", "task_name"] = "created_at"
    sort_order: Literal["asc", "desc"] = "desc"
    min_position: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this position is visible.")


class CancelRequest(Closed):
    """Why; may be left out with the whole body."""

    reason: str | None = Field(None, max_length=REASON_MAX_CHARS)


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
    cancel_requested: bool
    task_args: list[Any] | None
    task_kwargs: dict[str, Any] | None
    input: BlobRef | None
    progress: ProgressAnswer | None
    result: Any
    output: BlobRef | None
    error: ErrorInfo | None
    original_task_id: str | None
    origin: str | None
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


class CancelAnswer(Answer):
    """What became of a cancel."""

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

    status: str = Field(description="`healthy`, `degraded` (works, but no worker is alive) or `unhealthy`.")
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


class BlobPath(Closed):
    """One blob."""

    key: str = Field(max_length=300)


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
