"""The helpers themselves."""

from __future__ import annotations

import nats
import pytest

from tests.support.nats import NatsServer
from tests.support.poll import eventually, eventually_sync


async def test_a_restarted_server_keeps_its_address_and_its_messages(own_nats_server: NatsServer) -> None:
    client = await nats.connect(own_nats_server.url)
    js = client.jetstream()
    await js.add_stream(name="S", subjects=["s"])
    await js.publish("s", b"kept")
    await client.close()
    before = (own_nats_server.url, own_nats_server.monitor_url)

    own_nats_server.restart(crash=True)

    assert (own_nats_server.url, own_nats_server.monitor_url) == before
    client = await nats.connect(own_nats_server.url)
    assert (await client.jetstream().stream_info("S")).state.messages == 1
    await client.close()


async def test_eventually_shows_the_last_failure_when_time_is_up() -> None:
    def never() -> bool:
        raise AssertionError("still two")

    with pytest.raises(AssertionError, match=r"not within 0.05 s.*still two"):
        await eventually(never, 0.05)


def test_eventually_returns_the_value() -> None:
    values = iter([None, 0, 7])
    assert eventually_sync(lambda: next(values)) == 7
