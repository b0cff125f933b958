"""A whole API process for tests, in this process: everything real except that the test plays the worker."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import TestClient

from eventq.events.blobs import BlobStore
from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.commands import Command, CompleteAttempt, ConfirmCancel, FailAttempt, StartAttempt
from eventq.events.data import ErrorInfo
from eventq.events.echoes import Echoes
from eventq.events.ending import end
from eventq.events.envelope import next_event
from eventq.events.handle import handle
from eventq.events.log import EventLog
from eventq.events.retry import RetryPolicy
from eventq.events.subjects import EVENTS
from eventq.events.submitter import Submitter
from eventq.events.task import Task
from eventq.events.worker import NO_WORKER, WORKERS
from eventq.events.worker_events import TaskDeclaration, WorkerRegistered
from eventq.projections.freshness import Freshness
from eventq.projections.projector import Projector
from eventq.projections.queries import Queries
from eventq.projections.store import Store
from eventq.services.api import SOURCE, Api
from eventq.services.app import create_app
from eventq.services.arguments import Declarations
from eventq.services.http_limits import HttpLimits
from tests.services.http import GuardedTestServer

WORKER_ID = "worker-1"
LIMITS = HttpLimits(cancel_wait_s=1.0, read_wait_s=5.0, blob_max_bytes=2 * 1024 * 1024, blob_stall_s=0.5, body_deadline_s=1.0)

RESIZE = TaskDeclaration(
    name="resize",
    pool="cpu",
    queue="default",
    priority=5,
    max_retries=2,
    timeout_s=60.0,
    retry=RetryPolicy(),
    parameters=["width", "name", "tags"],
    arguments={
        "type": "object",
        "properties": {
            "width": {"type": "integer", "minimum": 1, "maximum": 10_000},
            "name": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["width"],
        "additionalProperties": False,
    },
)
ECHO = RESIZE.model_copy(
    update={
        "name": "echo",
        "priority": 7,
        "parameters": ["message"],
        "arguments": {"type": "object", "properties": {"message": {}}, "additionalProperties": False},
    }
)


@dataclass
class Backend:
    """What a test works with. ``client`` speaks HTTP to the app; the rest looks behind it."""

    broker: Broker
    log: EventLog
    projector: Projector
    api: Api
    client: TestClient[web.Request, web.Application]
    stack: AsyncExitStack

    @classmethod
    async def start(cls, nats_url: str, folder: Path, events_max_bytes: int = 64 * 1024 * 1024) -> Self:
        """Connect, bootstrap, project, serve."""
        stack = AsyncExitStack()
        broker = await Broker.connect(nats_url, name="test-api")
        stack.push_async_callback(broker.close)
        await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=events_max_bytes))
        log = await EventLog.open(broker)
        log.echoes = Echoes()
        stack.push_async_callback(log.close)
        store = Store.open(folder / "projection")
        stack.callback(store.close)
        freshness = Freshness()
        projector = Projector(store, broker, freshness, log.echoes.decode)
        running = asyncio.create_task(projector.run())
        stack.push_async_callback(end, running)
        queries = Queries(store)
        stack.callback(queries.close)
        api = Api(
            log=log,
            submitter=Submitter(log, source=SOURCE),
            projector=projector,
            queries=queries,
            freshness=freshness,
            blobs=BlobStore.open(folder / "blobs"),
            declarations=Declarations(queries.declarations),
            version="0.0.1",
            limits=LIMITS,
        )
        client = TestClient(GuardedTestServer(create_app(api), LIMITS))
        await client.start_server()
        stack.push_async_callback(client.close)
        return cls(broker, log, projector, api, client, stack)

    async def close(self) -> None:
        await self.stack.aclose()

    async def last_position(self) -> int:
        """The log's end: unchanged means that nothing was stored."""
        facts = await self.broker.stream_facts(EVENTS)
        assert facts is not None
        return facts.last

    async def register_worker(self) -> None:
        """A worker declares ``resize`` and ``echo``, and the projection knows."""
        data = WorkerRegistered(
            hostname="host", pid=1, pool="cpu", queues=["default"], capacity=1, devices=["cpu"], tasks=[RESIZE, ECHO]
        )
        event, _ = next_event(WORKERS, WORKER_ID, NO_WORKER, data, source=f"worker.{WORKER_ID}", at=datetime.now(UTC))
        await self.log.append(event)
        await self.api.freshness.wait_for_position(await self.last_position(), 10)

    async def command(self, task_id: str, command: Command) -> Task:
        """What a worker (or another replica) writes."""
        return (await handle(self.log, task_id, command, source=f"worker.{WORKER_ID}")).state

    async def begin(self, task_id: str) -> Task:
        """The worker starts an attempt."""
        return await self.command(task_id, StartAttempt(worker_id=WORKER_ID, hostname="host", device="cpu"))

    async def complete(self, task_id: str, result: Any = None) -> Task:
        """The worker starts and completes the task."""
        task = await self.begin(task_id)
        done = CompleteAttempt(attempt=task.attempt, result=result, output=None, duration_s=0.5)
        return await self.command(task_id, done)

    async def fail(self, task_id: str) -> Task:
        """The worker starts the task and fails it for good."""
        task = await self.begin(task_id)
        error = ErrorInfo(type="ValueError", message="no")
        return await self.command(task_id, FailAttempt(task.attempt, error, retry_in_s=None, now=datetime.now(UTC)))

    async def confirm_cancel(self, task_id: str, attempt: int = 1) -> Task:
        """The worker stopped the attempt that was to be cancelled."""
        return await self.command(task_id, ConfirmCancel(attempt))

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """POST under ``/api/v1``: status and JSON."""
        async with self.client.post(f"/api/v1{path}", json=body, **options) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        """GET under ``/api/v1``: status and JSON."""
        async with self.client.get(f"/api/v1{path}", **options) as answer:
            return answer.status, await answer.json()

    async def submit(self, **body: Any) -> dict[str, Any]:
        """Submit, by default a small ``resize``; fails the test unless accepted."""
        status, answer = await self.post("/tasks", {"task_name": "resize", "task_kwargs": {"width": 10}, **body})
        assert status == 201, answer
        return dict(answer)
