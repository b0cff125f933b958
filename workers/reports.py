"""Publish an attempt's progress and log lines in order, no faster than allowed, without holding up the attempt."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import structlog

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.report import LogLine, Progress, publish_report
from eventq.workers.progress import ProgressThrottle, ProgressUpdate

log = structlog.get_logger("eventq.reports")

LOG_LINES_WAITING_MAX = 1_000
"""Log lines of one attempt that may wait to be published; beyond it the oldest of them are dropped and counted."""


class Reports:
    """The reports of one attempt. ``add`` returns at once; :meth:`close` publishes what is left, the last progress too."""

    def __init__(self, broker: Broker, task_id: str, attempt: int, source: str) -> None:
        self._broker = broker
        self._task_id = task_id
        self._attempt = attempt
        self._source = source
        self._throttle = ProgressThrottle()
        self._waiting: deque[Progress | LogLine] = deque()
        self._publisher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.dropped = 0

    def add(self, message: dict[str, Any]) -> None:
        """Take one report, as it comes over a child's channel."""
        if message["kind"] == "log":
            if len(self._waiting) >= LOG_LINES_WAITING_MAX:
                self._waiting.popleft()
                self.dropped += 1
            self._enqueue(LogLine(message["message"], message["level"], message["fields"]))
            return
        update = ProgressUpdate(message["done"], message["total"], message["unit"], message["message"])
        now = time.monotonic()
        if (due := self._throttle.offer(update, now)) is not None:
            self._enqueue(_progress(due))
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._throttle.due_in(now) or 0, self._poll)

    async def close(self) -> None:
        """Publish what waits and return when it is stored (or could not be)."""
        if self._timer is not None:
            self._timer.cancel()
        if (last := self._throttle.flush()) is not None:
            self._enqueue(_progress(last))
        if self.dropped:
            self._enqueue(LogLine(f"{self.dropped} log lines were dropped: too many at once", "warning"))
        if self._publisher is not None:
            await self._publisher

    def _poll(self) -> None:
        self._timer = None
        if (due := self._throttle.poll(time.monotonic())) is not None:
            self._enqueue(_progress(due))

    def _enqueue(self, report: Progress | LogLine) -> None:
        self._waiting.append(report)
        if self._publisher is None or self._publisher.done():
            self._publisher = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        while self._waiting:
            report = self._waiting.popleft()
            try:
                await publish_report(self._broker, self._task_id, self._attempt, self._source, report)
            except LogUnavailable as error:
                # Progress is no history: an attempt does not wait for a broker that is away to say how far it is.
                log.warning("reports.lost", task_id=self._task_id, error=error.detail)


def _progress(update: ProgressUpdate) -> Progress:
    return Progress(update.done, update.total, update.unit, update.message)
