"""Reading a stream: in order, without a gap, nothing twice, whatever happens to the connection or the consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from nats.aio.msg import Msg

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.errors import LogDamaged
from eventq.events.reader import Message, Tail
from eventq.events.subjects import EVENTS
from tests.support.nats import NatsServer
from tests.support.poll import eventually
from tests.support.proxy import Proxy


async def fill(broker: Broker, count: int, subject: str = "system.filling") -> None:
    """Append `count` numbered messages."""
    acks = [await broker.js.publish_async(f"{subject}.{number}", str(number).encode()) for number in range(count)]
    await asyncio.gather(*acks)


async def take(tail: Tail, count: int) -> list[Message]:
    """The next `count` messages at least, within ten seconds."""
    found: list[Message] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += await tail.next()
    return found


@asynccontextmanager
async def through_proxy(server: NatsServer) -> AsyncGenerator[tuple[Proxy, Broker]]:
    async with Proxy(server.port) as proxy, await Broker.connect(proxy.url, name="reader") as reading:
        yield proxy, reading


def missing_or_twice(messages: Sequence[Message], first: int, last: int) -> list[int]:
    """Positions of a stream without deletions that were not handed over exactly once and in order."""
    positions = [message.position for message in messages]
    return [] if positions == list(range(first, last + 1)) else sorted(set(range(first, last + 1)) ^ set(positions)) or [-1]


async def test_everything_comes_in_order_and_once(broker: Broker) -> None:
    await fill(broker, 5_000)
    async with Tail(broker, EVENTS, after=0, batch=500) as tail:
        found = await take(tail, 5_000)
    assert missing_or_twice(found, 1, 5_000) == []
    assert tail.position == 5_000


async def test_a_message_says_where_and_when_it_was_stored(broker: Broker) -> None:
    before = datetime.now(UTC)
    await fill(broker, 2)
    async with Tail(broker, EVENTS, after=0) as tail:
        first, second = await take(tail, 2)
    assert (first.subject, first.payload, first.pending) == ("system.filling.0", b"0", 1)
    assert (second.position, second.pending) == (2, 0)
    assert before - timedelta(seconds=1) < first.stored_at <= second.stored_at < datetime.now(UTC) + timedelta(seconds=1)


async def test_reading_begins_after_the_position_given(broker: Broker) -> None:
    await fill(broker, 10)
    async with Tail(broker, EVENTS, after=7) as tail:
        assert [message.position for message in await take(tail, 3)] == [8, 9, 10]


async def test_new_messages_come_as_they_are_written(broker: Broker) -> None:
    async with Tail(broker, EVENTS, after=0) as tail:
        assert await tail.next(timeout_s=0.05) == []
        for position in range(1, 6):
            await fill(broker, 1)
            assert [message.position for message in await take(tail, 1)] == [position]
        assert await tail.next(timeout_s=0.05) == []


async def test_a_filter_leaves_out_the_rest_without_calling_it_a_gap(broker: Broker) -> None:
    for number in range(20):
        await broker.js.publish(f"system.{'odd' if number % 2 else 'even'}", str(number).encode())
    async with Tail(broker, EVENTS, after=4, subject="system.odd") as tail:
        found = await take(tail, 8)
    assert [message.position for message in found] == [6, 8, 10, 12, 14, 16, 18, 20]


async def test_deleted_messages_are_no_gap(broker: Broker) -> None:
    await fill(broker, 10)
    for position in (3, 4, 8):
        await broker.js.delete_msg(EVENTS, position)
    async with Tail(broker, EVENTS, after=0) as tail:
        assert [message.position for message in await take(tail, 7)] == [1, 2, 5, 6, 7, 9, 10]


async def test_a_killed_broker_costs_no_message(broker: Broker, own_nats_server: NatsServer) -> None:
    await fill(broker, 2_000)
    async with Tail(broker, EVENTS, after=0, batch=100) as tail:
        found = await take(tail, 500)
        await asyncio.to_thread(own_nats_server.restart, crash=True)
        found += await take(tail, 2_000 - len(found))
        await fill(broker, 100)
        found += await take(tail, 100)
    assert missing_or_twice(found, 1, 2_100) == []


async def test_forced_reconnects_cost_no_message(broker: Broker, own_nats_server: NatsServer) -> None:
    await fill(broker, 3_000)
    async with through_proxy(own_nats_server) as (proxy, reading), Tail(reading, EVENTS, after=0, batch=200) as tail:
        found = await take(tail, 100)
        for _ in range(2):
            proxy.down.cut_after = 20_000
            found += await take(tail, 600)
        found += await take(tail, 3_000 - len(found))
    assert missing_or_twice(found, 1, 3_000) == []


async def test_a_black_hole_costs_no_message(broker: Broker, own_nats_server: NatsServer) -> None:
    """The client believes it is connected while nothing comes through; after that, all of it."""
    await fill(broker, 10)
    async with through_proxy(own_nats_server) as (proxy, reading), Tail(reading, EVENTS, after=0) as tail:
        found = await take(tail, 10)
        proxy.down.swallow = True
        await fill(broker, 10)
        assert await tail.next(timeout_s=0.2) == []
        proxy.heal()
        proxy.reset()
        found += await take(tail, 10)
    assert missing_or_twice(found, 1, 20) == []


async def test_a_consumer_deleted_under_the_reader_is_made_anew(broker: Broker) -> None:
    await fill(broker, 10)
    async with Tail(broker, EVENTS, after=0) as tail:
        found = await take(tail, 10)
        for name in await readers(broker):
            await broker.js.delete_consumer(EVENTS, name)
        await fill(broker, 10)
        found += await take(tail, 10)
    assert missing_or_twice(found, 1, 20) == []


async def readers(broker: Broker) -> list[str]:
    page = await broker.request(f"$JS.API.CONSUMER.NAMES.{EVENTS}", {"offset": 0})
    names: list[str] = page["consumers"] or []
    return [name for name in names if name.startswith("read-")]


async def test_closing_leaves_no_consumer_behind(broker: Broker) -> None:
    async with Tail(broker, EVENTS, after=0) as tail:
        assert await tail.next(timeout_s=0.05) == []
        assert len(await readers(broker)) == 1

    async def gone() -> bool:
        return await readers(broker) == []

    await eventually(gone)


async def test_a_slow_reader_makes_the_broker_wait(broker: Broker) -> None:
    """Two pulls' worth waits in memory and no more, however much there is."""
    await fill(broker, 5_000)
    async with Tail(broker, EVENTS, after=0, batch=100) as tail:
        found = await take(tail, 1)
        [name] = await readers(broker)

        async def delivered() -> int:
            info = await broker.js.consumer_info(EVENTS, name)
            assert info.delivered is not None
            return info.delivered.consumer_seq or 0

        async def at_rest() -> bool:
            before = await delivered()
            await broker.nc.flush()
            return before > len(found) and await delivered() == before

        await eventually(at_rest)
        assert await delivered() <= len(found) + 2 * 100 + 100
        largest = 0
        while len(found) < 5_000:
            batch = await tail.next()
            largest = max(largest, len(batch))
            found += batch
        assert largest <= 2 * 100
    assert missing_or_twice(found, 1, 5_000) == []


