"""API processes killed on both sides of the append and before a change, and projectors killed in the middle of a batch."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from eventq.events.commands import PauseTask
from eventq.events.errors import Unavailable
from eventq.events.handle import handle, read_task
from eventq.events.subjects import TIMER_CONSUMER, TIMERS
from eventq.events.task import Status
from eventq.events.task_events import TimedOut
from eventq.projections.rebuild import verify
from eventq.projections.store import Store
from eventq.services.client import Client
from tests.chaos.checker import Projected
from tests.chaos.process import Process
from tests.chaos.site import Control, Site
from tests.support.poll import eventually


async def client_of(api: Process) -> Client:
    """A client of this API process, whose log tells the address."""
    lines = await eventually(lambda: api.logged("api.ready"), timeout=60, what="the address of the API")
    return Client(str(lines[0]["url"]))


async def check_projection(site: Site, control: Control) -> None:
    """With no API running: the file is the fold of the log, by its own verification and by the checker's."""
    store = Store.open(Path(site.folder / "projection"))
    try:
        verified = await verify(store, control.broker)
        assert verified.equal, verified.differences
        with store.read() as snapshot:
            rows = snapshot.rows("SELECT task_id, status, version, attempt, event_id FROM tasks")
    finally:
        await asyncio.to_thread(store.close)
    await control.check({row[0]: Projected(Status(row[1]), row[2], row[3], row[4]) for row in rows})


async def until_shown(client: Client, control: Control) -> None:
    """Every task is answered as the log has it."""
    for task_id in control.tasks:
        known = control.task(task_id)
        answer = await client.get(task_id, min_version=known.version)
        assert answer.status == known.status


@pytest.mark.parametrize(("step", "stored_unanswered"), [("submit.before_append", 0), ("submit.after_append", 1)])
async def test_an_api_killed_in_a_submission_leaves_a_whole_task_or_none(
    site: Site, control: Control, step: str, stored_unanswered: int
) -> None:
    doomed = site.start("api", failpoints=f"{step}=kill@6")
    await site.workers(1)
    await site.ready(doomed)
    async with await client_of(doomed) as client:
        for _ in range(5):
            control.acknowledged.add((await client.submit("chaos.quick")).task_id)
        with pytest.raises(Unavailable):
            await client.submit("chaos.quick")
    assert doomed.wait() == -signal.SIGKILL
    api = await site.started("api")
    async with await client_of(api) as client:
        last = (await client.submit("chaos.plain")).task_id
        control.acknowledged.add(last)
        await control.until_ended(last)
        await control.until_ended(*control.tasks)
        assert len(control.tasks) == len(control.acknowledged) + stored_unanswered
        await until_shown(client, control)
    assert api.stop() == 0
    await check_projection(site, control)


async def killed_in(site: Site, change: Callable[[Client], Awaitable[object]]) -> None:
    """An API is killed when it has set the timers of what the change leads to, and has not stored that."""
    doomed = await site.started("api", failpoints="control.before_append=kill")
    async with await client_of(doomed) as client:
        with pytest.raises(Unavailable):
            await change(client)
    assert doomed.wait() == -signal.SIGKILL


async def test_an_api_killed_before_a_resumption_is_stored_leaves_the_task_paused(site: Site, control: Control) -> None:
    task_id = await control.submit("chaos.quick")
    before = (await handle(control.log, task_id, PauseTask("ada"), source="test")).state
    await killed_in(site, lambda client: client.resume(task_id))
    assert await read_task(control.log, task_id, fresh=True) == before
    await site.workers(1)
    async with await client_of(await site.started("api")) as client:
        await client.resume(task_id)
    await control.until_ended(task_id)
    assert control.types(task_id) == ["submitted", "paused", "queued", "started", "completed"]
    await control.check()


async def test_an_api_killed_before_an_update_is_stored_leaves_a_timer_that_means_nothing(site: Site, control: Control) -> None:
    await site.workers(1, queues="another")  # knows the task, and takes none
    task_id = await control.submit("chaos.quick")
    await killed_in(site, lambda client: client.update(task_id, {"queue_timeout_seconds": 0.2}))
    await site.started("scheduler")
    await eventually(lambda: hinted(control), timeout=60, what="the timer of the wait has fired, and was answered")
    assert (await read_task(control.log, task_id, fresh=True)).version == 1
    async with await client_of(await site.started("api")) as client:
        await client.update(task_id, {"queue_timeout_seconds": 0.3})
    await control.until_ended(task_id)
    assert control.types(task_id) == ["submitted", "updated", "timed_out"]
    assert control.events(task_id)[-1].data == TimedOut(reason="queue_timeout", after_s=0.3)
    await control.check()


async def hinted(control: Control) -> bool:
    """Whether a hint was handed out and came again, so that the first time it was answered."""
    info = await control.broker.js.consumer_info(TIMERS, TIMER_CONSUMER)
    return bool(info.delivered and info.delivered.consumer_seq >= 2)


@pytest.mark.parametrize("step", ["project.mid_batch", "project.before_commit", "project.after_commit"])
async def test_a_projector_killed_in_the_middle_shows_the_fold_of_the_log_afterwards(
    site: Site, control: Control, step: str
) -> None:
    doomed = site.start("api", failpoints=f"{step}=kill@5")
    await site.workers(1)
    task_ids: list[str] = []
    while doomed.running:
        assert len(task_ids) < 1_000, f"{step} is never reached"
        task_ids += [await control.submit("chaos.quick") for _ in range(10)]
        await control.until_ended(*task_ids)
    assert doomed.wait() == -signal.SIGKILL
    task_ids += [await control.submit("chaos.fail", 1, max_retries=1) for _ in range(10)]
    await control.until_ended(*task_ids)
    api = await site.started("api")
    async with await client_of(api) as client:
        await until_shown(client, control)
    api.kill()
    await check_projection(site, control)
