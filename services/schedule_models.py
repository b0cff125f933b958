"""What the routes of schedules take and answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from eventq.events.cron import check_cron, check_zone
from eventq.events.data import BlobRef
from eventq.events.ids import check_id
from eventq.events.limits import CRON_MAX_CHARS, NAME_MAX_CHARS, REASON_MAX_CHARS
from eventq.events.schedule import ScheduleStatus
from eventq.events.schedule_events import CatchUp, Overlap
from eventq.services.answers import Answer
from eventq.services.http_limits import OFFSET_MAX, PAGE_DEFAULT, PAGE_MAX
from eventq.services.schemas import POSITION_MAX, Arguments, Closed, TaskName, TaskOptions, Utc, checked

ScheduleState = Literal["ACTIVE", "PAUSED", "ENDED", "DELETED"]


ScheduleId = Annotated[str, checked(check_id, "schedule_id")]
Cron = Annotated[str, Field(max_length=CRON_MAX_CHARS), checked(check_cron, "cron")]
TimeZone = Annotated[str, Field(max_length=NAME_MAX_CHARS), checked(check_zone, "time_zone")]


class ScheduleRequest(TaskOptions):
    """What to make when."""

    schedule_id: ScheduleId | None = Field(None, description="Yours to choose; by default a new one.")
    cron: Cron = Field(description="Five fields: minute hour day-of-month month day-of-week.")
    time_zone: TimeZone = Field("UTC", description="An IANA name, such as `Europe/Berlin`.")
    task_name: TaskName
    task_args: Arguments = Field(default_factory=list[Any])
    task_kwargs: dict[str, Any] = Field(default_factory=dict)
    catch_up: CatchUp = Field("latest", description="Of missed due times: none, one task for the newest, or one for each.")
    overlap: Overlap = Field("allow", description="`skip`: no task while the one of the tick before is unfinished.")
    starts_at: Utc | None = None
    ends_at: Utc | None = None
    enabled: bool = Field(True, description="`false`: created paused.")


class SchedulePatch(TaskOptions):
    """What to change; what is left out stays."""

    cron: Cron | None = None
    time_zone: TimeZone | None = None
    task_name: TaskName | None = None
    task_args: Arguments | None = None
    task_kwargs: dict[str, Any] | None = None
    catch_up: CatchUp | None = None
    overlap: Overlap | None = None
    starts_at: Utc | None = None
    ends_at: Utc | None = None


class SchedulePath(Closed):
    """One schedule."""

    schedule_id: ScheduleId


class SchedulesQuery(Closed):
    """Which schedules."""

    status: list[ScheduleState] = Field(
        default_factory=list[ScheduleState], description="Repeat it for several. Left out: all but deleted ones."
    )
    task_name: TaskName | None = None
    limit: int = Field(PAGE_DEFAULT, ge=1, le=PAGE_MAX)
    offset: int = Field(0, ge=0, le=OFFSET_MAX)
    min_position: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this position is visible.")


class PauseScheduleRequest(Closed):
    """Why; may be left out with the whole body."""

    reason: str | None = Field(None, max_length=REASON_MAX_CHARS)


class ScheduleAnswer(Answer):
    """A schedule. ``upcoming``: the next times it is due; ``last_task_ids``: what the last tick made; ``dropped_ticks``: due
    times that no task was made for, because they were missed or the task before was unfinished."""

    schedule_id: str
    status: ScheduleStatus
    cron: str
    explain: str
    time_zone: str
    catch_up: CatchUp
    overlap: Overlap
    starts_at: datetime | None
    ends_at: datetime | None
    next_at: datetime | None
    upcoming: list[datetime]
    last_at: datetime | None
    last_task_ids: list[str]
    tasks_made: int
    dropped_ticks: int
    times_triggered: int
    task_name: str
    task_args: list[Any] | None
    task_kwargs: dict[str, Any] | None
    input: BlobRef | None
    priority: int
    queue_name: str
    pool: str
    max_retries: int
    timeout_seconds: float | None
    queue_timeout_seconds: float | None
    heartbeat_timeout_seconds: float | None
    result_ttl_seconds: float | None
    key: str | None
    tags: list[str]
    metadata: dict[str, str]
    created_at: datetime | None
    updated_at: datetime | None
    version: int


class ScheduleListAnswer(Answer):
    """A page of schedules. ``total``: all that match."""

    total: int
    limit: int
    offset: int
    schedules: list[ScheduleAnswer]
    as_of: int


class TriggerAnswer(Answer):
    """The task that was made at once. ``version``: of the schedule."""

    schedule_id: str
    task_id: str
    version: int
