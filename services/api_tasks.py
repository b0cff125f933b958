"""The native API's routes of tasks: parse, command or query, answer."""

from __future__ import annotations

from typing import Any, Literal

from aiohttp import web

from eventq.events.commands import CancelTask
from eventq.events.errors import InvalidInput
from eventq.events.handle import handle
from eventq.events.task import Status, Task
from eventq.projections.queries import TaskFilter
from eventq.services.answers import (
    AgainAnswer,
    CompareAnswer,
    ControlAnswer,
    SubmitAnswer,
    TaskAnswer,
    TaskListAnswer,
    TimelineAnswer,
)
from eventq.services.api import SOURCE, api_of, requester, trace_of
from eventq.services.idempotency import holding, idempotency_key, keyed_id, record_of
from eventq.services.metrics import METRICS
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.preparation import Submission
from eventq.services.reading import AS_OF_HEADER, fresh_enough, fresh_task, past_task
from eventq.services.schemas import (
    GetQuery,
    ListQuery,
    ReadQuery,
    ReasonRequest,
    SubmitQuery,
    SubmitRequest,
    TaskPath,
    TwoTasksPath,
)
from eventq.services.submission import Accepted, repeat, submit
from eventq.services.task_options import asked
from eventq.services.task_views import compare_answer, etag, links, task_answer, task_path, timeline_answer
from eventq.services.waiting import Outcome, applied, outcome_of, wait_asked_for, wait_until

routes = HttpRoutes("tasks", "/api/v1")

WRITE_ERRORS = (400, 403, 408, 413, 415, 421, 503)
READ_ERRORS = (400, 404, 421, 503)
CONTROL_ERRORS = (*WRITE_ERRORS, 404, 409)
CONTROL_ALSO = {202: "Its worker was told, and has not confirmed yet."}
SUBMIT_ALSO = {200: "The unfinished task that holds the unique key.", 202: "It has not finished in the time to wait."}


@routes.post("/tasks", status=201, errors=(*WRITE_ERRORS, 409, 422), also=SUBMIT_ALSO)
async def submit_task(request: web.Request, query: SubmitQuery, body: SubmitRequest) -> Reply[SubmitAnswer]:
    """Submit a task.

    Answered once the log holds it durably: from then on it will run, or end as `FAILED`, `TIMED_OUT` or `CANCELLED`. The
    arguments are checked against what the task's worker declared. What is left out is as the task declares it.

    `Idempotency-Key`: the same request, sent again under the same key, is answered the same and makes no second task.
    `Prefer: wait=N` or `async=false`: the answer waits for the outcome, and is 202 where that takes longer.
    """
    api, key = api_of(request), idempotency_key(request)
    wait_s = wait_asked_for(request, asynchronous=query.asynchronous, most_s=api.limits.wait_max_s)
    with holding(request.app, key):
        record = None if key is None else record_of(key, ["submit", body.model_dump(mode="json", exclude_unset=True)])
        task_id = None if key is None else keyed_id(key, "tasks")
        wanted = submission_of(body, requested_by=requester(request), idempotency=record, task_id=task_id)
        accepted = await submit(api, wanted, trace_of(request))
    request.app[METRICS].submitted.labels(accepted.submitted.queue).inc()
    answer = submit_answer(accepted)
    headers = {"Location": task_path(answer.task_id)}
    status = 200 if accepted.duplicate else 201
    if wait_s is not None:
        outcome = await outcome_of(api, accepted.task_id, accepted.task, wait_s)
        answer = answer.model_copy(update=_outcome_fields(outcome))
        status = status if outcome.task.finished else 202
        headers |= applied(wait_s)
    return Reply(answer, status=status, headers={**headers, "ETag": etag(answer.version)})


def submission_of(body: SubmitRequest, **known: Any) -> Submission:
    """What a request wants run. ``known``: what stands not in its body."""
    return Submission(
        task_name=body.task_name,
        args=body.task_args,
        kwargs=body.task_kwargs,
        options=asked(body, body.model_fields_set),
        scheduled_at=body.scheduled_at,
        unique=body.unique,
        unique_key=body.unique_key,
        **known,
    )


def submit_answer(accepted: Accepted) -> SubmitAnswer:
    """An accepted task as it was when it was accepted."""
    return SubmitAnswer(
        task_id=accepted.task_id,
        task_name=accepted.submitted.task_name,
        status=accepted.task.status,
        priority=accepted.submitted.priority,
        queue_name=accepted.submitted.queue,
        created_at=accepted.created_at,
        scheduled_at=accepted.submitted.scheduled_at,
        version=accepted.task.version,
        original_task_id=accepted.submitted.original_task_id,
        duplicate=accepted.duplicate,
        links=links(accepted.task_id, accepted.submitted.original_task_id),
    )


@routes.get("/tasks/{task_id}", errors=READ_ERRORS)
async def get_task(request: web.Request, path: TaskPath, query: GetQuery) -> Reply[TaskAnswer]:
    """Read a task.

    Includes everything that was written through this server before. `min_version` and `min_position` extend that to what
    was written elsewhere; `as_of` reads the past: a position of the log or a time.
    """
    api = api_of(request)
    if query.as_of is not None:
        row = await past_task(api, path.task_id, query.as_of)
    else:
        row = await fresh_task(api, path.task_id, min_version=query.min_version, min_position=query.min_position)
    answer = task_answer(row, await api.queries.subtasks(path.task_id, as_of=row.as_of))
    return Reply(answer, headers={"ETag": etag(row.version), AS_OF_HEADER: str(row.as_of)})


