"""Appending: one contract, held by the pipelined and by the plain way, against a real broker on good days and bad.

The promise under test: an append that returned is stored, exactly once; one that was refused has changed nothing; one that
was not answered says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import nats
import pytest
from nats.js.errors import APIError
from structlog.testing import capture_logs

from eventq.events import appender
from eventq.events.appender import PipelinedAppender
from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.commands import CancelTask
from eventq.events.envelope import Event, encode
from eventq.events.errors import LogUnavailable, VersionConflict
from eventq.events.handle import handle
from eventq.events.ids import new_id
from eventq.events.log import EventLog
from eventq.events.subjects import EVENTS, version_check
from eventq.events.worker_events import WorkerStopped
from tests.events.appending import Tally, answers_get_lost, fill, grow, load, opened, the_appender
from tests.events.given import ready_event, small_event
from tests.events.stored import ids, settle, stored
from tests.support.fast_ingest import FastIngest
from tests.support.nats import NatsServer
from tests.support.poll import eventually
from tests.support.proxy import Proxy


@pytest.fixture(params=["pipelined", "plain"])
def pipelined(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "pipelined")


@pytest.fixture
async def log(broker: Broker, pipelined: bool) -> AsyncIterator[EventLog]:
    log = await EventLog.open(broker, pipelined=pipelined)
    yield log
    await log.close()


async def test_an_append_that_returned_is_stored_once(log: EventLog, own_nats_server: NatsServer) -> None:
    events = [small_event() for _ in range(100)]

    await asyncio.gather(*[log.append(event) for event in events])

    records = await stored(own_nats_server.url)
    assert ids(records) == {event.id: 1 for event in events}
    assert {record.subject for record in records} == {event.subject for event in events}


async def test_what_was_appended_can_be_read_at_once(log: EventLog) -> None:
    event = ready_event()
    position = await log.append(event)

    last = await log.last("tasks", event.aggregate_id, fresh=True)

    assert last is not None
    assert last.event.id == event.id
    assert position in {None, last.position}
    assert await log.at("tasks", event.aggregate_id, 1) == last
    assert await log.at("tasks", event.aggregate_id, 2) is None


async def test_another_writer_s_version_is_taken(log: EventLog, own_nats_server: NatsServer) -> None:
    task_id = new_id()
    first = ready_event(task_id)
    await log.append(first)

    with pytest.raises(VersionConflict) as conflict:
        await log.append(ready_event(task_id))

    assert conflict.value.fields == {"aggregate_id": task_id, "version": 1}
    assert ids(await stored(own_nats_server.url)) == {first.id: 1}


async def test_a_refusal_does_not_disturb_the_appends_around_it(log: EventLog) -> None:
    taken = ready_event()
    await log.append(taken)
    rivals = [ready_event(taken.aggregate_id) for _ in range(10)]
    events = [small_event() for _ in range(10)]
    mixed = [event for pair in zip(rivals, events, strict=True) for event in pair]

    outcomes = await asyncio.gather(*[log.append(event) for event in mixed], return_exceptions=True)

    assert [isinstance(outcome, VersionConflict) for outcome in outcomes] == [True, False] * 10
    for event in events:
        assert (found := await log.at("workers", event.aggregate_id, 1)) is not None
        assert found.event.id == event.id


async def test_of_fifty_racing_writers_one_wins(log: EventLog, own_nats_server: NatsServer) -> None:
    task_id = new_id()
    rivals = [ready_event(task_id) for _ in range(50)]

    outcomes = await asyncio.gather(*[log.append(event) for event in rivals], return_exceptions=True)

    winners = [event for event, outcome in zip(rivals, outcomes, strict=True) if not isinstance(outcome, BaseException)]
    assert len(winners) == 1
    assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 49
    assert ids(await stored(own_nats_server.url)) == {winners[0].id: 1}


async def test_the_same_event_twice_is_one_event(log: EventLog, own_nats_server: NatsServer) -> None:
    event = small_event()
    await log.append(event)

    position = await log.append(event)

    assert position == 1
    assert ids(await stored(own_nats_server.url)) == {event.id: 1}


async def test_an_own_write_is_recognised_after_others_went_on(log: EventLog) -> None:
    event = ready_event()
    await log.append(event)
    await handle(log, event.aggregate_id, CancelTask(requested_by="ada"), source="api")

    assert await log.append(event) is not None


async def test_pipelined_plain_and_bare_writers_race_to_one_winner(own_nats_server: NatsServer, broker: Broker) -> None:
    """The check is the broker's: it does not matter through which door a writer came."""
    url = own_nats_server.url
    bare = (await nats.connect(url)).jetstream()

    async def bare_append(event: Event) -> None:
        check = version_check(event.aggregate, event.aggregate_id, event.version)
        try:
            await bare.publish(event.subject, encode(event), headers=check)
        except APIError as error:
            raise VersionConflict(event.aggregate_id, event.version) from error

    async with opened(url) as one, opened(url) as two, opened(url, pipelined=False) as three:
        doors: list[Callable[[Event], Awaitable[object]]] = [one.append, two.append, three.append, bare_append]
        won = [0] * len(doors)
        for _ in range(100):
            task_id = new_id()
            rivals = [ready_event(task_id) for _ in doors]
            races = [asyncio.ensure_future(door(event)) for door, event in zip(doors, rivals, strict=True)]
            outcomes = await asyncio.gather(*races, return_exceptions=True)
            winners = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, VersionConflict)]
            assert len(winners) == 1, outcomes
            assert (found := await one.at("tasks", task_id, 1)) is not None
            assert found.event.id == rivals[winners[0]].id
            won[winners[0]] += 1
    await bare._nc.close()  # pyright: ignore[reportPrivateUsage]
    assert len(await stored(url)) == 100


