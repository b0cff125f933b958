"""Appending many together: what holds of each alone holds of each in a group, on good days and bad.

The same contract as in `test_append_contract`, both ways of appending. A group that the broker commits is one batch of fast
ingest, or an atomic one; where the outcome of the batch is open, its events are sent again one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from eventq.events import appender
from eventq.events import group as group_module
from eventq.events import log as log_module
from eventq.events.appender import PipelinedAppender
from eventq.events.atomic import TOGETHER_MAX
from eventq.events.broker import Broker
from eventq.events.commands import CancelTask
from eventq.events.envelope import Event
from eventq.events.errors import LogDamaged, LogFull, LogUnavailable, PayloadTooLarge, VersionConflict
from eventq.events.group import AtomicGroup, Group
from eventq.events.handle import handle
from eventq.events.ids import new_id
from eventq.events.ingest import Outgoing
from eventq.events.limits import EVENT_MAX_BYTES
from eventq.events.log import EventLog
from eventq.events.subjects import Route, version_check
from eventq.events.worker_events import WorkerStopped
from tests.events.appending import answers_get_lost, fill, grow, opened, the_appender
from tests.events.given import ready_event, small_event
from tests.events.stored import ids, stored
from tests.support.fast_ingest import FastIngest
from tests.support.nats import NatsServer
from tests.support.poll import eventually
from tests.support.proxy import Proxy


@pytest.fixture(params=["pipelined", "plain"])
def pipelined(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "pipelined")


@pytest.fixture(params=["fast ingest", "atomic"], autouse=True)
def atomic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether groups are sent as atomic batches, also the small ones of these tests."""
    atomic = bool(request.param == "atomic")
    monkeypatch.setattr(Broker, "syncs", True)
    monkeypatch.setattr(group_module, "ATOMIC_MIN", appender.GROUP_MIN if atomic else 10_000)
    return atomic


@pytest.fixture
async def log(broker: Broker, pipelined: bool) -> AsyncIterator[EventLog]:
    log = await EventLog.open(broker, pipelined=pipelined)
    yield log
    await log.close()


def some_events(count: int = 40) -> list[Event]:
    return [small_event() for _ in range(count)]


def too_large() -> Event:
    return small_event()._replace(data=WorkerStopped(reason="x" * EVENT_MAX_BYTES))


def went_wrong(outcomes: Sequence[BaseException | None]) -> dict[int, type[BaseException]]:
    """By the number of the event."""
    return {number: type(outcome) for number, outcome in enumerate(outcomes) if outcome is not None}


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 32, 33, 300])
async def test_all_are_stored_once_and_in_order(log: EventLog, own_nats_server: NatsServer, count: int) -> None:
    events = some_events(count)

    outcomes = await log.append_all(events)

    assert outcomes == [None] * count
    assert [record.subject for record in await stored(own_nats_server.url)] == [event.subject for event in events]


async def test_groups_at_the_same_time_do_not_disturb_each_other_nor_the_pipe(
    log: EventLog, own_nats_server: NatsServer
) -> None:
    groups = [some_events() for _ in range(10)]
    alone = some_events(50)

    *outcomes, _ = await asyncio.gather(*map(log.append_all, groups), asyncio.gather(*map(log.append, alone)))

    assert outcomes == [[None] * 40] * 10
    everything = [*alone, *(event for group in groups for event in group)]
    assert ids(await stored(own_nats_server.url)) == {event.id: 1 for event in everything}


@pytest.mark.parametrize("places", [[0], [39], [17], [0, 1, 38, 39], list(range(40))])
async def test_what_is_refused_is_named_and_the_others_are_stored(
    log: EventLog, own_nats_server: NatsServer, places: list[int]
) -> None:
    events = some_events()
    for place in places:
        taken = ready_event()
        await log.append(taken)
        events[place] = ready_event(taken.aggregate_id)

    outcomes = await log.append_all(events)

    assert went_wrong(outcomes) == dict.fromkeys(places, VersionConflict)
    found = ids(await stored(own_nats_server.url))
    assert [found.get(event.id, 0) for event in events] == [int(number not in places) for number in range(40)]


async def test_what_cannot_be_an_event_is_refused_alone(log: EventLog, own_nats_server: NatsServer) -> None:
    events = [too_large(), *some_events(), too_large()]

    outcomes = await log.append_all(events)

    assert went_wrong(outcomes) == {0: PayloadTooLarge, 41: PayloadTooLarge}
    assert ids(await stored(own_nats_server.url)) == {event.id: 1 for event in events[1:-1]}


