"""The native API's routes that give up or destroy what finished tasks leave behind."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from aiohttp import web

from eventq.events.task import Task
from eventq.services.answers import ControlAnswer
from eventq.services.api import api_of, requester, trace_of
from eventq.services.disposal import clean
from eventq.services.erase import Asked, Tables, erase
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
    store and dropped from every projection, for good. What is left says that the task was, when, and how it ended.

    So are the arguments in the events of the workflow or the schedule that gave them: of a workflow all that it gave its tasks
    and that was said to it, after which it cannot be retried; of a schedule all that it made before it was changed or deleted.
    Refused with 409 while the task or its workflow is not finished, or its schedule still makes tasks of the same arguments.
    """
    api = api_of(request)
    asked = Asked(requester(request), None if body is None else body.reason, trace_of(request))

    async def in_use(keys: Sequence[str], besides: str) -> Collection[str]:
        await up_to_date(api)
        return await api.queries.inputs_in_use(keys, besides=besides)

    tables = Tables(in_use, api.freshness.note_write)
    handled = await erase(api.log, api.blobs, path.task_id, asked, tables)
    api.freshness.note_write(path.task_id, handled.state.version)
    return _reply(path.task_id, handled.state, "Task erased")


def _reply(task_id: str, task: Task, message: str) -> Reply[ControlAnswer]:
    answer = ControlAnswer(task_id=task_id, status=task.status, message=message, version=task.version)
    return Reply(answer, headers={"ETag": etag(task.version)})
