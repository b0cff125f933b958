"""Submitting in bulk: one request of many tasks, a line each, against as many raw appends. No worker runs: the queue fills."""

from __future__ import annotations

from collections import defaultdict

from bench.bed import Plan, open_bed
from bench.figures import Aim, Baseline, Figure
from eventq.services.embedded import Sync

IN_FLIGHT = 256
"""Unanswered raw appends: as many as tasks of one request are in work at once."""

SHARE_LEAST = Aim(least=0.25, of_ratio=True)


async def measure(plan: Plan) -> list[Figure]:
    """Tasks of one request a second, on each way of syncing."""
    return [await _measure(plan, sync) for sync in plan.syncs]


async def _measure(plan: Plan, sync: Sync) -> Figure:
    tasks = plan.size(10_000, 300)
    found: dict[str, list[float]] = defaultdict(list)
    for run in range(plan.runs):
        async with open_bed(sync) as bed:
            process, api = await bed.start_api()
            await bed.declare()
            plan.note(f"bulk, {sync} sync, run {run + 1}")
            await bed.load("bulk", url=api, count=plan.size(1_000, 10))  # warms up
            found["bulk"].append((await bed.load("bulk", url=api, count=tasks))["per_s"])
            await process.stop()  # the raw appends are none of its events
            found["appends"].append((await bed.load("append", url=bed.server.url, count=tasks, in_flight=IN_FLIGHT))["per_s"])
    return Figure(
        name="submit_bulk",
        unit="tasks/s",
        values=found["bulk"],
        baseline=Baseline(f"raw version-checked appends, {IN_FLIGHT} in flight", found["appends"]),
        conditions=f"one request of {tasks} tasks, a line each, to its last answer; API and projector in a process; no worker",
        sync=sync,
        aim=None if plan.quick else SHARE_LEAST,
    )
