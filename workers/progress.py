"""Progress: the latest value, often enough to watch and seldom enough not to drown the log.

A loop may report its progress a million times a second; a reader wants the newest value a few times a second
and, in the end, the last one. Pure: the clock is passed in, so whoever owns the clock decides when to look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from eventq.events.errors import InvalidInput
from eventq.events.limits import LOG_MESSAGE_MAX_CHARS, PROGRESS_PER_SECOND_MAX

UNIT_MAX_CHARS = 32


@dataclass(frozen=True, slots=True)
class ProgressUpdate:
    """How far an attempt is. ``done`` of ``total`` in ``unit``; ``total`` is ``None`` where nobody knows it."""

    done: float
    total: float | None = None
    unit: str | None = None
    message: str | None = None

    @classmethod
    def checked(
        cls, done: float, total: float | None = None, unit: str | None = None, message: str | None = None
    ) -> ProgressUpdate:
        """An update with finite, non-negative numbers and texts cut to their limits, else
        :class:`InvalidInput`.

        A ``total`` of 0 means that there was nothing to do and becomes ``None``: no share of it can be shown.
        """
        return cls(
            _amount("done", done),
            _amount("total", total) or None if total is not None else None,
            None if unit is None else str(unit)[:UNIT_MAX_CHARS],
            None if message is None else str(message)[:LOG_MESSAGE_MAX_CHARS],
        )


def _amount(field: str, value: float) -> float:
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise InvalidInput(f"progress.{field}", "must be a finite number, 0 or more", found=repr(value)[:80])
    return number


class ProgressThrottle:
    """Passes on at most ``per_second`` updates a second; of those in between only the newest is kept.

    Times are seconds of any monotonic clock. Call :meth:`offer` for each update, :meth:`poll` when
    :meth:`due_in` has run out, and :meth:`flush` once at the end: the last update is never lost.
    """

    def __init__(self, per_second: float = PROGRESS_PER_SECOND_MAX) -> None:
        self._interval_s = 1 / per_second
        self._next_at = -math.inf
        self._waiting: ProgressUpdate | None = None

    def offer(self, update: ProgressUpdate, now: float) -> ProgressUpdate | None:
        """The update to send now, or ``None`` while the last one is too recent: then it waits, replacing its
        elder.
        """
        self._waiting = update
        return self.poll(now)

    def poll(self, now: float) -> ProgressUpdate | None:
        """The waiting update if its time has come, else ``None``."""
        if self._waiting is None or now < self._next_at:
            return None
        self._next_at = now + self._interval_s
        return self.flush()

    def due_in(self, now: float) -> float | None:
        """Seconds until :meth:`poll` will have something; ``None`` while nothing waits."""
        return None if self._waiting is None else max(0.0, self._next_at - now)

    def flush(self) -> ProgressUpdate | None:
        """The waiting update, whenever the last one was sent; ``None`` if all have been sent."""
        update, self._waiting = self._waiting, None
        return update
