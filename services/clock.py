"""The broker's clock, which stamps what is stored and decides when timers fire: what the hosts' clocks say means nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import nats.errors
from nats.js.errors import APIError

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable

Clock = Callable[[], Awaitable[datetime]]


def broker_clock(broker: Broker) -> Clock:
    """The broker's time, aware UTC; raises ``LogUnavailable`` where it does not tell."""

    async def now() -> datetime:
        try:
            return await broker.time()
        except (nats.errors.Error, APIError, TimeoutError) as error:
            raise LogUnavailable(f"the broker does not tell the time: {error!r}") from error

    return now


class CarriedClock:
    """What the broker's clock says, for who cannot ask each time: asked now and then, carried on in between by what passes on
    this host."""

    def __init__(self, ask: Clock) -> None:
        self._ask = ask
        self._told: datetime | None = None
        self._told_at = 0.0
        self._asked_at = -math.inf

    async def keep_right(self, every_s: float) -> None:
        """Ask, where that was not done for so long. Where there is no answer it goes on as it was; raises ``LogUnavailable``
        where there never was one."""
        if self._told is not None and time.monotonic() - self._asked_at < every_s:
            return
        self._asked_at = time.monotonic()
        try:
            told = await self._ask()
        except LogUnavailable:
            if self._told is None:
                raise
            return
        self._told, self._told_at = told, time.monotonic()

    def now(self) -> datetime:
        """Aware UTC. To be asked for once it was kept right."""
        assert self._told is not None, "it was never asked"
        return self._told + timedelta(seconds=time.monotonic() - self._told_at)
