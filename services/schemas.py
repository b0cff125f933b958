"""What the native API takes: bodies, query strings and paths.

Closed and strict: an unknown field, or a string where a number belongs, is refused by name.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from eventq.events.errors import InvalidInput
from eventq.events.ids import check_id, check_name, check_task_name
from eventq.events.limits import PRIORITY_MAX, PRIORITY_MIN, REASON_MAX_CHARS, RETRIES_MAX, TIMEOUT_MAX_S
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


class BlobPath(Closed):
    """One blob."""

    key: str = Field(max_length=300)
