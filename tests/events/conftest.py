"""A bootstrapped broker of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from tests.support.nats import NatsServer

EVENTS_MAX_BYTES = 64 * 1024 * 1024


@pytest.fixture
async def broker(own_nats_server: NatsServer) -> AsyncIterator[Broker]:
    """A connection to `own_nats_server`, which was bootstrapped with a log of 64 MiB."""
    async with await Broker.connect(own_nats_server.url, name="test") as broker:
        config = BrokerConfig(monitor_urls=own_nats_server.monitor_url, events_max_bytes=EVENTS_MAX_BYTES)
        await bootstrap(broker, config)
        yield broker
