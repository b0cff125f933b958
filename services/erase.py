"""Destroying what a finished task carried: in the log, in the blob store, in its progress, and with who gave it its arguments.

The ``erased`` event comes first: it holds what is left of each event whose message is deleted then. A scheduler completes what
a crash leaves (``disposal``); the message of the first event that is listed goes last: while that is there, something may be
left. All deletions may be done again.

A workflow and a schedule hold in their own events what they give their tasks. So theirs are emptied before the task's; which
is refused while they may need it yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import nats.errors
import orjson
from nats.js.errors import APIError, NotFoundError

from eventq.events.aggregate import Aggregate, S
from eventq.events.blobs import BlobStore
from eventq.events.commands import EraseTask
from eventq.events.data import BlobRef, EventData
from eventq.events.envelope import NO_TRACE, Stored, Trace, decode, encode, next_event
from eventq.events.erasure import definition_left, inputs_of, left_at, tombstone
from eventq.events.errors import BlobNotFound, IllegalTransition, LogUnavailable, PayloadTooLarge, TaskErased, TaskNotFound
from eventq.events.failpoints import failpoint
from eventq.events.handle import Handled, handle, handle_any, read_state, read_task
from eventq.events.limits import EVENT_MAX_BYTES
from eventq.events.log import EventLog
from eventq.events.reader import Message, Tail
from eventq.events.schedule import SCHEDULES, EraseSchedule, ScheduleStatus
from eventq.events.subjects import EVENTS, PROGRESS, aggregate_filter, progress_subject, type_filter
from eventq.events.task import TASKS, Task, decide
from eventq.events.task_events import Erased, ErasedEvent, Submitted
from eventq.events.workflow import WORKFLOWS, EraseWorkflow, decide_workflow
from eventq.events.workflow_events import WorkflowCreated
from eventq.services.definitions import encode_definition, read_definition, store_definition
from eventq.services.schedules import read_schedule

SOURCE = "api"

SILENCE_S = 5.0
"""Messages that the broker said it has and does not send for so long were deleted meanwhile."""

LEFT_MAX_BYTES = EVENT_MAX_BYTES // 2
"""What is left of the events of a workflow or schedule that one of its ``erased`` events tells of: as JSON."""

_NOT_ANSWERED = (nats.errors.Error, APIError, TimeoutError)

InUse = Callable[[Sequence[str], str], Awaitable[Collection[str]]]
"""Which of these blobs are others' as well, beside the task, workflow or schedule of that id."""


class Erasure(NamedTuple):
    """The ``erased`` event at one version of a history."""

    kind: str
    id: str
    version: int


class _Left(NamedTuple):
    """What is to be left of a giver's event, and the keys of blobs that nothing of it refers to any more."""

    event: ErasedEvent
    blobs: list[str]


@dataclass(frozen=True, slots=True)
class Asked:
    """Who wants it, and why: both stay in the log."""

    requested_by: str
    reason: str | None = None
    trace: Trace = NO_TRACE


async def erase(log: EventLog, blobs: BlobStore, task_id: str, asked: Asked, in_use: InUse) -> Handled[Task]:
    """Destroy all that a finished task carried. Arguments that others were given as well, by reference to the same blob, stay
    for them.

    Raises ``TaskNotFound``, ``IllegalTransition`` while it is not finished or may be given to other tasks yet, and
    ``PayloadTooLarge`` where its history is too long for what would have to be left of it; then nothing is erased.
    """
    task = await read_task(log, task_id, fresh=True)
    if task.version == 0:
        raise TaskNotFound(task_id)
    decide(EraseTask(asked.requested_by, asked.reason, ()), task)  # refuses before anything is read
    history: list[Stored] = []
    try:
        if not task.erased:
            history = await _history(log, task_id, task.version)
    except TaskErased:  # by somebody else, since it was read
        task = await read_task(log, task_id, fresh=True)
        if not task.erased:
            raise
    if task.erased:
        await _erase_again(log, blobs, Erasure(TASKS.name, task_id, task.version), asked, in_use)
        return Handled(task, None, None)
    left = [found for found in map(tombstone, history) if found is not None]
    inputs = sorted({key for stored in history for key in inputs_of(stored.event)})
    shared = set(await in_use(inputs, task_id)) if inputs else set[str]()
    kept_by_nobody = tuple(key for key in inputs if key not in shared)
    command = EraseTask(asked.requested_by, asked.reason, tuple(left), kept_by_nobody)
    _check_size(task_id, task, command)
    await _empty_givers(log, blobs, history[0].event.data, asked, in_use)
    handled = await handle(log, task_id, command, source=SOURCE, trace=asked.trace, task=task)
    failpoint("erase.after_event")
    await dispose(log, blobs, Erasure(TASKS.name, task_id, handled.state.version))
    if shared:  # of those who share them, all may have been erased at once, each while it saw the others
        for key in shared.difference(await in_use(sorted(shared), task_id)):
            await blobs.delete_async(key)
    return handled


