"""The native API's routes of tasks: parse, command or query, answer."""

from __future__ import annotations

import time

from aiohttp import web

from eventq.events.commands import CancelTask
from eventq.events.errors import ProjectionLagging
from eventq.events.handle import handle, read_task
from eventq.events.task import Status, Task
from eventq.projections.queries import TaskFilter, TaskRow
from eventq.services.answers import (
    AgainAnswer,
    CancelAnswer,
    CompareAnswer,
    SubmitAnswer,
    TaskAnswer,
    TaskListAnswer,
    TimelineAnswer,
)
from eventq.services.api import SOURCE, Api, api_of, requester, trace_of
from eventq.services.metrics import METRICS
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.reading import AS_OF_HEADER, fresh_enough, fresh_task, past_task
from eventq.services.schemas import (
    CancelRequest,
    GetQuery,
    ListQuery,
    ReadQuery,
    SubmitQuery,
    SubmitRequest,
    TaskPath,
    TwoTasksPath,
)
from eventq.services.submission import Submission, repeat, submit
from eventq.services.task_views import compare_answer, etag, links, task_answer, task_path, timeline_answer

routes = HttpRoutes("tasks", "/api/v1")

WRITE_ERRORS = (400, 403, 408, 413, 415, 421, 503)
READ_ERRORS = (400, 404, 421, 503)


@routes.post("/tasks", status=201, errors=WRITE_ERRORS)
async def submit_task(request: web.Request, query: SubmitQuery, body: SubmitRequest) -> Reply[SubmitAnswer]:
    """Submit a task.

    Answered once the log holds it durably: from then on it will run, or end as `FAILED`, `TIMED_OUT` or `CANCELLED`. The
    arguments are checked against what the task's worker declared. What is left out is as the task declares it.
    """
    wanted = Submission(
        task_name=body.task_name,
        args=body.task_args,
        kwargs=body.task_kwargs,
        priority=body.priority,
        queue=body.queue_name,
        max_retries=body.max_retries,
        timeout_s=body.timeout_seconds,
        scheduled_at=body.scheduled_at,
        requested_by=requester(request),
    )
    accepted = await submit(api_of(request), wanted, trace_of(request))
    request.app[METRICS].submitted.labels(accepted.submitted.queue).inc()
    answer = SubmitAnswer(
        task_id=accepted.task_id,
        task_name=accepted.submitted.task_name,
        status=accepted.task.status,
        priority=accepted.submitted.priority,
        queue_name=accepted.submitted.queue,
        created_at=accepted.created_at,
        scheduled_at=accepted.submitted.scheduled_at,
        version=accepted.task.version,
        original_task_id=accepted.submitted.original_task_id,
        links=links(accepted.task_id, accepted.submitted.original_task_id),
    )
    return Reply(answer, headers={"Location": task_path(answer.task_id), "ETag": etag(answer.version)})


@routes.get("/tasks/{task_id}", errors=READ_ERRORS)
async def get_task(request: web.Request, path: TaskPath, query: GetQuery) -> Reply[TaskAnswer]:
    """Read a task.

    Includes everything that was written through this server before. `min_version` and `min_position` extend that to what
    was written elsewhere; `as_of` reads the past: a position of the log or a time.
    """
    api = api_of(request)
    if query.as_of is not None:
        return _task_reply(await past_task(api, path.task_id, query.as_of))
    return _task_reply(await fresh_task(api, path.task_id, min_version=query.min_version, min_position=query.min_position))


@routes.get("/tasks", errors=READ_ERRORS)
async def list_tasks(request: web.Request, query: ListQuery) -> Reply[TaskListAnswer]:
    """List tasks, filtered, sorted, by pages."""
    api = api_of(request)
    await fresh_enough(api, min_position=query.min_position)
    wanted = TaskFilter(
        statuses=tuple(map(Status, query.status)), priority=query.priority, queue=query.queue_name, task_name=query.task_name
    )
    page = await api.queries.list_tasks(
        wanted, sort_by=query.sort_by, descending=query.sort_order == "desc", limit=query.limit, offset=query.offset
    )
    answer = TaskListAnswer(
        total=page.total,
        limit=query.limit,
        offset=query.offset,
        tasks=[task_answer(row) for row in page.rows],
        as_of=page.as_of,
    )
    return Reply(answer, headers={AS_OF_HEADER: str(page.as_of)})


