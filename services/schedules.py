"""Makes schedules tick: answers their fired timers, and sees to it that whatever a tick decided is made.

Any number of schedulers may do this at once. A tick is decided by its event: the timer of the next due time is set, then
``ticked`` is appended with the version check, so one of them wins, and names the tasks by ids that follow from the due time;
then the tasks are made. A scheduler may die between any two of these steps: the hint comes again, and where even that is
lost, every scheduler reads in the log which tasks were decided and never made, and which schedules are overdue.

The time is the broker's, which also decides when timers fire: what the clocks of the schedulers' hosts say means nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import nats.errors
import structlog
from nats.js.errors import APIError

from eventq.events.errors import EventqError, IllegalTransition, LogUnavailable
from eventq.events.failpoints import failpoint
from eventq.events.handle import CONFLICTS_MAX, handle_any, read_state, read_task
from eventq.events.log import EventLog
from eventq.events.schedule import (
    SCHEDULES,
    TICK,
    Schedule,
    ScheduleStatus,
    TickSchedule,
    plan_tick,
    tick_task,
)
from eventq.events.schedule_events import ScheduleCreated, ScheduleSpec, ScheduleTicked, ScheduleUpdated
from eventq.events.submitter import Submitter
from eventq.events.timers import Hint, set_timer
from eventq.services.clock import Clock, broker_clock
from eventq.services.follower import Fact, Follower

log = structlog.get_logger("eventq.schedules")

SWEEP_S = 5.0
GRACE_S = 5.0
"""How late a tick or one of its tasks may be before its hint counts as lost."""

AT_ONCE_MAX_LAG = timedelta(hours=6)
"""Due times of so long are counted at once; those of a longer outage in a thread, because there may be very many."""


async def read_schedule(event_log: EventLog, schedule_id: str, *, fresh: bool = False) -> Schedule:
    """The schedule as its last event tells it, with what it makes; ``NO_SCHEDULE`` if there is none. See :func:`read_state`."""
    return await with_spec(event_log, schedule_id, await read_state(event_log, SCHEDULES, schedule_id, fresh=fresh))


async def with_spec(event_log: EventLog, schedule_id: str, schedule: Schedule) -> Schedule:
    """The schedule with what it makes, to which its state in an event only refers; without it where it was erased."""
    if schedule.spec is not None or schedule.version == 0:
        return schedule
    stored = await event_log.settled(SCHEDULES.name, schedule_id, schedule.spec_version)
    if stored is None or not isinstance(stored.event.data, ScheduleCreated | ScheduleUpdated):
        return schedule
    return schedule.model_copy(update={"spec": stored.event.data.spec})


def tick_hint(schedule_id: str) -> Hint:
    """The hint that a schedule may be due."""
    return Hint("schedules", schedule_id, TICK)


class TickMaker:
    """Answers the hints of schedules. ``now``: by default the broker's clock."""

    def __init__(self, event_log: EventLog, submitter: Submitter, *, source: str, now: Clock | None = None) -> None:
        self._log = event_log
        self._submitter = submitter
        self._source = source
        self._now = now or broker_clock(event_log.broker)
        self.ticked = 0

    async def tick(self, hint: Hint) -> bool:
        """Deal with all due times of a schedule. Answers whether the hint is spent: not where it came before its event."""
        for round_ in range(CONFLICTS_MAX):
            schedule = await read_schedule(self._log, hint.id, fresh=round_ > 0)
            if schedule.version == 0:
                return False
            if await self._decide(hint.id, schedule):
                return True
        raise LogUnavailable(f"schedule {hint.id} changes faster than it can tick")

    async def _decide(self, schedule_id: str, schedule: Schedule) -> bool:
        """Answers whether the tick was decided on what is true; if not, somebody else changed the schedule meanwhile."""
        now = await self._now()
        if not schedule.waiting or schedule.next_at is None or schedule.next_at > now:
            # Replaced, doubled, or come again because a scheduler died after it had decided.
            await self._make_missing(schedule_id)
            if schedule.waiting and schedule.next_at is not None:
                await set_timer(self._log.timers, tick_hint(schedule_id), schedule.next_at)
            return True
        if schedule.spec is None:
            return False  # it was given another, and this one was erased, since it was read
        busy = schedule.spec.overlap == "skip" and await self._busy(schedule_id, schedule)
        long_ago = now - schedule.next_at > AT_ONCE_MAX_LAG
        ticked = (
            await asyncio.to_thread(plan_tick, schedule_id, schedule, now, busy=busy)
            if long_ago
            else plan_tick(schedule_id, schedule, now, busy=busy)
        )
        assert ticked is not None
        failpoint("schedule.before_timer")
        if ticked.next_at is not None:
            await set_timer(self._log.timers, tick_hint(schedule_id), ticked.next_at)
        failpoint("schedule.before_ticked")
        command = TickSchedule(schedule.version, ticked)
        try:
            await handle_any(self._log, SCHEDULES, schedule_id, command, source=self._source, state=schedule)
        except IllegalTransition:
            return False
        self.ticked += 1
        failpoint("schedule.before_submit")
        await self.make(schedule_id, schedule.spec, ticked.task_ids)
        return True

    async def make(self, schedule_id: str, spec: ScheduleSpec, task_ids: Sequence[str]) -> None:
        """Make these tasks, in order, where they do not exist."""
        for task_id in task_ids:
            try:
                await self._submitter.submit(task_id, tick_task(schedule_id, spec))
            except IllegalTransition:
                continue  # made already: by a scheduler that died, or by one beside us
            failpoint("schedule.after_submit")

    async def make_missing(self, schedule_id: str, state: dict[str, Any], task_ids: Sequence[str]) -> int:
        """Make those of them that have no history at all, which an erased task has; answers how many. ``state``: the schedule's
        as it travels in the event that decided them. Where what it made then was erased since, it is what it makes now
        that counts."""
        missing = [task_id for task_id in task_ids if (await read_task(self._log, task_id, fresh=True)).version == 0]
        if not missing:
            return 0
        schedule = await with_spec(self._log, schedule_id, SCHEDULES.from_summary(state))
        if schedule.spec is None:
            schedule = await read_schedule(self._log, schedule_id, fresh=True)
        if schedule.spec is None:
            return 0  # it was deleted
        await self.make(schedule_id, schedule.spec, missing)
        return len(missing)

    async def _make_missing(self, schedule_id: str) -> None:
        """Make what the last tick decided. Where something else came since, which may have changed what is to be made, that is
        left to the sweep, which has the schedule as it was."""
        stored = await self._log.last(SCHEDULES.name, schedule_id, fresh=True)
        if stored is not None and isinstance(stored.event.data, ScheduleTicked):
            await self.make_missing(schedule_id, stored.event.state, stored.event.data.task_ids)

    async def _busy(self, schedule_id: str, schedule: Schedule) -> bool:
        """Whether the task of the tick before is unfinished, or was decided and is not made yet."""
        if not schedule.last_task_ids:
            return False
        await self._make_missing(schedule_id)
        return not (await read_task(self._log, schedule.last_task_ids[-1], fresh=True)).finished


