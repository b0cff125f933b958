"""Routes for workers that speak only HTTP: heartbeat, lease, and reports. What may go wrong, and what then, is in
``http_leases``."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from aiohttp import web

from eventq.events.bootstrap import PRESENCE_TTL_S
from eventq.events.commands import Command, ConfirmCancel, InterruptAttempt
from eventq.events.data import ErrorInfo
from eventq.events.errors import Conflict
from eventq.events.handle import handle_any, read_task
from eventq.events.presence import Heartbeat, beat
from eventq.events.report import Progress
from eventq.events.reporting import publish_report
from eventq.events.task import Task
from eventq.events.worker import LIVING, WORKERS, StopWorker, Worker, WorkerStatus
from eventq.projections.fold import version_key
from eventq.services.api import SOURCE, Api, api_of, trace_of
from eventq.services.api_workers import COMMAND_ERRORS, held_by, http_worker
from eventq.services.http_leases import completion, failure, held_attempt, lease, report, source_of
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.reading import fresh_enough
from eventq.services.task_views import etag
from eventq.services.worker_models import (
    AttemptAnswer,
    AttemptRequest,
    CompleteRequest,
    FailRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    HeldAttempt,
    LeaseAnswer,
    LeaseRequest,
    ProgressRequest,
    ReportAnswer,
    WorkerPath,
    WorkerTaskPath,
)

routes = HttpRoutes("workers over HTTP", "/api/v1")

STOPPING = web.AppKey("stopping", asyncio.Event)
"""Set when the server stops: whoever waits for a lease is answered, so that it need not be waited for."""

READ_AT_ONCE = 50
"""Tasks read at the same time for one heartbeat."""


@routes.post("/workers/{worker_id}/heartbeat", errors=COMMAND_ERRORS)
async def send_heartbeat(request: web.Request, path: WorkerPath, body: HeartbeatRequest) -> HeartbeatAnswer:
    """Say that the worker lives and what it runs; learn what to obey.

    Needed every third of `ttl_seconds`. An attempt that is not listed is given to others. A draining worker that runs nothing
    is answered `STOPPED`, and is done. One that is answered `LOST` must register again.
    """
    api = api_of(request)
    worker = await http_worker(api, path.worker_id)
    own, revoked = await _sorted(api, path.worker_id, body.running)
    if worker.status in LIVING:
        running = [held.task_id for held, _ in own]
        now = datetime.now(UTC)
        await beat(
            api.log.broker,
            Heartbeat(path.worker_id, worker.hostname, worker.pool, worker.capacity, running, now, str(worker.status)),
        )
        if worker.status is WorkerStatus.DRAINING and not running:
            worker = await _stop_drained(api, path.worker_id, worker)
    return HeartbeatAnswer(
        worker_id=path.worker_id,
        status=worker.status,
        capacity=worker.capacity,
        cancel=[_attempt(held) for held, task in own if task.cancel_requested_by is not None],
        pause=[
            _attempt(held) for held, task in own if task.pause_requested_by is not None and task.cancel_requested_by is None
        ],
        revoked=[_attempt(held) for held in revoked],
        ttl_seconds=PRESENCE_TTL_S,
    )


@routes.post("/workers/{worker_id}/lease", errors=COMMAND_ERRORS)
async def lease_tasks(request: web.Request, path: WorkerPath, body: LeaseRequest | None) -> LeaseAnswer:
    """Lease tasks of the worker's pool and queues, as many as it has room for; waits for the first up to `wait_seconds`, and as
    long for room and for the end of a pause. A draining worker is answered at once, with nothing."""
    wanted = body or LeaseRequest()

    def gone() -> bool:
        stopping = request.app[STOPPING].is_set()
        return stopping or request.transport is None or request.transport.is_closing()

    api = api_of(request)
    worker, tasks = await lease(api, path.worker_id, most=wanted.max, wait_s=wanted.wait_seconds, gone=gone)
    return LeaseAnswer(worker_id=path.worker_id, status=worker.status, tasks=tasks)


@routes.post("/workers/{worker_id}/tasks/{task_id}/progress", errors=COMMAND_ERRORS)
async def report_progress(request: web.Request, path: WorkerTaskPath, body: ProgressRequest) -> ReportAnswer:
    """Say how far an attempt is."""
    api = api_of(request)
    task = await held_attempt(api, path.worker_id, path.task_id, body.attempt)
    progress = Progress(body.done, body.total, body.unit, body.message)
    await publish_report(api.log.broker, path.task_id, body.attempt, source_of(path.worker_id), progress)
    return ReportAnswer(task_id=path.task_id, attempt=body.attempt, status=task.status, version=task.version)


@routes.post("/workers/{worker_id}/tasks/{task_id}/complete", errors=COMMAND_ERRORS)
async def complete_task(request: web.Request, path: WorkerTaskPath, body: CompleteRequest) -> Reply[ReportAnswer]:
    """Report an attempt's result."""
    command = await completion(api_of(request), path.worker_id, path.task_id, body.attempt, body.result)
    return await _report(request, path, body.attempt, command)


