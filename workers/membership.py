"""A worker's own history, as the worker lives it: it registers, obeys what others write there, and says that it stops.

Commands to a worker are events in its history, which it follows by position from before its registration on: none is lost to
a reconnect, and what was written while it was away is obeyed when it is back. Only the last event counts, because each holds
the whole state.

Others may also write that it is lost. Where that was a mistake (it was cut off, or stood still) it registers again under the
same id and takes up again what it was told before, also what it has not heard: a pause, a drain, a capacity. The state after
its registration says what that is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from eventq.events.envelope import decode
from eventq.events.errors import Conflict, Unavailable
from eventq.events.handle import handle_any, read_state
from eventq.events.log import EventLog
from eventq.events.reader import Tail
from eventq.events.subjects import EVENTS, aggregate_filter
from eventq.events.worker import (
    NO_WORKER,
    WORKERS,
    RegisterWorker,
    StopWorker,
    Worker,
    WorkerCommand,
    WorkerStatus,
)
from eventq.events.worker_events import WorkerRegistered

log = structlog.get_logger("eventq.membership")

RETRY_S = 0.5
"""Between tries to register again while the broker is away."""


class Membership:
    """One worker's standing. ``state``: as it was last read or written; ``registration``: what to say of it, asked anew each
    time; ``on_change`` is called after each change, ``on_lost`` when the worker was called lost, before it registers again."""

    def __init__(
        self,
        event_log: EventLog,
        worker_id: str,
        *,
        registration: Callable[[], WorkerRegistered],
        on_change: Callable[[Worker], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.state: Worker = NO_WORKER
        self._log = event_log
        self._worker_id = worker_id
        self._registration = registration
        self._on_change = on_change
        self._on_lost = on_lost

    async def register(self) -> None:
        """Begin. Raises ``LogUnavailable``."""
        await self._say(RegisterWorker(self._registration()))

    async def stop(self, reason: str) -> None:
        """Say that the worker ends, unless it was called lost meanwhile, which says the same."""
        try:
            await self._say(StopWorker(reason))
        except Conflict:
            log.info("worker.was_called_lost", worker_id=self._worker_id)

    async def follow(self, after: int) -> None:
        """Obey what is written after position ``after``, until cancelled."""
        subject = aggregate_filter(WORKERS.name, self._worker_id)
        async with Tail(self._log.broker, EVENTS, after=after, subject=subject, batch=200) as tail:
            async for batch in tail:
                event = decode(batch[-1].payload, batch[-1].subject)
                if event.version > self.state.version:
                    await self._take(WORKERS.from_summary(event.state))

    async def _take(self, state: Worker) -> None:
        self.state = state
        if state.status is WorkerStatus.LOST:
            await self._come_back()
        self._on_change(self.state)

    async def _come_back(self) -> None:
        log.warning("worker.called_lost", worker_id=self._worker_id, evidence=self.state.end_reason)
        self._on_lost()
        while self.state.status is WorkerStatus.LOST:
            try:
                await self._register_again()
            except Unavailable as error:
                log.warning("worker.registers_later", worker_id=self._worker_id, code=error.code, error=error.detail)
                await asyncio.sleep(RETRY_S)

    async def _register_again(self) -> None:
        try:
            await self.register()
        except Conflict:  # it is no longer lost: a try before, of which nothing was heard, was stored
            self.state = await read_state(self._log, WORKERS, self._worker_id, fresh=True)

    async def _say(self, command: WorkerCommand) -> None:
        source = f"worker.{self._worker_id}"
        handled = await handle_any(self._log, WORKERS, self._worker_id, command, source=source, state=self.state)
        self.state = handled.state
