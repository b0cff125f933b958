"""Put events into the log, each on the condition that its version is free. Two ways, one contract.

:class:`PipelinedAppender` keeps one fast-ingest batch open as a long-lived pipe: messages stream in without waiting for
each other and the broker answers every one (flow 1, ``gap ok``). It is several times cheaper than publishing one by one.
Many that come together are sent as a batch of their own (``group.py``), which costs less still.
:class:`PlainAppender` publishes one by one and is the fallback where the broker refuses another open batch.

The contract (``tests/events/test_append_contract.py`` holds both to it): ``append`` returns only after the broker said that
this very event is stored. It raises :class:`Refused` when the version is taken, which may be by the event itself, sent
twice: the caller reads back (``EventLog.append`` does). It raises ``LogFull`` when nothing was stored for lack of space, and
``LogUnavailable`` when no answer came in time and the outcome is unknown. An unanswered append is never called done.
``append_all`` answers for each message what ``append`` would raise.

What ends a batch: ten idle seconds, a reconnect, a new leader. The pipe is then opened anew under another id and all that
is unanswered is sent again, in order. The version check makes that safe: what had been stored is refused and read back.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import APIError, NoStreamResponseError

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.group import AtomicGroup, Group
from eventq.events.ingest import ADD, BATCH_REFUSED, BATCH_UNKNOWN, OPEN, Outgoing, error_of, reply_subject

log = structlog.get_logger("eventq.appender")

ANSWER_TIMEOUT_S = 10.0
"""After so long without an answer the outcome is unknown and the caller is told so."""

STALL_S = 1.0
"""After so long without any answer the pipe is opened anew and the unanswered is sent again; then after twice as long, and so
on, because a broker that is merely slow has to read all of it once more. Answers come in order: while they come, what waits
longer than this waits for a slow disk, and sending it again would only make it slower."""

IDLE_S = 7.0
"""The broker forgets a batch after ten idle seconds; past this age a new one is opened before anything is lost in it."""

GROUP_MIN = 8
"""Fewer messages that come together go through the pipe: a batch of their own costs two answers."""

GROUPS_MAX = 4
"""Groups on their way at once. More would wait for each other at the broker, and look like silence where syncing is slow."""

PLAIN_TIMEOUT_S = 2.0
WATCH_S = 0.25


@dataclass(slots=True)
class Entry:
    """One message on its way: ready to be sent again without being encoded again."""

    message: Outgoing
    answer: asyncio.Future[int | None]
    first_sent: float
    sent: float


class Appender(Protocol):
    """What both ways of appending promise; see the module's docstring for the errors."""

    async def append(self, message: Outgoing) -> int | None:
        """Store one message if its check holds. Answers its position where the path tells it."""
        ...

    async def append_all(self, messages: Sequence[Outgoing]) -> list[BaseException | None]:
        """Store many that do not depend on each other. Answers, of each, why it is not known to be stored."""
        ...

    async def close(self) -> None:
        """Stop. What is unanswered raises ``LogUnavailable`` in its caller."""
        ...


