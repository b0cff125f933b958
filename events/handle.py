"""The one door to a history: read, decide, append. Every writer uses it: API, worker, promoter, reconciler, gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic

from eventq.events.aggregate import Aggregate, S
from eventq.events.commands import Command
from eventq.events.data import EventData
from eventq.events.envelope import NO_TRACE, Event, Trace, next_event
from eventq.events.errors import Conflict, NotFound, VersionConflict
from eventq.events.log import EventLog
from eventq.events.task import TASKS, Task

CONFLICTS_MAX = 10
"""How often a command is decided again because another writer came first. Each conflict means that somebody made progress."""


@dataclass(frozen=True, slots=True)
class Handled(Generic[S]):
    """What came of a command. ``state``: after it; ``event`` is ``None`` where it was fulfilled already and nothing was
    written; ``position``: where the event stands, if the append path told it."""

    state: S
    event: Event | None
    position: int | None


async def read_state(log: EventLog, kind: Aggregate[S], aggregate_id: str, *, fresh: bool = False) -> S:
    """The state as the last event tells it; ``kind.absent`` if there is none."""
    stored = await log.last(kind.name, aggregate_id, fresh=fresh)
    return kind.absent if stored is None else kind.from_summary(stored.event.state)


async def handle_any(
    log: EventLog,
    kind: Aggregate[S],
    aggregate_id: str,
    command: Any,
    *,
    source: str,
    trace: Trace = NO_TRACE,
    state: S | None = None,
    anew: bool = True,
    at: datetime | None = None,
) -> Handled[S]:
    """Carry out ``command`` or raise what the kind's rules say. ``state``: where the caller just read it; ``at``: the event's
    time, aware UTC, by default this host's.

    A stale view does no harm. What is decided on it is written on the condition that nothing came after it; and that it
    refuses, or finds fulfilled, is believed only of what the log's leader says. Not ``anew``: the command is meant for this
    state and no other, and ``VersionConflict`` is raised where something came after it.
    """
    known, newest = state, False
    for _ in range(CONFLICTS_MAX):
        if known is None:
            known = await read_state(log, kind, aggregate_id, fresh=newest)
        try:
            decided = _decide(kind, aggregate_id, command, known)
        except (Conflict, NotFound):
            if newest or not anew:
                raise
            decided = []
        if not decided and (newest or not anew):
            return Handled(known, None, None)
        if decided:
            written_at = at or datetime.now(UTC)
            event, after = next_event(kind, aggregate_id, known, decided[0], source=source, at=written_at, trace=trace)
            try:
                return Handled(after, event, await log.append(event))
            except VersionConflict:
                if not anew:
                    raise
        known, newest = None, True
    raise VersionConflict(aggregate_id, 0)


async def begin_all(
    log: EventLog, kind: Aggregate[S], commands: Mapping[str, Any], *, source: str, trace: Trace = NO_TRACE
) -> dict[str, Handled[S] | BaseException]:
    """Begin histories together, each by the command for its id, which is new: one that is not is answered ``VersionConflict``.
    Answers what came of each, or why it is not known to be stored."""
    known = {aggregate_id: (kind.absent, command) for aggregate_id, command in commands.items()}
    return await handle_all(log, kind, known, source=source, trace=trace)


async def handle_all(
    log: EventLog, kind: Aggregate[S], commands: Mapping[str, tuple[S, Any]], *, source: str, trace: Trace = NO_TRACE
) -> dict[str, Handled[S] | BaseException]:
    """Carry out commands together, each on the state that it comes with and no other, as :func:`handle_any` does when not
    ``anew``. Raises what the rules say of a command; answers what came of each, or why it is not known to be stored."""
    at = datetime.now(UTC)
    decided = {
        aggregate_id: (state, _decide(kind, aggregate_id, command, state))
        for aggregate_id, (state, command) in commands.items()
    }
    followed = {
        aggregate_id: next_event(kind, aggregate_id, state, events[0], source=source, at=at, trace=trace)
        for aggregate_id, (state, events) in decided.items()
        if events
    }
    errors = dict(zip(followed, await log.append_all([event for event, _ in followed.values()]), strict=True))
    outcomes: dict[str, Handled[S] | BaseException] = {}
    for aggregate_id, (state, _) in decided.items():
        if aggregate_id not in followed:
            outcomes[aggregate_id] = Handled(state, None, None)
            continue
        event, after = followed[aggregate_id]
        outcomes[aggregate_id] = errors[aggregate_id] or Handled(after, event, None)
    return outcomes


def _decide(kind: Aggregate[S], aggregate_id: str, command: Any, state: S) -> list[EventData]:
    if state.version == 0 and not isinstance(command, kind.creates):
        raise kind.not_found(aggregate_id)
    return kind.decide(command, state)


async def read_task(log: EventLog, task_id: str, *, fresh: bool = False) -> Task:
    """The task as its last event tells it; ``ABSENT`` if there is none."""
    return await read_state(log, TASKS, task_id, fresh=fresh)


async def handle(
    log: EventLog,
    task_id: str,
    command: Command,
    *,
    source: str,
    trace: Trace = NO_TRACE,
    task: Task | None = None,
    anew: bool = True,
) -> Handled[Task]:
    """:func:`handle_any` for a task."""
    return await handle_any(log, TASKS, task_id, command, source=source, trace=trace, state=task, anew=anew)
