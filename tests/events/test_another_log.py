"""A process outlives the log it began with: it must never write into another one that took the address over."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.log import EventLog
from eventq.events.subjects import EVENTS
from tests.events.conftest import EVENTS_MAX_BYTES
from tests.events.given import ready_event
from tests.support.nats import NatsServer


@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "plain"])
async def test_another_log_at_the_same_address_is_never_written_to(own_nats_server: NatsServer, pipelined: bool) -> None:
    server = own_nats_server
    config = BrokerConfig(monitor_urls=server.monitor_url, events_max_bytes=EVENTS_MAX_BYTES)
    async with await Broker.connect(server.url, name="survivor") as broker:
        await bootstrap(broker, config)
        log = await EventLog.open(broker, pipelined=pipelined)
        await log.append(ready_event())

        await asyncio.to_thread(server.stop)
        shutil.rmtree(server.store_dir)
        await asyncio.to_thread(server.start)
        async with await Broker.connect(server.url, name="newcomer") as other:
            await bootstrap(other, config)
            with pytest.raises(LogUnavailable):
                await log.append(ready_event())
            async with asyncio.timeout(10):
                await broker.closed.wait()
            facts = await other.stream_facts(EVENTS)
            assert facts is not None
            assert facts.messages == 0
        await log.close()


async def test_the_same_log_is_written_to_after_a_restart(own_nats_server: NatsServer) -> None:
    server = own_nats_server
    async with await Broker.connect(server.url, name="survivor") as broker:
        await bootstrap(broker, BrokerConfig(monitor_urls=server.monitor_url, events_max_bytes=EVENTS_MAX_BYTES))
        log = await EventLog.open(broker)
        await log.append(ready_event())
        await asyncio.to_thread(server.restart, crash=True)
        await log.append(ready_event())
        assert broker.trusted.is_set()
        await log.close()
