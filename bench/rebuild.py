"""How fast a projection is folded from the log: events a second, from an existing log to a readable file.

Each task has three events (submitted, started, completed), written by the same code that writes them in production.
The baseline is the bare reader: the same messages received and thrown away.
"""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import UTC, datetime

from bench.bed import Plan, open_bed
from bench.drain import last_position, until_stored
from bench.figures import Aim, Baseline, Figure
from eventq.events.broker import Broker
from eventq.events.data import EventData
from eventq.events.envelope import encode, next_event
from eventq.events.ids import new_id
from eventq.events.reader import Tail
from eventq.events.subjects import EVENTS
from eventq.events.task import ABSENT, TASKS, Task
from eventq.events.task_events import Completed, Started, Submitted
from eventq.projections.rebuild import rebuild_offline

AT_ONCE = 64
"""Tasks whose events are interleaved in the log, as those of a busy worker are."""

EVENTS_PER_S_LEAST = 30_000
READ = "the same events read and thrown away"


async def measure(plan: Plan) -> list[Figure]:
    """Events a second and the size of the file, each time on a fresh file from the same log."""
    events = plan.size(120_000, 400)
    found: dict[str, list[float]] = defaultdict(list)
    async with open_bed("default") as bed, await Broker.connect(bed.server.url, name="bench rebuild") as broker:
        plan.note(f"rebuild: writing {events} events")
        events = await fill(broker, events)
        for run in range(plan.runs):
            plan.note(f"rebuild, run {run + 1}")
            cpu_began = time.process_time()
            found["read per_s"].append(await read_only(broker))
            cpu_read = time.process_time()
            folder = bed.settings.data_dir / f"projection-{run}"
            rebuilt = await rebuild_offline(folder, broker)
            found["read cpu_us"].append((cpu_read - cpu_began) / events * 1e6)
            found["fold cpu_us"].append((time.process_time() - cpu_read) / events * 1e6)
            found["fold per_s"].append(rebuilt.position / rebuilt.seconds)
            found["file bytes"].append(sum(file.stat().st_size for file in folder.glob("*.duckdb")) / events)
            found["log bytes"].append(await _log_bytes(broker) / events)
    conditions = f"{events} events of {events // 3} tasks, read and folded in one process"
    return [
        Figure(
            name="rebuild",
            unit="events/s",
            values=found["fold per_s"],
            baseline=Baseline(READ, found["read per_s"]),
            conditions=conditions,
            sync="default",
            aim=None if plan.quick else Aim(least=EVENTS_PER_S_LEAST),
        ),
        Figure(
            name="rebuild_cpu_per_event",
            unit="us",
            values=found["fold cpu_us"],
            baseline=Baseline(READ, found["read cpu_us"]),
            conditions=f"{conditions}; CPU time of that process",
            sync="default",
        ),
        Figure(
            name="rebuild_file_size",
            unit="bytes/event",
            values=found["file bytes"],
            baseline=Baseline("size in the log", found["log bytes"]),
            conditions=conditions,
            sync="default",
        ),
    ]


def life() -> list[EventData]:
    """The events of one small task."""
    return [
        Submitted(task_name="echo", kwargs={"text": "hello", "n": 1}, pool="cpu", queue="default", priority=5, max_retries=3),
        Started(worker_id="w-1", hostname="bench", device="cpu"),
        Completed(result={"text": "hello", "n": 1}, duration_s=0.002),
    ]


async def fill(broker: Broker, events: int) -> int:
    """Write at least ``events`` events; answers how many. Unacknowledged publishes, counted at the end: only the reading is
    measured."""
    written = 0
    while written < events:
        tasks: dict[str, Task] = {new_id(): ABSENT for _ in range(AT_ONCE)}
        for data in life():
            for task_id in tasks:
                event, tasks[task_id] = next_event(TASKS, task_id, tasks[task_id], data, source="bench", at=datetime.now(UTC))
                await broker.nc.publish(event.subject, encode(event))
                written += 1
        await broker.nc.flush()
    await until_stored(broker, written, most_s=60)
    return written


async def read_only(broker: Broker) -> float:
    """Events a second of the reader alone."""
    last = await last_position(broker)
    started = time.perf_counter()
    async with Tail(broker, EVENTS, after=0) as tail:
        while tail.position < last:
            await tail.next(timeout_s=10)
    return last / (time.perf_counter() - started)


async def _log_bytes(broker: Broker) -> int:
    facts = await broker.stream_facts(EVENTS)
    assert facts is not None
    return facts.bytes
