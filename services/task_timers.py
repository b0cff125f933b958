"""What fired timers mean for tasks: their time has come, or nobody started them in time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from eventq.events.commands import ExpireQueueWait, PromoteTask
from eventq.events.errors import Conflict, TaskNotFound
from eventq.events.failpoints import failpoint
from eventq.events.handle import handle, read_task
from eventq.events.log import EventLog
from eventq.events.task import ACCEPTS, Task
from eventq.events.timers import START_BY, Hint, set_timer


def utc_now() -> datetime:
    """The clock of this host: aware UTC."""
    return datetime.now(UTC)


class TaskTimers:
    """Answers hints about tasks. Each method answers whether the hint is spent."""

    def __init__(self, log: EventLog, *, source: str, now: Callable[[], datetime] = utc_now) -> None:
        self._log = log
        self._source = source
        self._now = now
        self.promoted = 0

    async def promote(self, hint: Hint) -> bool:
        """A scheduled or retrying task is due."""
        failpoint("promote.before_append")
        try:
            command = PromoteTask(hint.version, self._time_of(hint))
            handled = await handle(self._log, hint.id, command, source=self._source)
        except TaskNotFound:
            return False
        except Conflict:
            return self._spent(hint, await read_task(self._log, hint.id, fresh=True))
        failpoint("promote.after_append")
        if handled.event is not None:
            self.promoted += 1
            if handled.state.start_by is not None:
                await set_timer(self._log.broker, Hint("tasks", hint.id, START_BY), handled.state.start_by)
            return True
        return await self._still_waiting(hint, handled.state)

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
            await set_timer(self._log.broker, hint, task.due_at)
        return task.version >= hint.version

    async def expire_wait(self, hint: Hint) -> bool:
        """A ready task was not started in time."""
        try:
            handled = await handle(self._log, hint.id, ExpireQueueWait(self._time_of(hint)), source=self._source)
        except TaskNotFound:
            return False
        except Conflict:
            return True
        if handled.event is None and handled.state.start_by is not None:
            await set_timer(self._log.broker, hint, handled.state.start_by)
        return True
