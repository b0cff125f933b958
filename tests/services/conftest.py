"""The real thing behind the API: a broker of its own, the log, a projector with its DuckDB file, a blob store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.nats import NatsServer

if TYPE_CHECKING:  # loading it takes a second, which tests of smaller things need not pay
    from tests.services.backend import Backend


@pytest.fixture
async def backend(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Backend]:
    """A running backend and its app, served; one worker has registered its tasks."""
    from tests.services.backend import Backend

    backend = await Backend.start(own_nats_server.url, tmp_path)
    try:
        await backend.register_worker()
        yield backend
    finally:
        async with asyncio.timeout(20):
            await backend.close()
