"""Deleting what an ``erased`` event lists, such that no byte of it is left: in the log, in the blob store, in PROGRESS.

All of it may be done again. The message of the first event that is listed goes last: while that is there, something may be
left to be done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import NamedTuple

import nats.errors
from nats.js.errors import APIError, NotFoundError

from eventq.events.blobs import BlobStore
from eventq.events.envelope import Stored, decode
from eventq.events.errors import LogUnavailable
from eventq.events.failpoints import failpoint
from eventq.events.log import EventLog
from eventq.events.reader import Message, Tail
from eventq.events.subjects import EVENTS, PROGRESS, progress_subject
from eventq.events.task import TASKS
from eventq.events.task_events import Erased

SILENCE_S = 5.0
"""For so long the broker may send nothing of what it says it has."""

_NOT_ANSWERED = (nats.errors.Error, APIError, TimeoutError)


class Erasure(NamedTuple):
    """The ``erased`` event at one version of a history."""

    kind: str
    id: str
    version: int


async def complete(log: EventLog, blobs: BlobStore, erasure: Erasure) -> bool:
    """Do what is left to be done of an erasure; answers whether there was something. Raises ``Unavailable``."""
    erased = await read_erased(log, erasure)
    if erased is None or not await _is_left(log, erased):
        return False
    await dispose(log, blobs, erasure)
    return True


async def dispose(log: EventLog, blobs: BlobStore, erasure: Erasure) -> None:
    """Overwrite the messages that an ``erased`` event lists, of a task in PROGRESS too, and delete its blobs.

    Again is nothing. Raises ``Unavailable`` where something may be left.
    """
    erased = await read_erased(log, erasure)
    if erased is None:
        return
    if erasure.kind == TASKS.name:
        await dispose_of_attempts(log, blobs, erasure.id)
    if await _is_left(log, erased):  # else a later task may have been given the very same bytes since
        for key in erased.blobs:
            await blobs.delete_async(key)
    failpoint("erase.before_messages")
    await _overwrite(log, EVENTS, [left.position for left in reversed(erased.events)])


async def dispose_of_attempts(log: EventLog, blobs: BlobStore, task_id: str) -> None:
    """Delete the files of an erased task's attempts, and overwrite their progress. Again is nothing. Raises ``Unavailable``."""
    await blobs.delete_outputs_async(task_id)
    positions = [message.position async for message in _messages(log, PROGRESS, [progress_subject(task_id)])]
    await _overwrite(log, PROGRESS, positions)


async def read_erased(log: EventLog, erasure: Erasure) -> Erased | None:
    """Its data; ``None`` where no such event stands there."""
    stored = await log.at(erasure.kind, erasure.id, erasure.version)
    return stored.event.data if stored is not None and isinstance(stored.event.data, Erased) else None


async def _is_left(log: EventLog, erased: Erased) -> bool:
    """Whether the message that goes last is still there."""
    return bool(erased.events) and await _stands(log, EVENTS, erased.events[0].position)


async def events_under(log: EventLog, subjects: Sequence[str]) -> AsyncIterator[Stored]:
    """The events that stand under these subjects, oldest first."""
    async for message in _messages(log, EVENTS, subjects):
        yield Stored(message.position, decode(message.payload, message.subject))


async def _messages(log: EventLog, stream: str, subjects: Sequence[str]) -> AsyncIterator[Message]:
    """The messages that stand under these subjects, oldest first. Raises ``LogUnavailable``."""
    if await _newest(log, stream, subjects) == 0:
        return
    async with Tail(log.broker, stream, after=0, subject=subjects) as tail:
        while tail.position < await _newest(log, stream, subjects):  # asked again: the newest may be deleted meanwhile
            if not (batch := await tail.next(timeout_s=SILENCE_S)):
                if tail.position < await _newest(log, stream, subjects):
                    raise LogUnavailable(f"{stream} did not show all that it has of {subjects[0]} in {SILENCE_S:g} s")
                return
            for message in batch:
                yield message


async def _newest(log: EventLog, stream: str, subjects: Sequence[str]) -> int:
    """The position of the newest message under any of them; 0 where there is none."""
    newest = 0
    for subject in subjects:
        try:
            newest = max(newest, (await log.broker.js.get_last_msg(stream, subject)).seq or 0)
        except NotFoundError:
            continue
        except _NOT_ANSWERED as error:
            raise LogUnavailable(f"{stream} cannot be read: {error!r}") from error
    return newest


async def _overwrite(log: EventLog, stream: str, positions: Iterable[int]) -> None:
    """Delete messages such that their bytes are gone from the broker's files."""
    for position in positions:
        try:
            await log.broker.js.delete_msg(stream, position)
        except (NotFoundError, *_NOT_ANSWERED) as error:
            if await _stands(log, stream, position):  # the broker says the same where it must not delete and where it cannot
                raise LogUnavailable(f"message {position} of {stream} could not be deleted: {error!r}") from error


async def _stands(log: EventLog, stream: str, position: int) -> bool:
    try:
        await log.broker.js.get_msg(stream, position)
    except NotFoundError:
        return False
    except _NOT_ANSWERED as error:
        raise LogUnavailable(f"message {position} of {stream} cannot be looked for: {error!r}") from error
    return True
