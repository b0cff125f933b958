"""Heartbeats: who is there, and who is not any more."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import orjson
import pytest

from eventq.events import bootstrap as bootstrap_module
from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.presence import Heartbeat, beat, leave, present
from tests.support.nats import NatsServer
from tests.support.poll import eventually


def heartbeat(worker_id: str) -> Heartbeat:
    return Heartbeat(worker_id, "host", "cpu", 4, ["t1"], datetime.now(UTC))


async def test_who_beats_is_present_and_who_leaves_is_not(broker: Broker) -> None:
    assert await present(broker) == {}
    first, second = heartbeat("w1"), heartbeat("w2")
    await beat(broker, first)
    await beat(broker, second)
    assert await present(broker) == {"w1": first, "w2": second}

    await leave(broker, "w1")
    assert await present(broker) == {"w2": second}


async def test_everybody_who_has_beaten_is_seen_at_once(broker: Broker) -> None:
    """However often it is asked, and however soon after: a list of keys that is read with a watch misses some now and then."""
    for n in range(50):
        await beat(broker, heartbeat(f"w{n}"))
        assert len(await present(broker)) == n + 1


async def test_a_key_that_is_no_workers_hides_nobody(broker: Broker) -> None:
    await beat(broker, heartbeat("w1"))
    await broker.js.publish("$KV.PRESENCE.a.b", b"stray")
    assert set(await present(broker)) == {"w1"}


async def test_who_falls_silent_is_soon_not_present(own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap_module, "PRESENCE_TTL_S", 1.0)
    async with await Broker.connect(own_nats_server.url, name="test") as broker:
        await bootstrap(broker, BrokerConfig(monitor_urls=own_nats_server.monitor_url, events_max_bytes=1024 * 1024))
        await beat(broker, heartbeat("w1"))
        assert set(await present(broker)) == {"w1"}

        async def nobody() -> bool:
            return await present(broker) == {}

        await eventually(nobody, timeout=5)
        await beat(broker, heartbeat("w1"))
        assert set(await present(broker)) == {"w1"}


async def test_a_broker_that_is_gone_is_unavailable(broker: Broker, own_nats_server: NatsServer) -> None:
    own_nats_server.kill()
    await eventually(lambda: not broker.nc.is_connected)
    with pytest.raises(LogUnavailable):
        await beat(broker, heartbeat("w1"))
    with pytest.raises(LogUnavailable):
        await present(broker)


@pytest.mark.parametrize("stored", [b"[]", b"no json", b"{}", b'{"worker_id": "w9", "at": 5}'])
async def test_a_heartbeat_that_cannot_be_read_hides_nobody_else(broker: Broker, stored: bytes) -> None:
    await broker.js.publish("$KV.PRESENCE.w9", stored)
    await beat(broker, heartbeat("w1"))
    assert set(await present(broker)) == {"w1"}


async def test_what_a_newer_worker_says_beyond_it_is_passed_over(broker: Broker) -> None:
    newer = {**asdict(heartbeat("w1")), "mood": "good"}
    await broker.js.publish("$KV.PRESENCE.w1", orjson.dumps(newer, option=orjson.OPT_UTC_Z))
    assert set(await present(broker)) == {"w1"}
