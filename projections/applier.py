"""Messages in, committed rows out: decode, fold, and write a batch with its checkpoint in one transaction.

Lives in one thread at a time: the projector's writing thread, or a rebuild's. It remembers the states of unfinished tasks,
as many as its bound allows; what it does not remember it loads from the tables, in one query for a batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol

import orjson
import structlog

from eventq.events.envelope import Event, Stored, decode
from eventq.events.errors import LogDamaged
from eventq.events.failpoints import failpoint
from eventq.events.reader import Message
from eventq.events.report import Report, decode_report
from eventq.events.subjects import EVENTS, PLACEHOLDER, PROGRESS
from eventq.events.task import Status, Task
from eventq.projections.fold import (
    LOG_COLUMNS,
    PROGRESS_COLUMNS,
    Folded,
    FoldedReports,
    StateKey,
    TaskState,
    Write,
    check_contiguous,
    fold,
    fold_reports,
)
from eventq.projections.store import Transaction
from eventq.projections.tables import TABLE_OF, naive

log = structlog.get_logger("eventq.projector")

STATES_MAX = 20_000
"""Unfinished tasks remembered between batches, about 1 KB each; others are loaded when their next event comes."""

GC_PAUSE_MIN = 500
"""Messages in a batch from which on garbage collection is paused: a tenth of a second at most, for 8,192."""

_TASK_FIELDS = Task._fields
_LOAD_TASKS = f"SELECT task_id, started_at, {', '.join(_TASK_FIELDS)} FROM tasks WHERE task_id IN (SELECT unnest($1))"
_GIVEN_UP = "SELECT task_id FROM tasks WHERE task_id IN (SELECT unnest($1)) AND (cleaned OR erased)"
_UPSERT_PROGRESS = f"""
INSERT INTO task_progress ({", ".join(PROGRESS_COLUMNS)})
SELECT {", ".join(f"unnest(${n})" for n in range(1, len(PROGRESS_COLUMNS) + 1))}
ON CONFLICT (task_id) DO UPDATE
SET {", ".join(f"{name} = excluded.{name}" for name in PROGRESS_COLUMNS[1:])}
WHERE excluded.attempt >= task_progress.attempt
"""


Decode = Callable[[bytes, str], Event]
"""Makes an event of a payload and a subject, as :func:`decode` does."""


class Target(Protocol):
    """Where an applier writes: the store, or a file being rebuilt."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """All writes within are committed together or not at all."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a stream is applied. ``event_id``: of the message at ``position``, ``None`` where that is 0."""

    position: int
    event_id: str | None
    stream_created: datetime


@dataclass(frozen=True, slots=True)
class Applied:
    """What is committed: positions in both streams, and the versions of the histories that the batch touched. ``erased``:
    whether something of them was destroyed."""

    position: int
    progress_position: int
    versions: dict[str, int]
    erased: bool = False


