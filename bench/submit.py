"""Submitting over HTTP: one by one, and with 64 requests in flight. No worker runs: the queue fills."""

from __future__ import annotations

from collections import defaultdict

from bench.bed import Plan, open_bed
from bench.figures import Baseline, Figure, percentile
from eventq.services.embedded import Sync

IN_FLIGHT = 64
BARE = "bare aiohttp POST handler"


async def measure(plan: Plan) -> list[Figure]:
    """Rate and latency of both ways, on each way of syncing."""
    figures: list[Figure] = []
    for sync in plan.syncs:
        figures += await _measure(plan, sync)
    return figures


async def _measure(plan: Plan, sync: Sync) -> list[Figure]:
    ways = {"submit_one_by_one": (1, plan.size(2_000, 30)), f"submit_{IN_FLIGHT}_in_flight": (IN_FLIGHT, plan.size(8_000, 130))}
    found: dict[str, list[float]] = defaultdict(list)
    async with open_bed(sync) as bed:
        _, api = await bed.start_api()
        servers = {"bare": await bed.start_bare_server(), "api": api}
        await bed.declare()
        for run in range(plan.runs):
            for way, (in_flight, count) in ways.items():
                for server, url in servers.items():
                    plan.note(f"submit, {sync} sync, run {run + 1}: {way}, {server}")
                    one = await bed.load("http", url=url, count=count, in_flight=in_flight, warm_up=plan.size(200, 5))
                    found[f"{server} {way} per_s"].append(one["per_s"])
                    for percent in (50, 99):
                        found[f"{server} {way} p{percent}"].append(1000 * percentile(one["latencies_s"], percent))
    return [
        Figure(
            name=way if of == "per_s" else f"{way}_{of}",
            unit="tasks/s" if of == "per_s" else "ms",
            values=found[f"api {way} {of}"],
            baseline=Baseline(BARE, found[f"bare {way} {of}"]),
            conditions=f"{count} requests, {in_flight} in flight, keep-alive; API and projector in one process; no worker",
            sync=sync,
        )
        for way, (in_flight, count) in ways.items()
        for of in ("per_s", "p50", "p99")
    ]
