"""Schedulers that are killed at each step of a tick: the tasks in the end are the same."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta

import pytest

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.handle import handle_any
from eventq.events.log import EventLog
from eventq.events.reader import Tail
from eventq.events.schedule import SCHEDULES, CreateSchedule, tick_task_id
from eventq.events.schedule_events import ScheduleSpec
from eventq.events.subjects import EVENTS
from eventq.events.task_events import Submitted
from eventq.events.timers import set_timer
from eventq.services.schedules import tick_hint
from tests.chaos.site import EVENTS_MAX_BYTES, PATIENCE_S, Site
from tests.support.poll import eventually

MINUTE = timedelta(minutes=1)
TASK = Submitted(task_name="chaos.quick", pool="cpu", queue="default", priority=5, max_retries=0)
STEPS = (
    "schedule.before_timer=kill",
    "schedule.before_ticked=kill",
    "schedule.before_submit=kill",
    "schedule.after_submit=kill@2",
    "submit.before_append=kill@3",
    "schedule.after_submit=kill@4",
)


async def create(log: EventLog, schedule_id: str, first: datetime, last: datetime) -> None:
    """A schedule that missed all of its due times: one tick deals with them."""
    spec = ScheduleSpec(cron="* * * * *", task=TASK, catch_up="all", ends_at=last)
    await set_timer(log.timers, tick_hint(schedule_id), first)
    await handle_any(log, SCHEDULES, schedule_id, CreateSchedule(spec, first, False, "ada"), source="test")


async def made(log: EventLog) -> list[str]:
    """Ids of all tasks, in the order in which they were made."""
    facts = await log.broker.stream_facts(EVENTS)
    assert facts is not None
    found: list[str] = []
    async with Tail(log.broker, EVENTS, after=0) as tail:
        while tail.position < facts.last:
            tokens = [message.subject.split(".") for message in await tail.next(timeout_s=PATIENCE_S)]
            found += [each[1] for each in tokens if each[0] == "tasks" and each[3] == "submitted"]
    return found


async def opened(site: Site) -> tuple[Broker, EventLog]:
    broker = await Broker.connect(site.server.url, name="test")
    await bootstrap(broker, BrokerConfig(monitor_urls=site.server.monitor_url, events_max_bytes=EVENTS_MAX_BYTES))
    return broker, await EventLog.open(broker)


@pytest.mark.parametrize("step", STEPS)
async def test_a_scheduler_killed_at_any_step_of_a_tick_loses_and_doubles_nothing(site: Site, step: str) -> None:
    broker, log = await opened(site)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    wanted = [tick_task_id("s", now - number * MINUTE) for number in (4, 3, 2, 1)]
    doomed = await site.started("scheduler", failpoints=step)
    await create(log, "s", now - 4 * MINUTE, now - MINUTE)
    assert doomed.wait() == -signal.SIGKILL
    await site.started("scheduler")

    async def complete() -> bool:
        return sorted(await made(log)) == sorted(wanted)

    await eventually(complete, timeout=PATIENCE_S, what="the four tasks are made, and no other")
    await log.close()
    await broker.close()


async def test_three_schedulers_beside_each_other_make_what_one_makes(site: Site) -> None:
    broker, log = await opened(site)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    await site.ready(*(site.start("scheduler") for _ in range(3)))
    names = [f"s{number}" for number in range(10)]
    for name in names:
        await create(log, name, now - 3 * MINUTE, now - MINUTE)
    wanted = sorted(tick_task_id(name, now - number * MINUTE) for name in names for number in (3, 2, 1))

    async def complete() -> bool:
        return sorted(await made(log)) == wanted

    await eventually(complete, timeout=PATIENCE_S, what="three tasks for each of ten schedules")
    await log.close()
    await broker.close()


async def test_a_scheduler_that_draws_the_ids_of_tasks_doubles_what_a_killed_one_had_made(site: Site) -> None:
    """The negative control."""
    broker, log = await opened(site)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    doomed = await site.started("scheduler", bug="draw_ids_of_tasks", failpoints="schedule.after_submit=kill@2")
    await create(log, "s", now - 4 * MINUTE, now - MINUTE)
    assert doomed.wait() == -signal.SIGKILL
    assert len(await made(log)) == 2
    await site.started("scheduler", bug="draw_ids_of_tasks")
    await set_timer(log.timers, tick_hint("s"), now)  # the hint comes again at once

    async def made_again() -> bool:
        return len(await made(log)) >= 2 + 4

    await eventually(made_again, timeout=PATIENCE_S, what="all four tasks are made once more")
    await log.close()
    await broker.close()
