"""Schedulers at work on a real broker, with clocks that the test sets: one task for each due time, whatever happens."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.commands import CancelTask
from eventq.events.ending import end
from eventq.events.envelope import Event, decode
from eventq.events.handle import handle, handle_any, read_task
from eventq.events.log import EventLog
from eventq.events.reader import Tail
from eventq.events.schedule import (
    SCHEDULES,
    TICK,
    CreateSchedule,
    PauseSchedule,
    ResumeSchedule,
    Schedule,
    TickSchedule,
    UpdateSchedule,
    plan_tick,
    tick_task_id,
)
from eventq.events.schedule_events import ScheduleSpec, ScheduleTicked
from eventq.events.subjects import EVENTS, TIMERS
from eventq.events.submitter import Submitter
from eventq.events.task_events import Submitted
from eventq.events.timers import set_timer
from eventq.services.follower import Follower
from eventq.services.promoter import Promoter
from eventq.services.schedules import ScheduleSweep, TickMaker, read_schedule, tick_hint
from tests.support.nats import NatsServer
from tests.support.poll import eventually

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
TASK = Submitted(task_name="echo", pool="cpu", queue="default", priority=5, max_retries=0)


@dataclass
class Clock:
    """The broker's clock, in the test's hands."""

    now: datetime = NOON

    async def __call__(self) -> datetime:
        return self.now


@dataclass
class Bed:
    """A log, and what schedulers need."""

    log: EventLog
    clock: Clock

    def ticks(self) -> TickMaker:
        return TickMaker(self.log, Submitter(self.log, source="test"), source="test", now=self.clock)

    async def create(self, schedule_id: str = "s", next_at: datetime = NOON, **options: Any) -> None:
        spec = ScheduleSpec(cron="* * * * *", task=TASK, **options)
        await handle_any(self.log, SCHEDULES, schedule_id, CreateSchedule(spec, next_at, False, "ada"), source="test")

    async def command(self, command: Any) -> None:
        await handle_any(self.log, SCHEDULES, "s", command, source="test")

    async def schedule(self) -> Schedule:
        return await read_schedule(self.log, "s", fresh=True)

    async def events(self) -> list[Event]:
        facts = await self.log.broker.stream_facts(EVENTS)
        assert facts is not None
        found: list[Event] = []
        async with Tail(self.log.broker, EVENTS, after=0) as tail:
            while tail.position < facts.last:
                found += [decode(message.payload, message.subject) for message in await tail.next(timeout_s=5)]
        return found

    async def tasks(self) -> list[str]:
        """Ids of the tasks that were submitted, in order: all of the schedule."""
        submitted = [event for event in await self.events() if isinstance(event.data, Submitted)]
        assert all(isinstance(event.data, Submitted) and event.data.schedule_id == "s" for event in submitted)
        return [event.aggregate_id for event in submitted]

    async def recorded(self) -> list[str]:
        """Ids that ticks name."""
        return [each for event in await self.events() if isinstance(event.data, ScheduleTicked) for each in event.data.task_ids]

    @asynccontextmanager
    async def scheduler(self) -> AsyncGenerator[ScheduleSweep]:
        """A scheduler that goes by the broker's own clock."""
        ticks = TickMaker(self.log, Submitter(self.log, source="test"), source="test")
        sweep = ScheduleSweep(self.log, ticks)
        follower = Follower(self.log.broker, [sweep])
        promoter = Promoter(self.log.broker, {("schedules", TICK): ticks.tick})
        duties = [asyncio.create_task(duty) for duty in (promoter.run(), follower.run(), sweep.run(follower))]
        try:
            yield sweep
        finally:
            assert not any(duty.done() for duty in duties)
            await end(*duties)


@pytest.fixture
async def bed(own_nats_server: NatsServer) -> AsyncIterator[Bed]:
    async with await Broker.connect(own_nats_server.url, name="test") as broker:
        await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=64 * 1024 * 1024))
        log = await EventLog.open(broker)
        yield Bed(log, Clock())
        await log.close()


