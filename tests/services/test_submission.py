"""Submitting right after a worker started: what it declared counts, although the projection has not folded it yet."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from eventq.events.envelope import next_event
from eventq.events.worker import NO_WORKER, WORKERS
from eventq.events.worker_events import WorkerRegistered

if TYPE_CHECKING:
    from tests.services.backend import Backend


async def test_a_task_declared_an_instant_ago_is_known(backend: Backend) -> None:
    from tests.services.backend import ECHO

    declared = WorkerRegistered(
        hostname="host",
        pid=2,
        pool="cpu",
        queues=["default"],
        capacity=1,
        devices=["cpu"],
        tasks=[ECHO.model_copy(update={"name": "newborn"})],
    )
    event, _ = next_event(WORKERS, "cpu-2", NO_WORKER, declared, source="worker.cpu-2", at=datetime.now(UTC))
    async with backend.projector.paused():
        await backend.log.append(event)
        submitting = asyncio.create_task(backend.post("/tasks", {"task_name": "newborn"}))
        done, _ = await asyncio.wait([submitting], timeout=0.2)
        assert not done, "refused by a projection that lags"
    status, answer = await submitting
    assert (status, answer.get("task_name")) == (201, "newborn")
