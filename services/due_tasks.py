"""Which tasks wait for a time, soonest first: a duty of the follower.

Each of them has a timer on the broker, whose hint comes when its time has. A hint also tells the time, by the broker's clock:
all that is due by then may be promoted, before the broker has got to their timers. Of many that are due at one instant the
last would wait for as long as the broker takes to fire them one by one, each with two writes to its disk.
"""

from __future__ import annotations

import asyncio
import heapq
from datetime import datetime
from typing import Any, NamedTuple

from eventq.events.errors import UnknownEvent
from eventq.events.task import Status, Task, from_summary
from eventq.services.follower import Fact

FORGOTTEN_S = 60.0
"""So long after its time nobody is told of a task any more: another scheduler has had its hint."""

STALE_MAX = 1_000
"""So many entries of the heap may be old beyond those that are not, before it is made anew."""

LOOKED_AT_MAX = 5_000
"""Entries looked at at once: more would hold up everything else in the process."""


class DueTasks:
    """Memory grows with the tasks that wait for a time."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        """See :class:`Duty`. It is set once all of the log has been seen, and stays so."""
        self._waiting: dict[str, _Waiting] = {}
        self._soonest: list[_Entry] = []
        """A heap. What it says of a task may be old."""

    def note(self, fact: Fact) -> None:
        """See :class:`Duty`."""
        if fact.kind != "tasks":
            return
        due_s = _due_s(fact.state)
        if due_s is None:
            self._waiting.pop(fact.id, None)
        else:
            self._waiting[fact.id] = _Waiting(due_s, fact.state)
            heapq.heappush(self._soonest, _Entry(due_s, fact.id, fact.version))
        self._forget(fact.stored_ns / 1e9 - FORGOTTEN_S)

    def take(self, until: datetime, least: int, most: int) -> dict[str, Task]:
        """From ``least`` to ``most`` tasks that are due by then, by the broker's clock, soonest first; none where there are
        fewer, or before all of the log has been seen. Each is taken once for each time that it waits for."""
        taken: dict[str, Task] = {}
        entries: list[_Entry] = []
        if not self.wake.is_set():
            return taken
        for _ in range(LOOKED_AT_MAX):
            if len(taken) == most or (entry := self._pop(until.timestamp())) is None:
                break
            if (task := self._task_of(entry)) is not None:
                taken[entry.task_id] = task
                entries.append(entry)
        if len(taken) >= least:
            return taken
        for entry in entries:
            heapq.heappush(self._soonest, entry)
        return {}

    def _task_of(self, entry: _Entry) -> Task | None:
        """The task, if it still waits for that time; ``None`` also where a newer program wrote it, and will look after it."""
        waiting = self._waiting.get(entry.task_id)
        if waiting is None or waiting.state["version"] != entry.version:
            return None
        try:
            return from_summary(waiting.state)
        except UnknownEvent:
            return None

    def _pop(self, until_s: float) -> _Entry | None:
        return heapq.heappop(self._soonest) if self._soonest and self._soonest[0].due_s <= until_s else None

    def _forget(self, before_s: float) -> None:
        """Drop what was due long ago, and what is old once that is most of it."""
        for _ in range(LOOKED_AT_MAX):
            if self._pop(before_s) is None:
                break
        if len(self._soonest) > 2 * len(self._waiting) + STALE_MAX:
            self._soonest = [
                _Entry(waiting.due_s, task_id, waiting.state["version"])
                for task_id, waiting in self._waiting.items()
                if waiting.due_s > before_s
            ]
            heapq.heapify(self._soonest)


class _Waiting(NamedTuple):
    """A task that waits, as its newest event tells it. ``due_s``: for when, in POSIX seconds."""

    due_s: float
    state: dict[str, Any]


class _Entry(NamedTuple):
    """That a version of a task waits for a time."""

    due_s: float
    task_id: str
    version: int


def _due_s(state: dict[str, Any]) -> float | None:
    """What a task waits for; ``None`` where it does not, or where that is written as only a newer program can read it."""
    due_at = state.get("due_at")
    if due_at is None or state.get("status") not in (Status.SCHEDULED, Status.RETRYING):
        return None
    try:
        return datetime.fromisoformat(due_at).timestamp()
    except (TypeError, ValueError):
        return None
