"""Many timers at one instant, and hosts whose clocks are wrong: nothing is lost, nothing goes round in circles. Each with a
planted bug that the same judge must find.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from eventq.services.due_tasks import DueTasks
from eventq.services.follower import Follower
from eventq.services.promoter import IN_HAND_MAX, Answer, Promoter
from eventq.services.task_timers import TaskTimers, utc_now
from tests.support.nats import NatsServer
from tests.support.poll import eventually

FLOOD = 10_000
LEAD_S = 3.0
"""How long the flood may take to be submitted; what comes later is due at once, and waits for no timer."""


@asynccontextmanager
async def opened(server: NatsServer) -> AsyncGenerator[EventLog]:
    async with await Broker.connect(server.url, name="test") as broker:
        await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=64 * 1024 * 1024))
        log = await EventLog.open(broker)
        yield log
        await log.close()


@pytest.fixture
async def log(own_nats_server: NatsServer) -> AsyncIterator[EventLog]:
    async with opened(own_nats_server) as log:
        yield log


@pytest.fixture
async def fast_log(start_nats_server: Callable[..., NatsServer]) -> AsyncIterator[EventLog]:
    """On a broker that does not wait for its disk, or a flood would take as long as the disk does."""
    async with opened(start_nats_server("lazy", sync_interval=None)) as log:
        yield log


async def submit(log: EventLog, count: int, at: datetime) -> list[str]:
    """Ids of those that wait for ``at``: all, where the machine is fast enough."""
    submitter = Submitter(log, source="test")
    wanted = Submitted(task_name="echo", pool="cpu", queue="default", priority=5, max_retries=0, scheduled_at=at)
    turn = asyncio.Semaphore(500)
    waiting: list[str] = []

    async def one(task_id: str) -> None:
        async with turn:
            if (await submitter.submit(task_id, wanted)).state.status is Status.SCHEDULED:
                waiting.append(task_id)

    await asyncio.gather(*(one(new_id()) for _ in range(count)))
    return waiting


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


async def until_spent(log: EventLog, or_else: Callable[[], bool] = lambda: False) -> None:
    async def spent() -> bool:
        try:
            facts = await log.broker.stream_facts(TIMERS)
        except TimeoutError:  # the answer waits behind the flood
            return False
        assert facts is not None
        return facts.messages == 0 or or_else()

    await eventually(spent, timeout=60, what="every hint is spent")


async def flood(log: EventLog, *answers: Answer) -> Counter[str]:
    """All at once, and as many promoters as there are answers. The tasks that waited, each once."""
    task_ids = await submit(log, FLOOD, datetime.now(UTC) + timedelta(seconds=LEAD_S))
    assert len(task_ids) > IN_HAND_MAX
    promoters = [asyncio.create_task(Promoter(log.broker, {("tasks", DUE): answer}).run()) for answer in answers]
    await until_spent(log)
    await end(*promoters)
    return Counter(task_ids)


async def test_more_timers_at_once_than_are_in_hand_lose_and_double_nothing(fast_log: EventLog) -> None:
    timers = TaskTimers(fast_log, source="test")
    waited = await flood(fast_log, timers.promote, timers.promote)
    assert await queued(fast_log) == waited
    assert timers.promoted == waited.total()


@asynccontextmanager
async def following(log: EventLog) -> AsyncGenerator[TaskTimers]:
    """As a scheduler answers timers: it is shown the log, and knows what is due."""
    due_tasks = DueTasks()
    follower = asyncio.create_task(Follower(log.broker, [due_tasks]).run())
    try:
        yield TaskTimers(log, source="test", due=due_tasks.take)
    finally:
        await end(follower)


async def test_a_flood_that_two_promote_together_loses_and_doubles_nothing(fast_log: EventLog) -> None:
    """In groups that are stored as a whole or not at all, as on a broker that syncs each write."""
    fast_log.broker.syncs = True
    async with following(fast_log) as one, following(fast_log) as other:
        waited = await flood(fast_log, one.promote, other.promote)
        assert await queued(fast_log) == waited
        assert one.promoted + other.promoted == waited.total()


class Hasty:
    """Takes every hint at once, and drops those that come while it has enough to do: a few at a time it answers well."""

    def __init__(self, timers: TaskTimers) -> None:
        self._timers = timers
        self.in_hand: set[asyncio.Task[bool]] = set()

    async def promote(self, hint: Hint) -> bool:
        if len(self.in_hand) < IN_HAND_MAX:
            task = asyncio.create_task(self._timers.promote(hint))
            self.in_hand.add(task)
            task.add_done_callback(self.in_hand.discard)
        return True


async def test_a_promoter_that_takes_hints_before_it_has_room_for_them_loses_some_of_the_flood(fast_log: EventLog) -> None:
    """The negative control."""
    hasty = Hasty(TaskTimers(fast_log, source="test"))
    waited = await flood(fast_log, hasty.promote)
    await asyncio.gather(*hasty.in_hand)
    found = await queued(fast_log)
    assert found < waited, "some are never queued, and none twice"


async def promoted_by(log: EventLog, timers: TaskTimers, *, hints_max: int) -> tuple[str, list[Hint]]:
    """A task that becomes due, and a promoter until no hint is left, or more have come than there may be. Task and hints."""
    (task_id,) = await submit(log, 1, datetime.now(UTC) + timedelta(seconds=0.5))
    hints: list[Hint] = []

    async def counted(hint: Hint) -> bool:
        hints.append(hint)
        return await timers.promote(hint)

    promoter = asyncio.create_task(Promoter(log.broker, {("tasks", DUE): counted}).run())
    await until_spent(log, or_else=lambda: len(hints) > hints_max)
    await end(promoter)
    return task_id, hints


def wrong_clock(by: timedelta) -> Callable[[], datetime]:
    return lambda: utc_now() + by


@pytest.mark.parametrize("wrong_by", [timedelta(hours=-1), timedelta(hours=1)])
async def test_a_host_whose_clock_is_wrong_promotes_once_and_asks_no_timer_again_and_again(
    log: EventLog, wrong_by: timedelta
) -> None:
    task_id, hints = await promoted_by(log, TaskTimers(log, source="test", now=wrong_clock(wrong_by)), hints_max=1)
    assert (await read_task(log, task_id)).status is Status.PENDING
    assert await queued(log) == Counter([task_id])
    assert len(hints) == 1


class Credulous(TaskTimers):
    """Believes the clock of its host, whatever the broker said when the timer fired."""

    def _time_of(self, hint: Hint) -> datetime:
        return self._now()


async def test_a_promoter_that_believes_its_host_asks_a_timer_again_and_again(log: EventLog) -> None:
    """The negative control: a clock that is behind."""
    task_id, hints = await promoted_by(log, Credulous(log, source="test", now=wrong_clock(timedelta(hours=-1))), hints_max=3)
    assert len(hints) > 3
    assert (await read_task(log, task_id)).status is Status.SCHEDULED
    assert await queued(log) == Counter()
