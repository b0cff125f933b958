"""Finds tasks that the log says are unfinished but that nobody will ever run, and sets them going again.

Work items, timers and leases are hints; the log is the truth. Hints can be lost: a consumer deleted by hand, a purged
timer, an event published past eventq. So this duty of the follower folds the log to what is unfinished and compares it with
what the broker still has. What it does is decided by the rules like everything else, so doing it twice, or in two processes
at once, or wrongly on stale facts, changes nothing. What is late, and how long a task has waited, the broker's clock says:
it stamped the events and keeps the timers that are made up for. By this host's, where that is ahead, tasks would be promoted
or timed out early, and work be taken from workers that have had no time to say that they hold it.

| status               | lost when                                                                 | then              |
|----------------------|---------------------------------------------------------------------------|-------------------|
| PENDING              | its consumer is gone, or has the item behind it and nothing outstanding   | made ready again  |
| PENDING              | nobody started it by ``start_by``, for longer than the grace time         | timed out         |
| RUNNING, frozen      | its worker has not claimed to hold it for three leases                    | attempt ended     |
| SCHEDULED, RETRYING  | due for longer than the grace time                                        | promoted          |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import nats.errors
import structlog
from nats.js.errors import APIError, NotFoundError

from eventq.events.bootstrap import PRESENCE_TTL_S
from eventq.events.commands import Command, ExpireLease, ExpireQueueWait, PromoteTask, RequeueTask
from eventq.events.errors import Conflict, Damaged, TaskNotFound, Unavailable, UnknownEvent
from eventq.events.handle import handle
from eventq.events.log import EventLog
from eventq.events.presence import Heartbeat, present
from eventq.events.subjects import EVENTS, Route, work_consumer
from eventq.events.task import TERMINAL, Status, Task, from_summary
from eventq.services.follower import Fact, Follower

log = structlog.get_logger("eventq.reconciler")

SOURCE = "reconciler"
SWEEP_S = 5.0
GRACE_S = 5.0
"""How late a hint may be before it counts as lost."""

AT_ONCE = 5_000
"""Unfinished tasks looked at before others in the process get a turn: a million take two seconds."""

LEASES_MISSED = 3

OUTAGE_GRACE_S = PRESENCE_TTL_S * 1.5
"""For so long after the broker was away, or this process began, no worker is called gone: heartbeats lapsed with the broker,
and come back one by one."""


@dataclass(slots=True)
class Unfinished:
    """What is known of one unfinished task. ``ready_position``: where its newest work item stands in the stream;
    ``since``: when its last event was stored, in POSIX seconds of the broker's clock."""

    state: dict[str, Any]
    ready_position: int
    since: float


@dataclass(frozen=True, slots=True)
class ConsumerFacts:
    """How far a work consumer is: positions, and how many items are handed out and not acknowledged."""

    delivered: int
    acknowledged: int
    outstanding: int

    def has_lost(self, position: int) -> bool:
        """Whether it will never hand out the item at ``position`` (again)."""
        return position <= self.acknowledged or (position <= self.delivered and self.outstanding == 0)


