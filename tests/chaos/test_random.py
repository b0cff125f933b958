"""Everything goes on at once, and a seeded nemesis breaks one thing after another. Then all heals, drains, and is judged.

The seed is printed; ``CHAOS_SEED=<seed>`` draws the same faults again (what the processes make of them still differs), and
``CHAOS_PERIODS`` makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from eventq.events.ending import end
from eventq.events.errors import Conflict, TaskNotFound, Unavailable
from eventq.events.task_events import Queued
from tests.chaos.process import Process
from tests.chaos.site import LEASE_S, Control, Site
from tests.chaos.test_kill_api import check_projection

PERIODS = int(os.environ.get("CHAOS_PERIODS", "7"))
UNFINISHED_MAX = 24
ROLES = ("worker", "worker", "worker", "scheduler", "api")


class Load:
    """Clients: they submit all sorts of tasks and cancel some of them, as fast as the site takes them."""

    def __init__(self, control: Control, rng: random.Random) -> None:
        self.submitted: list[str] = []
        self.cancels = Counter[str]()
        self._control = control
        self._rng = rng

    async def run(self) -> None:
        while True:
            await self._control.until(self._room, "the site keeps up")
            try:
                self.submitted.append(await self._submit())
                if self._rng.random() < 0.15:
                    await self._cancel(self._rng.choice(self.submitted[-10:]))
            except Unavailable:
                await self._control.until(lambda: self._control.broker.nc.is_connected, "the broker is back")

    def _room(self) -> bool:
        return len(self._control.unfinished(self.submitted[-2 * UNFINISHED_MAX :])) < UNFINISHED_MAX

    async def _submit(self) -> str:
        submit, rng = self._control.submit, self._rng
        match rng.choices(("quick", "plain", "work", "fail", "later", "deaf"), (6, 3, 4, 3, 2, 0.3))[0]:
            case "work":
                return await submit(rng.choice(("chaos.work", "chaos.work_plain")), rng.random() * 0.1, max_retries=2)
            case "fail":
                return await submit("chaos.fail", rng.randint(1, 4), max_retries=2)
            case "later":
                return await submit("chaos.quick", scheduled_at=datetime.now(UTC) + timedelta(seconds=rng.random()))
            case "deaf":
                return await submit("chaos.deaf_plain", timeout_s=0.2)
            case kind:
                return await submit(f"chaos.{kind}")

    async def _cancel(self, task_id: str) -> None:
        try:
            task = await self._control.cancel(task_id)
            self.cancels[task.status.value] += 1
        except (Conflict, TaskNotFound):
            self.cancels["too late"] += 1


class Nemesis:
    """Breaks one thing at a time. What it ends is started again before the next thing breaks."""

    def __init__(self, site: Site, control: Control, rng: random.Random) -> None:
        self.done = Counter[str]()
        self.processes: list[Process] = []
        self._site = site
        self._control = control
        self._rng = rng
        self._faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill a worker": self._kill_worker,
            "stop a worker": self._stop_worker,
            "pause a worker": self._pause_worker,
            "kill the scheduler": self._kill_scheduler,
            "kill the api": self._kill_api,
            "kill the broker": self._kill_broker,
            "kill everything": self._kill_everything,
        }

    async def begin(self) -> None:
        self.processes = [self._start(role) for role in ROLES]
        await self._site.ready(*self.processes)

    async def strike(self) -> None:
        """One period: in a quarter of them nothing breaks."""
        fault = "nothing" if self._rng.random() < 0.25 else self._rng.choice(list(self._faults))
        self.done[fault] += 1
        if fault != "nothing":
            await self._faults[fault]()
        dead = [process for process in self.processes if not process.running]
        assert not dead, "\n".join(f"{p.role} ended although nobody ended it: {p.last_words()}" for p in dead)

    def _start(self, role: str) -> Process:
        return self._site.start(role, stop_s=0.2, grace_s=0.3)

    async def _replace(self, *ended: Process) -> None:
        fresh = [self._start(process.role) for process in ended]
        self.processes = [process for process in self.processes if process not in ended] + fresh
        await self._site.ready(*fresh)

    def _one(self, role: str) -> Process:
        return self._rng.choice([process for process in self.processes if process.role == role])

    async def _kill(self, role: str) -> None:
        doomed = self._one(role)
        doomed.kill()
        await self._replace(doomed)

    async def _kill_worker(self) -> None:
        await self._kill("worker")

    async def _kill_scheduler(self) -> None:
        await self._kill("scheduler")

    async def _kill_api(self) -> None:
        await self._kill("api")

    async def _stop_worker(self) -> None:
        worker = self._one("worker")
        worker.signal_stop()
        assert await asyncio.to_thread(worker.wait) == 0, worker.last_words()
        await self._replace(worker)

    async def _pause_worker(self) -> None:
        """For half a lease or for two."""
        worker = self._one("worker")
        worker.pause()
        await asyncio.sleep(LEASE_S * self._rng.choice((0.5, 2.0)))
        worker.resume()

    async def _kill_broker(self) -> None:
        await asyncio.to_thread(self._site.server.restart, crash=True)

    async def _kill_everything(self) -> None:
        for process in self.processes:
            process.signal(signal.SIGKILL)
        self._site.server.kill()
        await asyncio.to_thread(self._site.server.start)
        await self._replace(*self.processes)


@pytest.mark.timeout(600)
async def test_whatever_breaks_the_history_is_a_good_one(site: Site, control: Control) -> None:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))
    print(f"CHAOS_SEED={seed}")
    load, nemesis = Load(control, random.Random(seed)), Nemesis(site, control, random.Random(seed + 1))
    await nemesis.begin()
    loading = asyncio.create_task(load.run())
    for _ in range(PERIODS):
        await nemesis.strike()
        await until_progress(control, load)
        if loading.done():
            loading.result()
    await end(loading)
    await control.until_ended(*load.submitted)
    await control.until(lambda: not control.unfinished(list(control.tasks)), "those without an answer end, too")
    summary = Counter(control.status(task_id).value for task_id in control.tasks)
    again = Counter(e.data.reason for t in control.tasks for e in control.events(t) if isinstance(e.data, Queued))
    print(f"{dict(nemesis.done)}; {dict(summary)}; made ready again: {dict(again)}; cancels: {dict(load.cancels)}")
    for process in nemesis.processes:
        assert process.stop() == 0, process.last_words()
    await check_projection(site, control)


async def until_progress(control: Control, load: Load) -> None:
    """Return once some tasks that were submitted from now on have ended: the site works again."""
    begin = len(load.submitted)

    def progressed() -> bool:
        fresh = load.submitted[begin:]
        return len(fresh) - len(control.unfinished(fresh)) >= 20

    await control.until(progressed, "work goes on")
