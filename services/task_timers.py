"""What fired timers mean for tasks: their time has come, or nobody started them in time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from eventq.events.commands import ExpireQueueWait, PromoteTask
from eventq.events.errors import Conflict, TaskNotFound
from eventq.events.failpoints import failpoint
from eventq.events.handle import handle, read_task
from eventq.events.log import EventLog
from eventq.events.task import ACCEPTS, Status, Task
from eventq.events.timers import Hint, set_task_timers, set_timer


def utc_now() -> datetime:
    """The clock of this host: aware UTC."""
    return datetime.now(UTC)


def nothing_known(_: str) -> Task | None:
    """Of no task: each is read from the log."""
    return None


class TaskTimers:
    """Answers hints about tasks. Each method answers whether the hint is spent.

    ``known``: the task as this process was last shown it, if it remembers it. That may be old: the version check tells.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        source: str,
        known: Callable[[str], Task | None] = nothing_known,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._log = log
        self._source = source
        self._known = known
        self._now = now
        self.promoted = 0

    async def promote(self, hint: Hint) -> bool:
        """A scheduled or retrying task is due."""
        now = self._time_of(hint)
        try:
            task = await self._task_of(hint)
            await self._time_the_wait(hint, task, now)
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

    async def _task_of(self, hint: Hint) -> Task:
        """What is known, where it is just what the hint is about; otherwise what the log says."""
        known = self._known(hint.id)
        return known if known is not None and known.version == hint.version else await read_task(self._log, hint.id)

    async def _time_the_wait(self, hint: Hint, task: Task, now: datetime) -> None:
        """Set the timer of the wait that begins with the next version, before that is written, as all timers are. The one that
        came with the submission may have fired already, where the promotion is late."""
        scheduled = task.version == hint.version and task.status is Status.SCHEDULED
        if scheduled and task.due_at is not None and task.due_at <= now:
            version, timeout_s = task.version + 1, task.queue_timeout_s
            await set_task_timers(self._log.timers, hint.id, version=version, due_at=None, queue_timeout_s=timeout_s, now=now)

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
