"""`kill -9` of a real projector at every step of a batch: afterwards the tables are the fold of the log up to the
checkpoint, and a new projector goes on from there. The checker is shown to find a planted bug."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from eventq.events.broker import Broker
from eventq.events.errors import LogDamaged
from eventq.events.failpoints import VARIABLE
from eventq.projections.projector import Projector
from eventq.projections.rebuild import Verified, verify
from eventq.projections.store import Store
from tests.projections.support import publish, random_history, running, tables
from tests.support.nats import NatsServer

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0


async def killed(folder: Path, url: str, failpoints: str, *arguments: str) -> None:
    """Run a projector until its failpoint kills it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.projections.crashing", str(folder), url, *arguments,
        env=os.environ | {VARIABLE: failpoints}, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(WAIT_S):
            assert await process.wait() == -9
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def checked(folder: Path, broker: Broker) -> Verified:
    """Compare what the crash left with the fold of the log up to its checkpoint."""
    store = Store.open(folder)
    try:
        return await verify(store, broker)
    finally:
        store.close()


@pytest.mark.parametrize("hit", [1, 3])
@pytest.mark.parametrize("step", ["mid_batch", "before_commit", "after_commit"])
async def test_a_projector_killed_at_any_step_leaves_the_fold_of_the_log(
    broker: Broker, own_nats_server: NatsServer, folder: Path, step: str, hit: int
) -> None:
    history = random_history(21, 90)
    await publish(broker, history.events[:90])
    await killed(folder, own_nats_server.url, f"project.{step}=kill@{hit}")
    assert (await checked(folder, broker)).equal
    store = Store.open(folder)
    async with running(Projector(store, broker)) as projector:
        await projector.freshness.wait_for_position(90, WAIT_S)
    assert len(tables(store)["events"]) == 90
    assert (await verify(store, broker)).equal
    store.close()


async def test_the_checker_finds_a_checkpoint_that_is_committed_apart_from_its_rows(
    broker: Broker, own_nats_server: NatsServer, folder: Path
) -> None:
    history = random_history(22, 30)
    await publish(broker, history.events[:30])
    await killed(folder, own_nats_server.url, "planted.between_commits=kill", "separate-checkpoint")
    found = await checked(folder, broker)
    assert not found.equal
    assert any(difference.table == "events" and difference.position == 1 for difference in found.differences)
    store = Store.open(folder)
    async with running(Projector(store, broker)) as projector:
        with pytest.raises(Exception, match="halted") as refusal:
            await projector.freshness.wait_for_position(30, WAIT_S)
        assert isinstance(projector.halted, LogDamaged), refusal
    store.close()
