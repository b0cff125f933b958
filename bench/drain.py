"""Draining no-op tasks that wait already, by one worker process and by two.

The queue's consumer is paused until every worker is ready, so that all begin at once and nobody's start-up counts. The time
is the broker's: from the first claim it stored to the last completion.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

from bench.bed import CONCURRENCY, Bed, Plan, open_bed
from bench.figures import Aim, Baseline, Figure
from bench.machine import cpu_seconds
from bench.until import until
from eventq.events.broker import Broker
from eventq.events.reader import Message, Tail
from eventq.events.subjects import EVENTS, Route, work_consumer
from eventq.services.embedded import Sync

IN_FLIGHT = 1_000
APPENDS = "raw version-checked appends, one process"
CONSUMER = work_consumer(Route("cpu", "default", 5))
AIMS = {1: Aim(least=1 / 8, of_ratio=True), 2: Aim(least=1 / 4, of_ratio=True)}
DRAIN_MAX_S = 300.0


async def measure(plan: Plan) -> list[Figure]:
    """Tasks a second, and CPU time of a worker for each task, on each way of syncing."""
    figures: list[Figure] = []
    for sync in plan.syncs:
        figures += await _measure(plan, sync)
    return figures


async def _measure(plan: Plan, sync: Sync) -> list[Figure]:
    tasks = plan.size(20_000, 150)
    found: dict[str, list[float]] = defaultdict(list)
    for run in range(plan.runs):
        async with open_bed(sync) as bed:
            plan.note(f"drain, {sync} sync, run {run + 1}: baseline")
            appends = await bed.load("append", url=bed.server.url, count=2 * tasks, in_flight=IN_FLIGHT)
            found["appends per_s"].append(appends["per_s"])
            found["appends cpu_us"].append(appends["cpu_s"] * 1e6)
            for workers in (1, 2):
                plan.note(f"drain, {sync} sync, run {run + 1}: {workers} worker(s)")
                per_s, cpu_s = await _drain(bed, tasks, workers)
                found[f"{workers} per_s"].append(per_s)
                found[f"{workers} cpu_us"].append(cpu_s * 1e6)
    conditions = f"{tasks} no-op tasks, concurrency {CONCURRENCY} a worker; no API, no projector"
    rates = [
        Figure(
            name=f"drain_{workers}_worker" + ("s" if workers > 1 else ""),
            unit="tasks/s",
            values=found[f"{workers} per_s"],
            baseline=Baseline(f"{APPENDS}, {IN_FLIGHT} in flight", found["appends per_s"]),
            conditions=conditions,
            sync=sync,
            aim=aim if sync == "default" and not plan.quick else None,
        )
        for workers, aim in AIMS.items()
    ]
    cpu = Figure(
        name="drain_cpu_per_task",
        unit="us",
        values=found["1 cpu_us"],
        baseline=Baseline("CPU of one raw append; a task is two", found["appends cpu_us"]),
        conditions=f"{conditions}; CPU time of the one worker process",
        sync=sync,
    )
    return [*rates, cpu]


async def _drain(bed: Bed, tasks: int, workers: int) -> tuple[float, float]:
    """Tasks a second, and seconds of the workers' CPU time for each."""
    await bed.load("fill", url=bed.server.url, count=tasks)
    async with await Broker.connect(bed.server.url, name="bench drain") as broker:
        await broker.js.pause_consumer(EVENTS, CONSUMER, (datetime.now(UTC) + timedelta(hours=1)).isoformat())
        processes = [await bed.start("worker") for _ in range(workers)]
        pids = [process.pid for process in processes if process.pid is not None]
        position, used_s = await last_position(broker), sum(map(cpu_seconds, pids))
        await broker.js.resume_consumer(EVENTS, CONSUMER)
        await until_stored(broker, position + 2 * tasks, most_s=DRAIN_MAX_S)
        used_s = sum(map(cpu_seconds, pids)) - used_s
        messages = await _read(broker, position)
        for process in processes:
            await process.stop()
    completed = [message for message in messages if message.subject.endswith(".completed")]
    if len(completed) != tasks:
        raise RuntimeError(f"{len(completed)} of {tasks} tasks were completed")
    seconds = (completed[-1].stored_ns - messages[0].stored_ns) / 1e9
    return tasks / seconds, used_s / tasks


async def last_position(broker: Broker) -> int:
    """Position of the newest event."""
    facts = await broker.stream_facts(EVENTS)
    assert facts is not None
    return facts.last


async def until_stored(broker: Broker, position: int, *, most_s: float) -> None:
    """Wait until the log has reached ``position``."""

    async def reached() -> bool:
        return await last_position(broker) >= position

    await until(reached, every_s=0.02, most_s=most_s)


async def _read(broker: Broker, after: int) -> list[Message]:
    until, messages = await last_position(broker), list[Message]()
    async with Tail(broker, EVENTS, after=after) as tail:
        while tail.position < until:
            messages += await tail.next(timeout_s=10)
    return messages
