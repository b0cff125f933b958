"""The events of a schedule: what it makes when, and what became of each of its due times."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from eventq.events.data import EventData
from eventq.events.limits import CRON_MAX_CHARS, NAME_MAX_CHARS
from eventq.events.task_events import Erased, Submitted

CatchUp = Literal["skip", "latest", "all"]
Overlap = Literal["allow", "skip"]


class ScheduleSpec(EventData):
    """What is made when. ``cron``: five fields, in ``time_zone`` (IANA). ``task``: complete, as each tick submits it.

    ``catch_up``: of due times that were missed, ``skip`` makes none, ``latest`` one task for the newest, ``all`` one for each
    of the newest hundred. ``overlap``: ``skip`` makes none while the task of the tick before is unfinished. There are no ticks
    before ``starts_at`` and none after ``ends_at``; both are included.
    """

    cron: str = Field(max_length=CRON_MAX_CHARS)
    time_zone: str = Field(default="UTC", max_length=NAME_MAX_CHARS)
    task: Submitted
    catch_up: CatchUp = "latest"
    overlap: Overlap = "allow"
    starts_at: datetime | None = None
    ends_at: datetime | None = None


class _ScheduleData(EventData):
    """Base of the events here: stored without what is as usual."""

    def wire(self) -> dict[str, Any]:
        """As in :meth:`EventData.wire`, without what is as usual."""
        return self.model_dump(exclude_defaults=True)


class ScheduleCreated(_ScheduleData):
    """A schedule was made; ``paused``: it waits to be resumed."""

    spec: ScheduleSpec
    next_at: datetime
    paused: bool = False
    requested_by: str


class ScheduleUpdated(_ScheduleData):
    """All that holds from now on."""

    spec: ScheduleSpec
    next_at: datetime
    requested_by: str


class SchedulePaused(_ScheduleData):
    """There are no ticks until it is resumed."""

    requested_by: str
    reason: str | None = None


class ScheduleResumed(_ScheduleData):
    """Ticks go on; ``next_at``: the oldest due time that was not dealt with, which may lie in the past."""

    next_at: datetime
    requested_by: str


class ScheduleTicked(_ScheduleData):
    """All due times up to ``nominal`` are dealt with: each of ``task_ids`` is made for one of them, oldest first, and no task
    for ``dropped`` of them. ``why``: they were missed for too long, or the task before was unfinished. ``next_at``: the due
    time after; without one the schedule has ended."""

    nominal: datetime
    task_ids: list[str] = Field(default_factory=list)
    dropped: int = 0
    why: Literal["missed", "overlap"] | None = None
    next_at: datetime | None = None


class ScheduleTriggered(_ScheduleData):
    """Somebody wanted the task made at once, whatever the time is."""

    task_id: str
    requested_by: str


class ScheduleDeleted(_ScheduleData):
    """It makes nothing any more. Its id stays taken: ids of tasks come from it."""

    requested_by: str


class ScheduleErased(Erased):
    """What the schedule made at earlier versions, or before it was deleted, was destroyed, because a task of it was erased."""
