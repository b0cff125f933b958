"""Cancel, pause, resume, completion, time-out and the end of a lease meet, over real processes: each task comes to one end, and
the checker finds nothing to object to. Each kind of race has a control with a planted bug, which the checker must find.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from functools import partial

import pytest

from eventq.events.commands import CancelTask, Command, PauseTask, ResumeTask
from eventq.events.errors import Conflict, IllegalTransition
from eventq.events.handle import handle
from eventq.events.task import TERMINAL, Status
from eventq.services.task_timers import utc_now
from tests.chaos.checker import violations
from tests.chaos.site import Control, Site

TASKS = 80


async def ask(control: Control, task_id: str, command: Command) -> bool:
    """Whether the rules took the command; refusing it is as good an answer."""
    try:
        await handle(control.log, task_id, command, source="test")
    except (Conflict, IllegalTransition):
        return False
    return True


def any_command(rng: random.Random) -> Command:
    return rng.choice((CancelTask("ada", "race"), PauseTask("bob", "race"), ResumeTask("eve", utc_now())))


def newer(control: Control, task_id: str, version: int) -> bool:
    return control.task(task_id).version > version


async def steer(control: Control, task_id: str, rng: random.Random) -> None:
    """Up to three clients at once, as soon as an attempt is seen, or at once; then whatever stands still is resumed."""
    if rng.random() < 0.8:
        await control.until(lambda: control.task(task_id).attempt or control.status(task_id) in TERMINAL, "it was started")
    await asyncio.gather(*(ask(control, task_id, any_command(rng)) for _ in range(rng.randint(0, 3))))
    while control.status(task_id) not in TERMINAL:
        seen = control.task(task_id).version
        if control.status(task_id) is Status.PAUSED or control.task(task_id).pause_requested_by is not None:
            await ask(control, task_id, ResumeTask("eve", utc_now()))
        await control.until(partial(newer, control, task_id, seen), f"{task_id} goes on")


async def race(control: Control, rng: random.Random) -> Counter[Status]:
    """Tasks whose work, time limit and steering end at about the same moment; how they ended."""

    async def one() -> str:
        kind = rng.choice(("chaos.work", "chaos.work_plain"))
        limit_s = rng.choice((None, rng.uniform(0.02, 0.1)))
        task_id = await control.submit(kind, rng.random() * 0.1, timeout_s=limit_s, max_retries=rng.randint(0, 1))
        await steer(control, task_id, rng)
        return task_id

    ended = await asyncio.gather(*(one() for _ in range(TASKS)))
    return Counter(control.status(task_id) for task_id in ended)


async def test_a_task_that_everybody_wants_something_of_comes_to_one_end(site: Site, control: Control) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "3"))
    await asyncio.gather(site.started("scheduler"), site.workers(2, stop_s=0.2))
    ends = await race(control, random.Random(seed))
    await control.check()
    assert ends.keys() >= {Status.COMPLETED, Status.CANCELLED, Status.TIMED_OUT}, f"no race to speak of with seed {seed}"


async def outlive_the_lease(site: Site, control: Control, *, bug: str = "") -> str:
    """A worker stands still until another has taken its task over, and goes on while that one ends it. The task."""
    held = await site.started("worker", bug=bug, concurrency=1)
    task_id = await control.submit("chaos.gate", str(site.gate()))
    await control.until_entered(task_id)
    await site.started("worker", concurrency=1)
    held.pause()
    await control.until_entered(task_id, attempt=2)
    site.gate().touch()
    held.resume()
    return task_id


@pytest.mark.parametrize("command", [CancelTask("ada", "race"), PauseTask("bob", "race")], ids=["cancel", "pause"])
async def test_the_end_of_a_lease_meets_completion_and(site: Site, control: Control, command: Command) -> None:
    await site.started("scheduler")
    task_id = await outlive_the_lease(site, control)
    await ask(control, task_id, command)
    await steer(control, task_id, random.Random(0))
    await control.check()
    assert control.status(task_id) in (Status.COMPLETED, Status.CANCELLED)


async def test_the_checker_finds_a_worker_that_reports_after_its_lease(site: Site, control: Control) -> None:
    task_id = await outlive_the_lease(site, control, bug="publish_without_check")
    await control.until(lambda: control.types(task_id).count("completed") > 1, "both workers have told its end")
    await control.stop_watching()
    assert violations(await control.history())
