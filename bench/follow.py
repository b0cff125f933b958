"""Follow the log of a bed for the moment of certain events, by the broker's clock, which is this machine's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from eventq.events.broker import Broker
from eventq.events.reader import Message, Tail
from eventq.events.subjects import EVENTS

MOST_S = 300.0


async def seen(broker: Broker, after: int, count: int, wanted: Callable[[Message], bool]) -> list[Message]:
    """The first ``count`` messages after position ``after`` that are wanted. Raises ``TimeoutError`` where they do not come."""
    found: list[Message] = []
    async with asyncio.timeout(MOST_S), Tail(broker, EVENTS, after=after) as tail:
        async for batch in tail:
            found += filter(wanted, batch)
            if len(found) >= count:
                return found[:count]
    raise TimeoutError


def of_type(*types: str) -> Callable[[Message], bool]:
    """Wants the events of tasks that are of one of these types."""

    def wanted(message: Message) -> bool:
        tokens = message.subject.split(".", 4)
        return tokens[0] == "tasks" and tokens[3] in types

    return wanted
