"""Giving up what finished tasks leave behind: results that nobody needs any more, and everything of a task that is erased.

The event comes first and the deletions follow, done by whoever wrote the event and once more by every scheduler that reads it
there; so a crash in between leaves nothing behind for good. All deletions may be done again. Of an erased task the message of
its first event goes last: while that is there, something may be left.

A scheduler also gives up results whose time is over, from what the log says of when each task finished. All times are those of
the broker's clock, which stamped the events: what a wrong clock here would give up early is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

import nats.errors
import structlog
from nats.js.errors import APIError, NotFoundError

from eventq.events.blobs import BlobStore
from eventq.events.commands import CleanTask, EraseTask
from eventq.events.envelope import NO_TRACE, Stored, Trace
from eventq.events.erasure import inputs_of, tombstone
from eventq.events.errors import (
    Conflict,
    EventqError,
    LogUnavailable,
    PayloadTooLarge,
    TaskErased,
    TaskNotFound,
)
from eventq.events.failpoints import failpoint
from eventq.events.handle import Handled, handle, read_task
from eventq.events.limits import EVENT_MAX_BYTES
from eventq.events.log import EventLog
from eventq.events.reader import Tail
from eventq.events.subjects import EVENTS, PROGRESS, progress_subject
from eventq.events.task import TERMINAL, Task, decide
from eventq.events.task_events import Erased
from eventq.services.follower import Fact, Follower
from eventq.services.side_by_side import side_by_side

log = structlog.get_logger("eventq.disposal")

SOURCE = "disposal"
PATIENCE_S = 5.0
"""For so long the deletions are left to whoever wrote the event."""

LATE_S = 300.0
"""So long after an erasure what was stored of the task since is deleted too. A worker that lost its lease goes on until it
hears of it, and makes files and reports progress that no event fences."""

SILENCE_S = 5.0
"""Messages that the broker said it has and does not send for so long were deleted meanwhile."""

RECENT_S = 7 * 24 * 3600.0
"""What was to be done for tasks so long before the last of its kind is taken to be done when a scheduler starts."""

InUse = Callable[[Sequence[str]], Awaitable[Collection[str]]]
"""Which of these blobs hold arguments of others than the task that is erased."""

_NOT_ANSWERED = (nats.errors.Error, APIError, TimeoutError)


async def clean(log_: EventLog, blobs: BlobStore, task_id: str, requested_by: str, trace: Trace = NO_TRACE) -> Task:
    """Give up the result, files and progress of a finished task; the task after it.

    Raises ``TaskNotFound``, or ``IllegalTransition`` while it is not finished.
    """
    command = CleanTask(requested_by, "requested")
    handled = await handle(log_, task_id, command, source="api", trace=trace)
    failpoint("clean.after_event")
    await dispose_files(log_, blobs, task_id)
    return handled.state


async def erase(
    log_: EventLog,
    blobs: BlobStore,
    task_id: str,
    requested_by: str,
    reason: str | None,
    in_use: InUse,
    trace: Trace = NO_TRACE,
) -> Handled[Task]:
    """Destroy all that a finished task carried: in the log, in the blob store, in its progress. Arguments that others were
    given as well, by reference to the same blob, stay for them.

    Raises ``TaskNotFound``, ``IllegalTransition`` while it is not finished, and ``PayloadTooLarge`` where its history is too
    long for what would have to be left of it.
    """
    task = await read_task(log_, task_id, fresh=True)
    if task.version == 0:
        raise TaskNotFound(task_id)
    decide(EraseTask(requested_by, reason, ()), task)  # refuses before anything is read
    history: list[Stored] = []
    try:
        if not task.erased:
            history = await _history(log_, task_id, task.version)
    except TaskErased:  # by somebody else, since it was read
        task = await read_task(log_, task_id, fresh=True)
        if not task.erased:
            raise
    if task.erased:
        await dispose_erased(log_, blobs, task_id)
        return Handled(task, None, None)
    left = [found for found in map(tombstone, history) if found is not None]
    inputs = sorted({key for stored in history for key in inputs_of(stored.event)})
    shared = set(await in_use(inputs)) if inputs else set[str]()
    command = EraseTask(requested_by, reason, tuple(left), tuple(key for key in inputs if key not in shared))
    try:
        handled = await handle(log_, task_id, command, source="api", trace=trace, task=task)
    except PayloadTooLarge as error:
        problem = f"has {len(left)} events to be erased: what is left of them does not fit into one of {EVENT_MAX_BYTES} bytes"
        raise PayloadTooLarge("task_id", problem, limit=EVENT_MAX_BYTES, found=error.fields.get("found")) from error
    failpoint("erase.after_event")
    await dispose_erased(log_, blobs, task_id)
    if shared:  # of those who share them, all may have been erased at once, each while it saw the others
        for key in shared.difference(await in_use(sorted(shared))):
            await blobs.delete_async(key)
    return handled


async def _history(log_: EventLog, task_id: str, version: int) -> list[Stored]:
    found: list[Stored] = []
    for number in range(1, version + 1):
        stored = await log_.at("tasks", task_id, number)
        if stored is None:
            raise TaskErased(task_id)
        found.append(stored)
    return found


async def dispose_files(log_: EventLog, blobs: BlobStore, task_id: str) -> None:
    """Delete the files that the task's attempts made, and its progress. Again is nothing. Raises ``Unavailable``."""
    await blobs.delete_outputs_async(task_id)
    try:
        await log_.broker.js.purge_stream(PROGRESS, subject=progress_subject(task_id))
    except _NOT_ANSWERED as error:
        raise LogUnavailable(f"progress could not be deleted: {error!r}") from error


