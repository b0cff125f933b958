"""The one door to a task's history: read, decide, append. Every writer uses it: API, worker, promoter, reconciler."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from eventq.events.commands import Command, SubmitTask
from eventq.events.envelope import NO_TRACE, Event, Trace, task_event
from eventq.events.errors import TaskNotFound, VersionConflict
from eventq.events.log import EventLog
from eventq.events.task import ABSENT, Task, decide, from_summary

CONFLICTS_MAX = 10
"""How often a command is decided again because another writer came first. Each conflict means that somebody made progress."""


@dataclass(frozen=True, slots=True)
class Handled:
    """What came of a command. ``event`` is ``None`` where it was fulfilled already and nothing was written.
    ``position``: where the event stands, if the append path told it."""

    task: Task
    event: Event | None
    position: int | None


async def read_task(log: EventLog, task_id: str, *, fresh: bool = False) -> Task:
    """The task as its last event tells it; ``ABSENT`` if there is none."""
    stored = await log.last("tasks", task_id, fresh=fresh)
    return ABSENT if stored is None else from_summary(stored.event.state)


async def handle(
    log: EventLog,
    task_id: str,
    command: Command,
    *,
    source: str,
    trace: Trace = NO_TRACE,
    task: Task | None = None,
) -> Handled:
    """Carry out ``command`` or raise what the rules say. ``task``: its state, where the caller just read it.

    A stale ``task`` does no harm: the version check refuses, and the command is decided anew on what is true.
    """
    known = task
    for round_ in range(CONFLICTS_MAX):
        if known is None:
            known = await read_task(log, task_id, fresh=round_ > 0)
        if known is ABSENT and not isinstance(command, SubmitTask):
            raise TaskNotFound(task_id)
        decided = decide(command, known)
        if not decided:
            return Handled(known, None, None)
        event, after = task_event(task_id, known, decided[0], source=source, at=datetime.now(UTC), trace=trace)
        try:
            position = await log.append(event)
        except VersionConflict:
            known = None
            continue
        return Handled(after, event, position)
    raise VersionConflict(task_id, known.version + 1 if known else 0)
