"""The rules of schedules: when they are due, what becomes of due times, and what may follow what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eventq.events.cron import check_cron, check_zone, explain_cron, times_after
from eventq.events.data import EventData
from eventq.events.envelope import Stored, next_event
from eventq.events.erasure import tombstone
from eventq.events.errors import IllegalTransition, InvalidInput
from eventq.events.schedule import (
    CATCH_UP_MAX,
    NO_SCHEDULE,
    SCHEDULES,
    CreateSchedule,
    DeleteSchedule,
    EraseSchedule,
    PauseSchedule,
    ResumeSchedule,
    Schedule,
    ScheduleStatus,
    TickSchedule,
    TriggerSchedule,
    UpdateSchedule,
    due_times,
    first_due,
    plan_tick,
    tick_task_id,
)
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
from eventq.events.task_events import ErasedEvent, Submitted

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TASK = Submitted(task_name="echo", pool="cpu", queue="default", priority=5, max_retries=0)


def spec(cron: str = "* * * * *", **options: Any) -> ScheduleSpec:
    return ScheduleSpec(cron=cron, task=TASK, **options)


def given_events(*events: EventData) -> Schedule:
    schedule = NO_SCHEDULE
    for number, data in enumerate(events, 1):
        schedule = SCHEDULES.evolve(schedule, f"event-{number}", NOON, data)
    return schedule


def active(wanted: ScheduleSpec | None = None, next_at: datetime = NOON) -> Schedule:
    return given_events(ScheduleCreated(spec=wanted or spec(), next_at=next_at, requested_by="ada"))


PAUSED = SchedulePaused(requested_by="ada")
DELETED = ScheduleDeleted(requested_by="ada")
ENDED = ScheduleTicked(nominal=NOON, task_ids=["t"])
CREATED = ScheduleCreated(spec=spec(), next_at=NOON, requested_by="ada")


# What follows what


@pytest.mark.parametrize(
    ("before", "command", "after"),
    [
        ([], CreateSchedule(spec(), NOON, False, "ada"), CREATED),
        ([CREATED], PauseSchedule("ada"), PAUSED),
        ([CREATED, PAUSED], PauseSchedule("bob"), None),
        ([CREATED, PAUSED], ResumeSchedule("ada"), ScheduleResumed(next_at=NOON, requested_by="ada")),
        ([CREATED], ResumeSchedule("ada"), None),
        ([CREATED], TriggerSchedule("t", "ada"), ScheduleTriggered(task_id="t", requested_by="ada")),
        ([CREATED, ScheduleTriggered(task_id="t", requested_by="ada")], TriggerSchedule("t", "ada"), None),
        ([CREATED, PAUSED], TriggerSchedule("t", "ada"), ScheduleTriggered(task_id="t", requested_by="ada")),
        ([CREATED], DeleteSchedule("ada"), DELETED),
        ([CREATED, DELETED], DeleteSchedule("bob"), None),
        ([CREATED], TickSchedule(1, ENDED), ENDED),
        (
            [CREATED, ENDED],
            UpdateSchedule(2, spec(), NOON + MINUTE, "ada"),
            ScheduleUpdated(spec=spec(), next_at=NOON + MINUTE, requested_by="ada"),
        ),
    ],
)
def test_a_command_leads_to_its_event(before: list[EventData], command: Any, after: EventData | None) -> None:
    assert SCHEDULES.decide(command, given_events(*before)) == ([] if after is None else [after])


@pytest.mark.parametrize(
    ("before", "command"),
    [
        ([CREATED], CreateSchedule(spec(), NOON, False, "ada")),
        ([CREATED, DELETED], CreateSchedule(spec(), NOON, False, "ada")),
        ([CREATED, DELETED], PauseSchedule("ada")),
        ([CREATED, DELETED], ResumeSchedule("ada")),
        ([CREATED, DELETED], TriggerSchedule("t", "ada")),
        ([CREATED, DELETED], UpdateSchedule(2, spec(), NOON, "ada")),
        ([CREATED, DELETED], TickSchedule(2, ENDED)),
        ([CREATED, ENDED], PauseSchedule("ada")),
        ([CREATED, ENDED], ResumeSchedule("ada")),
        ([CREATED, ENDED], TickSchedule(2, ENDED)),
        ([CREATED, PAUSED], TickSchedule(2, ENDED)),
        ([CREATED], TickSchedule(0, ENDED)),
        ([CREATED], UpdateSchedule(0, spec(), NOON, "ada")),
        ([CREATED], TickSchedule(1, ScheduleTicked(nominal=NOON - MINUTE))),
        ([CREATED], TickSchedule(1, ScheduleTicked(nominal=NOON, next_at=NOON))),
    ],
)
def test_what_cannot_follow_is_refused(before: list[EventData], command: Any) -> None:
    with pytest.raises(IllegalTransition):
        SCHEDULES.decide(command, given_events(*before))


def test_the_state_travels_whole() -> None:
    schedule = given_events(
        CREATED,
        ScheduleTicked(nominal=NOON, task_ids=["a", "b"], dropped=3, why="missed", next_at=NOON + MINUTE),
        ScheduleTriggered(task_id="t", requested_by="ada"),
        PAUSED,
    )
    assert as_it_travels(schedule) == schedule
    assert (schedule.status, schedule.tasks, schedule.dropped, schedule.triggered) == (ScheduleStatus.PAUSED, 2, 3, 1)


def as_it_travels(schedule: Schedule) -> Schedule:
    """The schedule as whoever reads its last event has it, with what it makes put back from the event that says so."""
    state = SCHEDULES.summary(schedule)
    assert "spec" not in state
    return SCHEDULES.from_summary(state).model_copy(update={"spec": schedule.spec})


def test_a_state_of_an_earlier_build_keeps_what_is_made() -> None:
    before = active()
    state = before.whole()
    del state["spec_version"]
    after = SCHEDULES.evolve(SCHEDULES.from_summary(state), "event-2", NOON, PAUSED)
    assert SCHEDULES.from_summary(SCHEDULES.summary(after)).spec == before.spec


# What it gave is erased


def remains(*events: EventData, of: int) -> tuple[ErasedEvent, ...]:
    """What is to be left of the event at version ``of`` of this history."""
    before = given_events(*events[: of - 1])
    event, _ = next_event(SCHEDULES, "s", before, events[of - 1], source="test", at=NOON)
    left = tombstone(Stored(of, event))
    assert left is not None
    return (left,)


SECRET = ScheduleCreated(
    spec=spec().model_copy(update={"task": TASK.model_copy(update={"args": ["secret"], "tags": ["secret"]})}),
    next_at=NOON,
    requested_by="ada",
)
CHANGED = ScheduleUpdated(spec=spec(), next_at=NOON, requested_by="ada")


def test_what_is_left_of_what_it_gave_says_nothing() -> None:
    (left,) = remains(SECRET, of=1)
    assert "secret" not in left.model_dump_json()


def test_a_deleted_schedule_is_emptied() -> None:
    left = remains(SECRET, DELETED, of=1)
    command = EraseSchedule("ada", "asked to", left, ("blob",))
    (data,) = SCHEDULES.decide(command, given_events(SECRET, DELETED))
    assert data == ScheduleErased(requested_by="ada", reason="asked to", events=list(left), blobs=["blob"])
    after = given_events(SECRET, DELETED, data)
    assert (after.status, after.required_spec.task.args, after.required_spec.task.tags) == (ScheduleStatus.DELETED, [], [])
    assert given_events(CREATED, DELETED, data).spec == after.spec, "as if it had never held more"


def test_a_changed_schedule_goes_on_with_what_it_makes_now() -> None:
    (data,) = SCHEDULES.decide(EraseSchedule("ada", None, remains(SECRET, CHANGED, of=1)), given_events(SECRET, CHANGED))
    before, after = given_events(SECRET, CHANGED), given_events(SECRET, CHANGED, data)
    assert (after.spec, after.status, after.next_at) == (before.spec, before.status, before.next_at)


def test_what_it_makes_now_cannot_be_erased() -> None:
    with pytest.raises(IllegalTransition, match="still makes"):
        SCHEDULES.decide(EraseSchedule("ada", None, remains(SECRET, of=1)), given_events(SECRET))


def test_where_nothing_is_to_be_erased_nothing_follows() -> None:
    for history in ([SECRET], [SECRET, DELETED]):
        assert SCHEDULES.decide(EraseSchedule("ada", None, ()), given_events(*history)) == []


def test_a_paused_schedule_stays_paused_when_it_is_updated() -> None:
    updated = ScheduleUpdated(spec=spec("0 * * * *"), next_at=NOON, requested_by="ada")
    assert given_events(CREATED, PAUSED, updated).status is ScheduleStatus.PAUSED
    assert given_events(CREATED, ENDED, updated).status is ScheduleStatus.ACTIVE


# Ticks


def ids(*times: datetime) -> list[str]:
    return [tick_task_id("s", time) for time in times]


def test_nothing_is_due_before_its_time() -> None:
    assert plan_tick("s", active(), NOON - timedelta(microseconds=1), busy=False) is None
    assert plan_tick("s", given_events(CREATED, PAUSED), NOON, busy=False) is None


@pytest.mark.parametrize("catch_up", ["skip", "latest", "all"])
def test_a_tick_in_time_makes_its_task_whatever_the_policy(catch_up: str) -> None:
    ticked = plan_tick("s", active(spec(catch_up=catch_up)), NOON + timedelta(seconds=3), busy=False)
    assert ticked == ScheduleTicked(nominal=NOON, task_ids=ids(NOON), next_at=NOON + MINUTE)


@pytest.mark.parametrize(
    ("catch_up", "made", "dropped"),
    [
        ("skip", [NOON + 9 * MINUTE, NOON + 10 * MINUTE], 9),
        ("latest", [NOON + 10 * MINUTE], 10),
        ("all", [NOON + number * MINUTE for number in range(11)], 0),
    ],
)
def test_missed_times_are_caught_up_with_by_the_policy(catch_up: str, made: list[datetime], dropped: int) -> None:
    ticked = plan_tick("s", active(spec(catch_up=catch_up)), NOON + 10 * MINUTE, busy=False)
    assert ticked is not None
    assert (ticked.task_ids, ticked.dropped) == (ids(*made), dropped)
    assert (ticked.why, ticked.next_at) == ("missed" if dropped else None, NOON + 11 * MINUTE)


def test_all_makes_the_newest_hundred_oldest_first_and_says_how_many_were_dropped() -> None:
    ticked = plan_tick("s", active(spec(catch_up="all")), NOON + 249 * MINUTE, busy=False)
    assert ticked is not None
    assert ticked.task_ids == ids(*(NOON + number * MINUTE for number in range(150, 250)))
    assert (len(ticked.task_ids), ticked.dropped, ticked.why) == (CATCH_UP_MAX, 150, "missed")


def test_no_task_is_made_beside_an_unfinished_one_where_overlap_is_skip() -> None:
    schedule = active(spec(overlap="skip"))
    skipped = plan_tick("s", schedule, NOON, busy=True)
    assert skipped == ScheduleTicked(nominal=NOON, dropped=1, why="overlap", next_at=NOON + MINUTE)
    assert plan_tick("s", schedule, NOON, busy=False) == ScheduleTicked(nominal=NOON, task_ids=ids(NOON), next_at=NOON + MINUTE)


def test_there_is_no_tick_outside_the_bounds_and_the_last_one_ends_it() -> None:
    wanted = spec(starts_at=NOON, ends_at=NOON + MINUTE)
    assert list(due_times(wanted, NOON - timedelta(days=1))) == [NOON, NOON + MINUTE]
    ticked = plan_tick("s", active(wanted, NOON + MINUTE), NOON + 5 * MINUTE, busy=False)
    assert ticked == ScheduleTicked(nominal=NOON + MINUTE, task_ids=ids(NOON + MINUTE))
    with pytest.raises(InvalidInput, match="no time"):
        first_due(wanted, NO_SCHEDULE, NOON + MINUTE)


def test_a_clock_that_is_set_back_brings_no_time_again() -> None:
    schedule = given_events(CREATED, ScheduleTicked(nominal=NOON, task_ids=["t"], next_at=NOON + MINUTE))
    assert first_due(spec(), schedule, NOON - timedelta(hours=1)) == NOON + MINUTE
    assert plan_tick("s", schedule, NOON - timedelta(hours=1), busy=False) is None


# Times


@pytest.mark.parametrize(("day", "utc"), [("2026-03-29", "01:00"), ("2026-10-25", "00:30"), ("2026-06-01", "00:30")])
def test_a_daily_job_runs_once_on_every_day_also_when_the_clock_changes(day: str, utc: str) -> None:
    start = datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)
    end = start + timedelta(hours=24)
    daily = spec("30 2 * * *", time_zone="Europe/Berlin")
    assert [f"{time:%H:%M}" for time in _until(daily, start, end)] == [utc]


def _until(wanted: ScheduleSpec, start: datetime, end: datetime) -> list[datetime]:
    found: list[datetime] = []
    for time in due_times(wanted, start):
        if time >= end:
            break
        found.append(time)
    return found


CRONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "0 * * * *", "30 2 * * *", "0,30 2 * * *", "0 2,3 * * *", "15 */2 * * 1-5", "0 0 L * *"]
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)).map(lambda at: at.replace(tzinfo=UTC))


@given(CRONS, ZONES, MOMENTS)
def test_times_are_the_same_one_by_one_as_in_a_row(cron: str, zone: str, after: datetime) -> None:
    """What a scheduler that restarts at each tick sees, and what one that catches up sees, is the same."""
    in_a_row = list(islice(times_after(cron, check_zone(zone), after), 30))
    one_by_one: list[datetime] = []
    for _ in range(30):
        one_by_one.append(next(times_after(cron, check_zone(zone), one_by_one[-1] if one_by_one else after)))
    assert in_a_row == one_by_one
    assert all(before < later for before, later in pairwise([after, *in_a_row]))


@given(st.text(alphabet="0123456789*/-,#LW MON", max_size=30))
@settings(max_examples=300)
def test_any_text_is_a_cron_expression_that_has_times_or_is_refused(text: str) -> None:
    try:
        check_cron(text)
    except InvalidInput:
        return
    assert next(times_after(text, check_zone("Europe/Berlin"), NOON)) > NOON
    assert explain_cron(text)


@pytest.mark.parametrize("name", ["", "..", "/etc/passwd", "Mars/Olympus", "localtime", "UTC\0", "x" * 65])
def test_what_is_no_zone_everywhere_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="time_zone"):
        check_zone(name)


# Any order of anything


class Life(RuleBasedStateMachine):
    """Commands in any order, schedulers with outdated views, clocks that jump: one task at most for a due time, every due
    time dealt with once and in order, counts that add up."""

    @initialize(catch_up=st.sampled_from(["skip", "latest", "all"]), overlap=st.booleans(), paused=st.booleans(), cron=CRONS)
    def create(self, catch_up: str, overlap: bool, paused: bool, cron: str) -> None:
        options = {"catch_up": catch_up, "overlap": "skip" if overlap and catch_up != "all" else "allow"}
        self.now = NOON
        self.schedule = NO_SCHEDULE
        self.nominals: list[datetime] = []
        self.made: list[str] = []
        self.dropped = 0
        self.views = [NO_SCHEDULE]
        self.specs: list[Stored] = []
        wanted = spec(cron, **options).model_copy(update={"task": TASK.model_copy(update={"args": ["secret"]})})
        self.handle(CreateSchedule(wanted, first_due(wanted, NO_SCHEDULE, self.now), paused, "ada"))

    def handle(self, command: Any) -> None:
        before = self.schedule
        try:
            decided = SCHEDULES.decide(command, before)
        except IllegalTransition:
            assert self.schedule == before
            return
        for data in decided:
            event, self.schedule = next_event(SCHEDULES, "s", before, data, source="test", at=self.now)
            if isinstance(data, ScheduleCreated | ScheduleUpdated):
                self.specs.append(Stored(event.version, event))
            if isinstance(data, ScheduleTicked):
                self.nominals.append(data.nominal)
                self.made += data.task_ids
                self.dropped += data.dropped
        self.views = [*self.views[-3:], self.schedule]

    @rule(minutes=st.sampled_from([-120, -61, -1, 1, 2, 59, 150, 24 * 60]))
    def the_clock_goes(self, minutes: int) -> None:
        self.now += minutes * MINUTE

    @rule(view=st.integers(0, 3), busy=st.booleans(), later=st.sampled_from([1500, 90, 1, 0]))
    def a_scheduler_ticks(self, view: int, busy: bool, later: int) -> None:
        self.now += later * MINUTE
        seen = self.views[-1 - min(view, len(self.views) - 1)]
        if seen.version and (ticked := plan_tick("s", seen, self.now, busy=busy)) is not None:
            self.handle(TickSchedule(seen.version, ticked))

    @rule(pauses=st.booleans())
    def somebody_pauses_or_resumes(self, pauses: bool) -> None:
        self.handle(PauseSchedule("ada") if pauses else ResumeSchedule("ada"))

    @rule(cron=CRONS, back=st.sampled_from([0, 1, 90]))
    def somebody_updates(self, cron: str, back: int) -> None:
        self.now -= back * MINUTE
        wanted = self.schedule.required_spec.model_copy(update={"cron": cron})
        self.handle(UpdateSchedule(self.schedule.version, wanted, first_due(wanted, self.schedule, self.now), "ada"))

    @rule(task_id=st.sampled_from("abc"))
    def somebody_triggers(self, task_id: str) -> None:
        self.handle(TriggerSchedule(task_id, "ada"))

    @rule(sure=st.integers(0, 1000))
    def somebody_deletes(self, sure: int) -> None:
        """Seldom: little follows."""
        if sure > 950:
            self.handle(DeleteSchedule("ada"))

    @rule(which=st.integers(0, 5))
    def a_task_is_erased(self, which: int) -> None:
        """One of the events that said what it makes is emptied."""
        stored = self.specs[which % len(self.specs)]
        if (left := tombstone(stored)) is not None:
            self.handle(EraseSchedule("ada", None, (left,)))

    @invariant()
    def a_schedule_that_is_not_deleted_gives_its_tasks_what_it_was_told(self) -> None:
        given = [] if self.schedule.status is ScheduleStatus.DELETED else ["secret"]
        assert self.schedule.required_spec.task.args in (["secret"], given)

    @invariant()
    def no_due_time_is_dealt_with_twice(self) -> None:
        assert all(before < after for before, after in pairwise(self.nominals))
        assert len(set(self.made)) == len(self.made)
        assert (self.schedule.tasks, self.schedule.dropped) == (len(self.made), self.dropped)

    @invariant()
    def what_comes_next_was_not_dealt_with(self) -> None:
        last, following = self.schedule.last_at, self.schedule.next_at
        assert last is None or following is None or following > last
        assert as_it_travels(self.schedule) == self.schedule


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