@routes.post(
    "/tasks/{task_id}/cancel",
    errors=(*WRITE_ERRORS, 404, 409),
    also={202: "Its worker was told to stop it, and has not confirmed yet."},
)
async def cancel_task(request: web.Request, path: TaskPath, body: CancelRequest | None) -> Reply[CancelAnswer]:
    """Cancel a task.

    One that waits will never start. One that runs is asked to stop, and stopped by force when it does not: the answer
    waits some seconds for that and is 202 where it takes longer. Cancelling a finished task is refused with 409.
    """
    api = api_of(request)
    command = CancelTask(requested_by=requester(request), reason=None if body is None else body.reason)
    handled = await handle(api.log, path.task_id, command, source=SOURCE, trace=trace_of(request))
    api.freshness.note_write(path.task_id, handled.state.version)
    task = await _wait_until_finished(api, path.task_id, handled.state)
    answer = CancelAnswer(task_id=path.task_id, status=task.status, message=_cancel_message(task), version=task.version)
    return Reply(answer, status=200 if task.finished else 202, headers={"ETag": etag(task.version)})


@routes.post("/tasks/{task_id}/retry", status=201, errors=(*WRITE_ERRORS, 404, 409))
async def retry_task(request: web.Request, path: TaskPath) -> Reply[AgainAnswer]:
    """Run a failed, timed-out or cancelled task again, as a new task that refers to it."""
    return await _again(request, path.task_id, "retry")


@routes.post("/tasks/{task_id}/replay", status=201, errors=(*WRITE_ERRORS, 404, 409))
async def replay_task(request: web.Request, path: TaskPath) -> Reply[AgainAnswer]:
    """Run any finished task again, with the same arguments, as a new task that refers to it."""
    return await _again(request, path.task_id, "replay")


@routes.get("/tasks/{task_id}/timeline", errors=READ_ERRORS)
async def get_timeline(request: web.Request, path: TaskPath, query: ReadQuery) -> Reply[TimelineAnswer]:
    """The whole story of a task: every event, the newest progress, what its code logged."""
    api = api_of(request)
    row = await fresh_task(api, path.task_id, min_version=query.min_version, min_position=query.min_position)
    story = await api.queries.timeline(path.task_id)
    answer = timeline_answer(row, story)
    return Reply(answer, headers={"ETag": etag(row.version), AS_OF_HEADER: str(row.as_of)})


@routes.get("/tasks/{task_id1}/compare/{task_id2}", errors=READ_ERRORS)
async def compare_tasks(request: web.Request, path: TwoTasksPath, query: ReadQuery) -> CompareAnswer:
    """What two tasks have in common, and how long each took."""
    api = api_of(request)
    one = await fresh_task(api, path.task_id1, min_position=query.min_position)
    two = await fresh_task(api, path.task_id2)
    return compare_answer(one, two)


def _task_reply(row: TaskRow) -> Reply[TaskAnswer]:
    return Reply(task_answer(row), headers={"ETag": etag(row.version), AS_OF_HEADER: str(row.as_of)})


async def _again(request: web.Request, task_id: str, origin: str) -> Reply[AgainAnswer]:
    api = api_of(request)
    accepted = await repeat(api, task_id, origin, requester(request), trace_of(request))
    request.app[METRICS].submitted.labels(accepted.submitted.queue).inc()
    answer = AgainAnswer(
        task_id=accepted.task_id,
        status=accepted.task.status,
        original_task_id=task_id,
        version=accepted.task.version,
        links=links(accepted.task_id, task_id),
    )
    return Reply(answer, headers={"Location": task_path(answer.task_id), "ETag": etag(answer.version)})


async def _wait_until_finished(api: Api, task_id: str, task: Task) -> Task:
    """The task once it is finished, or as it is when the bound is reached. The projection's news wake; the log decides."""
    deadline = time.monotonic() + api.limits.cancel_wait_s
    while not task.finished:
        left_s = deadline - time.monotonic()
        try:
            await api.freshness.wait_for_version(task_id, task.version + 1, max(0.0, left_s))
        except ProjectionLagging:
            return await read_task(api.log, task_id, fresh=True)
        task = await read_task(api.log, task_id, fresh=True)
    return task


def _cancel_message(task: Task) -> str:
    match task.status:
        case Status.CANCELLED:
            return "Task cancelled successfully"
        case _ if task.finished:
            return f"Task finished as {task.status} before it could be cancelled"
        case _:
            return "Cancellation requested; the worker has not stopped the task yet"
