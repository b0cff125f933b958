"""Acknowledge work items and know that the broker heard it, without making a slot wait for the answer.

An acknowledgement is sent only after the attempt's outcome stands in the log. One that gets lost does no harm either: the
work item is delivered again, and whoever gets it finds the outcome.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventq.events.broker import Broker

ACK = b"+ACK"
RESEND_S = 2.0
RESENDS_MAX = 3


class Acks:
    """All acknowledgements of a worker, confirmed over one inbox."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._inbox = broker.nc.new_inbox()
        self._subscription: Subscription | None = None
        self._waiting: dict[str, tuple[str, float, int]] = {}
        self._counter = 0
        self._all_confirmed = asyncio.Event()
        self._resender: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe to confirmations."""
        self._subscription = await self._broker.nc.subscribe(
            f"{self._inbox}.*", cb=self._on_confirmed, pending_msgs_limit=0, pending_bytes_limit=0
        )
        self._resender = asyncio.create_task(self._resend(), name="acks-resend")

    async def ack(self, lease: str) -> None:
        """Acknowledge the work item; sent again until confirmed, a few times at most."""
        self._counter += 1
        await self._send(str(self._counter), lease, 0)

    async def nak(self, lease: str, delay_s: float) -> None:
        """Hand the work item back, to be delivered again after ``delay_s``."""
        with suppress(nats.errors.Error):
            await self._broker.nc.publish(lease, b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    async def close(self, patience_s: float = 2.0) -> None:
        """Wait for the confirmations that are out, at most ``patience_s``."""
        self._all_confirmed.clear()
        if self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._all_confirmed.wait()
        if self._resender is not None:
            self._resender.cancel()
        if self._subscription is not None and not self._broker.nc.is_closed:
            await self._subscription.unsubscribe()

    async def _send(self, key: str, lease: str, sent_before: int) -> None:
        self._waiting[key] = (lease, time.monotonic(), sent_before)
        with suppress(nats.errors.Error):
            await self._broker.nc.publish(lease, ACK, f"{self._inbox}.{key}")

    async def _on_confirmed(self, message: Msg) -> None:
        self._waiting.pop(message.subject.rpartition(".")[2], None)
        if not self._waiting:
            self._all_confirmed.set()

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(RESEND_S)
            before = time.monotonic() - RESEND_S
            for key, (lease, sent, times) in list(self._waiting.items()):
                if sent > before:
                    continue
                if times >= RESENDS_MAX:
                    del self._waiting[key]
                else:
                    await self._send(key, lease, times + 1)
