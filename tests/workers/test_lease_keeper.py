"""Leases on the real broker: kept while held, let go when released, and a lapse is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from eventq.events.presence import Heartbeat, present
from eventq.events.subjects import EVENTS, work_consumer
from eventq.workers.lease_keeper import IN_PROGRESS, LeaseKeeper
from tests.chaos.site import LEASE_S, ROUTE, Control, Site
from tests.support.nats import NatsServer
from tests.support.poll import eventually

WORKER_ID = "worker-1"


@pytest.fixture
async def control(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Control]:
    async with await Control.open(Site(own_nats_server, tmp_path)) as control:
        yield control


def heartbeat() -> Heartbeat:
    return Heartbeat(WORKER_ID, "host", "cpu", 1, ["t1"], datetime.now(UTC))


def nothing() -> None:
    return


@contextmanager
def keeping(
    url: str, on_lapse: Callable[[], None] = nothing, describe: Callable[[], Heartbeat] = heartbeat
) -> Generator[LeaseKeeper]:
    keeper = LeaseKeeper(url, describe, lease_s=LEASE_S, on_lapse=on_lapse)
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


async def take_lease(control: Control) -> str:
    """Pull one work item by hand; its lease."""
    await control.submit("chaos.quick")
    subscription = await control.broker.js.pull_subscribe_bind(work_consumer(ROUTE), stream=EVENTS)
    (message,) = await subscription.fetch(1, timeout=10)
    await subscription.unsubscribe()
    return str(message.reply)


async def redelivered(control: Control) -> bool:
    """Whether the broker gives the item to somebody else."""
    subscription = await control.broker.js.pull_subscribe_bind(work_consumer(ROUTE), stream=EVENTS)
    try:
        return bool(await subscription.fetch(1, timeout=0.2))
    except TimeoutError:
        return False
    finally:
        await subscription.unsubscribe()


async def renewals(control: Control, lease: str) -> asyncio.Semaphore:
    """Counts the renewals of a lease from now on."""
    seen = asyncio.Semaphore(0)

    async def count(message: Msg) -> None:
        if message.data == IN_PROGRESS:
            seen.release()

    await control.broker.nc.subscribe(lease, cb=count)
    await control.broker.nc.flush()
    return seen


async def test_a_held_lease_is_kept_and_a_released_one_lapses(control: Control) -> None:
    lease = await take_lease(control)
    seen = await renewals(control, lease)
    with keeping(control.site.server.url) as keeper:
        keeper.hold(lease)
        async with asyncio.timeout(60):
            for _ in range(8):  # it would have lapsed twice
                await seen.acquire()
        assert not await redelivered(control)
        keeper.release(lease)
        await eventually(lambda: redelivered(control), timeout=30, what="the item is delivered to another")


async def test_a_lapse_is_told_when_the_broker_answers_again(control: Control) -> None:
    lapsed = threading.Event()
    with keeping(control.site.server.url, lapsed.set) as keeper:
        lease = await take_lease(control)
        keeper.hold(lease)
        control.site.server.pause()
        try:
            # Time itself is the condition here: longer than a lease. Nobody can tell before the broker is back.
            assert not lapsed.wait(1.5 * LEASE_S)
        finally:
            control.site.server.resume()
        assert await asyncio.to_thread(lapsed.wait, 60)


async def test_a_crash_of_the_broker_is_survived(control: Control) -> None:
    with keeping(control.site.server.url) as keeper:
        await asyncio.to_thread(control.site.server.restart, crash=True)
        await control.until(lambda: control.broker.nc.is_connected, "the test itself is connected again")
        lease = await take_lease(control)
        seen = await renewals(control, lease)
        keeper.hold(lease)
        async with asyncio.timeout(60):
            await seen.acquire()


async def test_presence_begins_and_ends_with_the_keeper(control: Control) -> None:
    async def is_present() -> bool:
        return WORKER_ID in await present(control.broker)

    with keeping(control.site.server.url):
        await eventually(is_present, timeout=30, what="the worker is present")
        assert (await present(control.broker))[WORKER_ID].running == ["t1"]
    assert not await is_present()


async def test_a_keeper_that_dies_tells_so(control: Control) -> None:
    """Nobody would renew any more: the worker must end rather than run without leases."""
    died, started = threading.Event(), threading.Event()
    asked = 0

    def describe() -> Heartbeat:
        nonlocal asked
        asked += 1
        if asked > 1:
            started.wait(60)
            raise RuntimeError("no heartbeat to be had")
        return heartbeat()

    with keeping(control.site.server.url, died.set, describe) as keeper:
        started.set()
        assert await asyncio.to_thread(died.wait, 60)
        assert isinstance(keeper.failure, RuntimeError)