class PlainAppender:
    """One request for each message; knows the position of what it stored."""

    def __init__(self, broker: Broker, stream: str) -> None:
        self._broker = broker
        self._stream = stream

    async def append(self, message: Outgoing) -> int | None:
        """See :class:`Appender`."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            try:
                ack = await self._broker.js.publish(
                    message.subject,
                    message.payload,
                    headers=dict(message.headers),
                    stream=self._stream,
                    timeout=PLAIN_TIMEOUT_S,
                )
            except APIError as error:
                raise error_of(error.err_code or 0, error.description or str(error)) from error
            except (TimeoutError, NoStreamResponseError, nats.errors.Error) as error:
                # Outcome unknown. Sending again is safe: if the first landed, this one is refused and read back.
                if time.monotonic() > deadline or self._broker.nc.is_closed:
                    raise LogUnavailable(f"no answer from the broker: {error!r}") from error
                await asyncio.sleep(WATCH_S)
            else:
                return ack.seq

    async def append_all(self, messages: Sequence[Outgoing]) -> list[BaseException | None]:
        """See :class:`Appender`."""
        return await _one_by_one(self, messages)

    async def close(self) -> None:
        """Nothing is held."""


class PipelinedAppender:
    """One open fast-ingest batch shared by all appends of the process to ``stream``. Does not learn positions.

    Start with :meth:`start`. State: ``_waiting`` maps the batch sequence of every unanswered message to its entry, in
    order of sending; opening a new batch renumbers them all.
    """

    def __init__(self, broker: Broker, stream: str) -> None:
        self._broker = broker
        self._plain = PlainAppender(broker, stream)
        self._refused_until = 0.0
        self._waiting: OrderedDict[int, Entry] = OrderedDict()
        self._groups: dict[str, Group] = {}
        self._group_turns = asyncio.Semaphore(GROUPS_MAX)
        self._inbox = broker.nc.new_inbox()
        self._batch = ""
        self._given_up = False
        self._closed = False
        self._sequence = 0
        self._last_sent = 0.0
        self._last_heard = 0.0
        self._asked_again = 0.0
        """When all that was unanswered had been sent once more: that takes its time, too."""
        self._patience_s = STALL_S
        self._subscription: Subscription | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._reopening: asyncio.Task[None] | None = None
        self.reopened = 0

    async def start(self) -> None:
        """Subscribe to the answers and begin watching."""
        self._subscription = await self._broker.nc.subscribe(
            f"{self._inbox}.>", cb=self._on_answer, pending_msgs_limit=0, pending_bytes_limit=0
        )
        self._new_batch()
        self._watchdog = asyncio.create_task(self._watch(), name="appender-watchdog")
        self._broker.on_reconnect.append(self._reopen)

    async def append(self, message: Outgoing) -> int | None:
        """See :class:`Appender`."""
        if self._closed:
            raise LogUnavailable("the appender is closed")
        if time.monotonic() < self._refused_until:
            return await self._plain.append(message)
        now = time.monotonic()
        if not self._waiting and now - self._last_sent > IDLE_S:
            self._new_batch()
        entry = Entry(message, asyncio.get_running_loop().create_future(), now, now)
        await self._send(entry)
        return await entry.answer

    async def append_all(self, messages: Sequence[Outgoing]) -> list[BaseException | None]:
        """See :class:`Appender`."""
        if len(messages) < GROUP_MIN:
            return await _one_by_one(self, messages)
        if self._broker.syncs and AtomicGroup.takes(messages):
            group = AtomicGroup(messages)
            outcomes = await self._send_group(group, messages)
            if not group.refused:
                return outcomes
        return await self._send_group(Group(messages), messages)

    async def _send_group(self, group: Group, messages: Sequence[Outgoing]) -> list[BaseException | None]:
        async with self._group_turns:
            if self._closed or time.monotonic() < self._refused_until:
                return await _one_by_one(self, messages)
            if not self._broker.trusted.is_set():
                return [LogUnavailable("nothing was stored: the connection to the broker was lost")] * len(messages)
            self._groups[group.batch] = group
            try:
                await group.send(self._broker.nc, self._inbox)
                settled = await group.settled(STALL_S, lambda: self._last_heard)
            finally:
                del self._groups[group.batch]
        outcomes: list[BaseException | None] = [group.errors.get(number) for number in range(1, len(messages) + 1)]
        if settled or group.refused:
            return outcomes
        left = [number for number, outcome in enumerate(outcomes) if outcome is None]
        for number, outcome in zip(left, await self._again([messages[n] for n in left]), strict=True):
            outcomes[number] = outcome
        return outcomes

    async def _again(self, messages: Sequence[Outgoing]) -> list[BaseException | None]:
        """Send once more, one by one, what may be stored or not: what is stored will be refused, and read back."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._broker.trusted.wait()
        except TimeoutError:
            return [LogUnavailable(f"no answer from the broker in {ANSWER_TIMEOUT_S:g} s")] * len(messages)
        return await _one_by_one(self, messages)

    async def close(self) -> None:
        """See :class:`Appender`. Safe to call twice."""
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
            self._broker.on_reconnect.remove(self._reopen)
        if self._reopening is not None:
            await self._reopening  # it holds entries that do not wait for an answer yet
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._broker.nc.is_closed:
            await subscription.unsubscribe()
        self._settle_all(LogUnavailable("the appender was closed before the broker answered"))
        self._give_up_groups()

    def _new_batch(self) -> None:
        self._batch = secrets.token_hex(8)
        self._given_up = False
        self._sequence = 0

    async def _send(self, entry: Entry) -> None:
        """Number the entry and hand it to the client. Nothing may be awaited before the client has it: order is identity."""
        self._sequence += 1
        operation = OPEN if self._sequence == 1 else ADD
        self._waiting[self._sequence] = entry
        self._last_sent = entry.sent = time.monotonic()
        reply = reply_subject(self._inbox, self._batch, 1, self._sequence, operation)
        try:
            await self._broker.nc.publish(entry.message.subject, entry.message.payload, reply, headers=entry.message.headers)
        except nats.errors.ConnectionClosedError:
            self._settle_all(LogUnavailable("the connection to the broker is closed"))
        except nats.errors.Error:
            pass  # disconnected: the entry waits, and is sent again after the reconnect or refused at its deadline

    async def _on_answer(self, message: Msg) -> None:
        batch = message.subject.split(".")[2]
        if message.data:
            self._last_heard = time.monotonic()
            self._patience_s = STALL_S
        if (group := self._groups.get(batch)) is not None:
            group.take(message.data)
            return
        if batch != self._batch or self._given_up:
            return  # of a batch that was given up; what it held is sent again
        if not message.data:
            return  # no responders: the stream has no leader at the moment; the watchdog sends again in a while
        answer: dict[str, Any] = orjson.loads(message.data)
        error: dict[str, Any] | None = answer.get("error")
        if error is not None:
            await self._on_error(answer, error)
        elif answer.get("type") == "ack":
            self._accept_up_to(int(answer["seq"]))
        else:
            # A gap: some of the batch never arrived, and the acks to come would cover it. Or the batch was ended.
            self._reopen()

    def _accept_up_to(self, sequence: int) -> None:
        """Answers are cumulative; what was refused in between was answered before and waits no more."""
        while self._waiting and next(iter(self._waiting)) <= sequence:
            _, entry = self._waiting.popitem(last=False)
            if not entry.answer.done():
                entry.answer.set_result(None)

    async def _on_error(self, answer: dict[str, Any], error: dict[str, Any]) -> None:
        code, number = int(error.get("err_code", 0)), int(answer.get("seq", 0))
        if code == BATCH_UNKNOWN:
            self._reopen()
        elif code in BATCH_REFUSED or number < 1:  # without saying which message: each is asked for by itself
            await self._fall_back(error.get("description", ""))
        elif (entry := self._waiting.pop(number, None)) is not None and not entry.answer.done():
            entry.answer.set_exception(error_of(code, error.get("description", "")))

    def _give_up_groups(self) -> None:
        for group in self._groups.values():
            group.give_up()

    def _reopen(self) -> None:
        """Believe nothing more of this batch, nor of any group; open a new one and send again all that is unanswered."""
        self._give_up_groups()
        self._given_up = True
        if self._reopening is None or self._reopening.done():
            self._reopening = asyncio.create_task(self._resend(), name="appender-reopen")

    async def _resend(self) -> None:
        while self._given_up:  # given up once more while sending: again, or it would wait for the watchdog
            self.reopened += 1
            unanswered = [entry for entry in self._waiting.values() if not entry.answer.done()]
            self._waiting.clear()
            self._new_batch()
            for entry in unanswered:
                await self._send(entry)
            self._asked_again = time.monotonic()

    async def _fall_back(self, why: str) -> None:
        """Publish one by one for a while what this batch was not allowed to take."""
        log.warning("appender.fallback", why=why)
        self._refused_until = time.monotonic() + 60
        unanswered = list(self._waiting.values())
        self._waiting.clear()
        self._new_batch()
        for entry in unanswered:
            task = asyncio.create_task(self._plain.append(entry.message))
            task.add_done_callback(partial(_transfer, entry.answer))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            self._expire(now)
            oldest = next(iter(self._waiting.values()), None)
            if oldest is None or not self._broker.trusted.is_set():
                continue
            if now - max(oldest.sent, self._last_heard, self._asked_again) > self._patience_s:
                log.warning("appender.stalled", unanswered=len(self._waiting), silent_s=self._patience_s)
                self._patience_s *= 2
                self._reopen()

    def _expire(self, now: float) -> None:
        for sequence in [s for s, entry in self._waiting.items() if now - entry.first_sent > ANSWER_TIMEOUT_S]:
            entry = self._waiting.pop(sequence)
            if not entry.answer.done():
                entry.answer.set_exception(LogUnavailable(f"no answer from the broker in {ANSWER_TIMEOUT_S:g} s"))

    def _settle_all(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, OrderedDict()
        for entry in waiting.values():
            if not entry.answer.done():
                entry.answer.set_exception(error)


async def _one_by_one(appender: Appender, messages: Sequence[Outgoing]) -> list[BaseException | None]:
    outcomes = await asyncio.gather(*map(appender.append, messages), return_exceptions=True)
    return [outcome if isinstance(outcome, BaseException) else None for outcome in outcomes]


def _transfer(answer: asyncio.Future[int | None], done: asyncio.Task[int | None]) -> None:
    if answer.done():
        return
    if done.cancelled():
        answer.set_exception(LogUnavailable("the append was cancelled"))
    elif (error := done.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())
