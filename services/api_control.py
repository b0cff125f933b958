"""The native API's routes that steer one task: pause, resume, update."""

from __future__ import annotations

from aiohttp import web

from eventq.events.task import Status
from eventq.services.answers import ControlAnswer
from eventq.services.api import api_of, requester, trace_of
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.schemas import ReasonRequest, TaskPath, UpdateRequest
from eventq.services.task_control import pause, resume, update
from eventq.services.task_views import etag
from eventq.services.waiting import wait_until

routes = HttpRoutes("tasks", "/api/v1")

CONTROL_ERRORS = (400, 403, 404, 408, 409, 413, 415, 421, 503)
_CONFIRMS = {202: "Its worker was told, and has not confirmed yet."}


@routes.post("/tasks/{task_id}/pause", errors=CONTROL_ERRORS, also=_CONFIRMS)
async def pause_task(request: web.Request, path: TaskPath, body: ReasonRequest | None) -> Reply[ControlAnswer]:
    """Pause a task.

    One that waits leaves its line. One that runs stops at its next checkpoint, or stands still in its worker; the answer waits
    some seconds for that and is 202 where it takes longer. A paused one stays so; of a finished one it is refused with 409.
    """
    api = api_of(request)
    reason = None if body is None else body.reason
    task = await pause(api, path.task_id, requester(request), reason, trace_of(request))
    task = await wait_until(api, path.task_id, task, lambda each: each.status is not Status.RUNNING, api.limits.cancel_wait_s)
    match task.status:
        case Status.PAUSED:
            message = "Task paused; its attempt stands still" if task.frozen else "Task paused"
        case Status.RUNNING:
            message = "Pause requested; the worker has not paused the task yet"
        case _:
            message = f"Task became {task.status} before it could be paused"
    answer = ControlAnswer(task_id=path.task_id, status=task.status, message=message, version=task.version)
    return Reply(answer, status=202 if task.status is Status.RUNNING else 200, headers={"ETag": etag(task.version)})


@routes.post("/tasks/{task_id}/resume", errors=CONTROL_ERRORS)
async def resume_task(request: web.Request, path: TaskPath) -> Reply[ControlAnswer]:
    """Resume a paused task.

    It enters its line again, or waits for the rest of its time; an attempt that stood still goes on. A pause that has not
    taken effect yet is withdrawn.
    """
    api = api_of(request)
    task = await resume(api, path.task_id, requester(request), trace_of(request))
    answer = ControlAnswer(task_id=path.task_id, status=task.status, message="Task resumed", version=task.version)
    return Reply(answer, headers={"ETag": etag(task.version)})


@routes.route("PATCH", "/tasks/{task_id}", errors=(*CONTROL_ERRORS, 412))
async def update_task(request: web.Request, path: TaskPath, body: UpdateRequest) -> Reply[ControlAnswer]:
    """Change a task that has not been started.

    Only what the body names is changed; null means as the task declares it. Arguments are checked as on submission. With
    `If-Match` the change is made only if the task is still at that version, else it is refused with 412.
    """
    api = api_of(request)
    if_match = request.headers.get("If-Match")
    task = await update(api, path.task_id, body, requester(request), trace_of(request), if_match)
    answer = ControlAnswer(task_id=path.task_id, status=task.status, message="Task updated", version=task.version)
    return Reply(answer, headers={"ETag": etag(task.version)})
