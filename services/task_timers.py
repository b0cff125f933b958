"""What fired timers mean for tasks: their time has come, or nobody started them in time.

A hint also tells the time, by the broker's clock. Where many tasks are due by then they are promoted together, before their
own hints have come: on a broker that syncs each write a group costs little more than one task, and firing a timer costs two
writes. Whatever goes wrong with a group is left to the hints of its tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from eventq.events.commands import ExpireQueueWait, PromoteTask
from eventq.events.errors import Conflict, TaskNotFound
from eventq.events.failpoints import failpoint
from eventq.events.handle import Handled, handle, handle_all, read_task
from eventq.events.log import EventLog
from eventq.events.task import ACCEPTS, TASKS, Status, Task
from eventq.events.timers import Hint, set_task_timers, set_timer

log = structlog.get_logger("eventq.timers")

TOGETHER_MIN, TOGETHER_MAX = 16, 250
"""How many tasks are promoted together. Fewer are left to their hints, more would hold up everything else in the process."""

HINTS_FOLLOW_S = 5.0
"""For so long it is remembered what was promoted together: by then the follower has been shown it."""


def utc_now() -> datetime:
    """The clock of this host: aware UTC."""
    return datetime.now(UTC)


def nothing_due(_: datetime, __: int, ___: int) -> dict[str, Task]:
    """No tasks: each is promoted by its own hint."""
    return {}


def nothing_known(_: str) -> Task | None:
    """Of no task: each is read from the log."""
    return None


class TaskTimers:
    """Answers hints about tasks. Each method answers whether the hint is spent.

    ``known``: the task as this process was last shown it, if it remembers it. That may be old: the version check tells.
    ``due``: takes of those that are due by a time at least so many and at most so many, or none; each once.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        source: str,
        known: Callable[[str], Task | None] = nothing_known,
        due: Callable[[datetime, int, int], dict[str, Task]] = nothing_due,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._log = log
        self._source = source
        self._known = known
        self._due = due
        self._now = now
        self._time = datetime.min.replace(tzinfo=UTC)
        """As the latest hint told it."""
        self._promoting: asyncio.Task[None] | None = None
        self._together: dict[str, asyncio.Task[dict[str, int]]] = {}
        """The tasks in groups, and what will tell the versions that came of them."""
        self.promoted = 0

    async def promote(self, hint: Hint) -> bool:
        """A scheduled or retrying task is due."""
        if hint.fired_at is not None:
            self._promote_due(hint.fired_at)
        if await self._is_overtaken(hint):
            return True
        now = self._time_of(hint)
        try:
            task = await self._task_of(hint)
            if task.version == hint.version:
                await self._time_the_wait(hint.id, task, now)
            failpoint("promote.before_append")
            handled = await handle(self._log, hint.id, PromoteTask(hint.version, now), source=self._source, task=task)
        except TaskNotFound:
            return False
        except Conflict:
            return self._spent(hint, await read_task(self._log, hint.id, fresh=True))
        failpoint("promote.after_append")
        if handled.event is not None:
            self.promoted += 1
            return True
        return await self._still_waiting(hint, handled.state)

    def _promote_due(self, at: datetime) -> None:
        """Promote what is due by ``at``, where that is many tasks."""
        self._time = max(self._time, at)
        if self._promoting is not None and not self._promoting.done():
            return
        if group := self._due(self._time, TOGETHER_MIN, TOGETHER_MAX):
            self._promoting = asyncio.create_task(self._promote_groups(self._begin(group)), name="promote-together")

    async def _promote_groups(self, before: asyncio.Task[dict[str, int]]) -> None:
        """One after the other, each prepared while the one before it is stored."""
        while group := self._due(self._time, TOGETHER_MIN, TOGETHER_MAX):
            promoting = self._begin(group)
            await asyncio.wait((before,))
            before = promoting
        await asyncio.wait((before,))

    def _begin(self, group: dict[str, Task]) -> asyncio.Task[dict[str, int]]:
        promoting = asyncio.create_task(self._promote_group(group))
        self._together |= dict.fromkeys(group, promoting)
        return promoting

    async def _promote_group(self, group: dict[str, Task]) -> dict[str, int]:
        """The versions that were written."""
        at = self._time
        try:
            return await self._promote_all(group, at)
        except Exception as error:  # whatever one of them has about it, the others have their hints
            log.warning("timers.left_to_their_hints", tasks=len(group), error=repr(error))
            return {}
        finally:
            asyncio.get_running_loop().call_later(HINTS_FOLLOW_S, self._forget, group)

    async def _promote_all(self, group: dict[str, Task], at: datetime) -> dict[str, int]:
        now = max(self._now(), at)
        await asyncio.gather(*(self._time_the_wait(task_id, task, now) for task_id, task in group.items()))
        failpoint("promote.before_group")
        commands = {task_id: (task, PromoteTask(task.version, at)) for task_id, task in group.items()}
        outcomes = await handle_all(self._log, TASKS, commands, source=self._source)
        failpoint("promote.after_group")
        written = {
            task_id: outcome.state.version
            for task_id, outcome in outcomes.items()
            if isinstance(outcome, Handled) and outcome.event is not None
        }
        self.promoted += len(written)
        return written

    def _forget(self, group: dict[str, Task]) -> None:
        for task_id in group:
            self._together.pop(task_id, None)

    async def _is_overtaken(self, hint: Hint) -> bool:
        """Whether the task is known to have got further than the hint: for one, since it was promoted together with others."""
        if (promoting := self._together.get(hint.id)) is not None:
            await asyncio.wait((promoting,))
            if promoting.result().get(hint.id, 0) > hint.version:
                return True
        known = self._known(hint.id)
        return known is not None and known.version > hint.version

    async def _task_of(self, hint: Hint) -> Task:
        """What is known, where it is just what the hint is about; otherwise what the log says."""
        known = self._known(hint.id)
        return known if known is not None and known.version == hint.version else await read_task(self._log, hint.id)

    async def _time_the_wait(self, task_id: str, task: Task, now: datetime) -> None:
        """Set the timer of the wait that begins with the next version, before that is written, as all timers are. The one that
        came with the submission may have fired already, where the promotion is late."""
        if task.status is Status.SCHEDULED and task.due_at is not None and task.due_at <= now:
            version, timeout_s = task.version + 1, task.queue_timeout_s
            await set_task_timers(self._log.timers, task_id, version=version, due_at=None, queue_timeout_s=timeout_s, now=now)

    def _spent(self, hint: Hint, task: Task) -> bool:
        """Whether a hint was refused for good. The event that it waits for may have come right after it was: then it is due."""
        return task.version > hint.version or (task.version == hint.version and task.status not in ACCEPTS[PromoteTask])

    def _time_of(self, hint: Hint) -> datetime:
        """The time, by the clock that is ahead. Where this host's is behind the broker's, setting a timer that has fired
        right by it would fire it at once, again and again."""
        return self._now() if hint.fired_at is None else max(self._now(), hint.fired_at)

    async def _still_waiting(self, hint: Hint, task: Task) -> bool:
        """Nothing was due: set the timer right if it was wrong, wait if the event is yet to come, else forget the hint."""
        if task.version == hint.version and task.due_at is not None:
            await set_timer(self._log.timers, hint, task.due_at)
        return task.version >= hint.version

    async def expire_wait(self, hint: Hint) -> bool:
        """A ready task was not started in time."""
        failpoint("expire.before_append")
        try:
            handled = await handle(self._log, hint.id, ExpireQueueWait(self._time_of(hint)), source=self._source)
        except TaskNotFound:
            return False
        except Conflict:
            return await self._wait_goes_on(hint, await read_task(self._log, hint.id, fresh=True))
        if handled.event is None:
            return await self._wait_goes_on(hint, handled.state)
        failpoint("expire.after_append")
        return True

    async def _wait_goes_on(self, hint: Hint, task: Task) -> bool:
        """Nobody's wait was over: wait if the event that begins it is yet to come, set the timer right if it was wrong, else
        forget the hint."""
        if task.version < hint.version:
            return False
        if task.start_by is not None:
            await set_timer(self._log.timers, hint, task.start_by)
        return True
