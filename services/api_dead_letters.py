"""The native API's routes of dead letters: tasks that ended badly and that nobody has run again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from eventq.events.errors import IllegalTransition, InvalidInput
from eventq.events.handle import read_task
from eventq.events.task import Status
from eventq.projections.queries import AttemptRow, TaskFilter, TaskRow
from eventq.services.answers import AgainAnswer
from eventq.services.api import Api, api_of, requester, trace_of
from eventq.services.bulk import attempt, each, filter_of, select
from eventq.services.bulk_models import (
    DeadLetterAnswer,
    DeadLetterListAnswer,
    DeadLettersQuery,
    DoneAnswer,
    EvidenceAnswer,
    RedriveAnswer,
    RedriveRequest,
)
from eventq.services.idempotency import keyed_id
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.reading import AS_OF_HEADER, fresh_enough, up_to_date
from eventq.services.schemas import TaskPath
from eventq.services.submission import Accepted, repeat, repetition
from eventq.services.task_views import etag, links, task_path

routes = HttpRoutes("dead letters", "/api/v1")

WRITE_ERRORS = (400, 403, 404, 408, 409, 413, 415, 421, 503)
DEAD = frozenset({Status.FAILED, Status.TIMED_OUT})


@routes.get("/dead-letters", errors=(400, 421, 503))
async def list_dead_letters(request: web.Request, query: DeadLettersQuery) -> Reply[DeadLetterListAnswer]:
    """List the tasks that failed or timed out for good and that nobody has run again, cleaned up or erased, newest first.

    Each says its last error and reason, and of a task that was quarantined as `poison` the workers that it cost.
    """
    api = api_of(request)
    await fresh_enough(api, min_position=query.min_position)
    wanted = TaskFilter(
        statuses=tuple(sorted(DEAD)),
        queue=query.queue_name,
        task_name=query.task_name,
        key=query.key,
        tags=tuple(query.tag),
        reason=query.reason,
        updated_after=query.failed_after,
        updated_before=query.failed_before,
        cleaned=False,
        unretried=True,
    )
    page = await api.queries.list_tasks(wanted, sort_by="completed_at", limit=query.limit, offset=query.offset)
    answer = DeadLetterListAnswer(
        total=page.total,
        limit=query.limit,
        offset=query.offset,
        dead_letters=await asyncio.gather(*(_dead_letter(api, row) for row in page.rows)),
        as_of=page.as_of,
    )
    return Reply(answer, headers={AS_OF_HEADER: str(page.as_of)})


@routes.post(
    "/dead-letters/{task_id}/redrive",
    status=201,
    errors=WRITE_ERRORS,
    also={200: "It was redriven before: the task that does it again."},
)
async def redrive_dead_letter(request: web.Request, path: TaskPath) -> Reply[AgainAnswer]:
    """Run a dead letter again, as a new task that refers to it.

    However often it is asked for, one task comes of it; run that again if it fails as well. What was retried otherwise is no
    dead letter any more, and refused.
    """
    api = api_of(request)
    await up_to_date(api)
    accepted = await _redrive(api, request, path.task_id, await api.queries.retries_of([path.task_id]))
    answer = AgainAnswer(
        task_id=accepted.task_id,
        status=accepted.task.status,
        original_task_id=path.task_id,
        version=accepted.task.version,
        links=links(accepted.task_id, path.task_id),
    )
    headers = {"Location": task_path(answer.task_id), "ETag": etag(answer.version)}
    return Reply(answer, status=200 if accepted.duplicate else 201, headers=headers)


@routes.post("/dead-letters/redrive", errors=WRITE_ERRORS)
async def redrive_dead_letters(request: web.Request, body: RedriveRequest) -> RedriveAnswer:
    """Run many dead letters again: those named, or all that a filter selects. Each is redriven or refused by itself."""
    api = api_of(request)
    if (body.task_ids is None) == (body.filter is None):
        raise InvalidInput("/task_ids", "give either task_ids or a filter")
    task_ids = list(dict.fromkeys(body.task_ids or ()))
    if body.filter is not None:
        found = await select(api, replace(filter_of(body.filter), cleaned=False, unretried=True), DEAD)
        task_ids = [task_id for task_id, _ in found.tasks]
    await up_to_date(api)
    retries = await api.queries.retries_of(task_ids)

    async def redrive(task_id: str) -> DoneAnswer:
        return await attempt(task_id, _redriven(api, request, task_id, retries))

    tasks = await each(task_ids, redrive)
    redriven = sum(task.error is None for task in tasks)
    return RedriveAnswer(redriven=redriven, refused=len(tasks) - redriven, tasks=tasks)


async def _redriven(api: Api, request: web.Request, task_id: str, retries: Mapping[str, str]) -> DoneAnswer:
    accepted = await _redrive(api, request, task_id, retries)
    return DoneAnswer(task_id=task_id, status=accepted.task.status, new_task_id=accepted.task_id)


async def _redrive(api: Api, request: web.Request, task_id: str, retries: Mapping[str, str]) -> Accepted:
    """The one task that redrives ``task_id``: its key is made of the original's id. ``retries``: of those that were retried,
    the newest task that repeats them."""
    task = await read_task(api.log, task_id, fresh=True)
    if task.version > 0 and task.status not in DEAD:
        raise IllegalTransition(f"cannot redrive a task with status {task.status}", status=str(task.status))
    key = keyed_id(task_id, "redrive")
    if (done := await repetition(api, task_id, key)) is not None:
        return done
    if (again := retries.get(task_id)) is not None:
        raise IllegalTransition(f"cannot redrive a task that was retried, as {again}", retried_as=again)
    return await repeat(api, task_id, "retry", requester(request), trace_of(request), key=key)


async def _dead_letter(api: Api, row: TaskRow) -> DeadLetterAnswer:
    attempts = await api.queries.attempts(row.task_id) if row.reason == "poison" else []
    where: dict[str, Any] = links(row.task_id, row.original_task_id).model_dump()
    return DeadLetterAnswer(
        task_id=row.task_id,
        task_name=row.task_name,
        queue_name=row.queue,
        status=row.status,
        reason=row.reason,
        error=row.error,
        attempts=row.attempt,
        failures=row.failures,
        losses=row.losses,
        key=row.key,
        tags=row.tags,
        metadata=row.metadata,
        created_at=row.created_at,
        failed_at=row.completed_at,
        evidence=[_evidence(lost) for lost in attempts if lost.outcome == "worker_lost"],
        links=where | {"redrive": f"/api/v1/dead-letters/{row.task_id}/redrive"},
    )


def _evidence(lost: AttemptRow) -> EvidenceAnswer:
    return EvidenceAnswer(
        attempt=lost.attempt,
        worker_id=lost.worker_id,
        hostname=lost.hostname,
        started_at=lost.started_at,
        ended_at=lost.ended_at,
    )