@routes.get("/tasks", errors=READ_ERRORS)
async def list_tasks(request: web.Request, query: ListQuery) -> Reply[TaskListAnswer]:
    """List tasks, filtered, sorted, by pages."""
    api = api_of(request)
    await fresh_enough(api, min_position=query.min_position)
    page = await api.queries.list_tasks(
        filter_of(query), sort_by=query.sort_by, descending=query.sort_order == "desc", limit=query.limit, offset=query.offset
    )
    answer = TaskListAnswer(
        total=page.total,
        limit=query.limit,
        offset=query.offset,
        tasks=[task_answer(row) for row in page.rows],
        as_of=page.as_of,
    )
    return Reply(answer, headers={AS_OF_HEADER: str(page.as_of)})


@routes.post("/tasks/{task_id}/cancel", errors=CONTROL_ERRORS, also=CONTROL_ALSO)
async def cancel_task(request: web.Request, path: TaskPath, body: ReasonRequest | None) -> Reply[ControlAnswer]:
    """Cancel a task.

    One that waits will never start. One that runs is asked to stop, and stopped by force when it does not: the answer
    waits some seconds for that and is 202 where it takes longer. Cancelling a finished task is refused with 409.
    """
    api = api_of(request)
    command = CancelTask(requested_by=requester(request), reason=None if body is None else body.reason)
    handled = await handle(api.log, path.task_id, command, source=SOURCE, trace=trace_of(request))
    api.freshness.note_write(path.task_id, handled.state.version)
    task = await wait_until(api, path.task_id, handled.state, lambda each: each.finished, api.limits.cancel_wait_s)
    answer = ControlAnswer(task_id=path.task_id, status=task.status, message=_cancel_message(task), version=task.version)
    return Reply(answer, status=200 if task.finished else 202, headers={"ETag": etag(task.version)})


@routes.post("/tasks/{task_id}/retry", status=201, errors=(*CONTROL_ERRORS, 422), also=SUBMIT_ALSO)
async def retry_task(request: web.Request, path: TaskPath, query: SubmitQuery) -> Reply[AgainAnswer]:
    """Run a failed, timed-out or cancelled task again, as a new task that refers to it.

    `Idempotency-Key`, `Prefer: wait=N` and `async=false` are as for submitting.
    """
    return await _again(request, path.task_id, "retry", query)


@routes.post("/tasks/{task_id}/replay", status=201, errors=(*CONTROL_ERRORS, 422), also=SUBMIT_ALSO)
async def replay_task(request: web.Request, path: TaskPath, query: SubmitQuery) -> Reply[AgainAnswer]:
    """Run any finished task again, with the same arguments, as a new task that refers to it.

    `Idempotency-Key`, `Prefer: wait=N` and `async=false` are as for submitting.
    """
    return await _again(request, path.task_id, "replay", query)


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


def filter_of(query: ListQuery) -> TaskFilter:
    """Which tasks a query string asks for. Raises ``InvalidInput`` for metadata that is not ``name=value``."""
    pairs = [text.partition("=") for text in query.metadata]
    if wrong := next((name for name, equals, _ in pairs if not (name and equals)), None):
        raise InvalidInput("metadata", "should be name=value", found=wrong[:80])
    return TaskFilter(
        statuses=tuple(map(Status, query.status)),
        priority=query.priority,
        queue=query.queue_name,
        task_name=query.task_name,
        key=query.key,
        tags=tuple(query.tag),
        metadata=tuple((name, value) for name, _, value in pairs),
        workflow_id=query.workflow_id,
        schedule_id=query.schedule_id,
        parent_task_id=query.parent_task_id,
        original_task_id=query.original_task_id,
        cleaned=query.cleaned,
    )


async def _again(
    request: web.Request, task_id: str, origin: Literal["retry", "replay"], query: SubmitQuery
) -> Reply[AgainAnswer]:
    api, key = api_of(request), idempotency_key(request)
    wait_s = wait_asked_for(request, asynchronous=query.asynchronous, most_s=api.limits.wait_max_s)
    with holding(request.app, key):
        accepted = await repeat(
            api,
            task_id,
            origin,
            requester(request),
            trace_of(request),
            key=None if key is None else keyed_id(key, "tasks"),
            idempotency=None if key is None else record_of(key, [origin, task_id]),
        )
    request.app[METRICS].submitted.labels(accepted.submitted.queue).inc()
    answer = again_answer(accepted, task_id)
    status, headers = 201, {"Location": task_path(answer.task_id)}
    if wait_s is not None:
        outcome = await outcome_of(api, accepted.task_id, accepted.task, wait_s)
        answer = answer.model_copy(update=_outcome_fields(outcome))
        status = status if outcome.task.finished else 202
        headers |= applied(wait_s)
    return Reply(answer, status=status, headers={**headers, "ETag": etag(answer.version)})


def again_answer(accepted: Accepted, original_task_id: str) -> AgainAnswer:
    """A repetition as it was when it was accepted."""
    return AgainAnswer(
        task_id=accepted.task_id,
        status=accepted.task.status,
        original_task_id=original_task_id,
        version=accepted.task.version,
        links=links(accepted.task_id, original_task_id),
    )


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": outcome.task.status,
        "reason": outcome.task.reason,
        "version": outcome.task.version,
        "result": outcome.result,
        "output": outcome.output,
        "error": outcome.error,
    }


def _cancel_message(task: Task) -> str:
    match task.status:
        case Status.CANCELLED:
            return "Task cancelled successfully"
        case _ if task.finished:
            return f"Task finished as {task.status} before it could be cancelled"
        case _:
            return "Cancellation requested; the worker has not stopped the task yet"
