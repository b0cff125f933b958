"""A flood of timers: scheduled tasks that are all due at the same instant, and one scheduler that makes them ready.

The time is the broker's: from the instant at which all are due until it has stored the last ``queued``.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime, timedelta

from bench.bed import Bed, Plan, open_bed
from bench.drain import last_position, until_stored
from bench.figures import Aim, Baseline, Figure
from eventq.events.broker import Broker
from eventq.events.ids import new_id
from eventq.events.log import EventLog
from eventq.events.reader import Tail
from eventq.events.subjects import EVENTS
from eventq.events.submitter import Submitter
from eventq.events.task_events import Submitted
from eventq.services.embedded import Sync

IN_FLIGHT = 500
SUBMITTED_PER_S_LEAST = 500
"""So many are submitted a second at least: before they are due, all must wait."""

LEAD_S = 3.0
FLOOD_MAX_S = 120.0


async def measure(plan: Plan) -> list[Figure]:
    """Seconds from the due instant until all are queued, on each way of syncing."""
    return [await _measure(plan, sync) for sync in plan.syncs]


async def _measure(plan: Plan, sync: Sync) -> Figure:
    tasks = plan.size(10_000, 100)
    found: dict[str, list[float]] = defaultdict(list)
    for run in range(plan.runs):
        async with open_bed(sync) as bed:
            plan.note(f"timers, {sync} sync, run {run + 1}")
            appends = await bed.load("append", url=bed.server.url, count=tasks, in_flight=IN_FLIGHT)
            found["appends"].append(tasks / appends["per_s"])
            found["flood"].append(await _flood(bed, tasks))
    return Figure(
        name="timers_flood",
        unit="s",
        values=found["flood"],
        baseline=Baseline(f"as many raw version-checked appends, {IN_FLIGHT} in flight", found["appends"]),
        conditions=f"{tasks} scheduled tasks due at the same instant, until all are queued; one scheduler, no API, no worker",
        sync=sync,
        aim=Aim(most=5.0) if not plan.quick else None,
    )


async def _flood(bed: Bed, tasks: int) -> float:
    """Seconds from the instant at which all are due until the last is queued."""
    scheduler = await bed.start("scheduler")
    async with await Broker.connect(bed.server.url, name="bench timers") as broker:
        due_at = datetime.now(UTC) + timedelta(seconds=LEAD_S + tasks / SUBMITTED_PER_S_LEAST)
        await _submit(broker, tasks, due_at)
        if datetime.now(UTC) >= due_at:
            raise RuntimeError(f"{tasks} tasks could not be submitted before they were due")
        position = await last_position(broker)
        left_s = (due_at - datetime.now(UTC)).total_seconds()
        await until_stored(broker, position + tasks, most_s=left_s + FLOOD_MAX_S)
        last_ns = await _last_queued_ns(broker, position, tasks)
    await scheduler.stop()
    return last_ns / 1e9 - due_at.timestamp()


async def _submit(broker: Broker, tasks: int, due_at: datetime) -> None:
    log = await EventLog.open(broker)
    submitter = Submitter(log, source="bench")
    turn = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        wanted = Submitted(task_name="noop", pool="cpu", queue="default", priority=5, max_retries=0, scheduled_at=due_at)
        async with turn:
            await submitter.submit(new_id(), wanted)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(one())
    await log.close()


async def _last_queued_ns(broker: Broker, after: int, tasks: int) -> int:
    """When the broker stored the last ``queued``; raises where there are not exactly as many as tasks."""
    end, stored = await last_position(broker), list[int]()
    async with Tail(broker, EVENTS, after=after) as tail:
        while tail.position < end:
            stored += [message.stored_ns for message in await tail.next(timeout_s=10) if ".queued." in message.subject]
    if len(stored) != tasks:
        raise RuntimeError(f"{len(stored)} of {tasks} tasks were queued")
    return stored[-1]
