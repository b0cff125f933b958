"""Messages of a durable consumer, a bounded number in hand at a time, from the real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from eventq.events import pull as module
from eventq.events.broker import Broker
from eventq.events.ending import end
from eventq.events.pull import Pull
from tests.support.nats import NatsServer

STREAM, CONSUMER, LIMIT = "MESSAGES", "reader", 10


@pytest.fixture
async def broker(own_nats_server: NatsServer) -> AsyncIterator[Broker]:
    """A broker with a stream of twice as many messages as may be in hand."""
    async with await Broker.connect(own_nats_server.url, name="test") as broker:
        await broker.js.add_stream(name=STREAM, subjects=["messages"])
        await broker.js.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT))
        for _ in range(2 * LIMIT):
            await broker.js.publish("messages", b"")
        yield broker


async def test_more_are_asked_for_when_all_in_hand_are_settled_at_once(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an answer of the log settles many; nobody is left then who would ask again, until the pull looks silent."""
    monkeypatch.setattr(module, "SILENCE_S", 60.0)
    in_hand, most, answered = 0, 0, 0
    full, all_answered = asyncio.Event(), asyncio.Event()

    async def answer(message: Msg) -> None:
        nonlocal in_hand, most, answered
        in_hand += 1
        most = max(most, in_hand)
        if in_hand == LIMIT:
            full.set()
        await full.wait()
        in_hand -= 1
        answered += 1
        await message.ack()
        if answered == 2 * LIMIT:
            all_answered.set()

    async def unneeded() -> None:
        raise AssertionError("the consumer is there")

    pulling = asyncio.create_task(Pull(broker, STREAM, CONSUMER, answer, limit=LIMIT, restore=unneeded).run())
    try:
        async with asyncio.timeout(10):
            await all_answered.wait()
    finally:
        await end(pulling)
    assert most == LIMIT
