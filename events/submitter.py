"""Puts new tasks into the log: timers first, then the one event that makes the task, at its queue's gate where it has one.

Every way in ends here: requests, ticks of schedules, steps of workflows, tasks that running tasks spawn.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from eventq.events.commands import SubmitTask
from eventq.events.envelope import NO_TRACE, Trace
from eventq.events.failpoints import failpoint
from eventq.events.handle import Handled, handle, read_state
from eventq.events.log import EventLog
from eventq.events.queue import QUEUES, Queue
from eventq.events.task import ABSENT, Task
from eventq.events.task_events import Submitted
from eventq.events.timers import set_task_timers

QUEUE_TTL_S = 1.0
"""For how long a queue's limits are believed without asking the log again. A task that slips past a gate that was made
meanwhile is called back by it, if nobody has started it yet."""

QUEUES_MAX = 10_000
"""Queues remembered; beyond it all are asked for anew."""


class QueueStates:
    """The states of queues, each asked for once a second at most."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._known: dict[str, tuple[float, Queue]] = {}
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(self, queue: str) -> Queue:
        """The queue as it was up to a second ago. Raises ``LogUnavailable``."""
        if (known := self._fresh(queue)) is not None:
            return known
        async with self._asking.setdefault(queue, asyncio.Lock()):  # many tasks at once ask once
            if (known := self._fresh(queue)) is not None:
                return known
            now = time.monotonic()
            found = await read_state(self._log, QUEUES, queue)
            if len(self._known) >= QUEUES_MAX:
                self._known.clear()
            self._known[queue] = (now, found)
            return found

    def _fresh(self, queue: str) -> Queue | None:
        known = self._known.get(queue)
        return known[1] if known is not None and time.monotonic() - known[0] < QUEUE_TTL_S else None

    def forget(self, queue: str) -> None:
        """Ask anew the next time: this process has just changed it."""
        self._known.pop(queue, None)


class Submitter:
    """One per process. ``source``: how it signs what it writes."""

    def __init__(self, log: EventLog, *, source: str) -> None:
        self.queues = QueueStates(log)
        self._log = log
        self._source = source

    async def submit(
        self, task_id: str, submitted: Submitted, *, now: datetime | None = None, trace: Trace = NO_TRACE
    ) -> Handled[Task]:
        """Store the task as ``task_id``. ``now``: aware UTC, by default this host's clock.

        Raises ``IllegalTransition`` where there is a task of that id already (somebody was first, or we were, before a
        crash), ``LogFull`` with nothing stored, ``LogUnavailable`` where the outcome is unknown.
        """
        now = now or datetime.now(UTC)
        if (await self.queues.get(submitted.queue)).gated and not submitted.gated:
            submitted = submitted.model_copy(update={"gated": True})
        if submitted.scheduled_at is not None or submitted.queue_timeout_s is not None:
            await set_task_timers(
                self._log.broker,
                task_id,
                version=1,
                due_at=submitted.scheduled_at,
                queue_timeout_s=submitted.queue_timeout_s,
                now=now,
            )
        failpoint("submit.before_append")
        handled = await handle(self._log, task_id, SubmitTask(submitted, now), source=self._source, trace=trace, task=ABSENT)
        failpoint("submit.after_append")
        return handled
