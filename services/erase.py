"""Destroying what a finished task carried: in the log, in the blob store, in its progress, and with who gave it its arguments.

The ``erased`` event comes first: it holds what is left of each event whose message is deleted then (``overwriting``). A
scheduler completes what a crash leaves (``disposal``).

A workflow and a schedule hold in their own events what they give their tasks. So theirs are emptied before the task's; which
is refused while they may need it yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

import orjson

from eventq.events.aggregate import Aggregate, S
from eventq.events.blobs import BlobStore
from eventq.events.commands import EraseTask
from eventq.events.data import BlobRef, EventData
from eventq.events.envelope import NO_TRACE, Stored, Trace, encode, next_event
from eventq.events.erasure import definition_left, inputs_of, left_at, tombstone
from eventq.events.errors import (
    BlobDamaged,
    BlobNotFound,
    IllegalTransition,
    LogDamaged,
    LogUnavailable,
    PayloadTooLarge,
    TaskNotFound,
    VersionConflict,
)
from eventq.events.failpoints import failpoint
from eventq.events.handle import CONFLICTS_MAX, Handled, handle, handle_any, read_state, read_task
from eventq.events.limits import EVENT_MAX_BYTES
from eventq.events.log import EventLog
from eventq.events.schedule import SCHEDULES, EraseSchedule, Schedule, ScheduleStatus
from eventq.events.subjects import aggregate_filter, type_filter
from eventq.events.task import TASKS, Task, decide
from eventq.events.task_events import Erased, ErasedEvent, Submitted
from eventq.events.workflow import WORKFLOWS, EraseWorkflow, Workflow, decide_workflow
from eventq.events.workflow_events import Definition, WorkflowCreated
from eventq.projections.fold import version_key
from eventq.services.definitions import encode_definition, read_stored, store_definition
from eventq.services.overwriting import Erasure, complete, dispose, events_under, read_erased
from eventq.services.schedules import read_schedule

C = TypeVar("C", EraseWorkflow, EraseSchedule)

SOURCE = "api"

LEFT_MAX_BYTES = EVENT_MAX_BYTES // 2
"""What is left of the events of a workflow or schedule that one of its ``erased`` events tells of: as JSON."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What the projection is asked and told. ``in_use``: which of these blobs hold arguments of others than the task or
    schedule of that id; ``note_write``: that a history, by its key, has reached a version."""

    in_use: Callable[[Sequence[str], str], Awaitable[Collection[str]]]
    note_write: Callable[[str, int], None]

    async def shared(self, keys: Sequence[str], besides: str) -> set[str]:
        """Those of these blobs that must stay."""
        return set(await self.in_use(keys, besides)) if keys else set()

    async def delete_unshared(self, blobs: BlobStore, shared: set[str], besides: str) -> None:
        """Of those that others had as well all may have been erased at once, each while it saw the others: look once more."""
        for key in shared.difference(await self.shared(sorted(shared), besides)):
            await blobs.delete_async(key)


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


async def erase(log: EventLog, blobs: BlobStore, task_id: str, asked: Asked, tables: Tables) -> Handled[Task]:
    """Destroy all that a finished task carried. Arguments that others were given as well, by reference to the same blob, stay
    for them.

    Raises ``TaskNotFound``, ``IllegalTransition`` while it is not finished or may be given to other tasks yet, and
    ``PayloadTooLarge`` where its history is too long for what would have to be left of it: then nothing is erased. After
    ``Unavailable`` something may be: ask again.
    """
    task = await read_task(log, task_id, fresh=True)
    if task.version == 0:
        raise TaskNotFound(task_id)
    decide(EraseTask(asked.requested_by, asked.reason, ()), task)  # refuses before anything is read
    history = await _history(log, task_id, task)
    if history is None:
        return await _erase_again(log, blobs, task_id, asked, tables)
    left = [found for found in map(tombstone, history) if found is not None]
    inputs = sorted({key for stored in history for key in inputs_of(stored.event)})
    shared = await tables.shared(inputs, task_id)
    kept_by_nobody = tuple(key for key in inputs if key not in shared)
    command = EraseTask(asked.requested_by, asked.reason, tuple(left), kept_by_nobody)
    _check_size(task_id, task, command)
    await _empty_givers(log, blobs, history[0].event.data, asked, tables)
    handled = await handle(log, task_id, command, source=SOURCE, trace=asked.trace, task=task)
    failpoint("erase.after_event")
    await dispose(log, blobs, Erasure(TASKS.name, task_id, handled.state.version))
    await tables.delete_unshared(blobs, shared, task_id)
    return handled


async def _history(log: EventLog, task_id: str, task: Task) -> list[Stored] | None:
    """All its events; ``None`` where it is erased, be it only since ``task`` was read."""
    found: list[Stored] = []
    for number in range(1, task.version + 1):
        stored = None if task.erased else await log.at(TASKS.name, task_id, number)
        if stored is None:
            return None
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


async def _erase_again(log: EventLog, blobs: BlobStore, task_id: str, asked: Asked, tables: Tables) -> Handled[Task]:
    """Make sure that nothing is left."""
    task = await read_task(log, task_id, fresh=True)
    erasure = Erasure(TASKS.name, task_id, task.version)
    erased = await read_erased(log, erasure)
    if erased is None:
        raise LogDamaged(f"task {task_id} lacks events, and is not erased", task_id=task_id)
    first = await log.at(TASKS.name, task_id, 1)  # stays where it carried nothing
    given = left_at(TASKS.name, erased, 1) if first is None else first.event.data
    await _empty_givers(log, blobs, given, asked, tables)
    await dispose(log, blobs, erasure)
    return Handled(task, None, None)


async def _empty_givers(log: EventLog, blobs: BlobStore, given: EventData | None, asked: Asked, tables: Tables) -> None:
    """Destroy what the workflow or the schedule holds that gave the task ``given``."""
    if not isinstance(given, Submitted):
        return
    if given.workflow_id is not None and given.node is not None:  # else a task of it spawned this one, and gave the arguments
        await _empty_workflow(log, blobs, given.workflow_id, asked, tables)
    if given.schedule_id is not None:
        await _empty_schedule(log, blobs, given.schedule_id, given, asked, tables)


async def _empty_workflow(log: EventLog, blobs: BlobStore, workflow_id: str, asked: Asked, tables: Tables) -> None:
    async def look() -> _Giver[Workflow, EraseWorkflow]:
        workflow = await read_state(log, WORKFLOWS, workflow_id, fresh=True)
        decide_workflow(EraseWorkflow(asked.requested_by, asked.reason, ()), workflow)  # refuses before anything is read
        giver = _Giver(WORKFLOWS, workflow_id, workflow, EraseWorkflow)
        async for stored in events_under(log, [aggregate_filter(WORKFLOWS.name, workflow_id)]):
            held = stored.event.data.stored if isinstance(stored.event.data, WorkflowCreated) else None
            definition = None if held is None else await _definition_left(blobs, workflow_id, held)
            giver.add(stored, tombstone(stored, definition), [] if held is None or held == definition else [held.key])
        return giver

    await _empty(log, blobs, look, asked, tables)


async def _definition_left(blobs: BlobStore, workflow_id: str, held: BlobRef) -> BlobRef:
    """Where what is to be left of a stored definition lies: its structure, as far as it can be read."""
    try:
        definition = await read_stored(blobs, held)
    except (BlobNotFound, BlobDamaged):
        definition = Definition(nodes=[])
    return await store_definition(blobs, workflow_id, encode_definition(definition_left(definition)))


async def _empty_schedule(
    log: EventLog, blobs: BlobStore, schedule_id: str, given: Submitted, asked: Asked, tables: Tables
) -> None:
    async def look() -> _Giver[Schedule, EraseSchedule]:
        schedule = await read_schedule(log, schedule_id, fresh=True)
        deleted = schedule.status is ScheduleStatus.DELETED
        if not deleted and _same_arguments(schedule.required_spec.task, given):
            raise IllegalTransition(
                f"schedule {schedule_id} still gives its tasks these arguments: delete it, or change them, first",
                status=schedule.status.value,
            )
        giver = _Giver(SCHEDULES, schedule_id, schedule, EraseSchedule)
        names = ("created", "updated", "erased")
        async for stored in events_under(log, [type_filter(SCHEDULES.name, schedule_id, name) for name in names]):
            if "spec" in stored.event.state:
                raise IllegalTransition(
                    f"schedule {schedule_id} was made by an earlier build: each of its events carries its arguments, which "
                    "cannot be erased",
                    status=schedule.status.value,
                )
            past = deleted or stored.event.version < schedule.spec_version
            giver.add(stored, tombstone(stored) if past else None, inputs_of(stored.event))
        giver.shared = await tables.shared(giver.blobs, schedule_id)
        return giver

    shared = await _empty(log, blobs, look, asked, tables)
    await tables.delete_unshared(blobs, shared, schedule_id)


@dataclass(slots=True)
class _Giver(Generic[S, C]):
    """A workflow or schedule in ``state``, and what of its events is to be destroyed. ``left``: what is to be left of each;
    ``erasures``: versions of earlier ``erased`` events, which may not have been completed; ``shared``: blobs that stay."""

    kind: Aggregate[S]
    id: str
    state: S
    command: Callable[[str, str | None, tuple[ErasedEvent, ...], tuple[str, ...]], C]
    left: dict[int, _Left] = field(default_factory=dict[int, "_Left"])
    erasures: list[int] = field(default_factory=list[int])
    shared: set[str] = field(default_factory=set[str])

    def add(self, stored: Stored, left: ErasedEvent | None, blobs: list[str]) -> None:
        """The next event. What an earlier ``erased`` event lists is not listed again."""
        if isinstance(stored.event.data, Erased):
            self.erasures.append(stored.event.version)
            for told in stored.event.data.events:
                self.left.pop(told.position, None)
        elif left is not None:
            self.left[stored.position] = _Left(left, blobs)

    @property
    def blobs(self) -> list[str]:
        """Keys of all blobs that these events refer to and what is left of them does not."""
        return sorted({key for each in self.left.values() for key in each.blobs})


async def _empty(
    log: EventLog, blobs: BlobStore, look: Callable[[], Awaitable[_Giver[S, C]]], asked: Asked, tables: Tables
) -> set[str]:
    """Say what is left of a giver's events, in as many events as that takes, and delete the rest. Answers which blobs stay.

    Looks again where somebody else wrote to it meanwhile: that may have been an erasure.
    """
    for _ in range(CONFLICTS_MAX):
        giver = await look()
        for version in giver.erasures:
            await complete(log, blobs, Erasure(giver.kind.name, giver.id, version))
        with suppress(VersionConflict):
            await _append_and_dispose(log, blobs, giver, asked, tables)
            return giver.shared
    raise LogUnavailable("who gave the task its arguments changes faster than that can be erased there")


async def _append_and_dispose(log: EventLog, blobs: BlobStore, giver: _Giver[S, C], asked: Asked, tables: Tables) -> None:
    state = giver.state
    for batch in _batches([*giver.left.values()]):
        gone = sorted({key for each in batch for key in each.blobs} - giver.shared)
        command = giver.command(asked.requested_by, asked.reason, tuple(each.event for each in batch), tuple(gone))
        handled = await handle_any(
            log, giver.kind, giver.id, command, source=SOURCE, trace=asked.trace, state=state, anew=False
        )
        state = handled.state
        tables.note_write(version_key(giver.kind.name, giver.id), state.version)
        failpoint("erase.after_giver")
        await dispose(log, blobs, Erasure(giver.kind.name, giver.id, state.version))


def _same_arguments(one: Submitted, two: Submitted) -> bool:
    """Whether both have the same ones, and any."""
    return bool(one.args or one.kwargs or one.input) and (one.args, one.kwargs, one.input) == (two.args, two.kwargs, two.input)


def _batches(left: Sequence[_Left]) -> Iterator[tuple[_Left, ...]]:
    """As many as fit into one event. The newest first: while a workflow is emptied, its first event still stands."""
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