async def test_a_lost_answer_is_found_again(own_nats_server: NatsServer, broker: Broker, pipelined: bool) -> None:
    """The event is stored, its answer swallowed, the connection reset. The append still succeeds, once."""
    async with Proxy(own_nats_server.port) as proxy, opened(proxy.url, pipelined=pipelined) as log:
        await log.append(small_event())
        event = small_event()
        proxy.down.swallow = True
        append = asyncio.create_task(log.append(event))
        await answers_get_lost(proxy, append, broker, 2)
        assert await append == 2
    assert ids(await stored(own_nats_server.url))[event.id] == 1


async def test_a_reset_connection_loses_nothing(
    own_nats_server: NatsServer, broker: Broker, pipelined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in the middle of the answers and of the requests, again and again."""
    monkeypatch.setattr(appender, "PLAIN_TIMEOUT_S", 0.5)
    async with Proxy(own_nats_server.port) as proxy, opened(proxy.url, pipelined=pipelined) as log:
        async with load(log, writers=10) as tally:
            for cut in range(2):
                await eventually(lambda: len(tally.acknowledged) > 50 * (cut + 1))  # noqa: B023
                way = proxy.up if cut % 2 else proxy.down
                way.cut_after = 1_000
                await eventually(lambda: way.cut_after is None)  # noqa: B023
        tally.check(ids(await stored(own_nats_server.url)))
        assert tally.unknown == set()


async def test_a_slow_network_only_slows(own_nats_server: NatsServer, broker: Broker, pipelined: bool) -> None:
    async with Proxy(own_nats_server.port) as proxy, opened(proxy.url, pipelined=pipelined) as log:
        proxy.up.latency_s = proxy.down.latency_s = 0.1
        events = [small_event() for _ in range(20)]
        await asyncio.gather(*[log.append(event) for event in events])
        assert ids(await stored(own_nats_server.url)) == {event.id: 1 for event in events}


async def test_answers_that_trickle_are_waited_for(
    own_nats_server: NatsServer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits long behind a slow disk or line is not sent again while answers still come."""
    monkeypatch.setattr(appender, "STALL_S", 0.4)
    monkeypatch.setattr(appender, "WATCH_S", 0.05)
    async with Proxy(own_nats_server.port) as proxy, opened(proxy.url) as log:
        await log.append(small_event())
        proxy.up.latency_s = 0.05  # for each 64 KiB: the last of these events waits a second
        events = [small_event()._replace(data=WorkerStopped(reason="x" * 60_000)) for _ in range(20)]
        await asyncio.gather(*[log.append(event) for event in events])
        assert the_appender(log).reopened == 0


async def test_a_message_lost_on_the_way_is_not_covered_by_the_next_answer(own_nats_server: NatsServer, broker: Broker) -> None:
    """The pipe's answers are cumulative. One message is dropped and the next arrives: its answer must not count for both."""
    async with Proxy(own_nats_server.port) as proxy, opened(proxy.url) as log:
        await log.append(small_event())
        lost, next_ = small_event(), small_event()
        proxy.up.drop_once = lambda chunk: lost.aggregate_id.encode() in chunk
        appending = asyncio.create_task(log.append(lost))
        await eventually(lambda: proxy.up.dropped == 1)

        await log.append(next_)
        await appending

        assert ids(await stored(own_nats_server.url))[lost.id] == 1
        assert ids(await stored(own_nats_server.url))[next_.id] == 1


async def test_a_killed_broker_loses_nothing_acknowledged(
    log: EventLog, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "PLAIN_TIMEOUT_S", 0.5)
    async with load(log, writers=20) as tally:
        for _ in range(2):
            before = len(tally.acknowledged)
            await eventually(lambda: len(tally.acknowledged) > before + 100)  # noqa: B023
            await asyncio.to_thread(own_nats_server.restart, crash=True)
        before = len(tally.acknowledged)
        await eventually(lambda: len(tally.acknowledged) > before + 100)

    tally.check(ids(await stored(own_nats_server.url)))


async def test_a_broker_that_is_gone_leaves_the_outcome_unknown(
    log: EventLog, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "ANSWER_TIMEOUT_S", 0.5)
    await log.append(small_event())
    own_nats_server.kill()

    outcomes = await asyncio.gather(*[log.append(small_event()) for _ in range(20)], return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [LogUnavailable] * 20
    for read in (log.last("workers", "w", fresh=True), log.at("tasks", "t", 1), log.append(ready_event())):
        with pytest.raises(LogUnavailable):
            await read


async def test_a_stopped_broker_leaves_the_outcome_unknown_and_may_have_stored_it(
    log: EventLog, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(appender, "PLAIN_TIMEOUT_S", 0.5)
    event = small_event()
    own_nats_server.pause()
    try:
        with pytest.raises(LogUnavailable):
            await log.append(event)
    finally:
        own_nats_server.resume()

    await log.append(event)  # whether it had landed or not: now it is there, once

    assert ids(await stored(own_nats_server.url)) == {event.id: 1}


async def test_a_paused_broker_only_delays(log: EventLog, own_nats_server: NatsServer) -> None:
    events = [small_event() for _ in range(20)]
    own_nats_server.pause()
    appends = [asyncio.create_task(log.append(event)) for event in events]
    _, pending = await asyncio.wait(appends, timeout=0.5)
    assert len(pending) == 20

    own_nats_server.resume()

    await asyncio.gather(*appends)
    assert ids(await stored(own_nats_server.url)) == {event.id: 1 for event in events}


async def test_a_full_log_says_so_and_stores_nothing(own_nats_server: NatsServer, pipelined: bool) -> None:
    async with opened(own_nats_server.url, pipelined=pipelined) as log:
        small = BrokerConfig(monitor_urls=own_nats_server.monitor_url, events_max_bytes=256 * 1024)
        await bootstrap(log.broker, small)
        accepted, refused = await fill(log)

        assert len(accepted) > 2
        assert await log.last("tasks", refused.aggregate_id, fresh=True) is None
        assert (first := await log.last("tasks", accepted[0].aggregate_id)) is not None
        assert first.event.id == accepted[0].id

        await grow(log.broker)
        await log.append(refused)
        assert ids(await stored(own_nats_server.url)) == {event.id: 1 for event in [*accepted, refused]}


async def test_a_batch_the_broker_forgot_is_opened_anew(
    broker: Broker, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten idle seconds end a batch on the broker. The appender is told not to notice by itself, and finds out."""
    monkeypatch.setattr(appender, "IDLE_S", 3_600.0)
    log = await EventLog.open(broker)
    await log.append(small_event())
    batch = the_appender(log)._batch  # pyright: ignore[reportPrivateUsage]

    ingest = await FastIngest.on(broker.nc)
    await ingest.wait_until_idle_batches_are_forgotten("system")
    assert the_appender(log)._batch == batch  # pyright: ignore[reportPrivateUsage]
    event = small_event()
    await log.append(event)

    assert the_appender(log).reopened == 1
    assert ids(await stored(own_nats_server.url, "workers.>"))[event.id] == 1
    await log.close()


async def test_a_broker_that_says_nothing_is_asked_less_and_less_often(
    broker: Broker, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is merely slow would have to read all that is unanswered once more each time."""
    monkeypatch.setattr(appender, "STALL_S", 0.1)
    monkeypatch.setattr(appender, "WATCH_S", 0.02)
    async with opened(own_nats_server.url) as log:
        await log.append(small_event())
        own_nats_server.pause()
        with capture_logs() as told:
            waiting = [asyncio.create_task(log.append(small_event())) for _ in range(50)]
            await eventually(lambda: the_appender(log).reopened >= 4, what="it is asked four times")
        own_nats_server.resume()
        assert not [outcome for outcome in await settle(waiting) if isinstance(outcome, BaseException)]
        assert [entry["silent_s"] for entry in told][:4] == [0.1, 0.2, 0.4, 0.8]
        assert the_appender(log)._patience_s == 0.1  # pyright: ignore[reportPrivateUsage]


async def test_too_many_open_batches_fall_back_to_plain(broker: Broker, own_nats_server: NatsServer) -> None:
    """The broker allows 1,000 open batches on a stream. The writer that gets none publishes one by one."""
    ingest = await FastIngest.on(broker.nc)
    await ingest.open(1_000, "system")
    async with opened(own_nats_server.url) as log:
        events = [small_event() for _ in range(20)]

        positions = await asyncio.gather(*[log.append(event) for event in events])

        assert None not in positions, "not the plain way"
        assert await log.append(small_event()) is not None
        with pytest.raises(VersionConflict):
            await log.append(events[0]._replace(id=new_id()))
    found = ids(await stored(own_nats_server.url, "workers.>"))
    assert all(found[event.id] == 1 for event in events)


async def test_a_closed_log_refuses_and_leaves_nobody_waiting(log: EventLog, own_nats_server: NatsServer) -> None:
    await log.append(small_event())
    own_nats_server.pause()
    waiting = [asyncio.create_task(log.append(small_event())) for _ in range(5)]
    await asyncio.wait(waiting, timeout=0.1)

    if isinstance(log._appender, PipelinedAppender):  # pyright: ignore[reportPrivateUsage]
        await log.close()
        await log.close()
        outcomes = await asyncio.wait_for(settle(waiting), 2)
        assert [type(outcome) for outcome in outcomes] == [LogUnavailable] * 5
        with pytest.raises(LogUnavailable, match="closed"):
            await asyncio.wait_for(log.append(small_event()), 2)
    own_nats_server.resume()
    await settle(waiting)


async def test_a_stream_without_a_broker_behind_it_is_not_hammered(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """No responders answer at once: sending again at once would be a loop at the speed of the network."""
    monkeypatch.setattr(appender, "ANSWER_TIMEOUT_S", 1.5)
    log = await EventLog.open(broker)
    await broker.request(f"$JS.API.STREAM.DELETE.{EVENTS}", {})

    with pytest.raises(LogUnavailable):
        await log.append(small_event())

    assert the_appender(log).reopened <= 3
    await log.close()


BAD_OUTCOMES = {
    "acknowledged and lost": (Tally({"a", "b"}, {"a", "b"}), {"a": 1}),
    "stored and never sent": (Tally({"a"}, {"a"}), {"a": 1, "b": 1}),
    "stored twice": (Tally({"a"}, {"a"}), {"a": 2}),
    "neither acknowledged nor refused": (Tally({"a", "b"}, {"a"}), {"a": 1, "b": 1}),
}


@pytest.mark.parametrize("what", BAD_OUTCOMES)
def test_the_tally_notices(what: str) -> None:
    tally, found = BAD_OUTCOMES[what]
    with pytest.raises(AssertionError, match=what):
        tally.check(found)


def test_the_tally_takes_an_unknown_outcome_either_way() -> None:
    Tally({"a", "b"}, {"a"}, {"b"}).check({"a": 1})
    Tally({"a", "b"}, {"a"}, {"b"}).check({"a": 1, "b": 1})
