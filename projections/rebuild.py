"""Fold the log again from its first event, beside the file in use: to replace it, or to prove it right.

A rebuild ends in one atomic rename; reads go on throughout and lose nothing. A verification compares: every row is reduced
to a digest, of the live file at one moment (its checkpoint) and of a file folded from the log up to that position. Where they
differ, the first difference is named, by position. Progress and log lines are not compared: their stream forgets. Nor is what
stood in rows that were erased after that moment: the log cannot tell any more.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog

from eventq.events.broker import Broker
from eventq.events.envelope import decode
from eventq.events.errors import Damaged, LogUnavailable, Unavailable
from eventq.events.reader import Message, Tail
from eventq.events.subjects import EVENTS, PROGRESS
from eventq.projections.applier import Applied, Applier
from eventq.projections.log_check import check_events, facts_of, first_checkpoint, last_progress
from eventq.projections.projector import Projector
from eventq.projections.store import Difference, Rebuild, Store
from eventq.projections.tombstones import Tombstones

BATCH_MIN, BATCH_MAX = 4_096, 16_384
"""Messages in one transaction of a rebuild: more than in the projector's, because nobody waits for the commit."""

SILENCE_MAX_S = 30.0
"""A log that should have more messages and shows none for so long is given up."""

QUIET_S = 5.0
"""After an erasure the file is made anew when so much time has passed."""

T = TypeVar("T")

log = structlog.get_logger("eventq.rebuild")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did. ``position``: up to where in EVENTS; ``messages``: of both streams; ``seconds``: of wall time."""

    position: int
    messages: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification found. ``tables``: rows and hash of each live table; ``differences``: the first of each table."""

    position: int
    seconds: float
    tables: dict[str, tuple[int, str]]
    differences: list[Difference]

    @property
    def equal(self) -> bool:
        """Whether the live tables are the fold of the log."""
        return not self.differences


async def rebuild_live(projector: Projector) -> Rebuilt:
    """Rebuild the file of a running (or halted) projector and make it the current one. Reads go on and lose nothing.

    Raises ``LogDamaged`` or ``UnknownEvent`` where the log cannot be folded; the file in use stays then.
    """
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        rebuild = projector.store.new_rebuild()
        stack.callback(rebuild.discard)
        replayer = await stack.enter_async_context(Replayer(projector.broker, rebuild))
        messages = await replayer.replay_all()
        async with projector.paused() as applier:
            messages += await replayer.replay_to(EVENTS, applier.checkpoints[EVENTS].position)
            messages += await replayer.replay_to(PROGRESS, applier.checkpoints[PROGRESS].position)
            await replayer.close()
            await projector.adopt(rebuild)
            position = projector.freshness.position
    return Rebuilt(position, messages, time.monotonic() - started)


async def rebuild_after_erasures(projector: Projector, *, quiet_s: float = QUIET_S) -> None:
    """Make the file anew whenever something was erased: what DuckDB deletes it only marks as free, and its bytes stay in the
    file until something else needs the place. Run it until it is cancelled."""
    while True:
        await projector.erased.wait()
        await asyncio.sleep(quiet_s)  # several tasks are often erased together
        projector.erased.clear()
        try:
            rebuilt = await rebuild_live(projector)
            async with projector.paused():
                if not projector.erased.is_set():
                    await projector.in_writer(projector.store.forget_erasures)
        except (Unavailable, Damaged) as error:
            log.warning("projection.not_made_anew_yet", reason=error.detail)
            projector.erased.set()
            continue
        log.info("projection.made_anew", after="erasure", messages=rebuilt.messages, seconds=round(rebuilt.seconds, 3))


async def rebuild_offline(folder: Path, broker: Broker) -> Rebuilt:
    """Rebuild the file of a projector that does not run. Raises ``ProjectionBusy`` where one does."""
    started = time.monotonic()
    store = Store.open(folder)
    try:
        async with AsyncExitStack() as stack:
            rebuild = store.new_rebuild()
            stack.callback(rebuild.discard)
            replayer = await stack.enter_async_context(Replayer(broker, rebuild))
            messages = await replayer.replay_all()
            await replayer.close()
            store.replace(rebuild)
        if store.erasure_noted:
            store.forget_erasures()
        with store.read() as snapshot:
            position = snapshot.position
    finally:
        store.close()
    return Rebuilt(position, messages, time.monotonic() - started)


