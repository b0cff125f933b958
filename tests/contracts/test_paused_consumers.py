"""Facts about paused consumers that the pause of a queue is built on, each tried."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.client import JetStreamContext

from tests.support.nats import NatsServer
from tests.support.poll import eventually

FOREVER = "2999-01-01T00:00:00Z"
CONFIG = ConsumerConfig(
    durable_name="c", filter_subject="a.x", ack_policy=AckPolicy.EXPLICIT, deliver_policy=DeliverPolicy.NEW, ack_wait=0.2
)
NO_WAIT = {"batch": 1, "no_wait": True}


@pytest.fixture
async def nc(own_nats_server: NatsServer) -> AsyncIterator[Client]:
    nc = await nats.connect(own_nats_server.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
    yield nc
    await nc.close()


@pytest.fixture
async def js(nc: Client) -> JetStreamContext:
    """A stream with a consumer and two messages."""
    js = nc.jetstream(timeout=5)
    await js.add_stream(StreamConfig(name="A", subjects=["a.>"]))
    await js.add_consumer("A", CONFIG)
    for _ in range(2):
        await js.publish("a.x", b"1")
    return js


async def ask(nc: Client, body: Mapping[str, object]) -> tuple[str | None, str]:
    """One pull: the status that came instead of a message, and the message's reply subject."""
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    await nc.publish("$JS.API.CONSUMER.MSG.NEXT.A.c", json.dumps(body).encode(), inbox)
    message = await subscription.next_msg(timeout=5)
    await subscription.unsubscribe()
    return (message.headers or {}).get("Status"), message.reply


async def test_a_pull_that_does_not_wait_is_told_at_once_that_there_is_nothing(nc: Client, js: JetStreamContext) -> None:
    """So a paused queue does not hold up a worker's rounds over its other queues."""
    await js.pause_consumer("A", "c", FOREVER)
    assert await ask(nc, NO_WAIT) == ("404", "")
    assert await ask(nc, {"batch": 1, "expires": 100_000_000}) == ("408", "")


async def test_a_pause_outlives_the_broker_and_ends_when_told(
    nc: Client, js: JetStreamContext, own_nats_server: NatsServer
) -> None:
    await js.pause_consumer("A", "c", FOREVER)
    own_nats_server.kill()
    own_nats_server.start()

    async def paused() -> bool:
        try:
            return (await js.consumer_info("A", "c", timeout=0.5)).paused is True
        except (nats.errors.Error, TimeoutError):
            return False  # it is not back yet

    assert await eventually(paused)
    await js.resume_consumer("A", "c")
    assert (await ask(nc, NO_WAIT))[0] is None


async def test_what_was_handed_out_before_a_pause_stays_outstanding_and_comes_again_after_it(
    nc: Client, js: JetStreamContext
) -> None:
    """So the reconciler does not take it for lost."""
    _, lease = await ask(nc, NO_WAIT)
    await js.pause_consumer("A", "c", FOREVER)
    await nc.publish(lease, b"-NAK")
    assert await ask(nc, NO_WAIT) == ("404", "")
    assert (await js.consumer_info("A", "c")).num_ack_pending == 1
    await js.resume_consumer("A", "c")
    replies = [(await ask(nc, {"batch": 1, "expires": 5_000_000_000}))[1] for _ in range(2)]
    assert sorted(reply.split(".")[4] for reply in replies) == ["1", "2"], "one new, one delivered again"


async def test_an_acknowledgement_is_taken_while_the_consumer_is_paused(nc: Client, js: JetStreamContext) -> None:
    _, lease = await ask(nc, NO_WAIT)
    await js.pause_consumer("A", "c", FOREVER)
    await nc.request(lease, b"+ACK", timeout=5)
    assert (await js.consumer_info("A", "c")).num_ack_pending == 0


async def test_a_consumer_can_be_made_paused_and_making_it_again_leaves_it_so(js: JetStreamContext) -> None:
    config = CONFIG.evolve(durable_name="d", filter_subject="a.y")
    assert (await js.add_consumer("A", config.evolve(pause_until=FOREVER))).paused
    assert (await js.add_consumer("A", config)).paused
    await js.resume_consumer("A", "d")
    assert not (await js.add_consumer("A", config)).paused
