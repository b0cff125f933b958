"""Makes tasks ready whose time has come. The broker keeps the time; this reads what it fired and asks the rules.

A fired timer is a hint: it may be early (it was replaced), late, doubled, or about a task that was cancelled since. So each
one is answered by the same command, which changes nothing where nothing is due. Any number of promoters may run: they
share one durable consumer, and the version check lets one of them win where two have the same hint.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg

from eventq.events.bootstrap import ensure_promoter
from eventq.events.commands import PromoteTask
from eventq.events.errors import Conflict, EventqError, InvalidInput, TaskNotFound, Unavailable
from eventq.events.failpoints import failpoint
from eventq.events.handle import handle, read_task
from eventq.events.ids import check_id
from eventq.events.log import EventLog
from eventq.events.pull import Pull
from eventq.events.subjects import TIMER_CONSUMER, TIMERS
from eventq.events.task import Task
from eventq.events.timers import set_timer

log = structlog.get_logger("eventq.promoter")

IN_HAND_MAX = 1_000
"""Hints answered at once."""

EARLY_DELAY_S = 1.0
EARLY_MAX = 10
"""A timer is set before the event that waits for it. One that fires in between comes again this often, a second apart."""

SOURCE = "scheduler"


class Promoter:
    """Run one with :meth:`run` until it is cancelled."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log
        self.promoted = 0

    async def run(self) -> None:
        """Answer timers as they fire."""
        broker = self._log.broker
        restore = partial(ensure_promoter, broker)
        await Pull(broker, TIMERS, TIMER_CONSUMER, self._answer, limit=IN_HAND_MAX, restore=restore).run()

    async def _answer(self, message: Msg) -> None:
        try:
            await self._settle(message)
        except (nats.errors.Error, EventqError) as error:
            log.warning("promoter.left_to_redelivery", subject=message.subject, error=repr(error))

    async def _settle(self, message: Msg) -> None:
        hint = _read_hint(message.data)
        if hint is None:
            log.warning("promoter.not_a_hint", subject=message.subject)
            await message.ack()
            return
        task_id, version = hint
        try:
            settled = await self._promote(task_id, version)
        except Unavailable as error:
            log.warning("promoter.left_to_redelivery", task_id=task_id, error=error.detail)
            return
        if settled or message.metadata.num_delivered > EARLY_MAX:
            await message.ack()
        else:
            await message.nak(delay=EARLY_DELAY_S)

    async def _promote(self, task_id: str, version: int) -> bool:
        """Whether the hint is spent."""
        failpoint("promote.before_append")
        try:
            handled = await handle(self._log, task_id, PromoteTask(version, datetime.now(UTC)), source=SOURCE)
        except TaskNotFound:
            return False
        except Conflict:
            return (await read_task(self._log, task_id)).version >= version
        failpoint("promote.after_append")
        if handled.event is not None:
            self.promoted += 1
            return True
        return await self._still_waiting(task_id, version, handled.task)

    async def _still_waiting(self, task_id: str, version: int, task: Task) -> bool:
        """Nothing was due: set the timer right if it was wrong, wait if the event is yet to come, else forget the hint."""
        if task.version == version and task.due_at is not None:
            await set_timer(self._log.broker, task_id, version, task.due_at)
        return task.version >= version


def _read_hint(payload: bytes) -> tuple[str, int] | None:
    """The task and version that a timer is about; ``None`` for what no timer of ours wrote. Anybody may publish here."""
    try:
        hint = orjson.loads(payload)
        return check_id(hint["task_id"], "task_id"), int(hint["version"])
    except (ValueError, TypeError, KeyError, OverflowError, InvalidInput):
        return None
