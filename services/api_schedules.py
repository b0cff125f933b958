"""The native API's routes of schedules."""

from __future__ import annotations

from datetime import datetime
from itertools import islice

from aiohttp import web

from eventq.events.cron import explain_cron
from eventq.events.errors import ScheduleNotFound
from eventq.events.schedule import (
    DeleteSchedule,
    PauseSchedule,
    ResumeSchedule,
    Schedule,
    ScheduleStatus,
    due_times,
)
from eventq.projections.schedule_queries import EXISTING
from eventq.services.api import api_of, requester, trace_of
from eventq.services.idempotency import idempotency_key
from eventq.services.openapi import NO_CONTENT, HttpRoutes, Reply
from eventq.services.preconditions import check_version
from eventq.services.reading import AS_OF_HEADER, fresh_enough
from eventq.services.schedule_commands import change, create, trigger, update
from eventq.services.schedule_models import (
    PauseScheduleRequest,
    ScheduleAnswer,
    ScheduleListAnswer,
    SchedulePatch,
    SchedulePath,
    ScheduleRequest,
    SchedulesQuery,
    TriggerAnswer,
)
from eventq.services.task_views import etag, task_path

routes = HttpRoutes("schedules", "/api/v1")

WRITE_ERRORS = (400, 403, 408, 413, 415, 421, 503)
CHANGE_ERRORS = (*WRITE_ERRORS, 404, 409, 412)
READ_ERRORS = (400, 404, 421, 503)
UPCOMING = 5


@routes.post("/schedules", status=201, errors=(*WRITE_ERRORS, 409))
async def create_schedule(request: web.Request, body: ScheduleRequest) -> Reply[ScheduleAnswer]:
    """Create a schedule.

    At each due time exactly one task is made, however many schedulers run, also on days on which the clock changes. Arguments
    are checked now, against what the task's worker declared. An id that was ever used, also by a deleted schedule, is taken.
    """
    schedule_id, schedule = await create(api_of(request), body, requester(request), trace_of(request))
    headers = {"Location": f"/api/v1/schedules/{schedule_id}", "ETag": etag(schedule.version)}
    return Reply(schedule_answer(schedule_id, schedule), headers=headers)


@routes.get("/schedules", errors=READ_ERRORS)
async def list_schedules(request: web.Request, query: SchedulesQuery) -> Reply[ScheduleListAnswer]:
    """List schedules, newest first, by pages."""
    api = api_of(request)
    await fresh_enough(api, min_position=query.min_position)
    statuses = tuple(map(ScheduleStatus, query.status)) or EXISTING
    page = await api.queries.list_schedules(statuses, task_name=query.task_name, limit=query.limit, offset=query.offset)
    answer = ScheduleListAnswer(
        total=page.total,
        limit=query.limit,
        offset=query.offset,
        schedules=[schedule_answer(row.schedule_id, row.schedule) for row in page.rows],
        as_of=page.as_of,
    )
    return Reply(answer, headers={AS_OF_HEADER: str(page.as_of)})


@routes.get("/schedules/{schedule_id}", errors=READ_ERRORS)
async def get_schedule(request: web.Request, path: SchedulePath) -> Reply[ScheduleAnswer]:
    """Read a schedule, with the next times it is due."""
    api = api_of(request)
    await fresh_enough(api)
    row = await api.queries.get_schedule(path.schedule_id)
    if row is None:
        raise ScheduleNotFound(path.schedule_id)
    headers = {"ETag": etag(row.schedule.version), AS_OF_HEADER: str(row.as_of)}
    return Reply(schedule_answer(path.schedule_id, row.schedule), headers=headers)


@routes.route("PATCH", "/schedules/{schedule_id}", errors=CHANGE_ERRORS)
async def update_schedule(request: web.Request, path: SchedulePath, body: SchedulePatch) -> Reply[ScheduleAnswer]:
    """Change a schedule.

    What is left out stays. Where the times become others, the next one is reckoned anew from now on. With `If-Match` only that
    version is changed.
    """
    schedule = await update(
        api_of(request), path.schedule_id, body, request.headers.get("If-Match"), requester(request), trace_of(request)
    )
    return _reply(path.schedule_id, schedule)


