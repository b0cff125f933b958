"""The generic cell rate algorithm: how often something may start, told from one number, the *theoretical arrival time*.

That is the time at which the next start would come if all were evenly spaced. A start is allowed from ``tolerance`` before
it on, and moves it one interval further. Pure: times are POSIX seconds and come in as arguments, and whoever has the times
of the starts has the number, which is how a rate survives every restart (``fold``).

In any window of ``w`` seconds it lets through at most ``burst + w * limit / per_s`` starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import floor, inf

from eventq.events.queue_events import Rate

NEVER = -inf
"""The theoretical arrival time where nothing ever started."""

_EPSILON_S = 1e-6
"""Times of events are stored with microseconds: what is due within one is due."""


def interval_s(rate: Rate) -> float:
    """Seconds from one start to the next, evenly spaced."""
    return rate.per_s / rate.limit


def allowed_at(rate: Rate, arrival: float) -> float:
    """When the next start is allowed: a time that may lie in the past."""
    return arrival - (rate.burst - 1) * interval_s(rate)


def available(rate: Rate, arrival: float, now: float) -> int:
    """How many starts are allowed at ``now``, all at once."""
    # Of those that come at once the k-th needs the arrival time, moved by k - 1 intervals, to be within the tolerance.
    ahead_s = max(arrival, now) - now
    return max(0, min(rate.burst, floor((rate.burst * interval_s(rate) - ahead_s + _EPSILON_S) / interval_s(rate))))


def charge(rate: Rate, arrival: float, at: float, starts: int = 1) -> float:
    """The theoretical arrival time after ``starts`` at ``at``, allowed or not."""
    return max(arrival, at) + starts * interval_s(rate)


def bounded(rate: Rate, arrival: float, now: float) -> float:
    """The theoretical arrival time as it can be at ``now``. It is further ahead only where the clock was set back, or another
    host's is ahead; then it is as if the whole burst had just been used, so nobody waits for a time to come again."""
    return min(arrival, now + rate.burst * interval_s(rate))


def wait_s(rate: Rate, arrival: float, now: float, before: int) -> float:
    """In how many seconds a start is allowed that comes after ``before`` others, all as early as they may."""
    return max(0.0, allowed_at(rate, charge(rate, arrival, now, before)) - now)


def fold(rate: Rate, starts: Iterable[float]) -> float:
    """The theoretical arrival time after these starts, in order."""
    arrival = NEVER
    for at in starts:
        arrival = charge(rate, arrival, at)
    return arrival