def ids(*minutes: int) -> list[str]:
    return [tick_task_id("s", NOON + minute * MINUTE) for minute in minutes]


async def test_a_tick_makes_its_task_records_it_and_sets_the_next_timer(bed: Bed) -> None:
    await bed.create()
    assert await bed.ticks().tick(tick_hint("s"))
    assert await bed.tasks() == await bed.recorded() == ids(0)
    assert (await bed.schedule()).next_at == NOON + MINUTE
    facts = await bed.log.broker.stream_facts(TIMERS)
    assert facts is not None
    assert facts.messages == 1


async def test_a_hint_before_its_event_comes_again(bed: Bed) -> None:
    assert not await bed.ticks().tick(tick_hint("s"))


async def test_many_schedulers_at_once_make_one_task_for_each_due_time(bed: Bed) -> None:
    await bed.create(catch_up="all")
    makers = [bed.ticks() for _ in range(8)]
    for minute in (0, 3, 4):
        bed.clock.now = NOON + minute * MINUTE
        assert all(await asyncio.gather(*(maker.tick(tick_hint("s")) for maker in makers)))
    assert await bed.tasks() == await bed.recorded() == ids(0, 1, 2, 3, 4)
    assert sum(maker.ticked for maker in makers) == 3


async def tick_while_the_clock_is_set(bed: Bed, ticks: TickMaker) -> None:
    """An hour forward, and back, and forward by and by, and back."""
    await bed.create(catch_up="all")
    for at in (NOON, NOON + HOUR, NOON + MINUTE, NOON + 30 * MINUTE, NOON + HOUR, NOON + HOUR + MINUTE, NOON - HOUR):
        bed.clock.now = at
        assert await ticks.tick(tick_hint("s"))


async def test_a_clock_that_is_set_an_hour_forward_and_back_doubles_and_loses_nothing(bed: Bed) -> None:
    await tick_while_the_clock_is_set(bed, bed.ticks())
    assert await bed.tasks() == await bed.recorded() == ids(*range(62))


class ByTheClock(TickMaker):
    """Deals with the minute that its clock shows, whatever the schedule waits for."""

    async def _decide(self, schedule_id: str, schedule: Schedule) -> bool:
        return await super()._decide(schedule_id, schedule.model_copy(update={"next_at": await self._now()}))


async def test_a_ticker_that_goes_by_its_clock_alone_loses_and_doubles_ticks_when_that_is_set(bed: Bed) -> None:
    """The negative control."""
    await tick_while_the_clock_is_set(bed, ByTheClock(bed.log, Submitter(bed.log, source="test"), source="test", now=bed.clock))
    recorded = Counter(await bed.recorded())
    assert not set(ids(*range(62))) <= set(recorded), "some are lost"
    assert recorded[ids(60)[0]] == 2, "and some decided twice"


async def test_nothing_is_made_while_the_task_before_is_unfinished_if_the_schedule_says_so(bed: Bed) -> None:
    await bed.create(overlap="skip")
    ticks = bed.ticks()
    for minute in (0, 1):
        bed.clock.now = NOON + minute * MINUTE
        await ticks.tick(tick_hint("s"))
    assert await bed.tasks() == ids(0)
    await handle(bed.log, ids(0)[0], CancelTask("ada"), source="test")
    bed.clock.now = NOON + 2 * MINUTE
    await ticks.tick(tick_hint("s"))
    assert await bed.tasks() == ids(0, 2)
    whys = [event.data.why for event in await bed.events() if isinstance(event.data, ScheduleTicked)]
    assert whys == [None, "overlap", None]


