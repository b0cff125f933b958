"""The native API's routes of workers: register, look, pause, resume, drain, resize.

A command is an event in the worker's history. A worker process follows its history and obeys; one that speaks HTTP learns of
it from its heartbeats (``api_worker_leases``). Reads see what was written through this server before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, cast

from aiohttp import web
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from eventq.events.errors import Conflict, InvalidInput, WorkerNotFound
from eventq.events.handle import Handled, handle_any, read_state
from eventq.events.ids import new_id
from eventq.events.presence import Heartbeat, beat, heartbeat_of
from eventq.events.task import Status
from eventq.events.worker import (
    NO_WORKER,
    WORKERS,
    ChangeCapacity,
    DrainWorker,
    PauseWorker,
    RegisterWorker,
    ResumeWorker,
    Worker,
    WorkerCommand,
    WorkerStatus,
    decide_worker,
    evolve_worker,
)
from eventq.events.worker_events import TaskDeclaration, WorkerRegistered
from eventq.projections.fold import version_key
from eventq.projections.queries import PAGE_MAX, TaskFilter, TaskPage, WorkerRow
from eventq.services.api import SOURCE, Api, api_of, requester, trace_of
from eventq.services.arguments import linear_matcher
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.reading import fresh_enough
from eventq.services.task_views import etag
from eventq.services.worker_models import (
    CapacityAnswer,
    CapacityRequest,
    DeclaredTask,
    RegisterQuery,
    RegisterRequest,
    WorkerAnswer,
    WorkerCommandAnswer,
    WorkerListAnswer,
    WorkerListQuery,
    WorkerPath,
    WorkerStatusAnswer,
)

routes = HttpRoutes("workers", "/api/v1")

WRITE_ERRORS = (400, 403, 408, 413, 415, 421, 503)
READ_ERRORS = (400, 404, 421, 503)
COMMAND_ERRORS = (*WRITE_ERRORS, 404, 409)

_NOT_ADMITTED = ("$ref", "$dynamicRef", "$recursiveRef", "patternProperties")


@routes.post("/workers", status=201, errors=(*WRITE_ERRORS, 404, 409))
async def register_worker(request: web.Request, query: RegisterQuery, body: RegisterRequest | None) -> Reply[WorkerAnswer]:
    """Register a worker that speaks HTTP.

    It must send heartbeats from now on, leases tasks of its pool and queues, and reports what became of them. One that was
    called lost registers again by naming its `worker_id`: it is then paused or draining still, and of the capacity it had,
    as the answer says. Processes of `eventq worker` register by themselves.
    """
    api = api_of(request)
    wanted = body or RegisterRequest()
    worker_id = wanted.worker_id or new_id()
    before = NO_WORKER if wanted.worker_id is None else await http_worker(api, worker_id)
    _refuse_doubled_names(wanted.tasks)
    command = RegisterWorker(
        WorkerRegistered(
            hostname=query.hostname,
            pid=0,
            pool=wanted.pool,
            queues=list(wanted.queues),
            capacity=query.capacity,
            devices=[],
            tasks=[_declaration(task, number, wanted.pool) for number, task in enumerate(wanted.tasks)],
            kind="http",
        )
    )
    (registered,) = decide_worker(command, before)  # who is refused must not overwrite what one that lives says of itself
    await _refuse_taken_names(api, wanted.tasks, wanted.pool)
    # Its presence first: whoever reads that it is registered must find it alive.
    now = datetime.now(UTC)
    becomes = evolve_worker(before, "", now, registered)
    await beat(
        api.log.broker,
        Heartbeat(worker_id, becomes.hostname, becomes.pool, becomes.capacity, [], now, str(becomes.status)),
    )
    handled = await _command(request, worker_id, command)
    headers = {"Location": f"/api/v1/workers/{worker_id}/status", "ETag": etag(handled.state.version)}
    return Reply(_answer(worker_id, handled.state, 0), headers=headers)


@routes.get("/workers", errors=READ_ERRORS)
async def list_workers(request: web.Request, query: WorkerListQuery) -> WorkerListAnswer:
    """List workers, newest first."""
    api = api_of(request)
    await fresh_enough(api)
    statuses = [WorkerStatus(name) for name in query.status]
    page = await api.queries.list_workers(statuses, pool=query.pool, limit=query.limit, offset=query.offset)
    workers = [_row(row) for row in page.rows]
    return WorkerListAnswer(total=page.total, limit=query.limit, offset=query.offset, workers=workers)


@routes.get("/workers/{worker_id}/status", errors=READ_ERRORS)
async def get_worker_status(request: web.Request, path: WorkerPath) -> Reply[WorkerStatusAnswer]:
    """What a worker is and does now."""
    api = api_of(request)
    worker = await known_worker(api, path.worker_id)
    await fresh_enough(api)
    held = await held_by(api, path.worker_id)
    heartbeat = await heartbeat_of(api.log.broker, path.worker_id)
    answer = WorkerStatusAnswer(
        **_answer(path.worker_id, worker, held.total).model_dump(),
        current_tasks=held.total,
        running=sorted(row.task_id for row in held.rows),
        last_heartbeat=None if heartbeat is None else heartbeat.at,
        is_draining=worker.status is WorkerStatus.DRAINING,
    )
    return Reply(answer, headers={"ETag": etag(worker.version)})


@routes.route("PATCH", "/workers/{worker_id}/pause", errors=COMMAND_ERRORS)
async def pause_worker(request: web.Request, path: WorkerPath) -> WorkerCommandAnswer:
    """Let a worker take no new tasks until it is resumed; what it runs goes on."""
    return await _steer(request, path.worker_id, PauseWorker(requester(request)), "paused")


@routes.route("PATCH", "/workers/{worker_id}/resume", errors=COMMAND_ERRORS)
async def resume_worker(request: web.Request, path: WorkerPath) -> WorkerCommandAnswer:
    """Let a paused worker take tasks again."""
    return await _steer(request, path.worker_id, ResumeWorker(requester(request)), "resumed")


@routes.post("/workers/{worker_id}/drain", errors=COMMAND_ERRORS)
async def drain_worker(request: web.Request, path: WorkerPath) -> WorkerCommandAnswer:
    """Let a worker finish what it runs, however long that takes, and end. It cannot be taken back."""
    return await _steer(request, path.worker_id, DrainWorker(requester(request)), "draining")


@routes.route("PATCH", "/workers/{worker_id}/capacity", errors=COMMAND_ERRORS)
async def change_worker_capacity(request: web.Request, path: WorkerPath, body: CapacityRequest) -> CapacityAnswer:
    """Let a worker run more or fewer tasks at once. Fewer: nothing is stopped, but nothing new taken until it fits."""
    handled = await _command(request, path.worker_id, ChangeCapacity(body.capacity, requester(request)))
    return CapacityAnswer(worker_id=path.worker_id, capacity=handled.state.capacity, version=handled.state.version)


async def known_worker(api: Api, worker_id: str) -> Worker:
    """The worker as the log tells it. Raises ``WorkerNotFound``."""
    worker = await read_state(api.log, WORKERS, worker_id, fresh=True)
    if worker.version == 0:
        raise WorkerNotFound(worker_id)
    return worker


async def http_worker(api: Api, worker_id: str) -> Worker:
    """A worker that leases its work. Raises ``WorkerNotFound``, and ``Conflict`` for a process, which takes its own."""
    worker = await known_worker(api, worker_id)
    if worker.kind != "http":
        raise Conflict("this worker is a process and does not work over HTTP", worker_id=worker_id)
    return worker


async def held_by(api: Api, worker_id: str) -> TaskPage:
    """The tasks that the worker holds, as far as the projection is: how many, and the newest thousand."""
    wanted = TaskFilter(statuses=(Status.RUNNING, Status.PAUSED), worker_id=worker_id)
    return await api.queries.list_tasks(wanted, limit=PAGE_MAX)


async def _steer(
    request: web.Request, worker_id: str, command: WorkerCommand, status: Literal["paused", "resumed", "draining"]
) -> WorkerCommandAnswer:
    handled = await _command(request, worker_id, command)
    return WorkerCommandAnswer(worker_id=worker_id, status=status, version=handled.state.version)


async def _command(request: web.Request, worker_id: str, command: WorkerCommand) -> Handled[Worker]:
    api = api_of(request)
    handled = await handle_any(api.log, WORKERS, worker_id, command, source=SOURCE, trace=trace_of(request))
    api.freshness.note_write(version_key(WORKERS.name, worker_id), handled.state.version)
    return handled


def _refuse_doubled_names(tasks: list[DeclaredTask]) -> None:
    """A name stands for one declaration: of two, nobody could say which one a submission is checked against."""
    names: set[str] = set()
    for number, task in enumerate(tasks):
        if task.name in names:
            raise InvalidInput(f"/tasks/{number}/name", "is declared twice", found=task.name)
        names.add(task.name)


async def _refuse_taken_names(api: Api, tasks: list[DeclaredTask], pool: str) -> None:
    """A name is of one pool. Declared for another, all that is submitted from then on would be taken away from the workers that
    run it, and wait for ever when the newcomer is gone: so it must be out of use first."""
    if not tasks:
        return
    await fresh_enough(api)
    known = await api.queries.declarations()
    served = {row.pool for row in await api.queries.living_workers()}
    for number, task in enumerate(tasks):
        found = known.get(task.name)
        if found is not None and found.pool != pool and found.pool in served:
            raise Conflict(
                f"/tasks/{number}/name: {task.name} is a task of the pool {found.pool}, which living workers serve",
                field=f"/tasks/{number}/name",
                found=task.name,
                hint=f"choose another name, or register for the pool {found.pool}",
            )


def _declaration(task: DeclaredTask, number: int, pool: str) -> TaskDeclaration:
    _check_schema(task.arguments, f"/tasks/{number}/arguments")
    return TaskDeclaration(
        name=task.name,
        pool=pool,
        queue=task.queue,
        priority=task.priority,
        max_retries=task.max_retries,
        timeout_s=task.timeout_seconds,
        retry=task.retry,
        parameters=task.parameters,
        arguments=task.arguments,
        doc=task.doc,
    )


def _check_schema(schema: dict[str, Any], place: str) -> None:
    """Every submission is checked against it, so it must be a schema, refer neither to itself nor to elsewhere, and take no
    longer to check than in proportion to what is checked."""
    todo: list[Any] = [schema]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if found := next((name for name in _NOT_ADMITTED if name in value), None):
                raise InvalidInput(place, "must hold neither references nor patternProperties", found=found)
            pattern = cast("dict[str, Any]", value).get("pattern")
            if isinstance(pattern, str) and linear_matcher(pattern) is None:
                raise InvalidInput(
                    place, "holds a pattern that is none, or has look-around or back references", found=pattern[:80]
                )
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidInput(place, f"is not a JSON Schema: {error.message[:200]}") from None


def _answer(worker_id: str, worker: Worker, load: int) -> WorkerAnswer:
    return WorkerAnswer(
        worker_id=worker_id,
        hostname=worker.hostname,
        status=worker.status,
        capacity=worker.capacity,
        current_load=load,
        kind=worker.kind,
        pool=worker.pool,
        queues=list(worker.queues),
        registered_at=worker.registered_at,
        ended_at=worker.ended_at,
        end_reason=worker.end_reason,
        version=worker.version,
    )


def _row(row: WorkerRow) -> WorkerAnswer:
    return WorkerAnswer(
        worker_id=row.worker_id,
        hostname=row.hostname,
        status=WorkerStatus(row.status),
        capacity=row.capacity,
        current_load=row.running,
        kind=row.kind,
        pool=row.pool,
        queues=row.queues,
        registered_at=row.registered_at,
        ended_at=row.ended_at,
        end_reason=row.end_reason,
        version=row.version,
    )
