"""API processes that are killed between an erasure's or a clean-up's event and its deletions: a scheduler completes them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from eventq.events.errors import Unavailable
from eventq.events.subjects import PROGRESS
from tests.chaos.site import Control, Site
from tests.chaos.test_kill_api import client_of
from tests.support.poll import eventually

SECRET = "nur-fuer-euch-4711"


def bytes_hold(folder: Path) -> bool:
    return any(SECRET.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


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