class Applier:
    """Applies batches to ``target``, which it must be the only writer of."""

    def __init__(self, target: Target, decode: Decode = decode) -> None:
        self._target = target
        self._decode = decode
        self._tasks: dict[str, TaskState] = {}
        self._states: dict[StateKey, Any] = {}
        self.unreadable_reports = 0
        """Lines of PROGRESS that were skipped because they could not be read: no history is lost with them."""
        with target.transaction() as transaction:
            self.checkpoints = _read_checkpoints(transaction)

    def begin(self, stream: str, checkpoint: Checkpoint) -> None:
        """Set a stream's checkpoint without applying anything: for a new file, or a PROGRESS stream that was replaced."""
        with self._target.transaction() as transaction:
            transaction.execute("DELETE FROM checkpoint WHERE stream = ?", [stream])
            transaction.execute(
                "INSERT INTO checkpoint VALUES (?, ?, ?, ?)",
                [stream, checkpoint.position, checkpoint.event_id, naive(checkpoint.stream_created)],
            )
        self.checkpoints[stream] = checkpoint

    def apply(self, events: Sequence[Message], reports: Sequence[Message]) -> Applied:
        """Apply what is new of both batches and commit. Messages up to the checkpoint are skipped: again is nothing.

        Raises ``LogDamaged`` or ``UnknownEvent`` with nothing written, and the store's errors.
        """
        with _gc_paused(len(events) + len(reports)):
            return self._apply(events, reports)

    def _apply(self, events: Sequence[Message], reports: Sequence[Message]) -> Applied:
        new_events = self._decoded(events, self.checkpoints[EVENTS].position)
        new_reports = self._readable(reports, self.checkpoints[PROGRESS].position)
        if not new_events and not new_reports:
            return self._applied({})
        with self._target.transaction() as transaction:
            folded = self._fold(transaction, [stored for stored in new_events if stored.event.type != PLACEHOLDER])
            self._write(transaction, folded, fold_reports(self._wanted(transaction, folded, new_reports)))
            after = {
                EVENTS: _advance(transaction, EVENTS, self.checkpoints[EVENTS], _last_event(new_events)),
                PROGRESS: _advance(transaction, PROGRESS, self.checkpoints[PROGRESS], _last_report(new_reports)),
            }
            failpoint("project.before_commit")
        failpoint("project.after_commit")
        self.checkpoints = after
        self._remember(folded)
        return self._applied(folded.versions(), erased=folded.emptied)

    def _applied(self, versions: dict[str, int], *, erased: bool = False) -> Applied:
        return Applied(self.checkpoints[EVENTS].position, self.checkpoints[PROGRESS].position, versions, erased)

    def _fold(self, transaction: Transaction, batch: list[Stored]) -> Folded:
        # Of each only the first event of the batch continues what is known; the first of all continues nothing.
        first = dict[StateKey, int]()
        for event in (stored.event for stored in batch):
            first.setdefault((event.aggregate, event.aggregate_id), event.version)
        continued = {key for key, version in first.items() if version > 1}
        tasks = {task_id for kind, task_id in continued if kind == "tasks" and task_id not in self._tasks}
        states = {key for key in continued if key[0] != "tasks" and key not in self._states}
        if tasks:
            self._tasks.update(_load_tasks(transaction, sorted(tasks)))
        if states:
            self._states.update(_load_states(transaction, states))
        return fold(batch, self._tasks, self._states)

    def _wanted(
        self, transaction: Transaction, folded: Folded, reports: Sequence[tuple[int, Report | None]]
    ) -> list[tuple[int, Report]]:
        """Those lines that are of a task which still has its progress: the two streams have no order between them, so a line
        may come here after the event that gave it up, and would stay for good."""
        readable = [(position, report) for position, report in reports if report is not None]
        asked = sorted({report.task_id for _, report in readable}.difference(self._tasks))  # `-` would look at all of these
        gone = set(folded.silenced)
        if asked:
            gone |= {task_id for (task_id,) in transaction.execute(_GIVEN_UP, [asked])}
        return [(position, report) for position, report in readable if report.task_id not in gone]

    def _write(self, transaction: Transaction, folded: Folded, reports: FoldedReports) -> None:
        writes = folded.writes()
        if reports.logs:
            writes.append(Write("task_logs", "insert", LOG_COLUMNS, reports.logs))
        for number, write in enumerate(writes):
            if number == 1:
                failpoint("project.mid_batch")
            transaction.write(write)
        if reports.progress:
            transaction.execute(_UPSERT_PROGRESS, [list(column) for column in zip(*reports.progress.values(), strict=True)])
        if folded.silenced:
            for table in ("task_progress", "task_logs"):
                transaction.execute(f"DELETE FROM {table} WHERE task_id IN (SELECT unnest($1))", [folded.silenced])

    def _remember(self, folded: Folded) -> None:
        self._states.update(folded.states)
        for task_id, state in folded.task_states().items():
            self._tasks.pop(task_id, None)  # so that it is put at the end: the oldest are forgotten first
            if not state.task.finished:
                self._tasks[task_id] = state
        _forget_oldest(self._tasks)
        _forget_oldest(self._states)

    def _decoded(self, messages: Sequence[Message], after: int) -> list[Stored]:
        new = [message for message in messages if message.position > after]
        check_contiguous(after, (message.position for message in new))
        return [Stored(message.position, self._decode(message.payload, message.subject)) for message in new]

    def _readable(self, messages: Sequence[Message], after: int) -> list[tuple[int, Report | None]]:
        found: list[tuple[int, Report | None]] = []
        for message in messages:
            if message.position <= after:
                continue
            try:
                found.append((message.position, decode_report(message.payload, message.subject)))
            except LogDamaged as error:
                self.unreadable_reports += 1
                log.warning("progress.unreadable", position=message.position, reason=error.detail)
                found.append((message.position, None))
        return found


