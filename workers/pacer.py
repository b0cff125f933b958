"""Progress and log lines: often enough to watch, seldom enough not to drown the log.

A loop may report its progress a million times a second and log in between; a reader wants the newest progress and all
lines, a few times a second, and in the end the last. So messages are spaced; of several updates only the newest is sent, and
lines travel together. Pure: the clock is passed in, so whoever owns the clock decides when to look.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict

import orjson

from eventq.events.limits import PROGRESS_PER_SECOND_MAX
from eventq.events.report import Log, LogLine, Progress

LINES_WAITING_MAX = 1_000
"""Lines of one attempt that may wait to be sent; beyond it the oldest are dropped, and the log says how many."""

MESSAGE_MAX_BYTES = 128 * 1024
"""Lines in one message: as many as fit, at least one."""


class Pacer:
    """Passes on at most ``per_second`` messages a second. Times are seconds of any monotonic clock.

    :meth:`offer` what comes; :meth:`poll` when :meth:`due_in` has run out; :meth:`flush` at the end.
    """

    def __init__(self, per_second: float = PROGRESS_PER_SECOND_MAX) -> None:
        self._interval_s = 1 / per_second
        self._next_at = -math.inf
        self._progress: Progress | None = None
        self._lines: deque[LogLine] = deque()
        self._dropped = 0
        self._lines_next = False

    def offer(self, report: Progress | LogLine, now: float) -> Progress | Log | None:
        """The message to send now, or ``None`` while the last one is too recent."""
        if isinstance(report, Progress):
            self._progress = report
        else:
            self._lines.append(report)
            if len(self._lines) > LINES_WAITING_MAX:
                self._lines.popleft()
                self._dropped += 1
        return self.poll(now)

    def poll(self, now: float) -> Progress | Log | None:
        """The next message if its time has come and there is one: progress and lines take turns."""
        if now < self._next_at or (message := self._next()) is None:
            return None
        self._next_at = now + self._interval_s
        return message

    def due_in(self, now: float) -> float | None:
        """Seconds until :meth:`poll` will have something; ``None`` while nothing waits."""
        waiting = self._progress is not None or self._lines
        return max(0.0, self._next_at - now) if waiting else None

    def flush(self) -> list[Progress | Log]:
        """All that waits, however recent the last message: the last progress is never lost."""
        rest: list[Progress | Log] = []
        while (message := self._next()) is not None:
            rest.append(message)
        return rest

    def _next(self) -> Progress | Log | None:
        if self._lines and (self._lines_next or self._progress is None):
            self._lines_next = False
            return Log(self._take_lines())
        self._lines_next = True
        progress, self._progress = self._progress, None
        return progress

    def _take_lines(self) -> list[LogLine]:
        taken: list[LogLine] = []
        if self._dropped:
            taken.append(LogLine(f"{self._dropped} lines were dropped: too many at once", "warning"))
            self._dropped = 0
        size = 0
        while self._lines:
            size += _size(self._lines[0])
            if taken and size > MESSAGE_MAX_BYTES:
                break
            taken.append(self._lines.popleft())
        return taken


def _size(line: LogLine) -> int:
    """In bytes. A line that cannot be encoded travels alone, so that it takes no other with it when it is refused."""
    try:
        return len(orjson.dumps(asdict(line)))
    except Exception:
        return MESSAGE_MAX_BYTES