async def test_a_group_sent_twice_is_stored_once(log: EventLog, own_nats_server: NatsServer) -> None:
    events = [ready_event() for _ in range(20)]
    await log.append_all(events)
    await handle(log, events[3].aggregate_id, CancelTask(requested_by="ada"), source="api")

    assert await log.append_all(events) == [None] * 20

    found = ids(await stored(own_nats_server.url))
    assert [found[event.id] for event in events] == [1] * len(events)


async def test_a_lost_answer_is_found_again(own_nats_server: NatsServer, broker: Broker, pipelined: bool) -> None:
    """All is stored, the answers are swallowed, the connection is reset. The group still succeeds, once."""
    async with Proxy(own_nats_server.port) as proxy, opened(proxy.url, pipelined=pipelined) as log:
        await log.append(small_event())
        events = some_events()
        proxy.down.swallow = True
        appending = asyncio.create_task(log.append_all(events))
        await answers_get_lost(proxy, appending, broker, 41)
        assert await appending == [None] * 40
    found = ids(await stored(own_nats_server.url))
    assert [found[event.id] for event in events] == [1] * len(events)


@pytest.mark.parametrize("place", [0, 1, 20, 38, 39])
async def test_a_message_lost_on_the_way_is_not_covered_by_the_commit(
    own_nats_server: NatsServer, broker: Broker, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """The commit's answer stands for the whole batch. One of its messages never arrives, and must be stored as well."""
    async with opened(own_nats_server.url) as log:
        events, publish, dropped = some_events(), log.broker.nc.publish, list[str]()

        async def lossy(subject: str, *rest: Any, **named: Any) -> None:
            if subject == events[place].subject and not dropped:
                dropped.append(subject)
            else:
                await publish(subject, *rest, **named)

        monkeypatch.setattr(log.broker.nc, "publish", lossy)

        assert await log.append_all(events) == [None] * 40

        assert dropped == [events[place].subject]
        assert ids(await stored(own_nats_server.url)) == {event.id: 1 for event in events}


async def test_a_commit_that_is_lost_while_others_are_answered_is_noticed(
    own_nats_server: NatsServer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the broker answers others says nothing of a message that it never got."""
    monkeypatch.setattr(group_module, "SLOW_S", 0.5)
    async with opened(own_nats_server.url) as log:
        events, publish, dropped, done = some_events(), log.broker.nc.publish, list[str](), asyncio.Event()

        async def lossy(subject: str, *rest: Any, **named: Any) -> None:
            if subject == events[39].subject and not dropped:
                dropped.append(subject)
            else:
                await publish(subject, *rest, **named)

        async def busy() -> None:
            while not done.is_set():
                await log.append(small_event())

        monkeypatch.setattr(log.broker.nc, "publish", lossy)
        others = asyncio.create_task(busy())
        try:
            assert await asyncio.wait_for(log.append_all(events), 10) == [None] * 40
        finally:
            done.set()
            await others
        assert dropped
        found = ids(await stored(own_nats_server.url))
        assert [found[event.id] for event in events] == [1] * 40


async def test_a_group_that_waits_its_turn_is_not_sent_to_a_broker_that_nobody_trusts_yet(
    own_nats_server: NatsServer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reconnect the broker may be another: until that is known nothing is written to it."""
    monkeypatch.setattr(appender, "GROUPS_MAX", 1)
    async with opened(own_nats_server.url) as log:
        own_nats_server.pause()
        first = asyncio.create_task(log.append_all(some_events()))
        await eventually(lambda: bool(the_appender(log)._groups))  # pyright: ignore[reportPrivateUsage]
        later = some_events()
        second = asyncio.create_task(log.append_all(later))
        await asyncio.sleep(0)
        log.broker.trusted.clear()
        own_nats_server.resume()
        try:
            assert went_wrong(await second) == dict.fromkeys(range(40), LogUnavailable)
        finally:
            log.broker.trusted.set()
        assert await first == [None] * 40
        found = ids(await stored(own_nats_server.url))
        assert not any(event.id in found for event in later)


async def test_a_broker_that_is_gone_leaves_the_outcome_unknown(
    log: EventLog, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(appender, "STALL_S", 0.2)
    await log.append(small_event())
    own_nats_server.kill()

    assert went_wrong(await log.append_all(some_events())) == dict.fromkeys(range(40), LogUnavailable)


async def test_a_killed_broker_loses_nothing_acknowledged(
    log: EventLog, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups follow each other while the broker is killed and started again."""
    monkeypatch.setattr(appender, "PLAIN_TIMEOUT_S", 0.5)
    acknowledged, attempted, stop = set[str](), set[str](), asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            events = some_events()
            attempted.update(event.id for event in events)
            outcomes = await log.append_all(events)
            assert set(went_wrong(outcomes).values()) <= {LogUnavailable}
            acknowledged.update(event.id for event, outcome in zip(events, outcomes, strict=True) if outcome is None)

    writers = [asyncio.create_task(write()) for _ in range(3)]
    for crash in (True, False, True):
        before = len(acknowledged)
        await eventually(lambda: len(acknowledged) > before + 400)  # noqa: B023
        await asyncio.to_thread(own_nats_server.restart, crash=crash)
    before = len(acknowledged)
    await eventually(lambda: len(acknowledged) > before + 400)
    stop.set()
    await asyncio.gather(*writers)

    found = ids(await stored(own_nats_server.url))
    assert acknowledged - set(found) == set(), "acknowledged and lost"
    assert set(found) - attempted == set()
    assert set(found.values()) == {1}


async def test_what_is_refused_is_looked_for_at_once_and_not_sent_again(
    log: EventLog, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a group is stored and its answers are lost; then the connection is, when the first event is looked for. Neither
    waits each for itself, nor is called not stored."""
    events, held = some_events(), log._held  # pyright: ignore[reportPrivateUsage]
    await log.append_all(events)
    monkeypatch.setattr(log_module, "TRUST_S", 5.0)
    looking = 0

    async def cut(*what: Any) -> Any:
        nonlocal looking
        looking += 1
        log.broker.trusted.clear()
        return await held(*what)

    monkeypatch.setattr(log, "_held", cut)
    try:
        assert await asyncio.wait_for(log.append_all(events), 5) == [None] * 40
    finally:
        log.broker.trusted.set()
    assert looking == 40


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_missing_consumer_is_asked_for_once_and_costs_only_the_events_of_its_route(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    asked: list[Route] = []

    async def ensure(route: Route) -> None:
        asked.append(route)
        if route.queue == "q1":
            raise LogDamaged("what is stored of the queue is not an event") if damaged else TimeoutError

    monkeypatch.setattr(log.routes, "ensure", ensure)
    events = [ready_event(queue=f"q{number % 3}") for number in range(30)]
    outcomes = await log.append_all([*events, *some_events(3)])
    assert went_wrong(outcomes) == dict.fromkeys(range(1, 30, 3), LogDamaged if damaged else LogUnavailable)
    assert sorted(route.queue for route in asked) == ["q0", "q1", "q2"]


async def test_a_refusal_that_names_no_message_leaves_the_group_open() -> None:
    """As when one is too large for the stream."""
    group = Group([Outgoing("a", b"", {})] * 9)
    group.take(b'{"type":"err","seq":0,"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum"}}')
    assert not await group.settled(1.0, lambda: 0.0)
    assert group.errors == {}


async def test_a_full_log_says_so_of_each(own_nats_server: NatsServer, broker: Broker, pipelined: bool) -> None:
    async with opened(own_nats_server.url, pipelined=pipelined) as log:
        info = await broker.request("$JS.API.STREAM.INFO.EVENTS", {})
        await broker.request("$JS.API.STREAM.UPDATE.EVENTS", {**info["config"], "max_bytes": 256 * 1024})
        await fill(log)
        events = [ready_event(args=["x" * 60_000]) for _ in range(10)]

        assert went_wrong(await log.append_all(events)) == dict.fromkeys(range(10), LogFull)

        await grow(broker)
        assert await log.append_all(events) == [None] * 10


async def test_where_no_batch_may_be_opened_the_group_is_sent_one_by_one(broker: Broker, own_nats_server: NatsServer) -> None:
    ingest = await FastIngest.on(broker.nc)
    await ingest.open(1_000, "system")
    async with opened(own_nats_server.url) as log:
        events = some_events()
        assert await log.append_all(events) == [None] * 40
        assert await log.append_all([*some_events(), events[0]._replace(id=new_id())]) != [None] * 41
    found = ids(await stored(own_nats_server.url, "workers.>"))
    assert [found[event.id] for event in events] == [1] * len(events)


async def test_a_closed_log_leaves_no_group_waiting(broker: Broker, own_nats_server: NatsServer) -> None:
    async with opened(own_nats_server.url) as log:
        await log.append(small_event())
        own_nats_server.pause()
        waiting = asyncio.create_task(log.append_all(some_events()))
        try:
            await asyncio.wait([waiting], timeout=0.1)
            await log.close()
            outcomes = await asyncio.wait_for(waiting, 2)
            assert went_wrong(outcomes) == dict.fromkeys(range(40), LogUnavailable)
            assert not any("nothing was" in str(outcome) for outcome in outcomes), "it may have been stored"
            assert went_wrong(await log.append_all(some_events())) == dict.fromkeys(range(40), LogUnavailable)
        finally:
            own_nats_server.resume()


async def test_no_more_groups_are_on_their_way_than_named(broker: Broker, own_nats_server: NatsServer) -> None:
    async with opened(own_nats_server.url) as log:
        on_their_way = the_appender(log)._groups  # pyright: ignore[reportPrivateUsage]
        own_nats_server.pause()
        appending = [asyncio.create_task(log.append_all(some_events())) for _ in range(10)]
        await eventually(lambda: len(on_their_way) == appender.GROUPS_MAX)
        own_nats_server.resume()
        assert await asyncio.gather(*appending) == [[None] * 40] * 10
        assert on_their_way == {}


async def test_a_group_costs_one_batch_and_leaves_the_pipe_as_it_was(broker: Broker, own_nats_server: NatsServer) -> None:
    """Not sent one by one: the broker counts what a client sent, and its answers are few."""
    async with opened(own_nats_server.url) as log:
        await log.append(small_event())
        before = log.broker.nc.stats["in_msgs"]
        await log.append_all(some_events(256))
        assert log.broker.nc.stats["in_msgs"] - before < 30
        assert the_appender(log).reopened == 0


async def test_an_atomic_group_has_one_answer(broker: Broker, own_nats_server: NatsServer, atomic: bool) -> None:
    async with opened(own_nats_server.url) as log:
        await log.append(small_event())
        before = log.broker.nc.stats["in_msgs"]
        await log.append_all(some_events(64))
        assert (log.broker.nc.stats["in_msgs"] - before == 1) is atomic


async def test_an_atomic_group_that_is_refused_is_sent_again_as_a_group(
    broker: Broker, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one_by_one(*_: Any) -> Any:
        raise AssertionError("each was sent by itself")

    monkeypatch.setattr(PipelinedAppender, "_again", one_by_one)
    async with opened(own_nats_server.url) as log:
        events = some_events(40)
        await log.append(events[7])
        rivals = [*events[:7], events[7]._replace(id=new_id()), *events[8:]]
        assert went_wrong(await log.append_all(rivals)) == {7: VersionConflict}


def test_no_more_are_sent_as_an_atomic_group_than_the_broker_takes(atomic: bool) -> None:
    messages = [Outgoing(f"a.{number}", b"", version_check("a", str(number), 1)) for number in range(TOGETHER_MAX + 1)]
    assert not AtomicGroup.takes(messages)
    assert AtomicGroup.takes(messages[:-1]) is atomic


async def test_nothing_is_sent_as_an_atomic_group_where_the_broker_is_not_known_to_sync(
    broker: Broker, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broker, "syncs", False)
    async with opened(own_nats_server.url) as log:
        await log.append(small_event())
        before = log.broker.nc.stats["in_msgs"]
        await log.append_all(some_events(64))
        assert log.broker.nc.stats["in_msgs"] - before > 1


async def test_two_of_one_version_are_told_apart(log: EventLog, own_nats_server: NatsServer) -> None:
    """An atomic batch would store both."""
    events = some_events(20)
    events.append(events[7]._replace(id=new_id()))

    assert went_wrong(await log.append_all(events)) == {20: VersionConflict}
    assert ids(await stored(own_nats_server.url)) == {event.id: 1 for event in events[:20]}


async def test_groups_and_others_that_write_the_same_versions_at_once_write_each_once(
    log: EventLog, own_nats_server: NatsServer, pipelined: bool
) -> None:
    async with opened(own_nats_server.url, pipelined=pipelined) as other:
        for _ in range(5):
            mine = [ready_event() for _ in range(40)]
            theirs = [ready_event(event.aggregate_id) for event in mine]
            *answers, outcomes = await asyncio.gather(
                *(other.append(event) for event in theirs[::-2]), log.append_all(mine), return_exceptions=True
            )
            assert isinstance(outcomes, list)
            won = {theirs[::-2][n].id for n, answer in enumerate(answers) if not isinstance(answer, VersionConflict)}
            won |= {mine[n].id for n, outcome in enumerate(outcomes) if not isinstance(outcome, VersionConflict)}
            found = ids(await stored(own_nats_server.url))
            assert {event.id for event in [*mine, *theirs]} & set(found) == won
            assert len(won) == 40


async def test_where_no_atomic_batch_may_be_opened_the_group_is_stored_all_the_same(
    broker: Broker, own_nats_server: NatsServer
) -> None:
    for number in range(50):
        headers = {"Nats-Batch-Id": f"b{number}", "Nats-Batch-Sequence": "1"}
        await broker.nc.publish(f"system.{number}.1.opened", b"{}", headers=headers)
    await broker.nc.flush()
    async with opened(own_nats_server.url) as log:
        events = some_events()
        assert await log.append_all(events) == [None] * 40
    assert ids(await stored(own_nats_server.url)) == {event.id: 1 for event in events}
