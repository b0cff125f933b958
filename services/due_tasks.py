"""Which tasks wait for a time, soonest first: a duty of the follower.

Each of them has a timer on the broker, whose hint comes when its time has. A hint also tells the time, by the broker's clock:
all that is due by then may be promoted, before the broker has got to their timers. Of many that are due at one instant the
last would wait for as long as the broker takes to fire them one by one, each with two writes to its disk.
"""

from __future__ import annotations

import asyncio
import heapq
from datetime import datetime
from typing import Any

from eventq.events.errors import UnknownEvent
from eventq.events.task import Status, Task, from_summary
from eventq.services.follower import Fact

WAITING = frozenset({Status.SCHEDULED.value, Status.RETRYING.value})

FORGOTTEN_S = 60.0
"""So long after its time nobody is told of a task any more: another scheduler has had its hint."""


class DueTasks:
    """Memory grows with the tasks that wait for a time."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self._waiting: dict[str, dict[str, Any]] = {}
        self._soonest: list[tuple[float, str, int]] = []
        """When, who, and of which version: a heap. What it says of a task may be old."""

    def note(self, fact: Fact) -> None:
        """See :class:`Duty`."""
        if fact.kind != "tasks":
            return
        state = fact.state
        due_at = state.get("due_at") if state["status"] in WAITING else None
        if due_at is None:
            self._waiting.pop(fact.id, None)
            return
        self._waiting[fact.id] = state
        heapq.heappush(self._soonest, (datetime.fromisoformat(due_at).timestamp(), fact.id, fact.version))
        while self._pop(fact.stored_ns / 1e9 - FORGOTTEN_S) is not None:
            pass

    def take(self, until: datetime, most: int) -> dict[str, Task]:
        """Up to ``most`` tasks that are due by then, by the broker's clock, soonest first. Each is taken once for each time
        that it waits for."""
        taken: dict[str, Task] = {}
        until_s = until.timestamp()
        while len(taken) < most and (popped := self._pop(until_s)) is not None:
            task_id, version = popped
            state = self._waiting.get(task_id)
            if state is None or state["version"] != version:
                continue
            try:
                taken[task_id] = from_summary(state)
            except UnknownEvent:
                continue  # a newer program wrote it, and will look after it
        return taken

    def _pop(self, until_s: float) -> tuple[str, int] | None:
        if not self._soonest or self._soonest[0][0] > until_s:
            return None
        _, task_id, version = heapq.heappop(self._soonest)
        return task_id, version
