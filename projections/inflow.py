"""What has arrived of EVENTS and PROGRESS and is not applied yet: two readers, two bounded buffers, one wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from eventq.events.broker import Broker
from eventq.events.ending import end
from eventq.events.reader import Message, Tail
from eventq.events.subjects import EVENTS, PROGRESS

BATCH_MAX = 8_192
"""Messages of one stream in one transaction: bounds memory, and how long one commit keeps the next waiting."""

BATCH_MAX_BYTES = 32 * 1024 * 1024
"""And their payloads together: events may be large."""

LOOK_S = 0.5
"""How often a quiet stream is looked at: whether its reader had to begin anew, whether somebody else waits for a turn."""


class Buffer:
    """Messages of one stream that wait to be applied."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._messages)

    @property
    def full(self) -> bool:
        """It holds a whole batch: read no more until some of it is applied."""
        return len(self._messages) >= BATCH_MAX or self._bytes >= BATCH_MAX_BYTES

    def extend(self, messages: list[Message]) -> None:
        """Add what arrived."""
        self._messages.extend(messages)
        self._bytes += sum(len(message.payload) for message in messages)

    def take(self) -> list[Message]:
        """The next batch: at least one message if there is one, within both limits."""
        taken: list[Message] = []
        size = 0
        while self._messages and len(taken) < BATCH_MAX:
            size += len(self._messages[0].payload)
            if taken and size > BATCH_MAX_BYTES:
                break
            taken.append(self._messages.popleft())
        self._bytes -= sum(len(message.payload) for message in taken)
        return taken


class Inflow:
    """Reads both streams after the given positions while it is entered."""

    def __init__(self, broker: Broker, after: Mapping[str, int]) -> None:
        self._tails = {stream: Tail(broker, stream, after=after[stream]) for stream in (EVENTS, PROGRESS)}
        self._buffers = {EVENTS: Buffer(), PROGRESS: Buffer()}
        self._generations = dict.fromkeys(self._tails, 0)
        self._arrived = asyncio.Event()
        self._room = asyncio.Condition()
        self._pumps: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._pumps = [asyncio.create_task(self._pump(stream), name=f"read {stream}") for stream in self._tails]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end(*self._pumps)
        for tail in self._tails.values():
            await tail.close()

    async def arrived(self) -> None:
        """Return when something arrived, or nothing for a while. Raises what ended a reader (``LogDamaged``)."""
        await self._arrived.wait()
        self._arrived.clear()
        for pump in self._pumps:
            if pump.done():
                pump.result()

    def reconnected(self) -> bool:
        """Whether a reader began anew since this was last asked: what it then reads may be another log."""
        generations = {stream: tail.generation for stream, tail in self._tails.items()}
        changed, self._generations = generations != self._generations, generations
        return changed

    async def take(self) -> tuple[list[Message], list[Message]]:
        """The next batch of each stream, within the limits of a batch."""
        batches: list[list[Message]] = []
        for stream in (EVENTS, PROGRESS):
            buffer = self._buffers[stream]
            batches.append(buffer.take())
            if buffer:
                self._arrived.set()
        async with self._room:
            self._room.notify_all()
        return batches[0], batches[1]

    async def _pump(self, stream: str) -> None:
        tail, buffer = self._tails[stream], self._buffers[stream]
        try:
            while True:
                buffer.extend(await tail.next(timeout_s=LOOK_S))
                self._arrived.set()
                async with self._room:
                    await self._room.wait_for(lambda: not buffer.full)
        finally:
            self._arrived.set()
