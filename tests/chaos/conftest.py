"""A site of the test's own, and a connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.chaos.site import Control, Site
from tests.support.nats import NatsServer


@pytest.fixture
def site(own_nats_server: NatsServer, tmp_path: Path) -> Iterator[Site]:
    """A broker that may be killed, and no process yet."""
    site = Site(own_nats_server, tmp_path)
    yield site
    site.close()


@pytest.fixture
async def control(site: Site) -> AsyncIterator[Control]:
    """Connected to ``site``, whose broker is bootstrapped."""
    async with await Control.open(site) as control:
        yield control
