"""The broker's clock, carried on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from eventq.events.errors import LogUnavailable
from eventq.services.clock import CarriedClock

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


class Broker:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.says: datetime | None = None
        self.asked = 0

    async def time(self) -> datetime:
        self.asked += 1
        if self.says is None:
            raise LogUnavailable("it does not tell")
        return self.says


async def test_it_tells_no_time_before_the_broker_has() -> None:
    broker = Broker()
    clock = CarriedClock(broker.time)
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await clock.keep_right(3600)
    broker.says = NOON
    await clock.keep_right(3600)
    assert NOON <= clock.now() < NOON + timedelta(minutes=1)
    assert broker.asked == 3


async def test_it_goes_on_while_the_broker_does_not_answer_and_is_set_right_afterwards() -> None:
    broker = Broker()
    broker.says = NOON
    clock = CarriedClock(broker.time)
    await clock.keep_right(0)
    broker.says = None
    before = clock.now()
    await clock.keep_right(0)
    assert clock.now() >= before
    broker.says = NOON + timedelta(hours=1)
    await clock.keep_right(0)
    assert clock.now() >= NOON + timedelta(hours=1)
    asked = broker.asked
    await clock.keep_right(3600)
    assert broker.asked == asked
