"""What was acknowledged survives a power cut, provided that the broker syncs every write; if not, this test shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from nats.js.errors import NotFoundError

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.group import ATOMIC_MIN
from eventq.events.log import EventLog
from tests.events.given import small_event
from tests.events.stored import ids, stored
from tests.support.nats import NatsServer
from tests.support.poll import eventually
from tests.support.power_cut import CannotMountError, cut_power, disk, mounted

ENOUGH = 300


@pytest.fixture
def disk_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `disk` is a disk of its own."""
    with ExitStack() as stack:
        try:
            stack.enter_context(disk(tmp_path))
        except CannotMountError as reason:
            pytest.skip(f"a power cut needs root and loop devices: {reason}")
        yield tmp_path


def a_broker_on(mountpoint: Path, folder: Path, sync_interval: str | None) -> NatsServer:
    server = NatsServer(folder, sync_interval)
    server.store_dir = mountpoint / "js"
    server.start()
    return server


async def append_until_stopped(server: NatsServer, *, pipelined: bool, together: int = 1) -> set[str]:
    """Append from ten writers, each so many events together, until the broker stops in the middle. Answers what it
    acknowledged."""
    acknowledged: set[str] = set()
    async with await Broker.connect(server.url, name="test") as broker:
        await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=32 * 1024 * 1024))
        broker.syncs = together > 1
        log = await EventLog.open(broker, pipelined=pipelined)

        async def write() -> None:
            while True:
                events = [small_event() for _ in range(together)]
                outcomes = await log.append_all(events)
                acknowledged.update(event.id for event, outcome in zip(events, outcomes, strict=True) if outcome is None)

        writers = [asyncio.create_task(write()) for _ in range(10)]
        await eventually(lambda: len(acknowledged) >= ENOUGH)
        server.pause()
        for writer in writers:
            writer.cancel()
        outcomes = await asyncio.gather(*writers, return_exceptions=True)
        await log.close()
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    return acknowledged


async def survivors(folder: Path, server: NatsServer) -> set[str]:
    """Cut the power, mount what the device had, start a broker on it: the ids of the events it knows."""
    image = cut_power(folder)
    server.kill()
    with mounted(image, folder / "rebooted") as mountpoint:
        after = a_broker_on(mountpoint, folder / "after", "always")
        try:
            found = ids(await stored(after.url))
            assert not found or max(found.values()) == 1
            return set(found)
        except NotFoundError:
            return set()
        finally:
            after.kill()


@pytest.mark.parametrize(
    ("pipelined", "together"), [(True, 1), (False, 1), (True, ATOMIC_MIN)], ids=["pipelined", "plain", "in atomic groups"]
)
async def test_what_was_acknowledged_survives_a_power_cut(disk_folder: Path, pipelined: bool, together: int) -> None:
    server = a_broker_on(disk_folder / "disk", disk_folder / "before", "always")
    try:
        acknowledged = await append_until_stopped(server, pipelined=pipelined, together=together)
        found = await survivors(disk_folder, server)
    finally:
        server.kill()
    assert acknowledged - found == set()


@pytest.mark.parametrize("together", [1, ATOMIC_MIN], ids=["one by one", "in atomic groups"])
async def test_a_lazily_synced_broker_loses_what_it_acknowledged(disk_folder: Path, together: int) -> None:
    """The negative control: if this fails, the rig no longer cuts the power. It is why bootstrap refuses such a broker."""
    server = a_broker_on(disk_folder / "disk", disk_folder / "before", None)
    try:
        acknowledged = await append_until_stopped(server, pipelined=True, together=together)
        found = await survivors(disk_folder, server)
    finally:
        server.kill()
    assert acknowledged - found != set()
