"""Fixtures for every test: a real nats-server, shared or of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.nats import NatsServer


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The session's nats-server. Never stop it: take `own_nats_server` for that."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A fresh, empty nats-server of this test's own: it may be killed and restarted (50 ms to start)."""
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def start_nats_server(tmp_path: Path) -> Iterator[Callable[..., NatsServer]]:
    """`start_nats_server(name="a", sync_interval=None)`: further servers, ended with the test."""
    started: list[NatsServer] = []

    def start(name: str = "extra", sync_interval: str | None = "always") -> NatsServer:
        server = NatsServer(tmp_path / name, sync_interval)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.kill()
