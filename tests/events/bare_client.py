"""What somebody sees who has a NATS client and the README, and nothing of ours. Imports no eventq."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import nats
from nats.aio.msg import Msg


@dataclass(frozen=True)
class Seen:
    """One message: its subject, its JSON, its headers."""

    subject: str
    body: dict[str, Any]
    headers: dict[str, str]


@asynccontextmanager
async def tap(url: str, subject: str) -> AsyncGenerator[asyncio.Queue[Seen]]:
    """Like `nats sub <subject>`: the live messages of a core subscription."""
    nc = await nats.connect(url)
    seen: asyncio.Queue[Seen] = asyncio.Queue()

    async def take(message: Msg) -> None:
        seen.put_nowait(Seen(message.subject, json.loads(message.data), dict(message.headers or {})))

    await nc.subscribe(subject, cb=take)
    await nc.flush()
    try:
        yield seen
    finally:
        await nc.close()


async def stream_view(url: str, stream: str, subject: str) -> list[Seen]:
    """Like `nats stream view <stream> --subject <subject>`: what is stored, oldest first."""
    nc = await nats.connect(url)
    try:
        subscription = await nc.jetstream().pull_subscribe(subject, stream=stream)
        left = (await subscription.consumer_info()).num_pending or 0
        found = await subscription.fetch(left, timeout=5) if left else []
        return [Seen(m.subject, json.loads(m.data), dict(m.headers or {})) for m in found]
    finally:
        await nc.close()
