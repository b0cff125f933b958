"""The rules of a schedule, pure: when it is due, which of the due times get a task, and what may follow what.

A tick is decided by its event: what ``ticked`` names is made, once, under ids that follow from the due time; so however many
schedulers there are, and wherever one dies, the record and the tasks agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID, uuid5

from pydantic import Field

from eventq.events.aggregate import State, modelled
from eventq.events.cron import check_zone, times_after
from eventq.events.data import EventData
from eventq.events.erasure import Erase, left_at
from eventq.events.errors import IllegalTransition, InvalidInput, ScheduleNotFound
from eventq.events.schedule_events import (
    ScheduleCreated,
    ScheduleDeleted,
    ScheduleErased,
    SchedulePaused,
    ScheduleResumed,
    ScheduleSpec,
    ScheduleTicked,
    ScheduleTriggered,
    ScheduleUpdated,
)
from eventq.events.task_events import Submitted

TICK = "tick"
"""The hint that a schedule is due."""

CATCH_UP_MAX = 100
"""Tasks made at once for due times that were missed: of the newest."""

MISSED_AFTER_S = 60.0
"""A due time that is older counts as missed where ``catch_up`` is ``skip``."""

_TASK_IDS = UUID("6f1d2f6e-5f0c-5b0e-9d0a-3c1c52d1a4b7")


class ScheduleStatus(StrEnum):
    """Where a schedule stands. ``ENDED``: no due time is left; ``DELETED`` is final."""

    ABSENT = "ABSENT"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    ENDED = "ENDED"
    DELETED = "DELETED"


class Schedule(State):
    """The fold of a schedule's events. ``last_at``: the newest due time that is dealt with; ``last_task_ids``: what the last
    tick that made tasks made. ``tasks``, ``dropped``, ``triggered``: how many so far.

    ``spec`` does not travel in the events, where it could never be erased: the event ``spec_version`` has it.
    """

    status: ScheduleStatus = ScheduleStatus.ABSENT
    spec: ScheduleSpec | None = None
    spec_version: int = 0
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_task_ids: list[str] = Field(default_factory=list[str])
    last_trigger_id: str | None = None
    tasks: int = 0
    dropped: int = 0
    triggered: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def waiting(self) -> bool:
        """Whether a tick is to come."""
        return self.status is ScheduleStatus.ACTIVE and self.next_at is not None

    @property
    def required_spec(self) -> ScheduleSpec:
        """What it makes when. Raises :class:`IllegalTransition` where that is not there any more."""
        if self.spec is None:
            what = "is deleted" if self.status is ScheduleStatus.DELETED else "makes something else now"
            raise IllegalTransition(f"the schedule {what}", status=self.status.value)
        return self.spec

    def summary(self) -> dict[str, Any]:
        """As in :meth:`State.summary`: without ``spec``, if it is known which event has it."""
        whole = self.whole()
        if self.spec_version:  # else an earlier build wrote the state that this one follows from
            whole.pop("spec", None)
        return whole


NO_SCHEDULE = Schedule()


@dataclass(frozen=True, slots=True)
class CreateSchedule:
    """Somebody wants a schedule. ``next_at``: its first due time."""

    spec: ScheduleSpec
    next_at: datetime
    paused: bool
    requested_by: str


@dataclass(frozen=True, slots=True)
class UpdateSchedule:
    """Somebody wants another. ``version``: of the schedule that ``next_at`` was reckoned on."""

    version: int
    spec: ScheduleSpec
    next_at: datetime
    requested_by: str


@dataclass(frozen=True, slots=True)
class PauseSchedule:
    """Somebody wants no more ticks for a while."""

    requested_by: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ResumeSchedule:
    """Somebody wants ticks again; what was missed is caught up with as the schedule says."""

    requested_by: str


@dataclass(frozen=True, slots=True)
class TickSchedule:
    """A scheduler deals with due times. ``version``: of the schedule that it looked at."""

    version: int
    ticked: ScheduleTicked


@dataclass(frozen=True, slots=True)
class TriggerSchedule:
    """Somebody wants the task now, under this id."""

    task_id: str
    requested_by: str


@dataclass(frozen=True, slots=True)
class DeleteSchedule:
    """Somebody wants no more of it."""

    requested_by: str


@dataclass(frozen=True, slots=True)
class EraseSchedule(Erase):
    """A task that it made is erased."""


ScheduleCommand = (
    CreateSchedule
    | UpdateSchedule
    | PauseSchedule
    | ResumeSchedule
    | TickSchedule
    | TriggerSchedule
    | DeleteSchedule
    | EraseSchedule
)


def decide_schedule(command: ScheduleCommand, schedule: Schedule) -> list[EventData]:
    """What follows; empty where the command is already fulfilled. Raises :class:`IllegalTransition`."""
    if isinstance(command, CreateSchedule):
        return [_created(command, schedule)]
    if isinstance(command, EraseSchedule):
        return _erased(command, schedule)
    if schedule.status is ScheduleStatus.DELETED:
        if isinstance(command, DeleteSchedule):
            return []
        raise IllegalTransition("the schedule is deleted", status=schedule.status.value)
    match command:
        case UpdateSchedule():
            _check_version(command.version, schedule)
            return [ScheduleUpdated(spec=command.spec, next_at=command.next_at, requested_by=command.requested_by)]
        case PauseSchedule() | ResumeSchedule():
            return _paused_or_resumed(command, schedule)
        case TickSchedule():
            _check_version(command.version, schedule)
            return [_ticked(command, schedule)]
        case TriggerSchedule():
            if command.task_id == schedule.last_trigger_id:
                return []
            return [ScheduleTriggered(task_id=command.task_id, requested_by=command.requested_by)]
        case DeleteSchedule():
            return [ScheduleDeleted(requested_by=command.requested_by)]


def _created(command: CreateSchedule, schedule: Schedule) -> EventData:
    if schedule.version:
        raise IllegalTransition("there is a schedule of that id already", status=schedule.status.value)
    return ScheduleCreated(spec=command.spec, next_at=command.next_at, paused=command.paused, requested_by=command.requested_by)


def _paused_or_resumed(command: PauseSchedule | ResumeSchedule, schedule: Schedule) -> list[EventData]:
    if schedule.status is ScheduleStatus.ENDED or schedule.next_at is None:
        raise IllegalTransition("the schedule has ended", status=schedule.status.value)
    paused = schedule.status is ScheduleStatus.PAUSED
    if isinstance(command, PauseSchedule):
        return [] if paused else [SchedulePaused(requested_by=command.requested_by, reason=command.reason)]
    return [ScheduleResumed(next_at=schedule.next_at, requested_by=command.requested_by)] if paused else []


def _ticked(command: TickSchedule, schedule: Schedule) -> EventData:
    ticked = command.ticked
    if not schedule.waiting or schedule.next_at is None:
        raise IllegalTransition("the schedule does not tick", status=schedule.status.value)
    if ticked.nominal < schedule.next_at or (ticked.next_at is not None and ticked.next_at <= ticked.nominal):
        raise IllegalTransition("a schedule ticks forward, from its next due time on", status=schedule.status.value)
    return ticked


def _erased(command: EraseSchedule, schedule: Schedule) -> list[EventData]:
    holds = any(left.event["version"] == schedule.spec_version for left in command.events)
    if holds and schedule.status is not ScheduleStatus.DELETED:
        raise IllegalTransition("the schedule still makes tasks of this", status=schedule.status.value)
    return command.told(ScheduleErased)


def _check_version(version: int, schedule: Schedule) -> None:
    if version != schedule.version:
        raise IllegalTransition("decided on an outdated view of the schedule", status=f"version {schedule.version}")


def evolve_schedule(schedule: Schedule, event_id: str, at: datetime, data: EventData) -> Schedule:
    """The schedule after its next event."""
    match data:
        case ScheduleCreated():
            status = ScheduleStatus.PAUSED if data.paused else ScheduleStatus.ACTIVE
            return _respecified(schedule, event_id, at, data, status=status, created_at=at)
        case ScheduleUpdated():
            paused = schedule.status is ScheduleStatus.PAUSED
            status = ScheduleStatus.PAUSED if paused else ScheduleStatus.ACTIVE
            return _respecified(schedule, event_id, at, data, status=status)
        case SchedulePaused():
            return schedule.after(event_id, status=ScheduleStatus.PAUSED, updated_at=at)
        case ScheduleResumed():
            return schedule.after(event_id, status=ScheduleStatus.ACTIVE, next_at=data.next_at, updated_at=at)
        case ScheduleTicked():
            return schedule.after(
                event_id,
                status=ScheduleStatus.ENDED if data.next_at is None else schedule.status,
                next_at=data.next_at,
                last_at=data.nominal,
                last_task_ids=data.task_ids or schedule.last_task_ids,
                tasks=schedule.tasks + len(data.task_ids),
                dropped=schedule.dropped + data.dropped,
            )
        case ScheduleTriggered():
            return schedule.after(event_id, last_trigger_id=data.task_id, triggered=schedule.triggered + 1)
        case ScheduleDeleted():
            return schedule.after(event_id, status=ScheduleStatus.DELETED, next_at=None, updated_at=at)
        case ScheduleErased():
            left = left_at(SCHEDULES.name, data, schedule.spec_version)
            spec = left.spec if isinstance(left, ScheduleCreated | ScheduleUpdated) else schedule.spec
            return schedule.after(event_id, spec=spec)
        case _:
            raise IllegalTransition(f"{type(data).__name__} is not an event of a schedule")


def _respecified(
    schedule: Schedule, event_id: str, at: datetime, data: ScheduleCreated | ScheduleUpdated, **changes: Any
) -> Schedule:
    version = schedule.version + 1
    return schedule.after(event_id, spec=data.spec, spec_version=version, next_at=data.next_at, updated_at=at, **changes)


SCHEDULES = modelled("schedules", Schedule, decide_schedule, evolve_schedule, ScheduleNotFound, (CreateSchedule,))


def due_times(spec: ScheduleSpec, after: datetime) -> Iterator[datetime]:
    """The due times strictly after ``after``, ascending: aware UTC."""
    if spec.starts_at is not None:
        after = max(after, spec.starts_at - timedelta(microseconds=1))
    for time in times_after(spec.cron, check_zone(spec.time_zone), after):
        if spec.ends_at is not None and time > spec.ends_at:
            return
        yield time


def first_due(spec: ScheduleSpec, schedule: Schedule, now: datetime) -> datetime:
    """The next due time of ``spec`` from ``now`` on, of none that is dealt with; where the times stay as they were, the one
    that is next already, due or not. Raises ``InvalidInput`` if there is none."""
    if schedule.next_at is not None and _times(spec) == _times(schedule.required_spec):
        return schedule.next_at
    after = now if schedule.last_at is None else max(now, schedule.last_at)
    found = next(due_times(spec, after), None)
    if found is None:
        raise InvalidInput("/cron", "means no time between now and /ends_at", found=spec.cron)
    return found


def _times(spec: ScheduleSpec) -> tuple[object, ...]:
    """What decides when it is due."""
    return spec.cron, spec.time_zone, spec.starts_at, spec.ends_at


def tick_task_id(schedule_id: str, nominal: datetime) -> str:
    """The id of the one task of a due time."""
    return str(uuid5(_TASK_IDS, f"{schedule_id} at {nominal.astimezone(UTC).isoformat()}"))


def trigger_task_id(schedule_id: str, key: str) -> str:
    """The id of the one task that is triggered under an idempotency key."""
    return str(uuid5(_TASK_IDS, f"{schedule_id} by {key}"))


def tick_task(schedule_id: str, spec: ScheduleSpec) -> Submitted:
    """What a tick submits."""
    return spec.task.model_copy(update={"schedule_id": schedule_id})


def plan_tick(schedule_id: str, schedule: Schedule, now: datetime, *, busy: bool) -> ScheduleTicked | None:
    """What a scheduler that looks at ``now`` makes of the due times; ``None`` where nothing is due.

    ``busy``: the task of the tick before is unfinished. Takes as long as there are due times to count.
    """
    if not schedule.waiting or schedule.next_at is None or schedule.next_at > now:
        return None
    spec = schedule.required_spec
    newest: deque[datetime] = deque([schedule.next_at], maxlen=CATCH_UP_MAX)
    due, next_at = 1, None
    for time in due_times(spec, schedule.next_at):
        if time > now:
            next_at = time
            break
        newest.append(time)
        due += 1
    chosen = _chosen(spec, list(newest), now)
    why: Literal["missed", "overlap"] | None = "missed" if len(chosen) < due else None
    if spec.overlap == "skip" and chosen:
        if busy or len(chosen) > 1:
            why = "overlap"
        chosen = [] if busy else chosen[-1:]
    return ScheduleTicked(
        nominal=newest[-1],
        task_ids=[tick_task_id(schedule_id, time) for time in chosen],
        dropped=due - len(chosen),
        why=why,
        next_at=next_at,
    )


def _chosen(spec: ScheduleSpec, newest: list[datetime], now: datetime) -> list[datetime]:
    match spec.catch_up:
        case "skip":
            return [time for time in newest if now - time <= timedelta(seconds=MISSED_AFTER_S)]
        case "latest":
            return newest[-1:]
        case "all":
            return newest
