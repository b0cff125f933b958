"""What the native API takes: bodies, query strings and paths.

Closed and strict: an unknown field, or a string where a number belongs, is refused by name.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from eventq.events.errors import InvalidInput
from eventq.events.ids import check_id, check_name, check_task_name
from eventq.events.limits import (
    METADATA_MAX,
    METADATA_VALUE_MAX_CHARS,
    NAME_MAX_CHARS,
    PRIORITY_MAX,
    PRIORITY_MIN,
    QUEUE_TIMEOUT_MAX_S,
    REASON_MAX_CHARS,
    RESULT_TTL_MAX_S,
    RETRIES_MAX,
    TAG_MAX_CHARS,
    TAGS_MAX,
    TIMEOUT_MAX_S,
)
from eventq.events.retry import RetryPolicy
from eventq.services.http_limits import OFFSET_MAX, PAGE_DEFAULT, PAGE_MAX

POSITION_MAX = 2**63 - 1
YEAR_MIN, YEAR_MAX = 1970, 9998


class Closed(BaseModel):
    """A request: nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RefusedValue(ValueError):
    """What a check of the rules says of a value: its sentence without the place, which pydantic knows, and its ``fields``."""

    def __init__(self, error: InvalidInput) -> None:
        super().__init__(error.detail.removeprefix(f"{error.field}: "))
        self.fields = error.fields


def checked(check: Any, field: str) -> AfterValidator:
    """A check of the rules as a pydantic validator, which collects only errors of its own kind."""

    def validate(value: str) -> str:
        try:
            check(value, field)
        except InvalidInput as error:
            raise RefusedValue(error) from None
        return value

    return AfterValidator(validate)


def _utc(value: Any) -> Any:
    """An RFC 3339 time; one without an offset is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.upper())  # RFC 3339 admits a small t and z
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
TaskId = Annotated[str, checked(check_id, "task_id")]
TaskName = Annotated[str, checked(check_task_name, "task_name")]
QueueName = Annotated[str, checked(check_name, "queue_name")]
Priority = Annotated[int, Field(ge=PRIORITY_MIN, le=PRIORITY_MAX)]
StatusName = Literal["SCHEDULED", "PENDING", "RUNNING", "RETRYING", "PAUSED", "COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"]
Tag = Annotated[str, Field(min_length=1, max_length=TAG_MAX_CHARS)]
Tags = Annotated[list[Tag], Field(max_length=TAGS_MAX)]
MetadataName = Annotated[str, Field(min_length=1, max_length=NAME_MAX_CHARS, pattern="^[^=]*$")]
"""Without the sign that ends a name where tasks are searched for: ``?metadata=name=value``."""

MetadataValue = Annotated[str, Field(max_length=METADATA_VALUE_MAX_CHARS)]
Metadata = Annotated[dict[MetadataName, MetadataValue], Field(max_length=METADATA_MAX)]
KeyName = Annotated[str, Field(min_length=1, max_length=NAME_MAX_CHARS)]
Arguments = Annotated[list[Any], Field(max_length=1000)]


class TaskOptions(Closed):
    """How a task is to be run. Left out or null: as the task declares it."""

    priority: Priority | None = Field(None, description="Larger is more urgent.")
    queue_name: QueueName | None = None
    max_retries: int | None = Field(None, ge=0, le=RETRIES_MAX)
    retry: RetryPolicy | None = Field(None, description="When to try again, and after which errors.")
    timeout_seconds: float | None = Field(None, gt=0, le=TIMEOUT_MAX_S, description="For one attempt.")
    queue_timeout_seconds: float | None = Field(None, gt=0, le=QUEUE_TIMEOUT_MAX_S, description="To be started within.")
    heartbeat_timeout_seconds: float | None = Field(None, gt=0, le=TIMEOUT_MAX_S, description="An attempt's longest silence.")
    result_ttl_seconds: float | None = Field(None, gt=0, le=RESULT_TTL_MAX_S, description="The result is kept for so long.")
    key: KeyName | None = Field(None, description="Limits for each key and fair sharing go by it.")
    tags: Tags = Field(default_factory=list)
    metadata: Metadata = Field(default_factory=dict)


class SubmitRequest(TaskOptions):
    """What to run. Left out: the task's own declaration decides."""

    task_name: TaskName
    task_args: Arguments = Field(default_factory=list)
    task_kwargs: dict[str, Any] = Field(default_factory=dict)
    scheduled_at: Utc | None = Field(None, description="Not before this time; without an offset it is UTC.")
    unique: bool = Field(False, description="While a task with these arguments is unfinished, answer that one.")
    unique_key: KeyName | None = Field(None, description="As `unique`, by this key instead of name and arguments.")


class UpdateRequest(TaskOptions):
    """What to change of a task that has not been started. Left out: as it is. Null: as the task declares it."""

    task_name: TaskName | None = None
    task_args: Arguments | None = None
    task_kwargs: dict[str, Any] | None = None
    scheduled_at: Utc | None = Field(None, description="Null: as soon as possible.")


class SubmitQuery(Closed):
    """Whether to wait for the outcome."""

    asynchronous: bool = Field(
        True, alias="async", description="`false`: answer when the task has finished, or 202 after a while."
    )


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
    key: KeyName | None = None
    tag: Tags = Field(default_factory=list[str], description="Repeat it: those that have all of them.")
    metadata: list[str] = Field(default_factory=list[str], max_length=METADATA_MAX, description="`name=value`; repeat it.")
    workflow_id: TaskId | None = None
    schedule_id: TaskId | None = None
    parent_task_id: TaskId | None = None
    original_task_id: TaskId | None = None
    cleaned: bool | None = Field(False, description="With those whose result was given up: `true` shows only them.")
    limit: int = Field(PAGE_DEFAULT, ge=1, le=PAGE_MAX)
    offset: int = Field(0, ge=0, le=OFFSET_MAX)
    sort_by: Literal["created_at", "started_at", "completed_at", "updated_at", "priority", "status", "task_name"] = "created_at"
    sort_order: Literal["asc", "desc"] = "desc"
    min_position: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this position is visible.")


class ReasonRequest(Closed):
    """Why; may be left out with the whole body."""

    reason: str | None = Field(None, max_length=REASON_MAX_CHARS)


class BlobPath(Closed):
    """One blob."""

    key: str = Field(max_length=300)
