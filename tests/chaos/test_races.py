"""Cancel, pause, resume, update, completion, time limits, silence and the end of a lease meet, over real processes: each task
comes to one end, and the checker finds nothing to object to. Each kind of race has a control with a planted bug, which the
checker must find.

The seed is printed; ``CHAOS_SEED=<seed>`` draws the same again (what the processes make of it still differs).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from functools import partial
from typing import Any

import pytest

from eventq.events.commands import CancelTask, Command, PauseTask, ResumeTask, UpdateTask
from eventq.events.ending import end
from eventq.events.errors import Conflict, IllegalTransition
from eventq.events.handle import handle
from eventq.events.task import TERMINAL, Status
from eventq.events.task_events import Paused, Queued, Retrying, Submitted, TimedOut
from eventq.services.task_timers import utc_now
from tests.chaos.checker import violations
from tests.chaos.process import Process
from tests.chaos.site import Control, Site
from tests.support.poll import eventually

TASKS = 80


@pytest.fixture
def rng() -> random.Random:
    """What is drawn by chance in this test. pytest shows the seed with whatever fails."""
    seed = int(os.environ.get("CHAOS_SEED", "3"))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


async def ask(control: Control, task_id: str, command: Command) -> bool:
    """Whether the rules took the command; refusing it is as good an answer."""
    try:
        await handle(control.log, task_id, command, source="test")
    except (Conflict, IllegalTransition):
        return False
    return True


def any_command(control: Control, task_id: str, rng: random.Random) -> Command:
    submitted = control.events(task_id)[0].data
    assert isinstance(submitted, Submitted)
    other = submitted.model_copy(update={"priority": rng.randint(4, 6)})
    return rng.choice(
        (
            CancelTask("ada", "race"),
            PauseTask("bob", "race"),
            ResumeTask("eve", utc_now()),
            UpdateTask(other, ("priority",), "max", utc_now()),
        )
    )


def goes_on(control: Control, task_id: str, seen: int) -> bool:
    return len(control.events(task_id)) > seen


async def steer(control: Control, task_id: str, rng: random.Random) -> None:
    """Up to three clients at once, as soon as an attempt is seen, or at once; then whatever stands still is resumed."""
    await control.until(lambda: control.events(task_id), "it was submitted")
    if rng.random() < 0.6:
        await control.until(lambda: control.task(task_id).attempt or control.status(task_id) in TERMINAL, "it was started")
    await asyncio.gather(*(ask(control, task_id, any_command(control, task_id, rng)) for _ in range(rng.randint(0, 3))))
    while control.status(task_id) not in TERMINAL:
        seen = len(control.events(task_id))
        if control.status(task_id) is Status.PAUSED or control.task(task_id).pause_requested_by is not None:
            await ask(control, task_id, ResumeTask("eve", utc_now()))
        await control.until(partial(goes_on, control, task_id, seen), f"{task_id} goes on")


def any_work(rng: random.Random) -> tuple[str, list[object], dict[str, Any]]:
    """A task, its arguments and its options: an instant of work, or some that may meet its limits."""
    waits = {"queue_timeout_s": rng.choice((None, None, rng.uniform(0.1, 2.0)))}
    if rng.random() < 0.2:
        return "chaos.quick", [], waits
    limits = {
        "timeout_s": rng.choice((None, rng.uniform(0.02, 0.3))),
        "heartbeat_timeout_s": rng.choice((None, rng.uniform(0.01, 0.1))),
        "max_retries": rng.randint(0, 1),
    }
    return rng.choice(("chaos.work", "chaos.work_plain")), [rng.random() * 0.4], waits | limits


async def race(control: Control, rng: random.Random) -> None:
    """Tasks whose work, limits and steering end at about the same moment. Returns when all have ended."""

    async def one(rng: random.Random) -> None:
        name, args, options = any_work(rng)
        await steer(control, await control.submit(name, *args, **options), rng)

    await asyncio.gather(*(one(random.Random(rng.random())) for _ in range(TASKS)))


async def replace_in_the_middle(site: Site, control: Control, worker: Process) -> None:
    """Kill the worker with what it holds once a good part of the tasks has ended; another takes its place."""

    def in_the_middle() -> bool:
        return len(control.tasks) - len(control.unfinished(control.tasks)) >= TASKS // 4

    await control.until(in_the_middle, "the race is in full swing")
    worker.kill()
    await site.started("worker", stop_s=0.2)


def met(control: Control) -> Counter[str]:
    """What met in the race: how tasks ended, and what became of attempts that did not end them."""
    found = Counter(str(control.status(task_id)) for task_id in control.tasks)
    for event in (event for task_id in control.tasks for event in control.events(task_id)):
        match event.data:
            case Queued(reason="worker_lost") | Paused(lost=True):
                found["lease expired"] += 1
            case Retrying(reason=reason) | TimedOut(reason=reason):
                found[reason] += 1
            case _:
                found[event.type] += 1
    return found


MORE_RACES = 3
"""At most: on a slow machine one race of chance may not bring everything about."""

EXPECTED = {
    *("COMPLETED", "CANCELLED", "TIMED_OUT", "execution_timeout", "heartbeat_timeout", "queue_timeout", "lease expired"),
    *("cancel_requested", "pause_requested", "paused", "resumed", "updated"),
}


async def test_a_task_that_everybody_wants_something_of_comes_to_one_end(
    site: Site, control: Control, rng: random.Random
) -> None:
    _, (doomed, _) = await asyncio.gather(site.started("scheduler"), site.workers(2, stop_s=0.2))
    await asyncio.gather(race(control, rng), replace_in_the_middle(site, control, doomed))
    for _ in range(MORE_RACES):
        if met(control).keys() >= EXPECTED:
            break
        await race(control, rng)
    await control.check()
    assert met(control).keys() >= EXPECTED, f"no race to speak of: {met(control)}"


async def test_the_checker_finds_workers_that_mind_no_version_in_the_race(
    site: Site, control: Control, rng: random.Random
) -> None:
    await asyncio.gather(site.started("scheduler"), site.workers(2, stop_s=0.2, bug="publish_without_check"))

    async def found() -> bool:
        return "versions are not contiguous" in "\n".join(violations(await control.history(), finished=False))

    racing = asyncio.create_task(race(control, rng))
    try:
        await eventually(found, timeout=60, what="two have written the same version of a task")
    finally:
        await end(racing)


async def outlive_the_lease(site: Site, control: Control) -> str:
    """A worker stands still until another has taken its task over, and goes on while that one ends it. The task.

    The control, a worker that reports whatever it missed, stands in `test_kill_worker`, where nobody has to be faster.
    """
    held = await site.started("worker", concurrency=1)
    task_id = await control.submit("chaos.gate", str(site.gate()))
    await control.until_entered(task_id)
    await site.started("worker", concurrency=1)
    held.pause()
    await control.until_entered(task_id, attempt=2)
    site.gate().touch()
    held.resume()
    return task_id


@pytest.mark.parametrize("command", [CancelTask("ada", "race"), PauseTask("bob", "race")], ids=["cancel", "pause"])
async def test_the_end_of_a_lease_meets_completion_and(
    site: Site, control: Control, rng: random.Random, command: Command
) -> None:
    await site.started("scheduler")
    task_id = await outlive_the_lease(site, control)
    await ask(control, task_id, command)
    await steer(control, task_id, rng)
    await control.check()
    assert control.status(task_id) in (Status.COMPLETED, Status.CANCELLED)
