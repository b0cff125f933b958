"""A bootstrapped broker, and a store in a folder of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.projections.store import Store
from tests.support.nats import NatsServer

EVENTS_MAX_BYTES = 64 * 1024 * 1024


@pytest.fixture
async def broker(own_nats_server: NatsServer) -> AsyncIterator[Broker]:
    """A connection to `own_nats_server`, bootstrapped."""
    async with await Broker.connect(own_nats_server.url, name="test") as broker:
        config = BrokerConfig(monitor_urls=own_nats_server.monitor_url, events_max_bytes=EVENTS_MAX_BYTES)
        await bootstrap(broker, config)
        yield broker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store lives."""
    return tmp_path / "projection"


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    """An open, empty store."""
    store = Store.open(folder)
    yield store
    store.close()