@routes.post("/workers/{worker_id}/tasks/{task_id}/fail", errors=COMMAND_ERRORS)
async def fail_task(request: web.Request, path: WorkerTaskPath, body: FailRequest) -> Reply[ReportAnswer]:
    """Report an attempt's error. It is retried while the task has retries left and `retryable` is true."""
    error = ErrorInfo(type=body.error.type, message=body.error.message, traceback=body.error.traceback)
    command = await failure(
        api_of(request),
        path.worker_id,
        path.task_id,
        body.attempt,
        error,
        retryable=body.retryable,
        retry_after_s=body.retry_after_seconds,
    )
    return await _report(request, path, body.attempt, command)


@routes.post("/workers/{worker_id}/tasks/{task_id}/release", errors=COMMAND_ERRORS)
async def release_task(request: web.Request, path: WorkerTaskPath, body: AttemptRequest) -> Reply[ReportAnswer]:
    """Hand an attempt back unfinished; that costs the task nothing. Confirms a pause that was asked for."""
    return await _report(request, path, body.attempt, InterruptAttempt(body.attempt))


@routes.post("/workers/{worker_id}/tasks/{task_id}/cancelled", errors=COMMAND_ERRORS)
async def confirm_task_cancelled(request: web.Request, path: WorkerTaskPath, body: AttemptRequest) -> Reply[ReportAnswer]:
    """Confirm that an attempt was stopped whose cancellation was asked for."""
    api = api_of(request)
    task = await read_task(api.log, path.task_id, fresh=True)
    if task.in_hand and task.cancel_requested_by is None:
        raise Conflict("nobody asked to cancel this task", task_id=path.task_id)
    return await _report(request, path, body.attempt, ConfirmCancel(body.attempt))


async def _report(request: web.Request, path: WorkerTaskPath, attempt: int, command: Command) -> Reply[ReportAnswer]:
    task = await report(api_of(request), path.worker_id, path.task_id, command, attempt=attempt, trace=trace_of(request))
    answer = ReportAnswer(task_id=path.task_id, attempt=attempt, status=task.status, version=task.version)
    return Reply(answer, headers={"ETag": etag(task.version)})


async def _sorted(
    api: Api, worker_id: str, listed: list[HeldAttempt]
) -> tuple[list[tuple[HeldAttempt, Task]], list[HeldAttempt]]:
    """What of the listed attempts is still the worker's own, and what is not."""
    own: list[tuple[HeldAttempt, Task]] = []
    revoked: list[HeldAttempt] = []
    for start in range(0, len(listed), READ_AT_ONCE):
        chunk = listed[start : start + READ_AT_ONCE]
        tasks = await asyncio.gather(*(read_task(api.log, held.task_id, fresh=True) for held in chunk))
        for held, task in zip(chunk, tasks, strict=True):
            if task.in_hand and task.attempt == held.attempt and task.worker_id == worker_id:
                own.append((held, task))
            else:
                revoked.append(held)
    return own, revoked


async def _stop_drained(api: Api, worker_id: str, worker: Worker) -> Worker:
    """A draining worker ends once it holds nothing, whether or not its last answer has reached it."""
    await fresh_enough(api)
    if (await held_by(api, worker_id)).total:
        return worker
    handled = await handle_any(api.log, WORKERS, worker_id, StopWorker("drained"), source=SOURCE)
    api.freshness.note_write(version_key(WORKERS.name, worker_id), handled.state.version)
    return handled.state


async def stop_waiting(app: web.Application) -> None:
    """The server stops: see :data:`STOPPING`."""
    app[STOPPING].set()


def _attempt(held: HeldAttempt) -> AttemptAnswer:
    return AttemptAnswer(task_id=held.task_id, attempt=held.attempt)
