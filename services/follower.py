"""Follows the log once for all duties of a scheduler: each event is read, taken apart, and shown to every duty, in order.

A duty keeps in memory what it must know to act, as a fold of what it was shown, and nothing else: when the process dies the
next one folds it again from the log. It acts in a task of its own, when :attr:`Duty.wake` says that something came, and only
while it has seen all there is (:meth:`Follower.caught_up`); what it does is decided by the rules and appended with the version
check, so doing it twice, or in two processes at once, or on a view that is an instant old, changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import orjson
import structlog

from eventq.events.broker import Broker
from eventq.events.errors import Damaged, LogDamaged
from eventq.events.reader import Message, Tail
from eventq.events.subjects import EVENTS, PLACEHOLDER

log = structlog.get_logger("eventq.follower")

LOOK_S = 1.0
"""How often duties are woken although nothing came: time passes for them, too."""


class Fact(NamedTuple):
    """One stored event, taken apart, not typed. ``work``: it is a work item; ``stored_ns``: when the broker stored it."""

    position: int
    kind: str
    id: str
    version: int
    type: str
    work: bool
    stored_ns: int
    event: dict[str, Any]

    @property
    def state(self) -> dict[str, Any]:
        """The state after it, as it travels."""
        state: dict[str, Any] = self.event["state"]
        return state

    @property
    def data(self) -> dict[str, Any]:
        """Its data, as stored: of whatever schema."""
        data: dict[str, Any] = self.event["data"]
        return data

    @property
    def time(self) -> datetime:
        """When it was written: aware UTC, the writer's clock."""
        return datetime.fromisoformat(self.event["time"]).astimezone(UTC)


class Duty(Protocol):
    """What follows the log. ``wake`` is set when something came, and once a second."""

    wake: asyncio.Event

    def note(self, fact: Fact) -> None:
        """Fold one event. Quick, and without I/O: it holds up all others."""
        ...


class Follower:
    """Reads EVENTS from its beginning and shows it to ``duties``. Run one with :meth:`run` until it is cancelled."""

    def __init__(self, broker: Broker, duties: Sequence[Duty]) -> None:
        self._broker = broker
        self._duties = duties
        self.position = 0
        """Up to where the duties have been shown the log."""
        self._caught_up = asyncio.Event()

    @property
    def caught_up(self) -> bool:
        """Whether the duties have seen all that there was when last looked."""
        return self._caught_up.is_set()

    async def until_caught_up(self) -> None:
        """Return once the duties have seen all that there was when last looked."""
        await self._caught_up.wait()

    async def run(self) -> None:
        """Follow the log. What cannot be read ends the following, not the process: the projector says so loudly, and timers
        must go on."""
        try:
            await self._follow()
        except Damaged as error:
            log.error("follower.halted", code=error.code, error=error.detail)
            self._caught_up.clear()
            await asyncio.Event().wait()

    async def _follow(self) -> None:
        async with Tail(self._broker, EVENTS, after=0) as tail:
            while True:
                batch = await tail.next(timeout_s=LOOK_S)
                for message in batch:
                    fact = _taken_apart(message)
                    if fact.type != PLACEHOLDER:
                        for duty in self._duties:
                            duty.note(fact)
                    self.position = message.position
                if not batch or batch[-1].pending == 0:
                    self._caught_up.set()
                    for duty in self._duties:
                        duty.wake.set()
                else:
                    self._caught_up.clear()


def _taken_apart(message: Message) -> Fact:
    tokens = message.subject.split(".")
    try:
        event = orjson.loads(message.payload)
        fact = Fact(
            position=message.position,
            kind=tokens[0],
            id=tokens[1],
            version=int(tokens[2]),
            type=tokens[3],
            work=len(tokens) == 7,
            stored_ns=message.stored_ns,
            event=event,
        )
        if not (isinstance(event["state"], dict) and isinstance(event["data"], dict) and isinstance(event["time"], str)):
            raise TypeError("state, data or time is missing")
    except (IndexError, KeyError, ValueError, TypeError) as error:
        raise LogDamaged(f"what is stored under {message.subject} is not an event: {error}", subject=message.subject) from error
    return fact