async def test_a_stream_that_is_gone_is_damage(broker: Broker) -> None:
    async with Tail(broker, "GONE", after=0) as tail:
        with pytest.raises(LogDamaged, match="GONE does not exist"):
            await tail.next()


class LossyTail(Tail):
    """A connection that loses one message on its way to the reader."""

    lost = False

    async def _receive(self, message: Msg) -> None:
        if not self.lost and message.reply and message.reply.split(".")[5] == "7":
            self.lost = True
            return
        await super()._receive(message)


class TrustingTail(LossyTail):
    """The same without the check of the consumer's sequence."""

    def _take(self, message: Msg) -> None:
        self._sequence = int(message.reply.split(".")[6]) - 1
        super()._take(message)


async def test_a_message_lost_on_the_way_is_asked_for_again(broker: Broker) -> None:
    await fill(broker, 20)
    async with LossyTail(broker, EVENTS, after=0) as tail:
        found = await take(tail, 20)
    assert tail.lost
    assert missing_or_twice(found, 1, 20) == []


async def test_without_the_gap_check_the_loss_would_show(broker: Broker) -> None:
    await fill(broker, 20)
    async with TrustingTail(broker, EVENTS, after=0) as tail:
        found = await take(tail, 19)
    assert tail.lost
    assert missing_or_twice(found, 1, 20) == [7]


async def test_large_messages_are_read_within_what_the_broker_lets_wait(own_nats_server: NatsServer) -> None:
    """A broker cuts a client off that has 64 MiB waiting for it; the reader asks for less, however large the messages."""
    count, size = 1_600, 60_000
    async with await Broker.connect(own_nats_server.url, name="test") as broker:
        await bootstrap(broker, BrokerConfig(monitor_urls=own_nats_server.monitor_url, events_max_bytes=4 * count * size))
        acks = [await broker.js.publish_async(f"system.large.{n}", bytes(size)) for n in range(count)]
        await asyncio.gather(*acks)
        async with Tail(broker, EVENTS, after=0) as tail:
            found = await take(tail, count)
            assert tail.generation == 1
    assert missing_or_twice(found, 1, count) == []
    assert "Slow Consumer" not in own_nats_server.log_file.read_text()
