"""What a scheduled, a retried and a workflow task cost against a plain one, each through the whole product.

Cost is wall time for each task with a worker, a scheduler and an API running: to submit them all, and from when they may run
to the last completion. Scheduled ones wait for the same instant, retried ones fail once and are due again at once, workflows
have ten nodes: one, then eight beside each other, then one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from bench.bed import Bed, Plan, open_bed
from bench.drain import last_position
from bench.figures import Aim, Baseline, Figure
from bench.follow import of_type, seen
from bench.http_connection import HttpConnection
from eventq.events.broker import Broker
from eventq.events.ids import new_id
from eventq.events.log import EventLog
from eventq.events.submitter import Submitter
from eventq.events.task_events import Submitted
from eventq.services.embedded import Sync

IN_FLIGHT = 200
LEAD_S = 4.0
NODES = 10
PLAIN = Submitted(task_name="noop", pool="cpu", queue="default", priority=5, max_retries=0)
FLAKY = PLAIN.model_copy(update={"task_name": "fails_once", "max_retries": 1})
COST_MOST = Aim(most=2.5, of_ratio=True)


async def measure(plan: Plan) -> list[Figure]:
    """Milliseconds for each task of each kind of life, against those of plain ones in the same run."""
    figures: list[Figure] = []
    for sync in plan.syncs:
        figures += await _measure(plan, sync)
    return figures


async def _measure(plan: Plan, sync: Sync) -> list[Figure]:
    tasks = plan.size(2_000, 20)
    found: dict[str, list[float]] = defaultdict(list)
    async with open_bed(sync) as bed, await Broker.connect(bed.server.url, name="bench lives") as broker:
        _, api = await bed.start_api()
        await bed.start("scheduler")
        await bed.start("worker")
        log = await EventLog.open(broker)
        try:
            lives = Lives(bed, broker, Submitter(log, source="bench"), api, tasks)
            for run in range(plan.runs):
                for name, live in lives.kinds.items():
                    plan.note(f"lives, {sync} sync, run {run + 1}: {name}")
                    found[name].append(1000 * await live() / tasks)
        finally:
            await log.close()
    return [
        Figure(
            name=f"life_{name}",
            unit="ms/task",
            values=found[name],
            baseline=Baseline("a plain task", found["plain"]),
            conditions=f"{tasks} no-op tasks; API, scheduler and one worker run",
            sync=sync,
            aim=None if plan.quick else COST_MOST,
        )
        for name in found
        if name != "plain"
    ]


class Lives:
    """Submits ``tasks`` of a kind and answers the seconds that they took in all."""

    def __init__(self, bed: Bed, broker: Broker, submitter: Submitter, api: str, tasks: int) -> None:
        self._bed = bed
        self._broker = broker
        self._submitter = submitter
        self._api = api
        self._tasks = tasks
        self.kinds: dict[str, Callable[[], Awaitable[float]]] = {
            "plain": self._plain,
            "scheduled": self._scheduled,
            "retried": self._retried,
            "workflow": self._workflow,
        }

    async def _plain(self) -> float:
        return await self._at_once(PLAIN)

    async def _retried(self) -> float:
        return await self._at_once(FLAKY)

    async def _at_once(self, wanted: Submitted) -> float:
        position, began = await last_position(self._broker), time.time()
        await self._submit(wanted)
        return await self._completed(position) - began

    async def _scheduled(self) -> float:
        position, began = await last_position(self._broker), time.time()
        due_at = datetime.now(UTC) + timedelta(seconds=LEAD_S)
        await self._submit(PLAIN.model_copy(update={"scheduled_at": due_at}))
        submitted = time.time()
        if submitted > due_at.timestamp():
            raise RuntimeError("submitting took longer than the tasks were scheduled ahead")
        return submitted - began + await self._completed(position) - due_at.timestamp()

    async def _workflow(self) -> float:
        connection = await HttpConnection.open(self._api)
        request = connection.request("POST", "/api/v1/workflows", definition())
        position, began = await last_position(self._broker), time.time()
        for _ in range(self._tasks // NODES):
            status, body = await connection.ask(request)
            if status != 201:
                raise RuntimeError(f"answered {status}: {body.decode(errors='replace')[:500]}")
        connection.close()
        return await self._completed(position) - began

    async def _submit(self, wanted: Submitted) -> None:
        ids = iter([new_id() for _ in range(self._tasks)])

        async def some() -> None:
            for task_id in ids:
                await self._submitter.submit(task_id, wanted)

        await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))

    async def _completed(self, position: int) -> float:
        """When the last of them was completed: POSIX seconds."""
        messages = await seen(self._broker, position, self._tasks, of_type("completed"))
        return messages[-1].stored_ns / 1e9


def definition() -> dict[str, object]:
    """A workflow of ten no-op tasks: one, eight beside each other, one."""
    middle = [f"m{number}" for number in range(NODES - 2)]
    nodes = [
        {"name": "first", "task_name": "noop"},
        *({"name": name, "task_name": "noop", "depends_on": ["first"]} for name in middle),
        {"name": "last", "task_name": "noop", "depends_on": middle},
    ]
    found: dict[str, object] = json.loads(json.dumps({"name": "bench", "nodes": nodes}))
    return found
