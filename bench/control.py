"""How soon control takes effect: a cancel of a running task, and a worker's death."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import defaultdict

from bench.bed import Bed, Plan, open_bed
from bench.drain import last_position
from bench.figures import Aim, Baseline, Figure, percentile
from bench.follow import of_type, seen
from bench.http_connection import HttpConnection
from bench.submit import BARE
from eventq.events.broker import Broker
from eventq.events.ids import new_id
from eventq.events.log import EventLog
from eventq.events.submitter import Submitter
from eventq.events.task_events import Submitted
from eventq.services.embedded import Sync

PATIENT = Submitted(task_name="patient", pool="cpu", queue="default", priority=5, max_retries=0)
CANCEL_P99_MOST_MS = 250
LOSS_MOST_S = 3


async def measure(plan: Plan) -> list[Figure]:
    """Cancel: p50 and p99 of call to ``CANCELLED``. Loss: from ``kill -9`` of a worker to its task running elsewhere."""
    figures: list[Figure] = []
    for sync in plan.syncs:
        figures += await _cancels(plan, sync)
        figures += await _losses(plan, sync)
    return figures


async def _cancels(plan: Plan, sync: Sync) -> list[Figure]:
    count = plan.size(200, 5)
    found: dict[str, list[float]] = defaultdict(list)
    async with open_bed(sync) as bed, await Broker.connect(bed.server.url, name="bench control") as broker:
        _, api = await bed.start_api()
        bare = await bed.start_bare_server()
        await bed.start("scheduler")
        await bed.start("worker")
        log = await EventLog.open(broker)
        try:
            submitter = Submitter(log, source="bench")
            connection = await HttpConnection.open(api)
            for run in range(plan.runs):
                plan.note(f"control, {sync} sync, run {run + 1}: {count} cancels")
                bare_s = (await bed.load("http", url=bare, count=count, in_flight=1, warm_up=20))["latencies_s"]
                cancels_s = [await _cancel(broker, submitter, connection) for _ in range(count)]
                for percent in (50, 99):
                    found[f"bare {percent}"].append(1000 * percentile(bare_s, percent))
                    found[f"cancel {percent}"].append(1000 * percentile(cancels_s, percent))
            connection.close()
        finally:
            await log.close()
    return [
        Figure(
            name=f"cancel_running_p{percent}",
            unit="ms",
            values=found[f"cancel {percent}"],
            baseline=Baseline(f"{BARE}, one POST", found[f"bare {percent}"]),
            conditions=f"{count} running co-operative tasks, one at a time; from the call to its answer CANCELLED",
            sync=sync,
            aim=Aim(most=CANCEL_P99_MOST_MS) if percent == 99 and not plan.quick else None,
        )
        for percent in (50, 99)
    ]


async def _cancel(broker: Broker, submitter: Submitter, connection: HttpConnection) -> float:
    """Seconds from the call to the answer that says ``CANCELLED``."""
    task_id, position = new_id(), await last_position(broker)
    await submitter.submit(task_id, PATIENT)
    await seen(broker, position, 1, of_type("started"))
    began = time.perf_counter()
    status, body = await connection.ask(connection.request("POST", f"/api/v1/tasks/{task_id}/cancel", {}))
    seconds = time.perf_counter() - began
    if status != 200 or b'"CANCELLED"' not in body:
        raise RuntimeError(f"answered {status}: {body.decode(errors='replace')[:500]}")
    return seconds


async def _losses(plan: Plan, sync: Sync) -> list[Figure]:
    found: dict[str, list[float]] = defaultdict(list)
    async with open_bed(sync) as bed, await Broker.connect(bed.server.url, name="bench control") as broker:
        await bed.start("scheduler")
        log = await EventLog.open(broker)
        try:
            submitter = Submitter(log, source="bench")
            for run in range(plan.runs):
                plan.note(f"control, {sync} sync, run {run + 1}: loss of a worker")
                found["loss"].append(await _loss(bed, broker, submitter))
                found["lease"].append(bed.settings.lease_s)
        finally:
            await log.close()
    return [
        Figure(
            name="worker_killed_to_running_elsewhere",
            unit="s",
            values=found["loss"],
            baseline=Baseline("the lease that would lapse otherwise", found["lease"]),
            conditions="a worker that runs one task is killed with SIGKILL; another waits; the broker lives",
            sync=sync,
            aim=None if plan.quick else Aim(most=LOSS_MOST_S),
        )
    ]


async def _loss(bed: Bed, broker: Broker, submitter: Submitter) -> float:
    """Seconds from the kill to the next ``started``, by the broker's clock."""
    doomed = await bed.start("worker")
    position = await last_position(broker)
    await submitter.submit(new_id(), PATIENT)
    await seen(broker, position, 1, of_type("started"))
    heir = await bed.start("worker")
    position, killed = await last_position(broker), time.time()
    assert doomed.pid is not None
    os.kill(doomed.pid, signal.SIGKILL)
    again = await seen(broker, position, 1, of_type("started"))
    await asyncio.gather(doomed.stop(), heir.stop())
    return again[0].stored_ns / 1e9 - killed
