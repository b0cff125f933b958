"""Latency of an unloaded system: API, scheduler and one worker run, and one client submits one task at a time."""

from __future__ import annotations

from collections import defaultdict

from bench.bed import Plan, open_bed
from bench.figures import Aim, Baseline, Figure, percentile
from bench.submit import BARE
from eventq.services.embedded import Sync

MOMENTS = {
    "start_s": ("submit_to_start", "from the client's call to the function's first line"),
    "visible_s": ("submit_to_visible", "from the client's call to the answer of a read of that task after it"),
    "listed_s": ("submit_to_listed", "from the client's call to the answer of a list that holds the task"),
    "completed_s": ("submit_to_completed", "from the client's call to a read that shows COMPLETED, asked every millisecond"),
}
AIMS = {("start_s", 50): Aim(most=5), ("visible_s", 99): Aim(most=50), ("listed_s", 99): Aim(most=50)}


async def measure(plan: Plan) -> list[Figure]:
    """p50 and p99 of four moments, on each way of syncing."""
    figures: list[Figure] = []
    for sync in plan.syncs:
        figures += await _measure(plan, sync)
    return figures


async def _measure(plan: Plan, sync: Sync) -> list[Figure]:
    count = plan.size(300, 5)
    found: dict[str, list[float]] = defaultdict(list)
    async with open_bed(sync) as bed:
        _, api = await bed.start_api()
        bare = await bed.start_bare_server()
        await bed.start("scheduler")
        await bed.start("worker")
        for run in range(plan.runs):
            plan.note(f"latency, {sync} sync, run {run + 1}")
            bare_s = (await bed.load("http", url=bare, count=count, in_flight=1, warm_up=20))["latencies_s"]
            latencies = await bed.load("latency", url=api, count=count)
            for percent in (50, 99):
                found[f"bare {percent}"].append(1000 * percentile(bare_s, percent))
                for moment in MOMENTS:
                    found[f"{moment} {percent}"].append(1000 * percentile(latencies[moment], percent))
    return [
        Figure(
            name=f"{name}_p{percent}",
            unit="ms",
            values=found[f"{moment} {percent}"],
            baseline=Baseline(f"{BARE}, one POST", found[f"bare {percent}"]),
            conditions=f"{count} tasks, one at a time with pauses of 5 to 25 ms; {meaning}",
            sync=sync,
            aim=None if plan.quick else AIMS.get((moment, percent)),
        )
        for moment, (name, meaning) in MOMENTS.items()
        for percent in (50, 99)
    ]
