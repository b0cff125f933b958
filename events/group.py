"""Messages that are sent as a batch of their own, as large as they are many, committed by the last. One answer stands for many.

:class:`Group` is a batch of fast ingest, :class:`AtomicGroup` an atomic one. The first is cheaper, but where the broker syncs
what it stores it syncs each message of the first by itself, and those of the second all together.

The broker's answers come in order, so the answer to the commit says of all that was neither refused nor missed that it is
stored. Anything else (a gap, another leader, a new connection, silence) leaves the outcome open, and whoever sent the group
sends its messages again, one by one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client

from eventq.events.atomic import TOGETHER_MAX, as_batch
from eventq.events.ingest import (
    ADD,
    ADD_AND_COMMIT,
    BATCH_REFUSED,
    BATCH_UNKNOWN,
    OPEN,
    Outgoing,
    error_of,
    reply_subject,
)
from eventq.events.subjects import EXPECTED_SEQUENCE_SUBJECT

FLOW = 32
"""Messages for one answer: seldom enough to cost little, often enough to tell a slow disk from silence."""

ATOMIC_MIN = 50
"""Messages of an atomic group, at least. Whatever its size it costs the broker some 25 syncs."""

SLOW_S = 5.0
"""After so long without an answer of its own a group is given up, whatever else is answered: its commit may have been lost."""


class Group:
    """At least two messages. ``errors``: why messages were refused, by their number, which counts from 1; ``refused``: the
    broker refused the group as a whole, and nothing of it is stored."""

    refused = False

    def __init__(self, messages: Sequence[Outgoing]) -> None:
        self.batch = secrets.token_hex(8)
        self.errors: dict[int, Exception] = {}
        self._messages = messages
        self._heard = time.monotonic()
        self._settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def send(self, nc: Client, inbox: str) -> None:
        """Hand all messages to the client."""
        last = len(self._messages)
        try:
            for number, message in enumerate(self._messages, 1):
                operation = OPEN if number == 1 else ADD_AND_COMMIT if number == last else ADD
                reply = reply_subject(inbox, self.batch, FLOW, number, operation)
                await nc.publish(message.subject, message.payload, reply, headers=message.headers)
            self._heard = time.monotonic()
        except nats.errors.Error:
            self.give_up()  # disconnected, with a full buffer

    def take(self, data: bytes) -> None:
        """An answer of the broker."""
        if not data:
            self.give_up()  # no responders: the stream has no leader at the moment
            return
        self._heard = time.monotonic()
        answer: dict[str, Any] = orjson.loads(data)
        if (error := answer.get("error")) is not None:
            self._refuse(answer, error)
        elif "stream" in answer:
            self._settle(committed=True)
        elif answer.get("type") != "ack":
            self.give_up()  # a gap: some never arrived, and the answers to come would cover them

    def give_up(self) -> None:
        """What becomes of the rest is not known."""
        self._settle(committed=False)

    async def settled(self, stall_s: float, anything_heard: Callable[[], float]) -> bool:
        """Wait for the commit. False where the outcome is open: given up, or no answer for ``stall_s`` seconds. While answers
        to others come (``anything_heard``: when the last did) the broker may be slow, and has ``SLOW_S`` seconds."""
        while not self._settled.done():
            patience_s = min(max(self._heard, anything_heard()) + stall_s, self._heard + SLOW_S) - time.monotonic()
            if patience_s <= 0:
                return False
            await asyncio.wait((self._settled,), timeout=patience_s)
        return self._settled.result()

    def _refuse(self, answer: dict[str, Any], error: dict[str, Any]) -> None:
        code, number = int(error.get("err_code", 0)), int(answer.get("seq", 0))
        if code == BATCH_UNKNOWN or code in BATCH_REFUSED or number < 1:
            self.give_up()  # the batch is refused, or a message without saying which
        else:
            self.errors[number] = error_of(code, error.get("description", ""))

    def _settle(self, *, committed: bool) -> None:
        if not self._settled.done():
            self._settled.set_result(committed)


class AtomicGroup(Group):
    """Stored as a whole or not at all: where one message is refused all are, and which it was is not told.

    The broker checks each against what was stored before the group, so no two may have the same check.
    """

    @staticmethod
    def takes(messages: Sequence[Outgoing]) -> bool:
        """Whether these may be sent so, and gain by it."""
        checks = {message.headers.get(EXPECTED_SEQUENCE_SUBJECT) for message in messages}
        return ATOMIC_MIN <= len(messages) <= TOGETHER_MAX and len(checks) == len(messages)

    async def send(self, nc: Client, inbox: str) -> None:
        """Hand all messages to the client. Only the last is answered."""
        *first, last = as_batch(self._messages, self.batch)
        try:
            for message in first:
                await nc.publish(message.subject, message.payload, headers=message.headers)
            await nc.publish(last.subject, last.payload, f"{inbox}.{self.batch}", headers=last.headers)
            self._heard = time.monotonic()
        except nats.errors.Error:
            self.give_up()  # disconnected, with a full buffer: what was sent is never committed

    def _refuse(self, answer: dict[str, Any], error: dict[str, Any]) -> None:
        self.refused = True
        self.give_up()
