"""The broker killed under load; and everything at once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from eventq.events.errors import Unavailable
from tests.chaos.site import Control, Site

KINDS = ("chaos.quick", "chaos.plain", "chaos.quick")


@asynccontextmanager
async def load(control: Control) -> AsyncGenerator[list[str]]:
    """Submit tasks one after another until the block is left; the list holds the ids of those acknowledged so far.

    A submission without an answer is given up: its outcome is unknown, and the checker counts it neither way.
    """
    submitted: list[str] = []
    going_on = asyncio.Event()
    going_on.set()

    async def submit() -> None:
        while going_on.is_set():
            await control.until(lambda: len(control.unfinished(submitted[-40:])) < 20, "the workers keep up")
            try:
                if len(submitted) % 10 == 9:
                    at = datetime.now(UTC) + timedelta(seconds=0.5)
                    submitted.append(await control.submit("chaos.quick", scheduled_at=at))
                else:
                    submitted.append(await control.submit(KINDS[len(submitted) % len(KINDS)]))
            except Unavailable:
                await control.until(lambda: control.broker.nc.is_connected, "the broker is back")

    loader = asyncio.create_task(submit())
    try:
        yield submitted
    finally:
        going_on.clear()
        await loader


async def until_more(control: Control, submitted: list[str], count: int) -> None:
    """Return once so many more tasks were acknowledged and the newest of those ended: all goes well."""
    target = len(submitted) + count
    await control.until(lambda: len(submitted) >= target, "the load goes on")
    await control.until_ended(submitted[target - 1])


async def test_a_broker_killed_under_load_loses_nothing(site: Site, control: Control) -> None:
    scheduler = site.start("scheduler")
    workers = await site.workers(2)
    await site.ready(scheduler)
    async with load(control) as submitted:
        for _ in range(2):
            await until_more(control, submitted, 20)
            await asyncio.to_thread(site.server.restart, crash=True)
            await until_more(control, submitted, 20)
    await control.until_ended(*submitted)
    assert all(process.running for process in [scheduler, *workers]), "everybody finds the broker again"
    assert [process.stop() for process in [scheduler, *workers]] == [0, 0, 0]
    await control.check()


async def test_a_broker_that_stands_still_for_longer_than_a_lease_loses_nothing(site: Site, control: Control) -> None:
    scheduler = site.start("scheduler")
    await site.workers(2)
    await site.ready(scheduler)
    async with load(control) as submitted:
        await until_more(control, submitted, 20)
        held = await control.submit("chaos.work", 1.0)
        await control.until_entered(held)
        site.server.pause()
        # Its user code ends while nobody answers: the outcome waits for the broker.
        await control.until(lambda: ("exit", held) in [(v.step, v.task_id) for v in site.visits()], "the held task returns")
        site.server.resume()
        await until_more(control, submitted, 20)
    await control.until_ended(*submitted, held)
    await control.check()


async def test_everything_killed_at_once_goes_on_where_it_was(site: Site, control: Control) -> None:
    roles = ("scheduler", "api", "worker", "worker")
    processes = [site.start(role) for role in roles]
    await site.ready(*processes)
    async with load(control) as submitted:
        await until_more(control, submitted, 20)
        running = [await control.submit(kind, str(site.gate())) for kind in ("chaos.gate", "chaos.gate_plain")]
        for task_id in running:
            await control.until_entered(task_id)
        for process in processes:
            process.signal(signal.SIGKILL)
        site.server.kill()
        for process in processes:
            process.wait()
        again = [site.start(role) for role in reversed(roles)]  # the broker comes last, the others wait for it
        site.server.start()
        await site.ready(*again)
        await until_more(control, submitted, 20)
    await control.until_ended(*submitted, *running)
    assert [control.task(task_id).attempt for task_id in running] == [2, 2]
    await control.check()
