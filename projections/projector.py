"""Follow the log, fold what comes, commit rows and checkpoint together: one loop for the life of the process.

Batches are natural: whatever arrived while the last commit ran is the next batch, up to a bound. An idle system
commits single events in some milliseconds; a busy one thousands at a time. Since a commit costs that whatever it holds, the
next batch is left to grow where events come in numbers and nobody waits for them. Receiving runs in the event loop, folding
and writing in one thread of its own.

Three kinds of trouble, three answers. *The log is damaged* (or tells what this program cannot read): halt, loudly, serve the
last good state, fold nothing until an operator decided. *The file is damaged*: move it aside and fold the log again.
*Something does not answer* (broker away, disk full): nothing of the batch was stored; try again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import structlog

from eventq.events.broker import Broker
from eventq.events.envelope import decode
from eventq.events.errors import Damaged, Unavailable
from eventq.events.subjects import EVENTS, PROGRESS
from eventq.projections.applier import Applier, Decode
from eventq.projections.freshness import Freshness
from eventq.projections.inflow import Inflow
from eventq.projections.log_check import check_events, check_progress, first_checkpoint
from eventq.projections.queries import versions_of
from eventq.projections.store import ProjectionDamaged, Rebuild, Store
from eventq.projections.tombstones import Tombstones

log = structlog.get_logger("eventq.projector")

RETRY_MIN_S, RETRY_MAX_S = 0.2, 5.0

GATHER_MIN, GATHER_BELOW = 32, 2_000
"""Messages in a batch after which the next is left to grow: fewer are no load, more are enough."""

GATHER_MAX_S = 0.05
T = TypeVar("T")


class Projector:
    """Keeps ``store`` equal to the fold of the log. Start :meth:`run` as a task; cancel it to stop."""

    def __init__(self, store: Store, broker: Broker, freshness: Freshness | None = None, decode: Decode = decode) -> None:
        self.store = store
        self.broker = broker
        self.freshness = freshness or Freshness()
        self.freshness.lookup = self._versions_of
        self.halted: Damaged | None = None
        """Why the projector stopped folding; ``None`` while it runs. Reads go on from the last good state."""
        self.erased = asyncio.Event()
        """Set when what a task carried was erased: the file may hold its bytes in unused places until it is made anew."""
        if store.erasure_noted:
            self.erased.set()  # by a process that ended before it had done so
        self.started_over = 0
        """How often a damaged file was moved aside since this process started."""
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="projector")
        self._applier: Applier | None = None
        self._decode = decode
        self._tombstones = Tombstones(broker)
        self._turn = asyncio.Lock()
        self._gather_until = 0.0
        self._unhalted = asyncio.Event()

    @property
    def unreadable_reports(self) -> int:
        """Lines of PROGRESS that could not be read and were skipped, since the file was opened."""
        return self._applier.unreadable_reports if self._applier else 0

    async def run(self) -> None:
        """Follow the log until cancelled. Returns never: a halted projector waits to be resumed."""
        retry_s = RETRY_MIN_S
        try:
            while True:
                before = self.freshness.position
                try:
                    await self._follow()
                except ProjectionDamaged as error:
                    log.error("projection.damaged", reason=error.detail)
                    self.store.damage = error
                except Damaged as error:
                    self._halt(error)
                    await self._unhalted.wait()
                except Unavailable as error:
                    retry_s = RETRY_MIN_S if self.freshness.position > before else min(RETRY_MAX_S, retry_s * 2)
                    log.warning("projector.retrying", reason=error.detail, in_s=retry_s)
                    await asyncio.sleep(retry_s)
        finally:
            self._writer.shutdown(wait=True)

    def resume(self) -> None:
        """Check the log again and go on, after an operator mended what made the projector halt."""
        self.halted = None
        self.freshness.resume()
        self._unhalted.set()

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[Applier]:
        """Between two batches: nothing is applied within. Answers the applier, for its checkpoints."""
        async with self._turn:
            if self._applier is None:
                self._applier = await self.in_writer(lambda: Applier(self.store, self._decode))
            yield self._applier

    async def adopt(self, rebuilt: Rebuild) -> None:
        """Make a rebuilt file the current one and go on from its checkpoint. Call it inside :meth:`paused`."""
        await self.in_writer(lambda: self.store.replace(rebuilt))
        self._applier = await self.in_writer(lambda: Applier(self.store, self._decode))
        self.freshness.resume()  # the file may hold more than was told of
        self._tell(self._applier, {})
        if self.halted is not None:
            self.resume()

    async def in_writer(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the writing thread; a cancelled caller leaves it to finish there."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    async def _follow(self) -> None:
        async with self._turn:
            if self.store.damage is not None:
                await self._start_over()
            if self._applier is None:
                self._applier = await self.in_writer(lambda: Applier(self.store, self._decode))
            await self._check_log(self._applier)
            self._tell(self._applier, {})
            applier = self._applier
        after = {stream: applier.checkpoints[stream].position for stream in (EVENTS, PROGRESS)}
        async with Inflow(self.broker, after) as inflow:
            going_on = True
            while going_on:
                await inflow.arrived()
                await self._gather()
                async with self._turn:
                    going_on = self._applier is applier and await self._apply(applier, inflow)

    async def _gather(self) -> None:
        """Let the batch grow for as long as the last one took, unless somebody waits for it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._gather_until - time.monotonic())):
                await self.freshness.awaited.wait()

    async def _apply(self, applier: Applier, inflow: Inflow) -> bool:
        """Apply what arrived. False where reading must begin anew, from other positions."""
        if self.store.damage is not None:
            raise self.store.damage
        if inflow.reconnected() and await self._check_log(applier):
            return False
        events, reports = await inflow.take()
        events = await self._tombstones.fill(applier.checkpoints[EVENTS].position, events)
        if any(message.subject.endswith(".erased") for message in events):
            await self.in_writer(self.store.note_erasure)
        if events or reports:
            began = time.monotonic()
            applied = await self.in_writer(lambda: applier.apply(events, reports))
            ended = time.monotonic()
            loaded = GATHER_MIN <= len(events) + len(reports) < GATHER_BELOW
            self._gather_until = ended + min(ended - began, GATHER_MAX_S) if loaded else ended
            self._tell(applier, applied.versions)
            if applied.erased:
                self.erased.set()
        return True

    def _tell(self, applier: Applier, versions: dict[str, int]) -> None:
        checkpoints = applier.checkpoints
        self.freshness.applied(checkpoints[EVENTS].position, checkpoints[PROGRESS].position, versions)

    async def _check_log(self, applier: Applier) -> bool:
        """Raise unless the log is the one that was folded. True where PROGRESS is to be read from elsewhere."""
        for stream in (EVENTS, PROGRESS):
            if stream not in applier.checkpoints:
                await self.in_writer(partial(applier.begin, stream, await first_checkpoint(self.broker, stream)))
        await check_events(self.broker, applier.checkpoints[EVENTS], self._tombstones)
        progress = await check_progress(self.broker, applier.checkpoints[PROGRESS])
        if progress == applier.checkpoints[PROGRESS]:
            return False
        log.warning("progress.replaced", position=progress.position)
        await self.in_writer(lambda: applier.begin(PROGRESS, progress))
        return True

    async def _versions_of(self, keys: Sequence[str]) -> dict[str, int]:
        return await asyncio.to_thread(versions_of, self.store, keys)

    def _halt(self, error: Damaged) -> None:
        log.error("projector.halted", code=error.code, reason=error.detail, **error.fields)
        self.halted = error
        self._unhalted.clear()
        self.freshness.halt(error)

    async def _start_over(self) -> None:
        self._applier = None
        await self.in_writer(self.store.start_over)
        self.started_over += 1
        self.freshness.resume()
