"""An API, coordinators and workers in this process, for tests of workflows: everything real but the tasks' code."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import nats.errors

from eventq.events.commands import CompleteAttempt, ConfirmCancel, FailAttempt, StartAttempt
from eventq.events.data import BlobRef, ErrorInfo
from eventq.events.ending import end
from eventq.events.envelope import Event, decode
from eventq.events.errors import Conflict
from eventq.events.handle import handle, read_task
from eventq.events.subjects import EVENTS, Route, work_consumer
from eventq.events.submitter import Submitter
from eventq.events.task import Task, from_summary
from eventq.events.task_events import CancelRequested, Submitted
from eventq.services.coordinator import Coordinator
from eventq.services.follower import Follower
from tests.services.backend import Backend
from tests.services.gates import history_of
from tests.support.poll import eventually

ROUTE = Route("cpu", "default", 5)
ECHO_ROUTE = Route("cpu", "default", 7)


class TaskFailure(Exception):
    """What a task's code raises where the test wants it to fail."""


@dataclass
class Site:
    """What tests of workflows work with. ``code``: what a task does, by its node; else it returns its arguments. What it
    returns may stand in the blob store."""

    backend: Backend
    code: dict[str, Callable[[Submitted], Any]] = field(default_factory=dict[str, Callable[[Submitted], Any]])
    held: set[str] = field(default_factory=set[str])
    """Nodes whose tasks, once started, wait for the test."""

    @asynccontextmanager
    async def coordinator(self, now: Callable[[], datetime] | None = None) -> AsyncGenerator[Coordinator]:
        """A coordinator at work, with a follower of its own, as in a scheduler. ``now``: its clock, if not the host's."""
        log = self.backend.log
        coordinator = Coordinator(log, Submitter(log, source="test"), self.backend.api.blobs, now=now)
        follower = Follower(self.backend.broker, [coordinator])
        running = [asyncio.create_task(follower.run()), asyncio.create_task(coordinator.run(follower))]
        try:
            yield coordinator
        finally:
            for task in running:
                assert not task.done(), task.exception()
            await end(*running)

    @asynccontextmanager
    async def workers(self, count: int = 8) -> AsyncGenerator[None]:
        """So many workers for each of the two routes of the declared tasks."""
        running: list[asyncio.Task[None]] = []
        for route in (ROUTE, ECHO_ROUTE):
            await self.backend.log.routes.ensure(route)
            running += [asyncio.create_task(self._work(route)) for _ in range(count)]
        try:
            yield
        finally:
            for task in running:
                assert not task.done(), task.exception()
            await end(*running)

    async def _work(self, route: Route) -> None:
        pull = await self.backend.broker.js.pull_subscribe_bind(work_consumer(route), EVENTS)
        while True:
            try:
                (message,) = await pull.fetch(1, timeout=1)
            except (nats.errors.Error, TimeoutError):
                await asyncio.sleep(0.02)
                continue
            event = decode(message.data, message.subject)
            with suppress(Conflict):
                await self._attempt(event.aggregate_id, from_summary(event.state))
            await message.ack()

    async def _attempt(self, task_id: str, known: Task) -> None:
        log = self.backend.log
        command = StartAttempt(worker_id="w", hostname="host", device="cpu")
        task = (await handle(log, task_id, command, source="w", task=known)).state
        first = await log.at("tasks", task_id, 1)
        assert first is not None
        submitted = first.event.data
        assert isinstance(submitted, Submitted)
        while submitted.node in self.held:
            await asyncio.sleep(0.02)
            last = await log.last("tasks", task_id, fresh=True)
            if last is not None and isinstance(last.event.data, CancelRequested):
                await handle(log, task_id, ConfirmCancel(task.attempt), source="w")
                return
        try:
            code = self.code.get(submitted.node or "")
            result = (submitted.kwargs or submitted.args) if code is None else code(submitted)
        except TaskFailure as failure:
            error = ErrorInfo(type="TaskFailure", message=str(failure))
            await handle(log, task_id, FailAttempt(task.attempt, error, retry_in_s=None, now=datetime.now(UTC)), source="w")
            return
        value, output = (None, result) if isinstance(result, BlobRef) else (result, None)
        await handle(log, task_id, CompleteAttempt(task.attempt, value, output, 0.01), source="w")

    async def submit(self, *nodes: dict[str, Any], name: str = "w", headers: Any = None, **options: Any) -> str:
        """Submit a workflow; its id."""
        status, answer = await self.backend.post("/workflows", {"name": name, "nodes": nodes, **options}, headers=headers)
        assert status == 201, answer
        return str(answer["workflow_id"])

    async def get(self, workflow_id: str) -> dict[str, Any]:
        status, answer = await self.backend.get(f"/workflows/{workflow_id}")
        assert status == 200, answer
        return dict(answer)

    async def until(self, workflow_id: str, status: str, patience_s: float = 30) -> dict[str, Any]:
        """The workflow once it is in ``status``."""
        found: dict[str, Any] = {}

        async def reached() -> bool:
            found.update(await self.get(workflow_id))
            return bool(found["status"] == status)

        await eventually(reached, timeout=patience_s, what=f"{workflow_id} is {status}")
        return found

    async def until_node(self, workflow_id: str, node: str, status: str) -> None:
        async def reached() -> bool:
            return statuses(await self.get(workflow_id))[node] == status

        await eventually(reached, timeout=20, what=f"{node} is {status}")

    async def history(self) -> list[Event]:
        return await history_of(self.backend.broker)

    async def made(self) -> Counter[str]:
        """How often each node's task was made, by the log."""
        return made(await self.history())

    async def task(self, task_id: str) -> Task:
        return await read_task(self.backend.log, task_id, fresh=True)


def made(history: list[Event]) -> Counter[str]:
    """How often each node's task was made."""
    submitted = [event.data for event in history if isinstance(event.data, Submitted)]
    return Counter(f"{data.workflow_id} {data.node}" for data in submitted if data.workflow_id is not None)


def statuses(workflow: dict[str, Any]) -> dict[str, str]:
    return {node["name"]: node["status"] for node in workflow["nodes"]}


def step(name: str, *depends_on: str, **options: Any) -> dict[str, Any]:
    """A node that is a small task."""
    return {"name": name, "depends_on": list(depends_on), "task_name": "echo", **options}