async def complete(log: EventLog, blobs: BlobStore, erasure: Erasure) -> bool:
    """Do what is left to be done of an erasure; answers whether there was something. Raises ``Unavailable``."""
    erased = await _read_erased(log, erasure)
    if erased is None or not await _is_left(log, erasure, erased):
        return False
    await dispose(log, blobs, erasure)
    return True


async def dispose(log: EventLog, blobs: BlobStore, erasure: Erasure) -> None:
    """Overwrite the messages that an ``erased`` event lists, of a task in PROGRESS too, and delete its blobs.

    Again is nothing. Raises ``Unavailable`` where something may be left.
    """
    erased = await _read_erased(log, erasure)
    if erased is None:
        return
    if erasure.kind == TASKS.name:
        await dispose_of_attempts(log, blobs, erasure.id)
    if await _is_left(log, erasure, erased):  # else a later task may have been given the very same bytes since
        for key in erased.blobs:
            await blobs.delete_async(key)
    failpoint("erase.before_messages")
    await _overwrite(log, EVENTS, [left.position for left in reversed(erased.events)])


async def dispose_of_attempts(log: EventLog, blobs: BlobStore, task_id: str) -> None:
    """Delete the files of an erased task's attempts, and overwrite their progress. Again is nothing. Raises ``Unavailable``."""
    await blobs.delete_outputs_async(task_id)
    positions = [message.position async for message in _messages(log, PROGRESS, [progress_subject(task_id)])]
    await _overwrite(log, PROGRESS, positions)


async def _history(log: EventLog, task_id: str, version: int) -> list[Stored]:
    found: list[Stored] = []
    for number in range(1, version + 1):
        stored = await log.at(TASKS.name, task_id, number)
        if stored is None:
            raise TaskErased(task_id)
        found.append(stored)
    return found


def _check_size(task_id: str, task: Task, command: EraseTask) -> None:
    """Raise ``PayloadTooLarge`` where the event would be, before anything is done."""
    event, _ = next_event(TASKS, task_id, task, decide(command, task)[0], source=SOURCE, at=datetime.now(UTC))
    try:
        encode(event)
    except PayloadTooLarge as error:
        problem = (
            f"has {len(command.events)} events to be erased: what is left of them does not fit into one of "
            f"{EVENT_MAX_BYTES} bytes"
        )
        raise PayloadTooLarge("task_id", problem, limit=EVENT_MAX_BYTES, found=error.fields.get("found")) from error


async def _erase_again(log: EventLog, blobs: BlobStore, erasure: Erasure, asked: Asked, in_use: InUse) -> None:
    """Make sure that nothing is left."""
    erased = await _read_erased(log, erasure)
    given = None if erased is None else left_at(TASKS.name, erased, 1)
    await _empty_givers(log, blobs, given, asked, in_use)
    await dispose(log, blobs, erasure)


async def _empty_givers(log: EventLog, blobs: BlobStore, given: EventData | None, asked: Asked, in_use: InUse) -> None:
    """Destroy what the workflow or the schedule holds that gave the task ``given``."""
    if not isinstance(given, Submitted):
        return
    if given.workflow_id is not None and given.node is not None:
        await _empty_workflow(log, blobs, given.workflow_id, asked, in_use)
    if given.schedule_id is not None:
        await _empty_schedule(log, blobs, given.schedule_id, given, asked, in_use)


async def _empty_workflow(log: EventLog, blobs: BlobStore, workflow_id: str, asked: Asked, in_use: InUse) -> None:
    workflow = await read_state(log, WORKFLOWS, workflow_id, fresh=True)
    decide_workflow(EraseWorkflow(asked.requested_by, asked.reason, ()), workflow)  # refuses before anything is read
    left: list[_Left] = []
    async for stored in _events(log, [aggregate_filter(WORKFLOWS.name, workflow_id)]):
        held, kept = await _definitions(blobs, stored.event.data)
        if (remains := tombstone(stored, kept)) is not None:
            left.append(_Left(remains, [] if held is None or held == kept else [held.key]))
    await _append_and_dispose(log, blobs, WORKFLOWS, workflow_id, EraseWorkflow, left, asked, in_use)


