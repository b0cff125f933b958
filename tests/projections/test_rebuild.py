"""Folding the log again: the same tables, without a lost read, and a comparison that names what differs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.errors import LogDamaged
from eventq.events.report import Log, LogLine, Progress
from eventq.events.reporting import publish_report
from eventq.events.subjects import EVENTS
from eventq.projections.projector import Projector
from eventq.projections.queries import Queries
from eventq.projections.rebuild import rebuild_live, rebuild_offline, verify
from eventq.projections.store import ProjectionBusy, Store
from tests.projections.support import publish, random_history, running, tables
from tests.support.poll import eventually

WAIT_S = 15.0


async def filled(store: Store, broker: Broker, seed: int = 31, events: int = 100) -> None:
    """A live projection of a random history."""
    await publish(broker, random_history(seed, events).events[:events])
    async with running(Projector(store, broker)) as projector:
        await projector.freshness.wait_for_position(events, WAIT_S)


async def test_rebuilt_is_live(broker: Broker, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "live")
    await filled(store, broker)
    live = tables(store)
    store.close()
    rebuilt = await rebuild_offline(tmp_path / "live", broker)
    assert (rebuilt.position, rebuilt.messages) == (100, 100)
    store = Store.open(tmp_path / "live")
    assert tables(store) == live
    store.close()


async def test_a_live_rebuild_loses_no_read_and_never_goes_back(broker: Broker, store: Store) -> None:
    history = random_history(32, 200)
    await publish(broker, history.events[:150])
    await publish_report(broker, "t1", 1, "worker.w1", Progress(done=1))
    await publish_report(broker, "t1", 1, "worker.w1", Log([LogLine("hello")]))
    queries, done = Queries(store), asyncio.Event()

    async def read_all_the_time() -> list[int]:
        seen = list[int]()
        while not done.is_set():
            seen.append((await queries.list_tasks(limit=5)).as_of)
        return seen

    async with running(Projector(store, broker)) as projector:
        await projector.freshness.wait_for_position(150, WAIT_S)
        readers = [asyncio.create_task(read_all_the_time()) for _ in range(3)]
        before = store.path
        writing = asyncio.create_task(publish(broker, history.events[150:]))
        rebuilt = await rebuild_live(projector)
        await writing
        await projector.freshness.wait_for_position(200, WAIT_S)
        done.set()
        for seen in await asyncio.gather(*readers):
            assert seen == sorted(seen)
        assert rebuilt.position >= 150
        assert store.path != before
        assert (await verify(store, broker)).equal
        with store.read() as snapshot:
            assert snapshot.rows("SELECT message FROM task_logs") == [("hello",)]
    queries.close()
    assert not list(store.folder.glob("rebuild*"))


async def test_a_rebuild_of_a_halted_projector_takes_the_log_as_it_is_now(broker: Broker, store: Store) -> None:
    await filled(store, broker)
    await broker.js.delete_stream(EVENTS)
    await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=64 * 1024 * 1024))
    await publish(broker, random_history(33, 40).events[:40])
    async with running(Projector(store, broker)) as projector:
        await eventually(lambda: projector.halted, WAIT_S)
        assert (await rebuild_live(projector)).position == 40
        await eventually(lambda: projector.halted is None, WAIT_S)
        assert (await verify(store, broker)).equal


async def test_a_rebuild_of_a_damaged_log_leaves_the_file_in_use(broker: Broker, store: Store) -> None:
    await filled(store, broker)
    await broker.js.delete_msg(EVENTS, 40)
    before = store.path, tables(store)
    async with running(Projector(store, broker)) as projector:
        with pytest.raises(LogDamaged, match="positions 40 to 40"):
            await rebuild_live(projector)
    assert (store.path, tables(store)) == before
    assert not list(store.folder.glob("rebuild*"))


async def test_an_offline_rebuild_is_refused_beside_a_running_process(broker: Broker, store: Store, folder: Path) -> None:
    with pytest.raises(ProjectionBusy, match="another process"):
        await rebuild_offline(folder, broker)


async def test_verification_agrees_with_an_untouched_file(broker: Broker, store: Store) -> None:
    await filled(store, broker)
    found = await verify(store, broker)
    assert found.equal
    assert found.position == 100
    assert found.tables["events"][0] == 100


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        ("UPDATE events SET source = 'somebody' WHERE position >= 17", ("events", "17", "differs")),
        ("DELETE FROM events WHERE position = 40", ("events", "40", "missing")),
        ("INSERT INTO attempts SELECT * REPLACE (99 AS attempt) FROM attempts LIMIT 1", ("attempts", "attempt 99", "not in")),
        ("UPDATE tasks SET status = 'COMPLETED' WHERE status <> 'COMPLETED'", ("tasks", "task-", "differs")),
    ],
)
async def test_verification_names_the_first_difference(
    broker: Broker, store: Store, tamper: str, expected: tuple[str, str, str]
) -> None:
    await filled(store, broker)
    with store.transaction() as transaction:
        transaction.execute(tamper)
    [difference] = (await verify(store, broker)).differences
    assert difference.table == expected[0]
    assert expected[1] in difference.key
    assert expected[2] in str(difference)