@contextmanager
def _gc_paused(messages: int) -> Generator[None]:
    """No automatic garbage collection while a large batch is folded: it makes a hundred thousand objects, none of them
    garbage yet, and looking through them again and again would take a third of the time."""
    if messages < GC_PAUSE_MIN or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _last_event(batch: list[Stored]) -> tuple[int, str] | None:
    return (batch[-1].position, batch[-1].event.id) if batch else None


def _last_report(batch: list[tuple[int, Report | None]]) -> tuple[int, str | None] | None:
    if not batch:
        return None
    position, report = batch[-1]
    return (position, report.id if report else None)


def _advance(transaction: Transaction, stream: str, before: Checkpoint, last: tuple[int, str | None] | None) -> Checkpoint:
    if last is None:
        return before
    transaction.execute("UPDATE checkpoint SET position = ?, event_id = ? WHERE stream = ?", [*last, stream])
    return Checkpoint(last[0], last[1], before.stream_created)


def _read_checkpoints(transaction: Transaction) -> dict[str, Checkpoint]:
    rows = transaction.execute("SELECT stream, position, event_id, stream_created FROM checkpoint")
    return {stream: Checkpoint(position, event_id, created.replace(tzinfo=UTC)) for stream, position, event_id, created in rows}


def _load_tasks(transaction: Transaction, task_ids: Iterable[str]) -> dict[str, TaskState]:
    rows = transaction.execute(_LOAD_TASKS, [task_ids])
    return {row[0]: TaskState(_task(dict(zip(_TASK_FIELDS, row[2:], strict=True))), row[1]) for row in rows}


def _task(columns: dict[str, Any]) -> Task:
    columns["status"] = Status(columns["status"])
    columns["lost"] = tuple(orjson.loads(columns["lost"]))
    for name in ("due_at", "start_by"):
        if columns[name] is not None:
            columns[name] = columns[name].replace(tzinfo=UTC)
    return Task(**columns)


def _load_states(transaction: Transaction, keys: Iterable[StateKey]) -> dict[StateKey, Any]:
    found: dict[StateKey, Any] = {}
    of_kind: dict[str, list[str]] = {}
    for kind, aggregate_id in sorted(keys):
        of_kind.setdefault(kind, []).append(aggregate_id)
    for kind, ids in of_kind.items():
        if (table := TABLE_OF.get(kind)) is None:
            continue  # the fold says so, and at which position
        rows = transaction.execute(
            f"SELECT {table.id_column}, state FROM {table.name} WHERE {table.id_column} IN (SELECT unnest($1))", [ids]
        )
        found |= {(kind, aggregate_id): table.kind.from_summary(orjson.loads(state)) for aggregate_id, state in rows}
    return found


def _forget_oldest(known: dict[Any, Any]) -> None:
    for key in list(islice(known, max(0, len(known) - STATES_MAX))):
        del known[key]