@routes.post("/schedules/{schedule_id}/pause", errors=CHANGE_ERRORS)
async def pause_schedule(request: web.Request, path: SchedulePath, body: PauseScheduleRequest | None) -> Reply[ScheduleAnswer]:
    """Let a schedule make no tasks until it is resumed."""

    async def command(schedule: Schedule, _: datetime) -> PauseSchedule:
        check_version(request.headers.get("If-Match"), schedule.version)
        return PauseSchedule(requester(request), None if body is None else body.reason)

    return _reply(path.schedule_id, await change(api_of(request), path.schedule_id, command, trace_of(request)))


@routes.post("/schedules/{schedule_id}/resume", errors=CHANGE_ERRORS)
async def resume_schedule(request: web.Request, path: SchedulePath) -> Reply[ScheduleAnswer]:
    """Let a paused schedule go on. What was missed is caught up with as the schedule says."""

    async def command(schedule: Schedule, _: datetime) -> ResumeSchedule:
        check_version(request.headers.get("If-Match"), schedule.version)
        return ResumeSchedule(requester(request))

    return _reply(path.schedule_id, await change(api_of(request), path.schedule_id, command, trace_of(request)))


@routes.post("/schedules/{schedule_id}/trigger", status=201, errors=(*WRITE_ERRORS, 404, 409))
async def trigger_schedule(request: web.Request, path: SchedulePath) -> Reply[TriggerAnswer]:
    """Make the schedule's task at once.

    Its ticks go on as before. One `Idempotency-Key` makes one task, however often the request is sent.
    """
    api = api_of(request)
    task_id, schedule = await trigger(api, path.schedule_id, idempotency_key(request), requester(request), trace_of(request))
    answer = TriggerAnswer(schedule_id=path.schedule_id, task_id=task_id, version=schedule.version)
    return Reply(answer, headers={"Location": task_path(task_id), "ETag": etag(schedule.version)})


@routes.route("DELETE", "/schedules/{schedule_id}", status=NO_CONTENT, errors=CHANGE_ERRORS)
async def delete_schedule(request: web.Request, path: SchedulePath) -> web.Response:
    """Delete a schedule for good. Tasks that it made stay as they are, and its id stays taken."""

    async def command(schedule: Schedule, _: datetime) -> DeleteSchedule:
        check_version(request.headers.get("If-Match"), schedule.version)
        return DeleteSchedule(requester(request))

    await change(api_of(request), path.schedule_id, command, trace_of(request))
    return web.Response(status=NO_CONTENT)


def schedule_answer(schedule_id: str, schedule: Schedule) -> ScheduleAnswer:
    """A schedule as the API tells it."""
    spec = schedule.required_spec
    task = spec.task
    return ScheduleAnswer(
        schedule_id=schedule_id,
        status=schedule.status,
        cron=spec.cron,
        explain=explain_cron(spec.cron),
        time_zone=spec.time_zone,
        catch_up=spec.catch_up,
        overlap=spec.overlap,
        starts_at=spec.starts_at,
        ends_at=spec.ends_at,
        next_at=schedule.next_at,
        upcoming=_upcoming(schedule),
        last_at=schedule.last_at,
        last_task_ids=schedule.last_task_ids,
        tasks_made=schedule.tasks,
        dropped_ticks=schedule.dropped,
        times_triggered=schedule.triggered,
        task_name=task.task_name,
        task_args=None if task.input else task.args,
        task_kwargs=None if task.input else task.kwargs,
        input=task.input,
        priority=task.priority,
        queue_name=task.queue,
        pool=task.pool,
        max_retries=task.max_retries,
        timeout_seconds=task.timeout_s,
        queue_timeout_seconds=task.queue_timeout_s,
        heartbeat_timeout_seconds=task.heartbeat_timeout_s,
        result_ttl_seconds=task.result_ttl_s,
        key=task.key,
        tags=task.tags,
        metadata=task.metadata,
        created_at=schedule.created_at,
        updated_at=schedule.updated_at,
        version=schedule.version,
    )


def _upcoming(schedule: Schedule) -> list[datetime]:
    if schedule.next_at is None:
        return []
    later = islice(due_times(schedule.required_spec, schedule.next_at), UPCOMING - 1)
    return [schedule.next_at, *later]


def _reply(schedule_id: str, schedule: Schedule) -> Reply[ScheduleAnswer]:
    return Reply(schedule_answer(schedule_id, schedule), headers={"ETag": etag(schedule.version)})
