"""Making a broker ready: what is missing is created, what is unfit is refused with the way to mend it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import DiscardPolicy

import eventq.events.broker as broker_module
from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.errors import BrokerUnfit, LogUnavailable
from eventq.events.log import EventLog
from eventq.events.routes import Routes
from eventq.events.subjects import EVENTS, PRESENCE, PROGRESS, QUEUE_CREATED, TIMERS, Route, work_consumer
from tests.events.given import ready_event
from tests.support.nats import NatsServer

MIB = 1024 * 1024


@pytest.fixture
def config(own_nats_server: NatsServer) -> BrokerConfig:
    return BrokerConfig(monitor_urls=own_nats_server.monitor_url, events_max_bytes=64 * MIB)


async def connected(server: NatsServer) -> Broker:
    return await Broker.connect(server.url, name="test")


async def test_an_empty_broker_becomes_ready(own_nats_server: NatsServer, config: BrokerConfig) -> None:
    async with await connected(own_nats_server) as broker:
        assert await broker.stream_facts(EVENTS) is None

        await bootstrap(broker, config)

        for stream in (EVENTS, PROGRESS, TIMERS, f"KV_{PRESENCE}"):
            facts = await broker.stream_facts(stream)
            assert facts is not None
            assert (facts.messages, facts.last) == (0, 0)


async def test_the_log_drops_nothing_and_refuses_when_full(own_nats_server: NatsServer, config: BrokerConfig) -> None:
    async with await connected(own_nats_server) as broker:
        await bootstrap(broker, config)
        found = (await broker.js.stream_info(EVENTS)).config
    assert (found.discard, found.max_bytes) == (DiscardPolicy.NEW, 64 * MIB)
    assert (found.max_age or 0, found.max_msgs, found.max_msgs_per_subject) == (0, -1, -1)


async def test_bootstrapping_again_changes_nothing(own_nats_server: NatsServer, config: BrokerConfig) -> None:
    async with await connected(own_nats_server) as broker:
        await bootstrap(broker, config)
        before = [await broker.request(f"$JS.API.STREAM.INFO.{name}", {}) for name in (EVENTS, PROGRESS, TIMERS)]

        await bootstrap(broker, config)

        after = [await broker.request(f"$JS.API.STREAM.INFO.{name}", {}) for name in (EVENTS, PROGRESS, TIMERS)]
    assert [(i["created"], i["config"]) for i in after] == [(i["created"], i["config"]) for i in before]


async def test_processes_may_bootstrap_at_once(own_nats_server: NatsServer, config: BrokerConfig) -> None:
    brokers = [await connected(own_nats_server) for _ in range(5)]
    await asyncio.gather(*[bootstrap(broker, config) for broker in brokers])
    for broker in brokers:
        await broker.close()


async def test_a_lazily_synced_broker_is_refused(start_nats_server: Callable[..., NatsServer]) -> None:
    lazy = start_nats_server("lazy", sync_interval=None)
    async with await connected(lazy) as broker:
        with pytest.raises(BrokerUnfit, match=r"syncs to disk only every 120 s.*`sync_interval: always`"):
            await bootstrap(broker, BrokerConfig(monitor_urls=lazy.monitor_url))
        assert await broker.stream_facts(EVENTS) is None

        await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=MIB))
        assert await broker.stream_facts(EVENTS) is not None


async def test_one_lazy_broker_of_several_is_refused(
    own_nats_server: NatsServer, start_nats_server: Callable[..., NatsServer]
) -> None:
    lazy = start_nats_server("lazy", sync_interval=None)
    async with await connected(own_nats_server) as broker:
        with pytest.raises(BrokerUnfit) as refused:
            await bootstrap(broker, BrokerConfig(monitor_urls=f"{own_nats_server.monitor_url}, {lazy.monitor_url}"))
        assert refused.value.fields["url"] == lazy.monitor_url


async def test_a_broker_of_unknown_durability_is_refused(own_nats_server: NatsServer) -> None:
    async with await connected(own_nats_server) as broker:
        with pytest.raises(BrokerUnfit, match="EVENTQ_NATS_MONITOR_URL"):
            await bootstrap(broker, BrokerConfig())


async def test_a_monitoring_address_that_does_not_answer_is_named(own_nats_server: NatsServer) -> None:
    async with await connected(own_nats_server) as broker:
        with pytest.raises(BrokerUnfit, match=r"http://127\.0\.0\.1:1 does not answer"):
            await bootstrap(broker, BrokerConfig(monitor_urls="http://127.0.0.1:1"))


async def test_one_silent_broker_of_a_cluster_is_no_obstacle(own_nats_server: NatsServer, config: BrokerConfig) -> None:
    async with await connected(own_nats_server) as broker:
        await bootstrap(broker, replace(config, monitor_urls=f"http://127.0.0.1:1,{config.monitor_urls}"))
        assert await broker.stream_facts(EVENTS) is not None


async def test_an_old_broker_is_refused(
    own_nats_server: NatsServer, config: BrokerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "VERSION_MIN", (99, 0, 0))
    async with await connected(own_nats_server) as broker:
        with pytest.raises(BrokerUnfit, match=r"the broker is nats-server 2\.\d+\.\d+, eventq needs 99\.0\.0 or newer"):
            await bootstrap(broker, config)


class WithoutJetStream(NatsServer):
    """A broker for plain messages only."""

    def _write_config(self) -> Path:
        config = super()._write_config()
        config.write_text(config.read_text().partition("jetstream")[0])
        return config


@pytest.mark.parametrize("looked", [True, False], ids=["monitored", "on trust"])
async def test_a_broker_without_jetstream_is_refused(tmp_path: Path, looked: bool) -> None:
    server = WithoutJetStream(tmp_path)
    server.start()
    config = BrokerConfig(monitor_urls=server.monitor_url, accept_lazy_sync=not looked)
    try:
        async with await connected(server) as broker:
            with pytest.raises(BrokerUnfit, match=r"runs without JetStream.* `jetstream` block"):
                await bootstrap(broker, config)
    finally:
        server.stop()


UNFIT: dict[str, dict[str, Any]] = {
    "discard": {"discard": "old"},
    "max_age": {"max_age": 3600 * 10**9, "duplicate_window": 10**9},
    "subjects": {"subjects": ["tasks.>"]},
    "allow_direct": {"allow_direct": False},
    "allow_batched": {"allow_batched": False},
    "max_msgs_per_subject": {"max_msgs_per_subject": 1},
    "republish": {"republish": None},
}


@pytest.mark.parametrize("field", UNFIT)
async def test_a_log_that_differs_is_refused_and_left_alone(
    own_nats_server: NatsServer, config: BrokerConfig, field: str
) -> None:
    async with await connected(own_nats_server) as broker:
        await bootstrap(broker, config)
        good = (await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}", {}))["config"]
        await broker.request(f"$JS.API.STREAM.DELETE.{EVENTS}", {})
        await broker.request(f"$JS.API.STREAM.CREATE.{EVENTS}", {**good, **UNFIT[field]})
        before = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}", {})

        with pytest.raises(BrokerUnfit, match=field) as refused:
            await bootstrap(broker, config)

        assert refused.value.fields["field"] == field
        assert (await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}", {}))["config"] == before["config"]


async def test_an_operator_may_make_the_log_larger(own_nats_server: NatsServer, config: BrokerConfig) -> None:
    async with await connected(own_nats_server) as broker:
        await bootstrap(broker, config)
        await bootstrap(broker, BrokerConfig(monitor_urls=config.monitor_urls, events_max_bytes=128 * MIB))


async def test_a_log_too_large_for_the_broker_is_refused(own_nats_server: NatsServer) -> None:
    config = BrokerConfig(monitor_urls=own_nats_server.monitor_url, events_max_bytes=1024**4)
    async with await connected(own_nats_server) as broker:
        with pytest.raises(BrokerUnfit, match=rf"refuses to create stream {EVENTS} of {1024**4} bytes") as refused:
            await bootstrap(broker, config)
        assert refused.value.fields == {"stream": EVENTS, "limit": 1024**4}


async def test_an_address_without_a_broker_is_unavailable() -> None:
    with pytest.raises(LogUnavailable, match=r"cannot reach the broker at nats://127\.0\.0\.1:1 within 0\.3 s"):
        await Broker.connect("nats://127.0.0.1:1", name="test", timeout_s=0.3)


CPU, GPU = Route("cpu", "default", 5), Route("gpu", "large-jobs", 10)


async def test_a_route_is_created_once_and_announced(broker: Broker) -> None:
    announced: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(message: Any) -> None:
        announced.put_nowait(message.data)

    await broker.nc.subscribe(QUEUE_CREATED, cb=take)
    routes = Routes(broker)
    assert await routes.existing() == []

    for route in (CPU, GPU, CPU):
        await routes.ensure(route)
    await Routes(broker).ensure(CPU)
    await broker.nc.flush()

    assert sorted(await routes.existing()) == [CPU, GPU]
    assert {announced.get_nowait() for _ in range(2)} == {work_consumer(CPU).encode(), work_consumer(GPU).encode()}
    assert announced.empty()


async def test_two_that_create_a_route_at_once_both_succeed(broker: Broker) -> None:
    await asyncio.gather(*[Routes(broker).create(GPU) for _ in range(5)])
    assert await Routes(broker).existing() == [GPU]


async def test_more_routes_than_a_page_are_all_listed(broker: Broker) -> None:
    routes = Routes(broker)
    wanted = [Route("cpu", f"q{number}", 5) for number in range(1_030)]
    for start in range(0, len(wanted), 50):
        await asyncio.gather(*[routes.create(route) for route in wanted[start : start + 50]])
    assert sorted(await routes.existing()) == sorted(wanted)


async def test_the_first_event_of_a_queue_is_delivered(broker: Broker) -> None:
    """The consumer takes new messages only, so it must be there first: appending sees to it."""
    log = await EventLog.open(broker)
    event = ready_event(queue="fresh", priority=9)
    await log.append(event)

    subscription = await broker.js.pull_subscribe_bind(work_consumer(Route("cpu", "fresh", 9)), EVENTS)
    [message] = await subscription.fetch(1, timeout=5)

    assert message.subject == event.subject
    await message.ack()
    await log.close()
