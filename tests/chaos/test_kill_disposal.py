"""API processes that are killed between an erasure's or a clean-up's event and its deletions: a scheduler completes them."""

from __future__ import annotations

import signal

import pytest

from eventq.events.errors import Unavailable
from eventq.events.subjects import PROGRESS
from eventq.services.client_workflows import task
from tests.chaos.site import Control, Site
from tests.chaos.test_kill_api import client_of
from tests.services.secrets import SECRET, bytes_hold
from tests.support.poll import eventually


@pytest.mark.parametrize("step", ["erase.after_event", "erase.before_messages"])
async def test_an_erasure_that_was_begun_is_completed(site: Site, control: Control, step: str) -> None:
    doomed = await site.started("api", failpoints=f"{step}=kill")
    await site.workers(1)
    task_id = await control.submit("chaos.echo_size", SECRET)
    await control.until_ended(task_id)
    async with await client_of(doomed) as client:
        with pytest.raises(Unavailable):
            await client.erase(task_id)
    assert doomed.wait() == -signal.SIGKILL
    assert bytes_hold(site.server.store_dir)
    await site.started("scheduler")
    await eventually(lambda: not bytes_hold(site.server.store_dir), timeout=60, what="the scheduler overwrites the rest")
    await site.started("api")  # its projector folds a log with holes
    assert control.types(task_id)[-1] == "erased"


@pytest.mark.parametrize("step", ["erase.after_giver", "erase.before_messages"])
async def test_what_its_workflow_gave_a_task_is_erased_in_spite_of_a_kill(site: Site, control: Control, step: str) -> None:
    """Given a server that dies once the workflow's event tells what is left of it, when a scheduler comes, then nothing of the
    arguments is left there; and the task itself is erased when somebody asks for it again."""
    doomed = await site.started("api", failpoints=f"{step}=kill")
    await site.workers(1)
    first_scheduler = await site.started("scheduler")
    async with await client_of(doomed) as client:
        workflow = await client.workflows.submit("w", [task("a", "chaos.echo_size", task_args=[SECRET])])
        done = await client.workflows.wait(workflow.workflow_id, timeout_s=60)
        task_id = done.nodes[0].task_id
        assert task_id is not None
        first_scheduler.kill()
        with pytest.raises(Unavailable):
            await client.erase(task_id)
    assert doomed.wait() == -signal.SIGKILL
    await site.started("scheduler")

    async def emptied() -> bool:
        return await control.log.at("workflows", workflow.workflow_id, 1) is None

    await eventually(emptied, timeout=60, what="the scheduler overwrites what the workflow held")
    async with await client_of(await site.started("api")) as client:
        await client.erase(task_id)
    assert not bytes_hold(site.server.store_dir)


async def test_a_clean_up_that_was_begun_is_completed(site: Site, control: Control) -> None:
    doomed = await site.started("api", failpoints="clean.after_event=kill")
    await site.workers(1)
    task_id = await control.submit("chaos.report_progress", 3, 0.0)
    await control.until_ended(task_id)
    async with await client_of(doomed) as client:
        with pytest.raises(Unavailable):
            await client.delete(task_id)
    assert doomed.wait() == -signal.SIGKILL
    await site.started("scheduler")

    async def given_up() -> bool:
        info = await control.broker.js.stream_info(PROGRESS, subjects_filter=f"progress.{task_id}")
        return not info.state.subjects

    await eventually(given_up, timeout=60, what="the scheduler deletes its progress")
    assert control.types(task_id)[-1] == "cleaned"
