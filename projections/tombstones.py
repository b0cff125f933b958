"""Reading a log with holes: where the messages of erased events stood, what is left of them stands in their ``erased`` events.

To whoever folds the log it looks as if the erased events had never carried more. A hole that no ``erased`` event accounts for
stays one, and the fold halts at it.
"""

from __future__ import annotations

from collections.abc import Sequence

import nats.errors
from nats.js.errors import APIError, NotFoundError

from eventq.events.broker import Broker
from eventq.events.envelope import decode
from eventq.events.erasure import payload_of
from eventq.events.errors import LogUnavailable
from eventq.events.reader import Message, Tail
from eventq.events.subjects import EVENTS
from eventq.events.task_events import Erased

ERASED = "*.*.*.erased"
SILENCE_MAX_S = 30.0


class Tombstones:
    """What is left of erased events, by position; read when a hole is met, and then kept."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._left: dict[int, Message] = {}
        self._erased_at: dict[int, int] = {}
        self._read_up_to = 0

    async def fill(self, after: int, messages: Sequence[Message], until: int | None = None) -> list[Message]:
        """``messages``, which follow position ``after``, with what is left of erased events in their places. ``until``: the
        position that the last one should have, where it is known."""
        last = until or (messages[-1].position if messages else after)
        if last - after == len(messages):
            return list(messages)
        known = {message.position: message for message in messages}
        missing = [position for position in range(after + 1, last + 1) if position not in known]
        found = await self.at(missing)
        return [message for _, message in sorted((known | found).items())]

    async def at(self, positions: Sequence[int]) -> dict[int, Message]:
        """What is left of the events at these positions, of those that were erased."""
        if not all(position in self._left for position in positions):
            await self.read()
        return {position: self._left[position] for position in positions if position in self._left}

    def instead(self, messages: Sequence[Message]) -> list[Message]:
        """``messages`` with what is to be left of them, as far as is known: also where the messages themselves still stand."""
        return [self._left.get(message.position, message) for message in messages]

    def erased_after(self, position: int) -> list[Message]:
        """What is left of events that were erased by an event after ``position``, of those that are known."""
        return [self._left[left] for left, erased_at in self._erased_at.items() if erased_at > position]

    async def read(self) -> None:
        """All ``erased`` events that came since this was last asked.

        Raises ``LogUnavailable`` where they cannot be read: without them, what was erased would be taken for lost.
        """
        newest = await self._newest()
        if newest <= self._read_up_to:
            return
        async with Tail(self._broker, EVENTS, after=self._read_up_to, subject=ERASED) as tail:
            while tail.position < newest:
                batch = await tail.next(timeout_s=SILENCE_MAX_S)
                if not batch:
                    raise LogUnavailable(f"the log did not show its erasures up to position {newest} in {SILENCE_MAX_S:g} s")
                for message in batch:
                    self._keep(message)
        self._read_up_to = newest

    async def _newest(self) -> int:
        """The position of the newest ``erased`` event; 0 where there is none."""
        try:
            return (await self._broker.js.get_last_msg(EVENTS, ERASED)).seq or 0
        except NotFoundError:
            return 0
        except (nats.errors.Error, APIError, TimeoutError) as error:
            raise LogUnavailable(f"the broker does not say what was erased: {error!r}") from error

    def _keep(self, message: Message) -> None:
        data = decode(message.payload, message.subject).data
        assert isinstance(data, Erased)
        for left in data.events:
            payload = payload_of(left)
            self._erased_at[left.position] = message.position
            self._left[left.position] = Message(left.position, left.subject, payload, message.stored_ns, message.pending)