async def _definitions(blobs: BlobStore, data: EventData) -> tuple[BlobRef | None, BlobRef | None]:
    """Where the definition lies that the event refers to, and where what is to be left of it does."""
    if not isinstance(data, WorkflowCreated) or data.stored is None:
        return None, None
    try:
        definition = await read_definition(blobs, data)
    except BlobNotFound:
        return data.stored, data.stored  # it is gone already
    return data.stored, await store_definition(blobs, encode_definition(definition_left(definition)))


async def _empty_schedule(
    log: EventLog, blobs: BlobStore, schedule_id: str, given: Submitted, asked: Asked, in_use: InUse
) -> None:
    schedule = await read_schedule(log, schedule_id, fresh=True)
    deleted = schedule.status is ScheduleStatus.DELETED
    if not deleted and _same_arguments(schedule.required_spec.task, given):
        raise IllegalTransition(
            f"schedule {schedule_id} still gives its tasks these arguments: delete it, or change them, first",
            status=schedule.status.value,
        )
    left: list[_Left] = []
    async for stored in _events(log, [type_filter(SCHEDULES.name, schedule_id, name) for name in ("created", "updated")]):
        past = deleted or stored.event.version < schedule.spec_version
        if past and (remains := tombstone(stored)) is not None:
            left.append(_Left(remains, inputs_of(stored.event)))
    await _append_and_dispose(log, blobs, SCHEDULES, schedule_id, EraseSchedule, left, asked, in_use)


async def _append_and_dispose(
    log: EventLog,
    blobs: BlobStore,
    kind: Aggregate[S],
    giver_id: str,
    command: type[EraseWorkflow | EraseSchedule],
    left: Sequence[_Left],
    asked: Asked,
    in_use: InUse,
) -> None:
    """Say what is left of a giver's events, in as many events as that takes, and delete the rest."""
    keys = sorted({key for each in left for key in each.blobs})
    shared = set(await in_use(keys, giver_id)) if keys else set[str]()
    for batch in _batches(left):
        gone = sorted({key for each in batch for key in each.blobs} - shared)
        erases = command(asked.requested_by, asked.reason, tuple(each.event for each in batch), tuple(gone))
        handled = await handle_any(log, kind, giver_id, erases, source=SOURCE, trace=asked.trace)
        failpoint("erase.after_giver")
        await dispose(log, blobs, Erasure(kind.name, giver_id, handled.state.version))


def _same_arguments(one: Submitted, two: Submitted) -> bool:
    """Whether both have the same ones, and any."""
    return bool(one.args or one.kwargs or one.input) and (one.args, one.kwargs, one.input) == (two.args, two.kwargs, two.input)


def _batches(left: Sequence[_Left]) -> Iterator[tuple[_Left, ...]]:
    """As many as fit into one event, the newest first; each batch from its oldest on."""
    batch: list[_Left] = []
    size = 0
    for each in reversed(left):
        length = len(orjson.dumps(each.event.event))
        if batch and size + length > LEFT_MAX_BYTES:
            yield tuple(reversed(batch))
            batch, size = [], 0
        batch.append(each)
        size += length
    if batch:
        yield tuple(reversed(batch))


async def _read_erased(log: EventLog, erasure: Erasure) -> Erased | None:
    stored = await log.at(erasure.kind, erasure.id, erasure.version)
    return stored.event.data if stored is not None and isinstance(stored.event.data, Erased) else None


async def _is_left(log: EventLog, erasure: Erasure, erased: Erased) -> bool:
    """Whether the message that goes last is still there."""
    return bool(erased.events) and await log.at(erasure.kind, erasure.id, erased.events[0].event["version"]) is not None


async def _events(log: EventLog, subjects: Sequence[str]) -> AsyncIterator[Stored]:
    """The events that stand under these subjects, oldest first."""
    async for message in _messages(log, EVENTS, subjects):
        yield Stored(message.position, decode(message.payload, message.subject))


async def _messages(log: EventLog, stream: str, subjects: Sequence[str]) -> AsyncIterator[Message]:
    """The messages that stand under these subjects, oldest first. Raises ``LogUnavailable``."""
    newest = max([await _newest(log, stream, subject) for subject in subjects])
    async with Tail(log.broker, stream, after=0, subject=subjects) as tail:
        while tail.position < newest and (batch := await tail.next(timeout_s=SILENCE_S)):
            for message in batch:
                yield message


async def _newest(log: EventLog, stream: str, subject: str) -> int:
    """The position of the newest message under it; 0 where there is none."""
    try:
        return (await log.broker.js.get_last_msg(stream, subject)).seq or 0
    except NotFoundError:
        return 0
    except _NOT_ANSWERED as error:
        raise LogUnavailable(f"{stream} cannot be read: {error!r}") from error


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
