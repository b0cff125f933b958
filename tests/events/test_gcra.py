"""The rate algorithm: what it lets through, in every window, however it is asked."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from eventq.events import gcra
from eventq.events.queue_events import Rate

rates = st.builds(
    Rate,
    limit=st.integers(1, 50),
    per_s=st.floats(0.1, 100.0, allow_nan=False),
    burst=st.integers(1, 20),
)


def take_all(rate: Rate, asked: list[float]) -> list[float]:
    """The times of the starts of somebody who takes all that is available whenever he asks."""
    arrival, starts = gcra.NEVER, list[float]()
    for now in asked:
        count = gcra.available(rate, arrival, now)
        arrival = gcra.charge(rate, arrival, now, count) if count else arrival
        starts += [now] * count
    return starts


@settings(max_examples=200, deadline=None)
@given(rates, st.lists(st.floats(0, 50), min_size=1, max_size=60), st.floats(0.01, 60))
def test_no_window_ever_sees_more_than_its_share_and_the_burst(rate: Rate, waits: list[float], window_s: float) -> None:
    now, asked = 1_700_000_000.0, list[float]()
    for wait in waits:
        now += wait * rate.per_s / rate.limit
        asked.append(now)
    starts = take_all(rate, asked)
    for first in starts:
        within = sum(first <= at <= first + window_s for at in starts)
        assert within <= rate.burst + window_s / gcra.interval_s(rate) + 1e-3


@settings(max_examples=200, deadline=None)
@given(rates, st.integers(0, 40), st.floats(0, 100))
def test_what_is_available_is_allowed_and_one_more_is_not(rate: Rate, before: int, wait_s: float) -> None:
    began = 1_700_000_000.0
    arrival = gcra.charge(rate, gcra.NEVER, began, before) if before else gcra.NEVER
    now = began + wait_s
    count = gcra.available(rate, arrival, now)
    after = gcra.charge(rate, arrival, now, count) if count else arrival
    assert gcra.available(rate, after, now) == 0
    assert gcra.allowed_at(rate, after) > now or count == 0
    later = max(now, gcra.allowed_at(rate, after))
    assert gcra.available(rate, after, later) >= 1


def test_a_fresh_rate_lets_its_burst_through_at_once_and_then_one_an_interval() -> None:
    rate = Rate(limit=2, per_s=1.0, burst=3)
    assert gcra.available(rate, gcra.NEVER, 100.0) == 3
    arrival = gcra.fold(rate, [100.0, 100.0, 100.0])
    assert gcra.available(rate, arrival, 100.0) == 0
    assert gcra.allowed_at(rate, arrival) == 100.5
    assert gcra.available(rate, arrival, 100.5) == 1
    assert gcra.available(rate, arrival, 200.0) == 3