class ScheduleSweep:
    """The duty that finds ticks whose timer was lost and tasks that were decided and never made. Memory grows with the
    schedules that wait, and with what is decided and not yet made."""

    def __init__(self, event_log: EventLog, ticks: TickMaker, *, now: Clock | None = None) -> None:
        self._log = event_log
        self._ticks = ticks
        self._now = now or broker_clock(event_log.broker)
        self._waiting: dict[str, datetime] = {}
        self._unmade: dict[str, tuple[str, Fact]] = {}
        self.wake = asyncio.Event()
        self.repaired = 0

    def note(self, fact: Fact) -> None:
        """See :class:`Duty`."""
        if fact.kind == "tasks":
            self._unmade.pop(fact.id, None)
        elif fact.kind == "schedules":
            self._note_schedule(fact)

    def _note_schedule(self, fact: Fact) -> None:
        next_at = fact.state.get("next_at")
        if fact.state.get("status") == ScheduleStatus.ACTIVE and isinstance(next_at, str):
            self._waiting[fact.id] = datetime.fromisoformat(next_at)
        else:
            self._waiting.pop(fact.id, None)
        if fact.type == "erased" and fact.state.get("status") == ScheduleStatus.DELETED:
            self._unmade = {task_id: unmade for task_id, unmade in self._unmade.items() if unmade[0] != fact.id}
        elif fact.type == "ticked":
            self._unmade |= dict.fromkeys(fact.data.get("task_ids", []), (fact.id, fact))
        elif fact.type == "triggered":
            self._unmade[fact.data["task_id"]] = (fact.id, fact)

    async def run(self, follower: Follower) -> None:
        """Sweep every few seconds, whenever all of the log has been seen. Run it until it is cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            await follower.until_caught_up()
            try:
                repaired = await self.sweep()
            except (EventqError, nats.errors.Error, APIError, TimeoutError) as error:
                log.warning("schedules.waiting_for_broker", error=repr(error))
                continue
            if repaired:
                self.repaired += repaired
                log.info("schedules.repaired", repaired=repaired)

    async def sweep(self) -> int:
        """Set timers anew that are overdue, and make what was decided and not made; answers how many of both."""
        if not self._waiting and not self._unmade:
            return 0
        late = await self._now() - timedelta(seconds=GRACE_S)
        overdue = [schedule_id for schedule_id, next_at in self._waiting.items() if next_at < late]
        for schedule_id in overdue:
            # The broker decides when it is due, and hands it to one scheduler.
            await set_timer(self._log.timers, tick_hint(schedule_id), self._waiting[schedule_id])
        made = 0
        for task_id, (schedule_id, fact) in list(self._unmade.items()):
            if datetime.fromtimestamp(fact.stored_ns / 1e9, UTC) < late:
                made += await self._ticks.make_missing(schedule_id, fact.state, [task_id])
        return len(overdue) + made