class Reconciler:
    """Run one with :meth:`run` until it is cancelled. Memory grows with the unfinished tasks, not with the log."""

    def __init__(self, event_log: EventLog, *, lease_s: float) -> None:
        self._log = event_log
        self._lease_s = lease_s
        self._unfinished: dict[str, Unfinished] = {}
        self._began = time.monotonic()
        self.wake = asyncio.Event()
        self.repaired = 0

    async def run(self, follower: Follower) -> None:
        """Sweep every few seconds, whenever all of the log has been seen."""
        while True:
            await asyncio.sleep(SWEEP_S)
            await follower.until_caught_up()
            await self._sweep_once()

    def note(self, fact: Fact) -> None:
        """See :class:`Duty`."""
        if fact.kind != "tasks":
            return
        if fact.state["status"] in TERMINAL:
            self._unfinished.pop(fact.id, None)
            return
        known = self._unfinished.get(fact.id)
        before = known.ready_position if known is not None else 0
        position = fact.position if fact.work else before
        self._unfinished[fact.id] = Unfinished(fact.state, position, fact.stored_ns / 1e9)

    def known(self, task_id: str) -> Task | None:
        """An unfinished task as it was last shown here."""
        unfinished = self._unfinished.get(task_id)
        return None if unfinished is None else _readable(unfinished.state)

    async def _sweep_once(self) -> None:
        try:
            repaired = await self.sweep()
        except (nats.errors.Error, APIError, Unavailable, TimeoutError) as error:
            log.warning("reconciler.waiting_for_broker", error=repr(error))
            return
        if repaired:
            self.repaired += repaired
            log.info("reconciler.repaired", tasks=repaired)

    async def sweep(self) -> int:
        """Look at all that waited too long; answers how many tasks were set going again."""
        if not self._unfinished:
            return 0
        now = await self._log.broker.time()
        seconds = now.timestamp()
        due: list[tuple[str, Unfinished, Task]] = []
        for number, (task_id, unfinished) in enumerate(list(self._unfinished.items())):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            if seconds - unfinished.since > GRACE_S and (task := _readable(unfinished.state)) is not None:
                due.append((task_id, unfinished, task))
        if not due:
            return 0
        facts = await self._consumer_facts({_route(t) for _, _, t in due if t.status is Status.PENDING and not t.held})
        workers = await present(self._log.broker) if any(t.in_hand for _, _, t in due) else {}
        repaired = 0
        for number, (task_id, unfinished, task) in enumerate(due):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            command = self._remedy(task_id, unfinished, task, facts, workers, now)
            if command is not None:
                repaired += await self._apply(task_id, command)
        return repaired

    def _remedy(
        self,
        task_id: str,
        unfinished: Unfinished,
        task: Task,
        facts: dict[Route, ConsumerFacts | None],
        workers: dict[str, Heartbeat],
        now: datetime,
    ) -> Command | None:
        match task.status:
            case Status.PENDING if _overdue(task.start_by, now):
                return ExpireQueueWait(now)
            case Status.PENDING if not task.held:
                consumer = facts[_route(task)]
                lost = consumer is None or consumer.has_lost(unfinished.ready_position)
                return RequeueTask(task.version) if lost else None
            case Status.RUNNING | Status.PAUSED if task.in_hand:
                holder = workers.get(task.worker_id or "")
                held = holder is not None and task_id in holder.running
                patience_s = LEASES_MISSED * self._lease_s + GRACE_S
                silent = now.timestamp() - unfinished.since > patience_s
                return ExpireLease(task.attempt) if silent and self._settled() and not held else None
            case Status.SCHEDULED | Status.RETRYING if _overdue(task.due_at, now):
                return PromoteTask(task.version, now)
            case _:
                return None

    def _settled(self) -> bool:
        since = max(self._began, self._log.broker.reconnected_at)
        return time.monotonic() - since > OUTAGE_GRACE_S

    async def _apply(self, task_id: str, command: Command) -> bool:
        try:
            handled = await handle(self._log, task_id, command, source=SOURCE)
        except (Conflict, TaskNotFound, Damaged):
            return False  # it moved on while we looked, perhaps to where only a newer program can follow
        return handled.event is not None

    async def _consumer_facts(self, routes: Iterable[Route]) -> dict[Route, ConsumerFacts | None]:
        return {route: await self._facts_of(route) for route in routes}

    async def _facts_of(self, route: Route) -> ConsumerFacts | None:
        try:
            info = await self._log.broker.js.consumer_info(EVENTS, work_consumer(route))
        except NotFoundError:
            await self._log.routes.create(route)
            return None
        assert info.delivered is not None
        assert info.ack_floor is not None
        return ConsumerFacts(info.delivered.stream_seq, info.ack_floor.stream_seq, info.num_ack_pending or 0)


def _readable(state: dict[str, Any]) -> Task | None:
    """The task; ``None`` where a newer program wrote the state, which will look after it."""
    try:
        return from_summary(state)
    except UnknownEvent:
        return None


def _route(task: Task) -> Route:
    return Route(task.pool, task.queue, task.priority)


def _overdue(at: datetime | None, now: datetime) -> bool:
    return at is not None and at + timedelta(seconds=GRACE_S) < now
