"""Messages of a durable consumer as they come, a bounded number in hand at a time.

The client library's ``fetch`` answers when its batch is full or its time is over: either one message at a time or late.
Here one waiting pull brings each message the moment it is there, and is renewed as messages are settled. When heartbeats
fail to come, or the connection was renewed, the pull is made anew; what was on its way is delivered again later.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import APIError

from eventq.events.broker import Broker

log = structlog.get_logger("eventq.pull")

EXPIRES_S = 5
HEARTBEAT_S = 1
SILENCE_S = 2.5
WATCH_S = 0.5


class Pull:
    """Calls ``answer`` for each message, up to ``limit`` of them at once. ``answer`` settles the message and never raises."""

    def __init__(
        self,
        broker: Broker,
        stream: str,
        consumer: str,
        answer: Callable[[Msg], Awaitable[None]],
        *,
        limit: int,
        restore: Callable[[], Awaitable[None]],
    ) -> None:
        """``restore`` is called where the broker refuses to serve the consumer: it may have been deleted."""
        self._restore = restore
        self._broker = broker
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._answer = answer
        self._limit = limit
        self._requested = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._in_hand = 0
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._seen = 0.0
        self._broken = True
        self._gone = False

    async def run(self) -> None:
        """Pull until cancelled."""
        self._broker.on_reconnect.append(self._mark_broken)
        try:
            while True:
                if self._broken or time.monotonic() - self._seen > SILENCE_S:
                    await self._begin()
                await asyncio.sleep(WATCH_S)
        finally:
            self._broker.on_reconnect.remove(self._mark_broken)
            await self._end()

    async def _begin(self) -> None:
        try:
            await self._end()
            if self._gone:
                await self._restore()
                self._gone = False
            self._inbox = self._broker.nc.new_inbox()
            self._requested, self._broken = 0, False
            self._subscription = await self._broker.nc.subscribe(
                self._inbox, cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
            )
            await self._fill()
        except (nats.errors.Error, APIError, TimeoutError) as error:
            log.warning("pull.waiting_for_broker", error=repr(error))
            self._broken = True

    async def _end(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._broker.nc.is_closed:
            await subscription.unsubscribe()

    async def _fill(self) -> None:
        """Ask for as many as are missing from the limit, once half of it is missing."""
        self._seen = time.monotonic()
        missing = self._limit - self._requested - self._in_hand
        if self._broken or missing < self._limit / 2:
            return
        self._requested += missing
        body = {"batch": missing, "expires": EXPIRES_S * 10**9, "idle_heartbeat": HEARTBEAT_S * 10**9}
        await self._broker.nc.publish(self._subject, json.dumps(body).encode(), self._inbox)

    async def _receive(self, message: Msg) -> None:
        self._seen = time.monotonic()
        if message.reply:
            self._requested -= 1
            self._in_hand += 1
            task = asyncio.create_task(self._settle(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        headers = message.headers or {}
        if headers.get("Status") == "100":
            return
        self._requested -= int(headers.get("Nats-Pending-Messages", 0))
        if headers.get("Status") in {"404", "408"}:
            await self._refill()
        else:
            log.warning("pull.refused", subject=self._subject, status=headers.get("Status"))
            self._broken = True
            self._gone = True

    async def _settle(self, message: Msg) -> None:
        try:
            await self._answer(message)
        finally:
            self._in_hand -= 1  # before asking for more: of many that are settled at once, the last asks for all
        await self._refill()

    async def _refill(self) -> None:
        try:
            await self._fill()
        except nats.errors.Error:
            self._broken = True

    def _mark_broken(self) -> None:
        self._broken = True
