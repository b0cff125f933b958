"""Acknowledge work items and know that the broker heard it, without making a slot wait for the answer.

An acknowledgement is sent only after the attempt's outcome stands in the log. One that gets lost does no harm either: the
work item is delivered again, and whoever gets it finds the outcome.

Those that come together are sent together, and only the last of each consumer asks for a confirmation: the broker takes
what comes over one connection for one consumer in order, so that one answer confirms all before it.
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
        self._gathered: list[str] = []
        self._sender: asyncio.Task[None] | None = None
        self._waiting: dict[str, tuple[list[str], float, int]] = {}
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
        """Acknowledge the work item, with all others of this turn of the loop; sent again until confirmed, a few times at
        most."""
        self._gathered.append(lease)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_gathered(), name="acks-send")

    async def nak(self, lease: str, delay_s: float) -> None:
        """Hand the work item back, to be delivered again after ``delay_s``."""
        with suppress(nats.errors.Error):
            await self._broker.nc.publish(lease, b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    async def close(self, patience_s: float = 2.0) -> None:
        """Wait for the confirmations that are out, at most ``patience_s``."""
        await self._send_gathered()
        self._all_confirmed.clear()
        if self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._all_confirmed.wait()
        if self._resender is not None:
            self._resender.cancel()
        if self._subscription is not None and not self._broker.nc.is_closed:
            await self._subscription.unsubscribe()

    async def _send_gathered(self) -> None:
        self._sender = None
        gathered, self._gathered = self._gathered, []
        of_consumer: dict[str, list[str]] = {}
        for lease in gathered:
            # $JS.ACK.<stream>.<consumer>.<deliveries>. ...
            of_consumer.setdefault(lease.split(".", 4)[3], []).append(lease)
        for key, leases in [(self._await_confirmation(leases, 0), leases) for leases in of_consumer.values()]:
            await self._send(key, leases)

    def _await_confirmation(self, leases: list[str], sent_before: int) -> str:
        self._counter += 1
        key = str(self._counter)
        self._waiting[key] = (leases, time.monotonic(), sent_before)
        return key

    async def _send(self, key: str, leases: list[str]) -> None:
        """Send what belongs to one consumer; the last asks for a confirmation of all."""
        *others, last = leases
        with suppress(nats.errors.Error):
            for lease in others:
                await self._broker.nc.publish(lease, ACK)
            await self._broker.nc.publish(last, ACK, f"{self._inbox}.{key}")

    async def _on_confirmed(self, message: Msg) -> None:
        self._waiting.pop(message.subject.rpartition(".")[2], None)
        if not self._waiting:
            self._all_confirmed.set()

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(RESEND_S)
            before = time.monotonic() - RESEND_S
            for key, (leases, sent, times) in list(self._waiting.items()):
                if sent > before:
                    continue
                self._waiting.pop(key, None)
                if times < RESENDS_MAX:
                    await self._send(self._await_confirmation(leases, times + 1), leases)
