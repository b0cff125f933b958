"""Read a stream in order, fast, and notice every gap.

The client library's ``fetch`` costs a task for each message (12,000/s). Here one subscription receives while two
overlapping pulls keep the broker sending (70,000/s). The consumer is a throw-away: it acknowledges nothing and keeps no
state that matters, because the reader knows the last position it handed over. A message lost in transit shows as a hole
in the *consumer's* own sequence (the stream's may skip where messages were deleted); then, as after silence or any refusal,
the consumer is made anew from the last position, and nothing is missed or seen twice.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import NamedTuple, Self

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from eventq.events.broker import Broker
from eventq.events.errors import LogDamaged

log = structlog.get_logger("eventq.reader")

PULL_MAX_BYTES = 8 * 1024 * 1024
"""One pull asks for no more than this: the broker cuts a client off that has 64 MiB waiting for it."""

READY_MAX_BYTES = 2 * PULL_MAX_BYTES
"""While so much waits to be handed over nothing further is asked for."""

PULL_EXPIRES_S = 5
HEARTBEAT_S = 1
SILENCE_S = 2.5
"""Two missed heartbeats: the consumer or the connection is gone, whatever the client believes."""

RETRY_S = 0.2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Message(NamedTuple):
    """One stored message. ``position``: its stream sequence; ``pending``: how many came after it when it was sent."""

    position: int
    subject: str
    payload: bytes
    stored_ns: int
    pending: int

    @property
    def stored_at(self) -> datetime:
        """When the broker stored it: aware UTC."""
        return _EPOCH + timedelta(microseconds=self.stored_ns // 1000)


class Tail:
    """Every message of ``stream`` after position ``after``, in order, now and as they come.

    ``subject``: a filter, or several; ``None`` for everything (a filter over a large stream is dear to create). ``batch``: how
    many messages one pull asks for. At most two pulls' worth of messages, and 32 MiB of them, are in memory or on their way, so
    a slow reader slows the broker, not the process.
    """

    def __init__(
        self, broker: Broker, stream: str, *, after: int, subject: str | Sequence[str] | None = None, batch: int = 2_000
    ) -> None:
        self.position = after
        self.generation = 0
        """How often reading began, first or anew: after a change, what follows may come from another log."""
        self._broker = broker
        self._stream = stream
        self._subject = subject
        self._batch = batch
        self._ready: list[Message] = []
        self._ready_bytes = 0
        self._arrived = asyncio.Event()
        self._received = after
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._inbox = ""
        self._requested = 0
        self._sequence = 0
        self._seen = 0.0
        self._broken = True
        broker.on_reconnect.append(self._mark_broken)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[list[Message]]:
        while True:
            yield await self.next()

    async def next(self, timeout_s: float | None = None) -> list[Message]:
        """The messages that arrived since the last call, at least one; an empty list after ``timeout_s`` without any."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._ready:
            if self._broken or time.monotonic() - self._seen > SILENCE_S:
                await self._restart()
            patience = RETRY_S if self._broken else 0.5
            if deadline is not None:
                patience = min(patience, deadline - time.monotonic())
                if patience <= 0:
                    return []
            self._arrived.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._arrived.wait()
            except TimeoutError:
                continue
        batch, self._ready, self._ready_bytes = self._ready, [], 0
        self.position = batch[-1].position
        self._requested -= len(batch)
        await self._fill()
        return batch

    async def close(self) -> None:
        """Stop receiving and drop the consumer."""
        self._broker.on_reconnect.remove(self._mark_broken)
        await self._drop()

    async def _restart(self) -> None:
        """Begin again after the last message that was received; nothing that waits in memory is asked for again."""
        await self._drop()
        try:
            await self._start()
        except NotFoundError as error:
            raise LogDamaged(f"stream {self._stream} does not exist any more", stream=self._stream) from error
        except (APIError, nats.errors.Error, TimeoutError) as error:
            log.warning("reader.restart_failed", stream=self._stream, error=repr(error))
            self._broken = True

    async def _start(self) -> None:
        self.generation += 1
        self._consumer = f"read-{secrets.token_hex(6)}"
        self._requested, self._sequence, self._broken = len(self._ready), 0, False
        self._seen = time.monotonic()
        await self._broker.js.add_consumer(
            self._stream,
            ConsumerConfig(
                name=self._consumer,
                ack_policy=AckPolicy.NONE,
                mem_storage=True,
                num_replicas=1,
                inactive_threshold=30,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._received + 1,
                filter_subject=self._subject if isinstance(self._subject, str) else None,
                filter_subjects=None if isinstance(self._subject, str | None) else list(self._subject),
            ),
        )
        self._inbox = self._broker.nc.new_inbox()
        self._subscription = await self._broker.nc.subscribe(
            self._inbox, cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0
        )
        await self._fill()

    async def _drop(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None or self._broker.nc.is_closed:
            return
        try:
            await subscription.unsubscribe()
            await self._broker.nc.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}", b"")
        except nats.errors.Error:
            return  # the consumer expires by itself when nobody pulls from it

    async def _fill(self) -> None:
        """Keep up to two pulls requested beyond what waits to be handed over."""
        if self._subscription is None or self._broken:
            return
        body = {
            "batch": self._batch,
            "max_bytes": PULL_MAX_BYTES,
            "expires": PULL_EXPIRES_S * 10**9,
            "idle_heartbeat": HEARTBEAT_S * 10**9,
        }
        self._seen = time.monotonic()
        try:
            while self._requested <= self._batch and self._ready_bytes < READY_MAX_BYTES:
                self._requested += self._batch
                await self._broker.nc.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                    json.dumps(body).encode(),
                    self._inbox,
                )
        except nats.errors.Error:
            self._mark_broken()

    async def _receive(self, message: Msg) -> None:
        if message.reply:
            self._take(message)
            return
        self._seen = time.monotonic()
        status = (message.headers or {}).get("Status")
        if status == "100":
            return
        self._requested -= int((message.headers or {}).get("Nats-Pending-Messages", 0))
        if status in {"404", "408"} or (status == "409" and _is_full(message)):
            await self._fill()
        else:
            self._mark_broken()

    def _take(self, message: Msg) -> None:
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<stored ns>.<pending>
        tokens = message.reply.split(".")
        if tokens[3] != self._consumer or self._broken:
            return
        self._sequence += 1
        if int(tokens[6]) != self._sequence:
            self._mark_broken()
            return
        self._seen = time.monotonic()
        self._received = int(tokens[5])
        self._ready_bytes += len(message.data)
        self._ready.append(Message(self._received, message.subject, message.data, int(tokens[7]), int(tokens[8])))
        self._arrived.set()

    def _mark_broken(self) -> None:
        self._broken = True
        self._arrived.set()


def _is_full(message: Msg) -> bool:
    """Whether a pull ended because it brought as many bytes as it may; its other messages come with the next one."""
    return "MaxBytes" in (message.headers or {}).get("Description", "")