async def dispose_erased(log_: EventLog, blobs: BlobStore, task_id: str) -> None:
    """Overwrite the messages of an erased task in the log and in PROGRESS, and delete its blobs. Again is nothing.

    Raises ``Unavailable`` where something may be left.
    """
    last = await log_.last("tasks", task_id, fresh=True)
    if last is None or not isinstance(last.event.data, Erased):
        return
    erased = last.event.data
    await _dispose_of_attempts(log_, blobs, task_id)
    if await _is_left(log_, task_id, erased):  # else a later task may have been given the very same bytes since
        for key in erased.blobs:
            await blobs.delete_async(key)
    failpoint("erase.before_messages")
    await _overwrite(log_, EVENTS, [left.position for left in reversed(erased.events)])


async def _dispose_of_attempts(log_: EventLog, blobs: BlobStore, task_id: str) -> None:
    """Delete the files of an erased task's attempts, and overwrite their progress."""
    await blobs.delete_outputs_async(task_id)
    await _overwrite(log_, PROGRESS, await _positions_of_progress(log_, task_id))


async def _is_left(log_: EventLog, task_id: str, erased: Erased) -> bool:
    """Whether the message that goes last is still there."""
    return bool(erased.events) and await log_.at("tasks", task_id, erased.events[0].event["version"]) is not None


async def _positions_of_progress(log_: EventLog, task_id: str) -> list[int]:
    subject, positions = progress_subject(task_id), list[int]()
    try:
        newest = await log_.broker.js.get_last_msg(PROGRESS, subject)
    except NotFoundError:
        return []
    except _NOT_ANSWERED as error:
        raise LogUnavailable(f"progress cannot be read: {error!r}") from error
    assert newest.seq is not None
    async with Tail(log_.broker, PROGRESS, after=0, subject=subject) as tail:
        while tail.position < newest.seq and (batch := await tail.next(timeout_s=SILENCE_S)):
            positions += [message.position for message in batch]
    return positions


async def _overwrite(log_: EventLog, stream: str, positions: Sequence[int]) -> None:
    """Delete messages such that their bytes are gone from the broker's files."""
    for position in positions:
        try:
            await log_.broker.js.delete_msg(stream, position)
        except (NotFoundError, *_NOT_ANSWERED) as error:
            if await _stands(log_, stream, position):  # the broker says the same where it must not delete and where it cannot
                raise LogUnavailable(f"message {position} of {stream} could not be deleted: {error!r}") from error


async def _stands(log_: EventLog, stream: str, position: int) -> bool:
    try:
        await log_.broker.js.get_msg(stream, position)
    except NotFoundError:
        return False
    except _NOT_ANSWERED as error:
        raise LogUnavailable(f"message {position} of {stream} cannot be looked for: {error!r}") from error
    return True


class Disposal:
    """The duty that finishes deletions and gives up results whose time is over. Memory grows with those that wait for it."""

    def __init__(self, event_log: EventLog, blobs: BlobStore) -> None:
        self._log = event_log
        self._blobs = blobs
        self.wake = asyncio.Event()
        self._expiring: dict[str, float] = {}
        """By task id: when its result is given up, in POSIX seconds of the broker's clock."""
        self._cleaned: dict[str, float] = {}
        self._erased: dict[str, float] = {}
        self._late: dict[str, float] = {}
        """By task id: when its event was stored, in POSIX seconds. ``_late``: erased, and to be looked at once more."""
        self.expired = 0

    def note(self, fact: Fact) -> None:
        """See :class:`Duty`."""
        if fact.kind != "tasks":
            return
        stored_at = fact.stored_ns / 1e9
        if fact.type == "erased":
            self._expiring.pop(fact.id, None)
            self._cleaned.pop(fact.id, None)
            self._erased[fact.id] = self._late[fact.id] = stored_at
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
        failures = await side_by_side(_due(self._erased, now - PATIENCE_S), self._complete_erasure)
        failures += await side_by_side(_due(self._late, now - LATE_S), self._erase_what_came_late)
        failures += await side_by_side(_due(self._cleaned, now - PATIENCE_S), self._complete_clean_up)
        failures += await side_by_side(_due(self._expiring, now), self._expire)
        if failures:
            raise failures[0][1]

    async def _complete_erasure(self, task_id: str) -> None:
        if await self._log.at("tasks", task_id, 1) is not None:
            await dispose_erased(self._log, self._blobs, task_id)
            log.info("disposal.completed", task_id=task_id)
        self._erased.pop(task_id, None)

    async def _erase_what_came_late(self, task_id: str) -> None:
        await _dispose_of_attempts(self._log, self._blobs, task_id)
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


def _due(at_of: dict[str, float], now: float) -> list[str]:
    """Those whose time has come."""
    return [task_id for task_id, at in at_of.items() if at <= now]


def _forget_before(stored: dict[str, float], at: float) -> None:
    """Forget those, in order of their time, that were stored earlier."""
    while (first := next(iter(stored), None)) is not None and stored[first] < at:
        del stored[first]
