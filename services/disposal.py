"""Giving up what finished tasks leave behind: the duty that finishes deletions, and results that nobody needs any more.

The event comes first and the deletions follow, done by whoever wrote the event and once more by every scheduler that reads it
there; so a crash in between leaves nothing behind for good. All deletions may be done again. What an erasure deletes has a file
of its own (``overwriting``).

A scheduler also gives up results whose time is over, from what the log says of when each task finished. All times are those of
the broker's clock, which stamped the events: what a wrong clock here would give up early is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeVar

import nats.errors
import structlog
from nats.js.errors import APIError

from eventq.events.blobs import BlobStore
from eventq.events.commands import CleanTask
from eventq.events.envelope import NO_TRACE, Trace
from eventq.events.errors import Conflict, EventqError, LogUnavailable, TaskNotFound
from eventq.events.failpoints import failpoint
from eventq.events.handle import handle
from eventq.events.log import EventLog
from eventq.events.subjects import PROGRESS, progress_subject
from eventq.events.task import TERMINAL, Task
from eventq.services.follower import Fact, Follower
from eventq.services.overwriting import Erasure, complete, dispose_of_attempts
from eventq.services.side_by_side import side_by_side

log = structlog.get_logger("eventq.disposal")

SOURCE = "disposal"
PATIENCE_S = 5.0
"""For so long the deletions are left to whoever wrote the event."""

LATE_S = 300.0
"""So long after an erasure what was stored of the task since is deleted too. A worker that lost its lease goes on until it
hears of it, and makes files and reports progress that no event fences."""

RECENT_S = 7 * 24 * 3600.0
"""What was to be done for tasks so long before the last of its kind is taken to be done when a scheduler starts."""

_NOT_ANSWERED = (nats.errors.Error, APIError, TimeoutError)

K = TypeVar("K", str, Erasure)


async def clean(log_: EventLog, blobs: BlobStore, task_id: str, requested_by: str, trace: Trace = NO_TRACE) -> Task:
    """Give up the result, files and progress of a finished task; the task after it.

    Raises ``TaskNotFound``, or ``IllegalTransition`` while it is not finished.
    """
    command = CleanTask(requested_by, "requested")
    handled = await handle(log_, task_id, command, source="api", trace=trace)
    failpoint("clean.after_event")
    await dispose_files(log_, blobs, task_id)
    return handled.state


async def dispose_files(log_: EventLog, blobs: BlobStore, task_id: str) -> None:
    """Delete the files that the task's attempts made, and its progress. Again is nothing. Raises ``Unavailable``."""
    await blobs.delete_outputs_async(task_id)
    try:
        await log_.broker.js.purge_stream(PROGRESS, subject=progress_subject(task_id))
    except _NOT_ANSWERED as error:
        raise LogUnavailable(f"progress could not be deleted: {error!r}") from error


class Disposal:
    """The duty that finishes deletions and gives up results whose time is over. Memory grows with those that wait for it."""

    def __init__(self, event_log: EventLog, blobs: BlobStore) -> None:
        self._log = event_log
        self._blobs = blobs
        self.wake = asyncio.Event()
        self._expiring: dict[str, float] = {}
        """By task id: when its result is given up, in POSIX seconds of the broker's clock."""
        self._cleaned: dict[str, float] = {}
        self._late: dict[str, float] = {}
        """By task id: when its event was stored, in POSIX seconds. ``_late``: erased, and to be looked at once more."""
        self._erased: dict[Erasure, float] = {}
        self.expired = 0

    def note(self, fact: Fact) -> None:
        """See :class:`Duty`."""
        stored_at = fact.stored_ns / 1e9
        if fact.type == "erased":
            self._erased[Erasure(fact.kind, fact.id, fact.version)] = stored_at
        if fact.kind != "tasks":
            return
        if fact.type == "erased":
            self._expiring.pop(fact.id, None)
            self._cleaned.pop(fact.id, None)
            self._late[fact.id] = stored_at
            _forget_before(self._late, stored_at - RECENT_S)
        elif fact.type == "cleaned":
            self._expiring.pop(fact.id, None)
            self._cleaned[fact.id] = stored_at
            _forget_before(self._cleaned, stored_at - RECENT_S)
        elif (ttl_s := fact.state.get("result_ttl_s")) is not None and fact.state["status"] in TERMINAL:
            self._expiring[fact.id] = stored_at + ttl_s

    async def run(self, follower: Follower) -> None:
        """Look once a second, whenever all of the log has been seen. Run it until it is cancelled."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            await follower.until_caught_up()
            try:
                await self.act()
            except (EventqError, *_NOT_ANSWERED) as error:
                log.warning("disposal.waiting", error=repr(error))
                await asyncio.sleep(1)

    async def act(self) -> None:
        """Do what is due, whatever becomes of the others. Raises what kept it from something; that is done again."""
        if not (self._cleaned or self._erased or self._late or self._expiring):
            return
        now = (await self._log.broker.time()).timestamp()
        failures = [
            *await side_by_side(_due(self._erased, now - PATIENCE_S), self._complete_erasure),
            *await side_by_side(_due(self._late, now - LATE_S), self._erase_what_came_late),
            *await side_by_side(_due(self._cleaned, now - PATIENCE_S), self._complete_clean_up),
            *await side_by_side(_due(self._expiring, now), self._expire),
        ]
        if failures:
            raise failures[0][1]

    async def _complete_erasure(self, erasure: Erasure) -> None:
        if await complete(self._log, self._blobs, erasure):
            log.info("disposal.completed", of=erasure.kind, id=erasure.id)
        self._erased.pop(erasure, None)

    async def _erase_what_came_late(self, task_id: str) -> None:
        await dispose_of_attempts(self._log, self._blobs, task_id)
        self._late.pop(task_id, None)

    async def _complete_clean_up(self, task_id: str) -> None:
        await dispose_files(self._log, self._blobs, task_id)
        self._cleaned.pop(task_id, None)

    async def _expire(self, task_id: str) -> None:
        try:
            await handle(self._log, task_id, CleanTask("eventq", "result_ttl"), source=SOURCE)
            self.expired += 1
        except (Conflict, TaskNotFound):
            pass  # somebody was first
        self._expiring.pop(task_id, None)


def _due(at_of: Mapping[K, float], now: float) -> list[K]:
    """Those whose time has come."""
    return [key for key, at in at_of.items() if at <= now]


def _forget_before(stored: dict[str, float], at: float) -> None:
    """Forget those, in order of their time, that were stored earlier."""
    while (first := next(iter(stored), None)) is not None and stored[first] < at:
        del stored[first]
