"""Each priority's share of the starts while every level has more waiting than can run, against its weight."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import orjson

from bench.bed import Bed, Plan, open_bed
from bench.drain import last_position
from bench.figures import Baseline, Figure
from bench.follow import of_type, seen
from eventq.events.broker import Broker
from eventq.events.ids import new_id
from eventq.events.limits import PRIORITY_MAX, PRIORITY_MIN, WEIGHT_PER_PRIORITY
from eventq.events.log import EventLog
from eventq.events.subjects import EVENTS, Route, work_consumer
from eventq.events.submitter import Submitter
from eventq.events.task_events import Submitted
from eventq.services.embedded import Sync

LEVELS = range(PRIORITY_MIN, PRIORITY_MAX + 1)
SLOTS = 8


async def measure(plan: Plan) -> list[Figure]:
    """Shares of all levels, on each way of syncing."""
    figures: list[Figure] = []
    for sync in plan.syncs:
        figures += await _measure(plan, sync)
    return figures


async def _measure(plan: Plan, sync: Sync) -> list[Figure]:
    starts = plan.size(3_000, 30)
    weights = {level: WEIGHT_PER_PRIORITY**level for level in LEVELS}
    shares = {level: weight / sum(weights.values()) for level, weight in weights.items()}
    found: dict[int, list[float]] = defaultdict(list)
    for run in range(plan.runs):
        plan.note(f"priorities, {sync} sync, run {run + 1}")
        async with open_bed(sync) as bed, await Broker.connect(bed.server.url, name="bench priorities") as broker:
            bed.settings = bed.settings.model_copy(update={"concurrency": SLOTS})
            counts = await _starts(bed, broker, starts, shares)
            for level in LEVELS:
                found[level].append(100 * counts[level] / starts)
    return [
        Figure(
            name=f"priority_{level}_share",
            unit="% of starts",
            values=found[level],
            baseline=Baseline("its weight's share", [100 * shares[level]] * plan.runs),
            conditions=f"the first {starts} starts of one worker with {SLOTS} slots; all levels have enough waiting",
            sync=sync,
        )
        for level in LEVELS
    ]


async def _starts(bed: Bed, broker: Broker, starts: int, shares: Mapping[int, float]) -> Counter[int]:
    """How many of the first starts were of which level."""
    log = await EventLog.open(broker)
    try:
        submitter = Submitter(log, source="bench")
        routes = [Route("cpu", "default", level) for level in LEVELS]
        for route in routes:
            await log.routes.ensure(route)
            until = datetime.now(UTC) + timedelta(hours=1)
            await broker.js.pause_consumer(EVENTS, work_consumer(route), until.isoformat())
        await asyncio.gather(*(_fill(submitter, level, int(2 * shares[level] * starts) + 20) for level in LEVELS))
        await bed.start("worker")
        position = await last_position(broker)
        await asyncio.gather(*(broker.js.resume_consumer(EVENTS, work_consumer(route)) for route in routes))
        messages = await seen(broker, position, starts, of_type("started"))
    finally:
        await log.close()
    return Counter(orjson.loads(message.payload)["state"].get("priority", 0) for message in messages)


async def _fill(submitter: Submitter, level: int, count: int) -> None:
    wanted = Submitted(task_name="noop", pool="cpu", queue="default", priority=level, max_retries=0)
    for _ in range(count):
        await submitter.submit(new_id(), wanted)
