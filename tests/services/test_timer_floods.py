"""Many timers at one instant, and hosts whose clocks are wrong: nothing is lost, nothing goes round in circles."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.ending import end
from eventq.events.handle import read_task
from eventq.events.ids import new_id
from eventq.events.log import EventLog
from eventq.events.reader import Tail
from eventq.events.subjects import EVENTS, TIMERS
from eventq.events.submitter import Submitter
from eventq.events.task import Status
from eventq.events.task_events import Submitted
from eventq.events.timers import DUE, Hint
from eventq.services.promoter import IN_HAND_MAX, Promoter
from eventq.services.task_timers import TaskTimers, utc_now
from tests.support.nats import NatsServer
from tests.support.poll import eventually

FLOOD = IN_HAND_MAX + 500


@pytest.fixture
async def log(own_nats_server: NatsServer) -> AsyncIterator[EventLog]:
    async with await Broker.connect(own_nats_server.url, name="test") as broker:
        await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=64 * 1024 * 1024))
        log = await EventLog.open(broker)
        yield log
        await log.close()


async def submit(log: EventLog, count: int, at: datetime) -> list[str]:
    submitter = Submitter(log, source="test")
    task_ids = [new_id() for _ in range(count)]
    wanted = Submitted(task_name="echo", pool="cpu", queue="default", priority=5, max_retries=0, scheduled_at=at)
    turn = asyncio.Semaphore(200)

    async def one(task_id: str) -> None:
        async with turn:
            await submitter.submit(task_id, wanted)

    await asyncio.gather(*map(one, task_ids))
    return task_ids


async def queued(log: EventLog) -> Counter[str]:
    """How often each task became ready."""
    facts = await log.broker.stream_facts(EVENTS)
    assert facts is not None
    found: Counter[str] = Counter()
    async with Tail(log.broker, EVENTS, after=0) as tail:
        while tail.position < facts.last:
            tokens = [message.subject.split(".") for message in await tail.next(timeout_s=10)]
            found.update(each[1] for each in tokens if each[3] == "queued")
    return found


async def until_spent(log: EventLog) -> None:
    async def spent() -> bool:
        facts = await log.broker.stream_facts(TIMERS)
        assert facts is not None
        return facts.messages == 0

    await eventually(spent, timeout=60, what="every hint is spent")


async def test_more_timers_at_once_than_are_in_hand_lose_and_double_nothing(log: EventLog) -> None:
    task_ids = await submit(log, FLOOD, datetime.now(UTC) + timedelta(seconds=2))
    timers = TaskTimers(log, source="test")
    promoters = [asyncio.create_task(Promoter(log.broker, {("tasks", DUE): timers.promote}).run()) for _ in range(2)]
    await until_spent(log)
    await end(*promoters)
    assert await queued(log) == Counter(task_ids)
    assert timers.promoted == FLOOD


@pytest.mark.parametrize("wrong_by", [timedelta(hours=-1), timedelta(hours=1)])
async def test_a_host_whose_clock_is_wrong_promotes_once_and_asks_no_timer_again_and_again(
    log: EventLog, wrong_by: timedelta
) -> None:
    (task_id,) = await submit(log, 1, datetime.now(UTC) + timedelta(seconds=0.5))
    timers = TaskTimers(log, source="test", now=lambda: utc_now() + wrong_by)
    hints: list[Hint] = []

    async def counted(hint: Hint) -> bool:
        hints.append(hint)
        return await timers.promote(hint)

    promoter = asyncio.create_task(Promoter(log.broker, {("tasks", DUE): counted}).run())
    await until_spent(log)
    await end(promoter)
    assert (await read_task(log, task_id)).status is Status.PENDING
    assert await queued(log) == Counter([task_id])
    assert len(hints) == 1
