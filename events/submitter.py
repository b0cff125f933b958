"""Puts new tasks into the log: timers first, then the one event that makes the task, at its queue's gate where it has one.

Every way in ends here: requests, ticks of schedules, steps of workflows, tasks that running tasks spawn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

from eventq.events.commands import SubmitTask
from eventq.events.envelope import NO_TRACE, Trace
from eventq.events.failpoints import failpoint
from eventq.events.handle import Handled, begin_all, handle, read_state
from eventq.events.log import EventLog
from eventq.events.queue import QUEUES, Queue
from eventq.events.task import ABSENT, TASKS, Task
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
        self._asking: dict[str, asyncio.Task[Queue]] = {}

    async def get(self, queue: str) -> Queue:
        """The queue as it was up to a second ago. Raises ``LogUnavailable``: to all that ask while it is being asked for."""
        if (known := self._fresh(queue)) is not None:
            return known
        asking = self._asking.get(queue)
        if asking is None:
            asking = self._asking[queue] = asyncio.create_task(self._ask(queue), name=f"ask for queue {queue}")
        return await asyncio.shield(asking)

    async def _ask(self, queue: str) -> Queue:
        now = time.monotonic()
        try:
            found = await read_state(self._log, QUEUES, queue)
        finally:
            wanted = self._asking.get(queue) is asyncio.current_task()  # else it was forgotten meanwhile
            if wanted:
                del self._asking[queue]
        if wanted:
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
        self._asking.pop(queue, None)


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
        submitted = _at_its_gate(submitted, gated=(await self.queues.get(submitted.queue)).gated)
        await self._set_timers(task_id, submitted, now)
        failpoint("submit.before_append")
        handled = await handle(self._log, task_id, SubmitTask(submitted, now), source=self._source, trace=trace, task=ABSENT)
        failpoint("submit.after_append")
        return handled

    async def submit_all(
        self, tasks: Mapping[str, Submitted], *, now: datetime, trace: Trace = NO_TRACE
    ) -> dict[str, Handled[Task] | BaseException]:
        """Store tasks together, each under its id, which must be new: one that is not is answered ``VersionConflict``. Answers
        what came of each, or else what :meth:`submit` would have raised. ``now``: aware UTC."""
        outcomes: dict[str, Handled[Task] | BaseException] = {}
        gated = await self._gated({submitted.queue for submitted in tasks.values()})
        ready: dict[str, Submitted] = {}
        for task_id, submitted in tasks.items():
            at_gate = gated[submitted.queue]
            if isinstance(at_gate, BaseException):
                outcomes[task_id] = at_gate
            else:
                ready[task_id] = _at_its_gate(submitted, gated=at_gate)
        timed = {task_id: submitted for task_id, submitted in ready.items() if _has_timers(submitted)}
        set_timers = (self._set_timers(task_id, submitted, now) for task_id, submitted in timed.items())
        for task_id, failure in zip(timed, await asyncio.gather(*set_timers, return_exceptions=True), strict=True):
            if failure is not None:
                outcomes[task_id] = failure
                del ready[task_id]
        failpoint("submit.before_append")
        commands = {task_id: SubmitTask(submitted, now) for task_id, submitted in ready.items()}
        outcomes |= await begin_all(self._log, TASKS, commands, source=self._source, trace=trace)
        failpoint("submit.after_append")
        return outcomes

    async def _gated(self, queues: Collection[str]) -> dict[str, bool | BaseException]:
        found = await asyncio.gather(*map(self.queues.get, queues), return_exceptions=True)
        return {
            queue: state if isinstance(state, BaseException) else state.gated
            for queue, state in zip(queues, found, strict=True)
        }

    async def _set_timers(self, task_id: str, submitted: Submitted, now: datetime) -> None:
        if _has_timers(submitted):
            await set_task_timers(
                self._log.timers,
                task_id,
                version=1,
                due_at=submitted.scheduled_at,
                queue_timeout_s=submitted.queue_timeout_s,
                now=now,
            )


def _at_its_gate(submitted: Submitted, *, gated: bool) -> Submitted:
    return submitted.model_copy(update={"gated": True}) if gated and not submitted.gated else submitted


def _has_timers(submitted: Submitted) -> bool:
    return submitted.scheduled_at is not None or submitted.queue_timeout_s is not None
