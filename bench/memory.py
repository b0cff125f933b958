"""Memory of the broker and the API for each 100,000 tasks that they have seen through to the end."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import defaultdict
from collections.abc import Mapping

from bench.bed import CONCURRENCY, Plan, open_bed
from bench.drain import last_position, until_stored
from bench.figures import Baseline, Figure
from bench.machine import rss_mib
from bench.until import until
from eventq.events.broker import Broker
from eventq.services.supervisor import Unit

SEEN_MAX_S = 300.0
PER_TASKS = 100_000


async def measure(plan: Plan) -> list[Figure]:
    """Resident memory gained, in MiB for each 100,000 tasks. The way of syncing does not matter to it."""
    tasks, settle_s = plan.size(PER_TASKS, 300), plan.size(3, 0)
    gained: dict[str, list[float]] = defaultdict(list)
    empty: dict[str, list[float]] = defaultdict(list)
    for run in range(plan.runs):
        plan.note(f"memory, run {run + 1}")
        async with open_bed("default") as bed:
            api, url = await bed.start_api()
            await bed.start("worker")
            pids = {"broker": _pid(bed.server), "api": _pid(api)}
            before = await _settled(pids, settle_s)
            await bed.load("fill", url=bed.server.url, count=tasks)
            async with await Broker.connect(bed.server.url, name="bench memory") as broker:
                await _until_seen(url, broker, 3 * tasks)
            after = await _settled(pids, settle_s)
            for name in pids:
                empty[name].append(before[name])
                gained[name].append((after[name] - before[name]) * PER_TASKS / tasks)
    extrapolated = "" if tasks == PER_TASKS else f"; extrapolated linearly from {tasks} tasks"
    return [
        Figure(
            name=f"memory_{name}_per_100k_tasks",
            unit="MiB",
            values=gained[name],
            baseline=Baseline("resident before the first task", empty[name]),
            conditions=f"{tasks} no-op tasks submitted, run and projected, three events each; RSS gained; "
            f"one worker, concurrency {CONCURRENCY}{extrapolated}",
            sync="default",
        )
        for name in ("broker", "api")
    ]


def _pid(process: Unit) -> int:
    assert process.pid is not None
    return process.pid


async def _settled(pids: Mapping[str, int], settle_s: float) -> dict[str, float]:
    """Memory once the processes have had a moment to give back what they need no more."""
    await asyncio.sleep(settle_s)
    return {name: rss_mib(pid) for name, pid in pids.items()}


async def _until_seen(api_url: str, broker: Broker, events: int) -> None:
    """Wait until the log holds that many events and the API's tables have them all."""
    await until_stored(broker, events, most_s=SEEN_MAX_S)
    last = await last_position(broker)

    async def reached() -> bool:
        return await asyncio.to_thread(_as_of, api_url) >= last

    await until(reached, every_s=0.2, most_s=SEEN_MAX_S)


def _as_of(api_url: str) -> int:
    with urllib.request.urlopen(f"{api_url}/api/v1/tasks?limit=1", timeout=30) as answer:
        return int(json.loads(answer.read())["as_of"])
