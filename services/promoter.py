"""Answers timers as they fire. The broker keeps the time; this reads what it fired and asks whoever knows what it means.

A fired timer is a hint: it may be early (it was replaced), late, doubled, or about something that ended since. So each one is
answered by a command that changes nothing where nothing is due. Any number of promoters may run: they share one durable
consumer, and the version check lets one of them win where two have the same hint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC
from functools import partial

import nats.errors
import structlog
from nats.aio.msg import Msg

from eventq.events.bootstrap import ensure_promoter
from eventq.events.broker import Broker
from eventq.events.errors import EventqError, Unavailable
from eventq.events.pull import Pull
from eventq.events.subjects import TIMER_CONSUMER, TIMERS
from eventq.events.timers import Hint, read_hint

log = structlog.get_logger("eventq.promoter")

IN_HAND_MAX = 1_000
"""Hints answered at once."""

EARLY_DELAY_MIN_S, EARLY_DELAY_MAX_S = 0.03, 1.0
EARLY_MAX = 15
"""A timer is set before the event that waits for it. One that fires in between comes again this often, first after an instant,
since the event is on its way, then each time after twice as long, at last a second apart: for ten seconds in all."""

SOURCE = "scheduler"

Answer = Callable[[Hint], Awaitable[bool]]
"""Does what a hint asks for, where it is due. Answers whether the hint is spent; if not, it comes again in a while."""


class Promoter:
    """Run one with :meth:`run` until it is cancelled. ``answers``: by kind and what of a hint."""

    def __init__(self, broker: Broker, answers: Mapping[tuple[str, str], Answer]) -> None:
        self._broker = broker
        self._answers = answers

    async def run(self) -> None:
        """Answer timers as they fire."""
        restore = partial(ensure_promoter, self._broker)
        await Pull(self._broker, TIMERS, TIMER_CONSUMER, self._take, limit=IN_HAND_MAX, restore=restore).run()

    async def _take(self, message: Msg) -> None:
        try:
            await self._settle(message)
        except (nats.errors.Error, EventqError) as error:
            log.warning("promoter.left_to_redelivery", subject=message.subject, error=repr(error))

    async def _settle(self, message: Msg) -> None:
        hint = read_hint(message.data, message.metadata.timestamp.astimezone(UTC))
        answer = None if hint is None else self._answers.get((hint.kind, hint.what))
        if hint is None or answer is None:
            log.warning("promoter.not_a_hint", subject=message.subject)
            await message.ack()
            return
        try:
            spent = await answer(hint)
        except Unavailable as error:
            log.warning("promoter.left_to_redelivery", hint=hint.tokens, error=error.detail)
            return
        delivered = message.metadata.num_delivered
        if spent or delivered > EARLY_MAX:
            await message.ack()
        else:
            await message.nak(delay=min(EARLY_DELAY_MIN_S * 2 ** (delivered - 1), EARLY_DELAY_MAX_S))