async def verify(store: Store, broker: Broker) -> Verified:
    """Fold the log up to the store's checkpoint into a file aside and compare every table that derives from EVENTS.

    Works beside a running projector: the live side is the state of one moment. Raises what a rebuild raises.
    """
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        rebuild = store.new_rebuild()
        stack.callback(rebuild.discard)
        position = await asyncio.to_thread(store.take_digests, rebuild)
        replayer = await stack.enter_async_context(Replayer(broker, rebuild))
        await replayer.replay_to(EVENTS, position)
        tables, differences = await replayer.in_thread(partial(rebuild.compare, replayer.rows_erased_after(position)))
    return Verified(position, time.monotonic() - started, tables, differences)


class Replayer:
    """Folds the log into one file, in a thread of its own, so that receiving and writing overlap. What was erased before it
    began does not come into the file, also where its deletion from the log has yet to be completed."""

    def __init__(self, broker: Broker, rebuild: Rebuild) -> None:
        self._broker = broker
        self._rebuild = rebuild
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rebuild")
        self._tombstones = Tombstones(broker)
        self._applier: Applier | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the thread; the file stays as it is."""
        await asyncio.to_thread(self._thread.shutdown)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the writing thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def rows_erased_after(self, position: int) -> dict[str, list[str]]:
        """By table, the keys of rows that an erasure after ``position`` emptied here."""
        emptied: defaultdict[str, list[str]] = defaultdict(list)
        for left in self._tombstones.erased_after(position):
            event = decode(left.payload, left.subject)
            emptied["events"].append(str(left.position))
            emptied[event.aggregate].append(event.aggregate_id)  # its table is called like its kind
            emptied["attempts"].append(f"{event.aggregate_id} attempt {event.attempt}")
        return emptied

    async def replay_all(self) -> int:
        """Apply both streams up to where they end now. Answers how many messages that were."""
        return await self.replay_to(EVENTS, await self._end(EVENTS)) + await self.replay_to(PROGRESS, await self._end(PROGRESS))

    async def replay_to(self, stream: str, until: int) -> int:
        """Apply ``stream`` from where it stands up to position ``until`` or its end. Answers how many messages that were."""
        applier = await self._begun()
        after = applier.checkpoints[stream].position
        until = min(until, await self._end(stream)) if until > after else until
        if until <= after:
            return 0
        async with Tail(self._broker, stream, after=after) as tail:
            return await self._pipe(applier, stream, tail, until)

    async def _pipe(self, applier: Applier, stream: str, tail: Tail, until: int) -> int:
        """Receive the next batch while the thread writes the one before."""
        applied, waiting, taken = 0, list[Message](), tail.position
        writing: asyncio.Task[Applied] | None = None
        while waiting or tail.position < until:
            if tail.position < until:
                waiting += [message for message in await _next(tail) if message.position <= until]
            done = tail.position >= until
            idle = writing is None or writing.done()
            if not (done or len(waiting) >= BATCH_MAX or (idle and len(waiting) >= BATCH_MIN)):
                continue
            if stream == EVENTS:
                waiting = self._tombstones.instead(await self._tombstones.fill(taken, waiting, until if done else None))
            taken = until if done else waiting[-1].position
            if writing is not None:
                await writing
            applied += len(waiting)
            events, reports = (waiting, []) if stream == EVENTS else ([], waiting)
            writing = asyncio.create_task(self.in_thread(partial(applier.apply, events, reports)))
            waiting = []
        if writing is not None:
            await writing
        return applied

    async def _end(self, stream: str) -> int:
        """The position of the newest message that there is: of PROGRESS the newest may have been deleted."""
        if stream == PROGRESS:
            return await last_progress(self._broker)
        return (await facts_of(self._broker, stream)).last

    async def _begun(self) -> Applier:
        if self._applier is None:
            applier = await self.in_thread(lambda: Applier(self._rebuild))
            for stream in (EVENTS, PROGRESS):
                await self.in_thread(partial(applier.begin, stream, await first_checkpoint(self._broker, stream)))
            await check_events(self._broker, applier.checkpoints[EVENTS], self._tombstones)
            await self._tombstones.read()
            self._applier = applier
        return self._applier


async def _next(tail: Tail) -> list[Message]:
    batch = await tail.next(timeout_s=SILENCE_MAX_S)
    if not batch:
        raise LogUnavailable(f"the log showed nothing after position {tail.position} for {SILENCE_MAX_S:g} s")
    return batch
