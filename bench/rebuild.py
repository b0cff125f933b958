"""How fast a projection is folded from the log: events a second, from an existing log to a readable file.

Each task has three events (submitted, started, completed), written by the same code that writes them in production.
The baseline, measured in the same run, is the bare reader: the same messages received and thrown away.

    python bench/rebuild.py --events 100000 --runs 3 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.catalogue import Completed, EventData, Started, Submitted
from eventq.events.envelope import encode, task_event
from eventq.events.ids import new_id
from eventq.events.reader import Tail
from eventq.events.subjects import EVENTS
from eventq.events.task import ABSENT, Task
from eventq.projections.rebuild import rebuild_offline
from eventq.services.embedded import EmbeddedBroker

AT_ONCE = 64
"""Tasks whose events are interleaved in the log, as those of a busy worker are."""


def life() -> list[EventData]:
    """The events of one small task."""
    return [
        Submitted(task_name="echo", kwargs={"text": "hello", "n": 1}, pool="cpu", queue="default", priority=5, max_retries=3),
        Started(worker_id="w-1", hostname="bench", device="cpu"),
        Completed(result={"text": "hello", "n": 1}, duration_s=0.002),
    ]


async def fill(broker: Broker, events: int) -> None:
    """Write ``events`` events. Unacknowledged publishes, counted at the end: only the reading is measured."""
    written = 0
    while written < events:
        tasks: dict[str, Task] = {new_id(): ABSENT for _ in range(AT_ONCE)}
        for data in life():
            for task_id in tasks:
                event, tasks[task_id] = task_event(task_id, tasks[task_id], data, source="bench", at=datetime.now(UTC))
                await broker.nc.publish(event.subject, encode(event))
                written += 1
        await broker.nc.flush()
    while (facts := await broker.stream_facts(EVENTS)) is None or facts.last < written:
        await asyncio.sleep(0.05)


async def read_only(broker: Broker) -> float:
    """Events a second of the reader alone."""
    facts = await broker.stream_facts(EVENTS)
    assert facts is not None
    started = time.perf_counter()
    async with Tail(broker, EVENTS, after=0) as tail:
        while tail.position < facts.last:
            await tail.next(timeout_s=10)
    return facts.last / (time.perf_counter() - started)


async def measure(events: int, runs: int, sync: Any) -> dict[str, Any]:
    """Medians over ``runs``, each on a fresh file from the same log."""
    with tempfile.TemporaryDirectory() as scratch:
        async with (
            EmbeddedBroker(Path(scratch) / "nats", sync=sync) as server,
            await Broker.connect(server.url, name="bench") as broker,
        ):
            await bootstrap(broker, BrokerConfig(accept_lazy_sync=True))
            await fill(broker, events)
            rates, baselines, sizes = list[float](), list[float](), list[int]()
            for run in range(runs):
                baselines.append(await read_only(broker))
                folder = Path(scratch) / f"projection-{run}"
                rebuilt = await rebuild_offline(folder, broker)
                rates.append(rebuilt.position / rebuilt.seconds)
                sizes.append(sum(file.stat().st_size for file in folder.glob("*.duckdb")))
    return {
        "events": events,
        "runs": runs,
        "sync": sync,
        "rebuild_events_per_s": round(statistics.median(rates)),
        "rebuild_runs": [round(rate) for rate in rates],
        "reader_events_per_s": round(statistics.median(baselines)),
        "file_bytes_per_event": round(statistics.median(sizes) / events),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=120_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sync", choices=["always", "default"], default="default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options.events, options.runs, options.sync))
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
