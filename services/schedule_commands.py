"""From checked requests to changes of schedules: timers first, then the event, as everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import orjson

from eventq.events.envelope import Trace
from eventq.events.errors import IllegalTransition, InvalidInput, PayloadTooLarge, ScheduleNotFound
from eventq.events.handle import CONFLICTS_MAX, Handled, handle_any, read_state, read_task
from eventq.events.ids import new_id
from eventq.events.limits import EVENT_MAX_BYTES, INLINE_PAYLOAD_MAX_BYTES
from eventq.events.schedule import (
    NO_SCHEDULE,
    SCHEDULES,
    CreateSchedule,
    Schedule,
    ScheduleCommand,
    TriggerSchedule,
    UpdateSchedule,
    first_due,
    tick_task,
    trigger_task_id,
)
from eventq.events.schedule_events import ScheduleSpec
from eventq.events.task_events import Submitted
from eventq.events.timers import set_timer
from eventq.projections.fold import version_key
from eventq.services.api import SOURCE, Api
from eventq.services.clock import broker_clock
from eventq.services.http_limits import PARSE_INLINE_MAX_BYTES
from eventq.services.preconditions import check_version
from eventq.services.preparation import declaration_of
from eventq.services.schedule_models import SchedulePatch, ScheduleRequest
from eventq.services.schedules import read_schedule, tick_hint, with_spec
from eventq.services.task_options import NAMES, asked, resolved

_TIMING = ("cron", "time_zone", "catch_up", "overlap", "starts_at", "ends_at")


async def create(api: Api, body: ScheduleRequest, requested_by: str, trace: Trace) -> tuple[str, Schedule]:
    """Store a new schedule. Raises ``InvalidInput``, or ``IllegalTransition`` where the id is taken."""
    schedule_id = body.schedule_id or new_id()
    timing = {name: getattr(body, name) for name in _TIMING}
    task = await _task(api, body.task_name, asked(body), None, requested_by)
    task = await _with_arguments(api, task, body.task_args, body.task_kwargs)
    spec = _spec({**timing, "task": task})
    now = await broker_clock(api.log.broker)()
    next_at = first_due(spec, NO_SCHEDULE, now)
    if body.enabled and (await read_state(api.log, SCHEDULES, schedule_id)).version == 0:
        await set_timer(api.log.timers, tick_hint(schedule_id), next_at)
    command = CreateSchedule(spec, next_at, paused=not body.enabled, requested_by=requested_by)
    return schedule_id, await _handled(api, schedule_id, command, trace, NO_SCHEDULE)


async def update(
    api: Api, schedule_id: str, body: SchedulePatch, if_match: str | None, requested_by: str, trace: Trace
) -> Schedule:
    """Change what the request names. Raises ``PreconditionFailed`` where the schedule is not at version ``if_match``."""

    async def command(schedule: Schedule, now: datetime) -> UpdateSchedule:
        check_version(if_match, schedule.version)
        spec = await _changed(api, schedule.required_spec, body, requested_by)
        return UpdateSchedule(schedule.version, spec, first_due(spec, schedule, now), requested_by)

    return await change(api, schedule_id, command, trace)


async def change(
    api: Api, schedule_id: str, make: Callable[[Schedule, datetime], Awaitable[ScheduleCommand]], trace: Trace
) -> Schedule:
    """Carry out the command that ``make`` makes of the present schedule, with the timer that what follows needs."""
    now = await broker_clock(api.log.broker)()
    for round_ in range(CONFLICTS_MAX):
        schedule = await read_schedule(api.log, schedule_id, fresh=True)
        if schedule.version == 0:
            raise ScheduleNotFound(schedule_id)
        command = await make(schedule, now)
        decided = SCHEDULES.decide(command, schedule)  # raises before a timer is set for nothing
        next_at = getattr(decided[0], "next_at", None) if decided else None
        if next_at is not None:
            await set_timer(api.log.timers, tick_hint(schedule_id), next_at)
        try:
            return await _handled(api, schedule_id, command, trace, schedule)
        except IllegalTransition:
            winner = await read_state(api.log, SCHEDULES, schedule_id, fresh=True)
            if winner.next_at is not None:  # its timer may have been replaced by ours
                await set_timer(api.log.timers, tick_hint(schedule_id), winner.next_at)
            if round_ == CONFLICTS_MAX - 1:
                raise  # else the next round tells whether it was outdated or refused
    raise IllegalTransition("the schedule changes faster than it can be changed")


async def trigger(api: Api, schedule_id: str, key: str | None, requested_by: str, trace: Trace) -> tuple[str, Schedule]:
    """Make the schedule's task now. ``key``: the same one makes one task, whenever and however often it comes."""
    schedule = await read_schedule(api.log, schedule_id, fresh=True)
    if schedule.version == 0:
        raise ScheduleNotFound(schedule_id)
    task_id = new_id() if key is None else trigger_task_id(schedule_id, key)
    if key is not None and (await read_task(api.log, task_id, fresh=True)).version:
        return task_id, schedule
    after = await _handled(api, schedule_id, TriggerSchedule(task_id, requested_by), trace, schedule)
    task = tick_task(schedule_id, after.required_spec).model_copy(update={"requested_by": requested_by})
    try:
        handled = await api.submitter.submit(task_id, task, trace=trace)
    except IllegalTransition:
        return task_id, after  # a scheduler, or the same request beside us, was quicker
    api.freshness.note_write(task_id, handled.state.version)
    return task_id, after


