"""A secret that must be nowhere once it is erased, and a look for it in the bytes of files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.js.errors import NotFoundError

from eventq.events.broker import Broker
from eventq.events.ending import end
from eventq.events.log import EventLog
from eventq.events.subjects import EVENTS
from eventq.services.disposal import Disposal
from eventq.services.follower import Follower
from tests.services.backend import Backend

SECRET = "Grüße-an-4711-niemand-sonst"


def bytes_hold(folder: Path, secret: str = SECRET) -> list[Path]:
    """Files under `folder` in which the secret can be found."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in _bytes_of(path)]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # deleted since it was listed
        return b""


async def first_position(log: EventLog, aggregate_id: str, kind: str = "tasks") -> int:
    """Where the first event of a history stands."""
    first = await log.at(kind, aggregate_id, 1)
    assert first is not None
    return first.position


async def stands(broker: Broker, position: int) -> bool:
    """Whether the message of the log at this position is still there."""
    try:
        await broker.js.get_msg(EVENTS, position)
    except NotFoundError:
        return False
    return True


def replace_dispose(monkeypatch: pytest.MonkeyPatch, replacement: Callable[..., Any]) -> None:
    """Let servers and schedulers do this instead of deleting what an ``erased`` event lists."""
    for module in ("erase", "overwriting"):
        monkeypatch.setattr(f"eventq.services.{module}.dispose", replacement)


@asynccontextmanager
async def disposing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    """A scheduler's disposal at work, which leaves nobody any time."""
    monkeypatch.setattr("eventq.services.disposal.PATIENCE_S", 0.0)
    disposal = Disposal(backend.log, backend.api.blobs)
    follower = Follower(backend.broker, [disposal])
    running = [asyncio.create_task(follower.run()), asyncio.create_task(disposal.run(follower))]
    try:
        yield
    finally:
        await end(*running)
