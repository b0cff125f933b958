"""Acknowledgements on a real broker: sent together, confirmed together, none forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from eventq.events.broker import Broker
from eventq.workers import acks
from eventq.workers.acks import Acks
from tests.support.nats import NatsServer
from tests.support.poll import eventually

STREAM = "WORK"


async def deliver(broker: Broker, consumers: Sequence[str], count: int) -> list[Msg]:
    """So many messages of each of these consumers, delivered and not acknowledged."""
    await broker.js.add_stream(name=STREAM, subjects=["work.*"])
    messages: list[Msg] = []
    for name in consumers:
        config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, filter_subject=f"work.{name}", ack_wait=60)
        subscription = await broker.js.pull_subscribe(f"work.{name}", name, STREAM, config=config)
        for _ in range(count):
            await broker.js.publish(f"work.{name}", b"")
        messages += await subscription.fetch(count)
    return messages


async def pending(broker: Broker, consumer: str) -> int:
    return (await broker.js.consumer_info(STREAM, consumer)).num_ack_pending or 0


async def test_acknowledgements_of_one_turn_are_confirmed_by_one_answer_for_each_consumer(own_nats_server: NatsServer) -> None:
    async with await Broker.connect(own_nats_server.url, name="test") as broker:
        messages = await deliver(broker, ["a", "b"], 20)
        answers = broker.nc.stats["in_msgs"]
        held = Acks(broker)
        await held.start()
        await asyncio.gather(*(held.ack(message.reply) for message in messages))
        await held.close()
        assert broker.nc.stats["in_msgs"] - answers == 2
        assert [await pending(broker, name) for name in ("a", "b")] == [0, 0]


async def test_what_was_not_confirmed_is_sent_again(own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acks, "RESEND_S", 0.2)
    monkeypatch.setattr(acks, "RESENDS_MAX", 50)
    async with await Broker.connect(own_nats_server.url, name="test") as broker:
        messages = await deliver(broker, ["a"], 20)
        held = Acks(broker)
        await held.start()
        own_nats_server.kill()
        await eventually(lambda: not broker.nc.is_connected, what="the disconnect")
        for message in messages:
            await held.ack(message.reply)
        own_nats_server.start()

        async def all_arrived() -> bool:
            return broker.nc.is_connected and await pending(broker, "a") == 0

        await eventually(all_arrived, what="all acknowledgements at the broker")
        await held.close()
