"""Is this history one that eventq promised? Told from the whole log, from what was acknowledged, from what user code
witnessed and from what the projection shows; without the rules in ``decide``, so that it can judge them too.

Every rule here has a bad history in ``test_checker.py`` that it must find.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eventq.events.envelope import Event, decode
from eventq.events.errors import Damaged
from eventq.events.reader import Message
from eventq.events.task import Status, Task, replay
from eventq.events.task_events import Failed, Started, TimedOut
from tests.events.history import AFTERLIFE, TERMINAL_TYPES, ends_attempt
from tests.events.history import violations as rule_violations

REPORTS = {"completed", "retrying", "failed", "timed_out"}
"""Events that tell what came of an attempt: only the worker that holds it may write them."""


@dataclass(frozen=True, slots=True)
class Visit:
    """User code was entered or left (``step``: ``enter`` or ``exit``) for one attempt, in the process ``pid``."""

    task_id: str
    attempt: int
    step: str
    pid: int


@dataclass(frozen=True, slots=True)
class Projected:
    """What the projection shows of one task."""

    status: Status
    version: int
    attempt: int
    event_id: str


@dataclass(slots=True)
class History:
    """All there is to know of one run. ``log``: every task's events in the order of the log; ``visits``: in the order in
    which they were witnessed, of tasks that tell; ``projection``: ``None`` where there was none."""

    log: list[Event] = field(default_factory=list[Event])
    acknowledged: set[str] = field(default_factory=set[str])
    visits: list[Visit] = field(default_factory=list[Visit])
    projection: Mapping[str, Projected] | None = None
    unreadable: list[str] = field(default_factory=list[str])

    @classmethod
    def read(cls, messages: Iterable[Message], acknowledged: Iterable[str], witness: Path) -> History:
        """From the messages of the stream EVENTS and the witness file (which is missing where no task ran)."""
        history = cls(acknowledged=set(acknowledged), visits=list(read_witness(witness)))
        for message in messages:
            if message.subject.startswith("tasks."):
                try:
                    history.log.append(decode(message.payload, message.subject))
                except Damaged as error:
                    history.unreadable.append(f"position {message.position}: {error.detail}")
        return history

    @property
    def tasks(self) -> dict[str, list[Event]]:
        """Each task's events, in the order of the log."""
        found: dict[str, list[Event]] = {}
        for event in self.log:
            found.setdefault(event.aggregate_id, []).append(event)
        return found


def read_witness(path: Path) -> Iterator[Visit]:
    """Every line of a witness file."""
    if path.exists():
        for line in path.read_text().splitlines():
            yield Visit(**json.loads(line))


def violations(history: History, *, finished: bool = True) -> list[str]:
    """What is wrong, in words; empty for a good history. ``finished``: every task should have come to its end."""
    tasks = history.tasks
    found = [*history.unreadable, *_lost(history, tasks)]
    for task_id, events in tasks.items():
        wrong = [*rule_violations(events), *_after_cancel(events), *_stale_reports(events)]
        if finished and events[-1].type not in TERMINAL_TYPES | AFTERLIFE:
            wrong.append(f"never came to its end: {[event.type for event in events]}")
        found += [f"task {task_id}: {what}" for what in wrong]
    return [*found, *_witnessed(history, tasks), *_projected(history, tasks)]


def _lost(history: History, tasks: Mapping[str, Sequence[Event]]) -> Iterator[str]:
    for task_id in sorted(history.acknowledged - tasks.keys()):
        yield f"task {task_id}: lost: acknowledged and not stored"


def _after_cancel(events: Sequence[Event]) -> Iterator[str]:
    cancelled = False
    for event in events:
        if cancelled and event.type == "started":
            yield f"started at version {event.version} after it was cancelled"
        cancelled = cancelled or event.type == "cancelled"


def _stale_reports(events: Sequence[Event]) -> Iterator[str]:
    """A report counts only from the worker whose attempt is current at that moment."""
    holder: str | None = None
    for event in events:
        poisoned = isinstance(event.data, Failed) and event.data.reason == "poison"
        unstarted = isinstance(event.data, TimedOut) and event.data.reason == "queue_timeout"
        if event.type in REPORTS and not (poisoned or unstarted) and event.source != f"worker.{holder}":
            yield f"{event.type} at version {event.version} by {event.source}, while the attempt is held by {holder}"
        if isinstance(event.data, Started):
            holder = event.data.worker_id
        elif ends_attempt(event):
            holder = None


def _witnessed(history: History, tasks: Mapping[str, Sequence[Event]]) -> Iterator[str]:
    entered = Counter((visit.task_id, visit.attempt) for visit in history.visits if visit.step == "enter")
    left = {(visit.task_id, visit.attempt) for visit in history.visits if visit.step == "exit"}
    telling = {task_id for task_id, _ in entered}
    for (task_id, attempt), times in entered.items():
        events = tasks.get(task_id, ())
        if times > 1:
            yield f"task {task_id}: user code was entered {times} times for attempt {attempt}"
        if not any(event.type == "started" and event.attempt == attempt for event in events):
            cancelled = " of a task that was cancelled first" if events and events[-1].type == "cancelled" else ""
            yield f"task {task_id}: user code was entered for attempt {attempt}{cancelled}, which was never started"
    for task_id in telling & tasks.keys():
        for event in tasks[task_id]:
            if event.type == "completed" and (task_id, event.attempt) not in left:
                yield f"task {task_id}: completed by attempt {event.attempt}, whose code never returned"


def _projected(history: History, tasks: Mapping[str, Sequence[Event]]) -> Iterator[str]:
    if history.projection is None:
        return
    for task_id in sorted(tasks.keys() | history.projection.keys()):
        expected, found = _fold(tasks.get(task_id, ())), history.projection.get(task_id)
        if found != expected:
            yield f"task {task_id}: the projection shows {found}, the log says {expected}"


def _fold(events: Sequence[Event]) -> Projected | None:
    if not events:
        return None
    task: Task = replay((event.id, event.time, event.data) for event in events)
    return Projected(task.status, task.version, task.attempt, task.event_id or "")