@pytest.mark.parametrize(("catch_up", "made"), [("skip", (9, 10)), ("latest", (10,)), ("all", tuple(range(11)))])
async def test_a_pause_makes_nothing_and_its_end_catches_up_as_the_schedule_says(
    bed: Bed, catch_up: str, made: tuple[int, ...]
) -> None:
    await bed.create(catch_up=catch_up)
    ticks = bed.ticks()
    await bed.command(PauseSchedule("ada"))
    bed.clock.now = NOON + 10 * MINUTE
    assert await ticks.tick(tick_hint("s"))
    assert await bed.tasks() == []
    await bed.command(ResumeSchedule("ada"))
    assert await ticks.tick(tick_hint("s"))
    assert await bed.tasks() == ids(*made)


async def decide_without_making(bed: Bed) -> None:
    """What a scheduler does that dies right after it decided."""
    schedule = await bed.schedule()
    ticked = plan_tick("s", schedule, bed.clock.now, busy=False)
    assert ticked is not None
    await bed.command(TickSchedule(schedule.version, ticked))


async def test_what_was_decided_and_not_made_is_made_when_the_hint_comes_again(bed: Bed) -> None:
    await bed.create()
    await decide_without_making(bed)
    assert await bed.ticks().tick(tick_hint("s"))
    assert await bed.tasks() == await bed.recorded() == ids(0)


async def test_what_was_decided_and_not_made_is_found_in_the_log(bed: Bed) -> None:
    """Even by a scheduler that starts when the schedule ticked on meanwhile; what was made is left alone."""
    await bed.create(ends_at=NOON + MINUTE)
    await decide_without_making(bed)
    bed.clock.now = NOON + MINUTE
    assert await bed.ticks().tick(tick_hint("s"))
    async with bed.scheduler() as sweep:
        await eventually(lambda: _is(bed.tasks, ids(1, 0)), timeout=30, what="the missing task is made")
        assert sweep.repaired


async def test_what_was_decided_is_made_as_the_schedule_was_then(bed: Bed) -> None:
    """Given a scheduler that died before it made what it had decided, when the schedule is changed before the hint comes again,
    then the task of the old tick is the old one."""
    await bed.create()
    await decide_without_making(bed)
    schedule = await bed.schedule()
    spec = schedule.required_spec
    changed = spec.model_copy(update={"task": spec.task.model_copy(update={"args": ["new"]})})
    await bed.command(UpdateSchedule(schedule.version, changed, NOON + MINUTE, "ada"))
    assert await bed.ticks().tick(tick_hint("s"))
    (task_id,) = ids(0)
    async with bed.scheduler():
        await eventually(lambda: bed.log.at("tasks", task_id, 1), timeout=30, what="the task is made")
    stored = await bed.log.at("tasks", task_id, 1)
    assert stored is not None
    assert isinstance(stored.event.data, Submitted)
    assert stored.event.data.args == []


async def _is(question: Any, wanted: list[str]) -> bool:
    found: list[str] = await question()
    return found == wanted


async def test_a_lost_timer_is_found(bed: Bed) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    await bed.create(next_at=now - MINUTE)
    async with bed.scheduler():
        await eventually(lambda: _ticked(bed), timeout=30, what="the schedule ticks")
        await eventually(lambda: _some_task(bed), timeout=30, what="the task is made")
    assert await bed.tasks() == await bed.recorded()


async def _ticked(bed: Bed) -> bool:
    return (await bed.schedule()).last_at is not None


async def test_a_timer_ticks_by_the_brokers_clock(bed: Bed) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    async with bed.scheduler():
        await set_timer(bed.log.timers, tick_hint("s"), now)
        await bed.create(next_at=now)
        await eventually(lambda: _ticked(bed), timeout=30, what="the schedule ticks")
        await eventually(lambda: _some_task(bed), timeout=30, what="the task is made")
    last = (await bed.schedule()).last_task_ids[-1]
    assert (await read_task(bed.log, last)).version


async def _some_task(bed: Bed) -> bool:
    return bool(await bed.tasks())
