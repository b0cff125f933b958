"""The native API's routes that give up or destroy what finished tasks leave behind."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from aiohttp import web

from eventq.events.envelope import Event
from eventq.events.erasure import submission_left
from eventq.events.task import Task
from eventq.events.task_events import Erased
from eventq.services.answers import ControlAnswer
from eventq.services.api import api_of, requester, trace_of
from eventq.services.disposal import clean, erase
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.reading import up_to_date
from eventq.services.schemas import ReasonRequest, TaskPath
from eventq.services.task_views import etag

routes = HttpRoutes("tasks", "/api/v1")

CLEANUP_ERRORS = (400, 403, 404, 408, 409, 413, 415, 421, 503)


@routes.route("DELETE", "/tasks/{task_id}", errors=CLEANUP_ERRORS)
async def clean_task(request: web.Request, path: TaskPath) -> Reply[ControlAnswer]:
    """Clean up a finished task.

    Its result, the files that its attempts made and its progress are given up, and lists leave it out unless asked. Its
    history stays. Refused with 409 while it is not finished.
    """
    api = api_of(request)
    task = await clean(api.log, api.blobs, path.task_id, requester(request), trace_of(request))
    api.freshness.note_write(path.task_id, task.version)
    return _reply(path.task_id, task, "Task cleaned up")


@routes.post("/tasks/{task_id}/erase", errors=CLEANUP_ERRORS)
async def erase_task(request: web.Request, path: TaskPath, body: ReasonRequest | None) -> Reply[ControlAnswer]:
    """Destroy all that a finished task carried.

    Arguments, result, errors, metadata, tags, reasons, progress and files are overwritten in the log, deleted from the blob
    store and dropped from every projection, for good. What is left says that the task was, when, and how it ended. Arguments
    that a workflow or a schedule gave it stay in the definition of that one: the answer says so. Refused with 409 while it is
    not finished.
    """
    api = api_of(request)
    reason = None if body is None else body.reason

    async def in_use(keys: Sequence[str]) -> Collection[str]:
        await up_to_date(api)
        return await api.queries.inputs_in_use(keys, besides=path.task_id)

    handled = await erase(api.log, api.blobs, path.task_id, requester(request), reason, in_use, trace_of(request))
    api.freshness.note_write(path.task_id, handled.state.version)
    event = handled.event
    if event is None and (last := await api.log.last("tasks", path.task_id, fresh=True)) is not None:
        event = last.event  # it was erased before
    return _reply(path.task_id, handled.state, f"Task erased{_kept_elsewhere(event)}")


def _kept_elsewhere(event: Event | None) -> str:
    """Who keeps the arguments that were erased."""
    if event is None or not isinstance(event.data, Erased):
        return ""
    submitted = submission_left(event.data)
    givers = [] if submitted is None else [("workflow", submitted.workflow_id), ("schedule", submitted.schedule_id)]
    return "".join(f"; the {kind} {giver} keeps the arguments that it gave it" for kind, giver in givers if giver)


def _reply(task_id: str, task: Task, message: str) -> Reply[ControlAnswer]:
    answer = ControlAnswer(task_id=task_id, status=task.status, message=message, version=task.version)
    return Reply(answer, headers={"ETag": etag(task.version)})