async def _handled(api: Api, schedule_id: str, command: ScheduleCommand, trace: Trace, state: Schedule) -> Schedule:
    handled: Handled[Schedule] = await handle_any(
        api.log, SCHEDULES, schedule_id, command, source=SOURCE, trace=trace, state=state
    )
    api.freshness.note_write(version_key("schedules", schedule_id), handled.state.version)
    return await with_spec(api.log, schedule_id, handled.state)


async def _task(api: Api, task_name: str, options: dict[str, Any], before: Submitted | None, requested_by: str) -> Submitted:
    """The task without arguments. ``options``: those that are asked for; what else ``before`` had stays."""
    declaration = await declaration_of(api, task_name)
    kept = {} if before is None else {name: getattr(before, name) for name in NAMES.values()}
    values = resolved(declaration, kept | options)
    return Submitted(task_name=declaration.name, pool=declaration.pool, requested_by=requested_by, **values)


async def _with_arguments(api: Api, task: Submitted, args: list[Any], kwargs: dict[str, Any]) -> Submitted:
    """Check the arguments against the declaration, and put them into the task, by reference where they are large."""
    declaration = await declaration_of(api, task.task_name)
    encoded = orjson.dumps({"args": args, "kwargs": kwargs})
    if len(encoded) > PARSE_INLINE_MAX_BYTES:
        await asyncio.to_thread(api.declarations.check, declaration, args, kwargs)
    else:
        api.declarations.check(declaration, args, kwargs)
    if len(encoded) <= INLINE_PAYLOAD_MAX_BYTES:
        return task.model_copy(update={"args": args, "kwargs": kwargs})
    return task.model_copy(update={"input": await api.blobs.put_async(encoded, media_type="application/json")})


async def _changed(api: Api, spec: ScheduleSpec, body: SchedulePatch, requested_by: str) -> ScheduleSpec:
    given = body.model_fields_set
    before = spec.task
    options = asked(body, given)
    if body.task_name not in (None, before.task_name):
        # Another task's declaration decides what is not asked for; limits, key and tags are the schedule's own.
        options = dict.fromkeys(("queue", "priority", "max_retries", "timeout_s")) | options
    task = await _task(api, body.task_name or before.task_name, options, before, requested_by)
    same_task = task.task_name == before.task_name
    if body.task_args is None and body.task_kwargs is None and before.input is not None and same_task:
        task = task.model_copy(update={"input": before.input})
    else:
        stored: dict[str, Any] = {"args": before.args, "kwargs": before.kwargs}
        if before.input is not None and (body.task_args is None or body.task_kwargs is None):
            stored = orjson.loads(await api.blobs.get_async(before.input))
        args = stored["args"] if body.task_args is None else body.task_args
        kwargs = stored["kwargs"] if body.task_kwargs is None else body.task_kwargs
        task = await _with_arguments(api, task, args, kwargs)
    # Null takes a bound away, and is as if left out for what a schedule must have.
    bounds = {name for name in ("starts_at", "ends_at") if name in given}
    timing = {name: getattr(body, name) for name in _TIMING if name in bounds or getattr(body, name) is not None}
    return _spec({**{name: getattr(spec, name) for name in _TIMING}, **timing, "task": task})


def _spec(values: dict[str, Any]) -> ScheduleSpec:
    spec = ScheduleSpec(**values)
    if spec.starts_at is not None and spec.ends_at is not None and spec.ends_at < spec.starts_at:
        raise InvalidInput("/ends_at", "lies before /starts_at", limit=spec.starts_at.isoformat())
    if spec.catch_up == "all" and spec.overlap == "skip":
        raise InvalidInput("/overlap", "cannot be skip where catch_up is all: every missed tick but one would be skipped")
    size = len(spec.model_dump_json(exclude_defaults=True))
    if size > EVENT_MAX_BYTES // 2:
        raise PayloadTooLarge("/metadata", f"the schedule is larger than {EVENT_MAX_BYTES // 2} bytes", found=size)
    return spec
