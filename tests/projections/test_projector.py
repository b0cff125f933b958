"""The projector on a real log: it follows, it survives, and it stops at damage."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.envelope import encode
from eventq.events.errors import ProjectionLagging
from eventq.events.report import Log, LogLine, Progress
from eventq.events.reporting import publish_report
from eventq.events.subjects import EVENTS, PROGRESS
from eventq.events.task_events import Completed, Started
from eventq.projections.projector import GATHER_MIN, Projector
from eventq.projections.queries import Queries
from eventq.projections.store import ProjectionDamaged, Store
from tests.projections.support import (
    History,
    new_applier,
    publish,
    publish_anew,
    random_history,
    running,
    submission,
    tables,
)
from tests.support.nats import NatsServer
from tests.support.poll import eventually

STARTED = Started(worker_id="w1", hostname="host", device="cpu")
DONE = Completed(result={"rows": 3}, duration_s=0.5)
WAIT_S = 15.0


@pytest.fixture
async def queries(store: Store) -> AsyncIterator[Queries]:
    queries = Queries(store)
    yield queries
    queries.close()


async def caught_up(projector: Projector, position: int) -> None:
    await projector.freshness.wait_for_position(position, WAIT_S)


async def halted(projector: Projector) -> str:
    """The code of what halted the projector."""
    error = await eventually(lambda: projector.halted, WAIT_S, "a halt")
    return error.code


async def test_the_tables_are_the_fold_of_the_log(broker: Broker, store: Store, tmp_path: Path) -> None:
    history = random_history(5, 120)
    await publish(broker, history.events[:50])
    async with running(Projector(store, broker)) as projector:
        await caught_up(projector, 50)
        await publish(broker, history.events[50:])
        await caught_up(projector, 120)
    expected = Store.open(tmp_path / "expected")
    new_applier(expected).apply(history.messages(), [])
    assert tables(store) == tables(expected)
    expected.close()


async def test_progress_is_shown_of_the_current_attempt(broker: Broker, store: Store, queries: Queries) -> None:
    history = History()
    history.task("t1", submission(), STARTED)
    async with running(Projector(store, broker)) as projector:
        await publish(broker, history.events)
        await publish_report(broker, "t1", 1, "worker.w1", Progress(done=3, total=10, unit="rows"))
        await publish_report(broker, "t1", 1, "worker.w1", Log([LogLine("halfway", fields={"rows": 3})]))
        await eventually(lambda: projector.freshness.progress_position == 2)
        await caught_up(projector, 2)
        row = await queries.get_task("t1")
        assert row is not None
        assert row.progress is not None
        assert (row.progress.done, row.progress.total, row.progress.unit) == (3, 10, "rows")
        assert [line.message for line in (await queries.timeline("t1")).logs] == ["halfway"]


async def test_it_goes_on_where_it_stopped(broker: Broker, store: Store) -> None:
    history = random_history(6, 60)
    await publish(broker, history.events[:30])
    async with running(Projector(store, broker)) as projector:
        await caught_up(projector, 30)
    await publish(broker, history.events[30:])
    async with running(Projector(store, broker)) as projector:
        await caught_up(projector, 60)
        assert projector.halted is None


async def test_it_survives_a_broker_that_is_killed_and_comes_back(
    broker: Broker, own_nats_server: NatsServer, store: Store
) -> None:
    history = random_history(8, 60)
    async with running(Projector(store, broker)) as projector:
        await publish(broker, history.events[:30])
        await caught_up(projector, 30)
        own_nats_server.restart(crash=True)
        await publish_anew(own_nats_server.url, history.events[30:])
        await caught_up(projector, 60)
        assert projector.halted is None


async def test_a_log_that_was_made_anew_is_not_folded(broker: Broker, store: Store, queries: Queries) -> None:
    history = History()
    history.task("t1", submission())
    async with running(Projector(store, broker)) as projector:
        await publish(broker, history.events)
        await caught_up(projector, 1)
        await broker.js.delete_stream(EVENTS)
        await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=64 * 1024 * 1024))
        other = History()
        other.task("t2", submission())
        other.task("t3", submission())
        await publish(broker, other.events)
        assert await halted(projector) == "LOG_DAMAGED"
        assert await queries.get_task("t1") is not None
        assert await queries.get_task("t3") is None


async def test_a_log_that_was_made_anew_while_it_was_off_is_not_folded(broker: Broker, store: Store) -> None:
    history = random_history(9, 10)
    await publish(broker, history.events)
    async with running(Projector(store, broker)) as projector:
        await caught_up(projector, 10)
    await broker.js.delete_stream(EVENTS)
    await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=64 * 1024 * 1024))
    await publish(broker, history.events)
    async with running(Projector(store, broker)) as projector:
        assert await halted(projector) == "LOG_DAMAGED"
        assert projector.halted is not None
        assert "made anew" in projector.halted.detail


@pytest.mark.parametrize("written_again", [0, 4], ids=["shorter", "written again"])
async def test_a_log_restored_from_an_old_copy_is_not_folded(
    broker: Broker, own_nats_server: NatsServer, store: Store, tmp_path: Path, written_again: int
) -> None:
    history = random_history(10, 20)
    await publish(broker, history.events[:18])
    own_nats_server.stop()
    shutil.copytree(own_nats_server.store_dir, tmp_path / "copy")
    own_nats_server.start()
    await publish_anew(own_nats_server.url, history.events[18:])
    await eventually(lambda: broker.nc.is_connected, WAIT_S)
    async with running(Projector(store, broker)) as projector:
        await caught_up(projector, 20)
        own_nats_server.kill()
        shutil.rmtree(own_nats_server.store_dir)
        shutil.copytree(tmp_path / "copy", own_nats_server.store_dir)
        own_nats_server.start()
        other = History()
        for number in range(written_again):
            other.task(f"other-{number}", submission())
        await publish_anew(own_nats_server.url, other.events)
        assert await halted(projector) == "LOG_DAMAGED"
        assert not [row for row in tables(store)["tasks"] if str(row[0]).startswith("other")]


async def test_a_lost_message_is_noticed(broker: Broker, store: Store) -> None:
    history = random_history(12, 10)
    await publish(broker, history.events)
    await broker.js.delete_msg(EVENTS, 5)
    async with running(Projector(store, broker)) as projector:
        assert await halted(projector) == "LOG_DAMAGED"
        assert projector.halted is not None
        assert "positions 5 to 5" in projector.halted.detail
    assert tables(store)["events"] == []


async def test_an_unknown_event_halts_until_somebody_upgrades(broker: Broker, store: Store) -> None:
    history = History()
    history.task("t1", submission())
    async with running(Projector(store, broker)) as projector:
        await publish(broker, history.events)
        await caught_up(projector, 1)
        history.task("t1", STARTED)
        odd = encode(history.events[1]).replace(b'"type":"started"', b'"type":"teleported"')
        await broker.js.publish("tasks.t1.2.teleported", odd)
        assert await halted(projector) == "UNKNOWN_EVENT"
        with pytest.raises(ProjectionLagging, match="halted"):
            await projector.freshness.wait_for_position(2, WAIT_S)


async def test_a_progress_stream_that_was_made_anew_is_read_from_its_start(broker: Broker, store: Store) -> None:
    async with running(Projector(store, broker)) as projector:
        for done in (1, 2, 3):
            await publish_report(broker, "t1", 1, "worker.w1", Progress(done=done))
        await eventually(lambda: projector.freshness.progress_position == 3)
    await broker.js.delete_stream(PROGRESS)
    await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=64 * 1024 * 1024))
    await publish_report(broker, "t1", 1, "worker.w1", Progress(done=4))
    async with running(Projector(store, broker)) as projector:
        await eventually(lambda: projector.freshness.progress_position == 1)
        assert projector.halted is None
        with store.read() as snapshot:
            assert snapshot.rows("SELECT done FROM task_progress") == [(4.0,)]


async def test_a_damaged_file_is_moved_aside_and_folded_again(broker: Broker, store: Store) -> None:
    history = random_history(13, 40)
    async with running(Projector(store, broker)) as projector:
        await publish(broker, history.events[:20])
        await caught_up(projector, 20)
        before = store.path
        store.damage = ProjectionDamaged("a block's checksum was wrong")
        await eventually(lambda: projector.started_over == 1, WAIT_S)
        await publish(broker, history.events[20:])
        await caught_up(projector, 40)
    assert store.path != before
    assert len(tables(store)["events"]) == 40
    assert list(store.folder.glob("damaged-*.duckdb"))


async def test_own_writes_are_waited_for(broker: Broker, store: Store, queries: Queries) -> None:
    history = History()
    async with running(Projector(store, broker)) as projector:
        for number in range(20):
            task = history.task(f"t{number}", submission())
            await publish(broker, history.events[-1:])
            projector.freshness.note_write(f"t{number}", task.version)
            await projector.freshness.wait_own_writes(WAIT_S)
            assert await queries.get_task(f"t{number}") is not None


async def test_a_batch_that_is_left_to_grow_is_applied_when_somebody_waits_for_it(
    broker: Broker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load the next batch waits: here, for longer than the test, if nobody came."""
    history = random_history(5, 2 * GATHER_MIN)
    await publish(broker, history.events[:GATHER_MIN])
    async with running(Projector(store, broker)) as projector:
        await caught_up(projector, GATHER_MIN)
        monkeypatch.setattr(projector, "_gather_until", time.monotonic() + 2 * WAIT_S)
        await publish(broker, history.events[GATHER_MIN:])
        await caught_up(projector, 2 * GATHER_MIN)
