"""Publish an attempt's progress and log lines in order, no faster than allowed, without holding up the attempt."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager

import structlog

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.report import Log, LogLine, Progress
from eventq.events.reporting import publish_report
from eventq.workers.pacer import Pacer

log = structlog.get_logger("eventq.reports")


class Reports:
    """The reports of one attempt. ``add`` returns at once; :meth:`close` publishes what is left, the last progress too. From
    then on nothing is taken: a coroutine that ignores its cancellation speaks on when its task may have been erased.

    Neither raises: a report is never worth the outcome of its attempt. ``lost`` counts the messages that could not be
    published.
    """

    def __init__(self, broker: Broker, task_id: str, attempt: int, source: str) -> None:
        self._broker = broker
        self._task_id = task_id
        self._attempt = attempt
        self._source = source
        self.lost = 0
        self._pacer = Pacer()
        self._waiting: deque[Progress | Log] = deque()
        self._publisher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def add(self, report: Progress | LogLine) -> None:
        """Take one report; none once closed."""
        if self._closed:
            return
        with self._guarded():
            self._pass_on(self._pacer.offer(report, time.monotonic()))

    async def close(self) -> None:
        """Publish what waits and return when it is stored (or could not be)."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        with self._guarded():
            for message in self._pacer.flush():
                self._enqueue(message)
        if self._publisher is not None:
            await self._publisher

    @contextmanager
    def _guarded(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            self._lose(repr(error))

    def _lose(self, error: str) -> None:
        self.lost += 1
        log.warning("reports.lost", task_id=self._task_id, lost=self.lost, error=error)

    def _pass_on(self, message: Progress | Log | None) -> None:
        if message is not None:
            self._enqueue(message)
        due_s = self._pacer.due_in(time.monotonic())
        if self._timer is None and due_s is not None:
            self._timer = asyncio.get_running_loop().call_later(due_s, self._poll)

    def _poll(self) -> None:
        self._timer = None
        with self._guarded():
            self._pass_on(self._pacer.poll(time.monotonic()))

    def _enqueue(self, message: Progress | Log) -> None:
        self._waiting.append(message)
        if self._publisher is None or self._publisher.done():
            self._publisher = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        while self._waiting:
            message = self._waiting.popleft()
            try:
                await publish_report(self._broker, self._task_id, self._attempt, self._source, message)
            except LogUnavailable as error:
                # Progress is no history: an attempt does not wait for a broker that is away to say how far it is.
                self._lose(error.detail)
            except Exception as error:  # one that cannot be encoded must not take those behind it along
                self._lose(repr(error))
