"""Steering a task that is there: pause, resume, update. The timers of what comes are set before the event that needs them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Set
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from eventq.events.commands import Command, PauseTask, ResumeTask, UpdateTask
from eventq.events.envelope import Trace, next_event
from eventq.events.errors import IllegalTransition, TaskNotFound, VersionConflict
from eventq.events.failpoints import failpoint
from eventq.events.handle import CONFLICTS_MAX, handle, read_task
from eventq.events.specification import submission_of
from eventq.events.task import ACCEPTS, TASKS, Status, Task, decide
from eventq.events.task_events import Submitted
from eventq.events.timers import DUE, START_BY, WAIT_SLACK_S, Hint, set_timer
from eventq.services.api import SOURCE, Api
from eventq.services.preconditions import check_version
from eventq.services.preparation import check_schedule, checked_arguments, declaration_of, unique_by_arguments
from eventq.services.schemas import UpdateRequest
from eventq.services.task_options import asked, resolved

CommandFor = Callable[[Task, datetime], Awaitable[Command]]


async def pause(api: Api, task_id: str, requested_by: str, reason: str | None, trace: Trace) -> Task:
    """Ask for a pause. Raises ``TaskNotFound`` or ``IllegalTransition``. A running task is paused by its worker, later."""
    handled = await handle(api.log, task_id, PauseTask(requested_by, reason), source=SOURCE, trace=trace)
    api.freshness.note_write(task_id, handled.state.version)
    return handled.state


async def resume(api: Api, task_id: str, requested_by: str, trace: Trace, *, version: int | None = None) -> Task:
    """Let a paused task go on. ``version``: at this one and no other. Raises ``TaskNotFound``, ``IllegalTransition`` or
    ``VersionConflict``."""

    async def command(task: Task, now: datetime) -> Command:
        if version is not None and task.version != version:
            raise VersionConflict(task_id, version + 1)
        return ResumeTask(requested_by, now)

    return await change(api, task_id, command, trace)


async def update(api: Api, task_id: str, body: UpdateRequest, requested_by: str, trace: Trace, if_match: str | None) -> Task:
    """Change a task that has not been started. ``if_match``: of that header; only if it names the present version.

    Raises ``TaskNotFound``, ``IllegalTransition``, ``PreconditionFailed`` and ``InvalidInput`` with nothing changed.
    """

    async def command(task: Task, now: datetime) -> Command:
        check_version(if_match, task.version)
        if task.status not in ACCEPTS[UpdateTask] or task.attempt > 0:
            what = "that has been started" if task.attempt > 0 else f"with status {task.status}"
            raise IllegalTransition(f"cannot update a task {what}", status=str(task.status))
        before = await submission_of(api.log, task_id, task)
        after = await _changed(api, before, body)
        changed = tuple(name for name in Submitted.model_fields if getattr(before, name) != getattr(after, name))
        return UpdateTask(after, tuple(name for name in changed if name != "gated"), requested_by, now)

    return await change(api, task_id, command, trace)


async def change(api: Api, task_id: str, command_for: CommandFor, trace: Trace) -> Task:
    """The task after a command whose event may need timers. The command is made anew for each state that it meets."""
    for _ in range(CONFLICTS_MAX):
        task = await read_task(api.log, task_id, fresh=True)
        if task.version == 0:
            raise TaskNotFound(task_id)
        now = datetime.now(UTC)
        command = await command_for(task, now)
        if isinstance(command, UpdateTask) and not command.changed:
            return task
        decided = decide(command, task)
        if not decided:
            return task
        event, after = next_event(TASKS, task_id, task, decided[0], source=SOURCE, at=now, trace=trace)
        await _set_timers(api, task_id, after)
        failpoint("control.before_append")
        try:
            await api.log.append(event)
        except VersionConflict:
            await _set_timers(api, task_id, await read_task(api.log, task_id, fresh=True))  # which ours may have replaced
            continue
        api.freshness.note_write(task_id, after.version)
        return after
    raise VersionConflict(task_id, 0)


async def _set_timers(api: Api, task_id: str, after: Task) -> None:
    """The timers that the task will need once it is ``after``."""
    timers = api.log.timers
    if after.status in (Status.SCHEDULED, Status.RETRYING) and after.due_at is not None:
        await set_timer(timers, Hint("tasks", task_id, DUE, after.version), after.due_at)
    start_by = after.start_by
    if start_by is None and after.queue_timeout_s is not None and after.status is Status.SCHEDULED and after.due_at:
        start_by = after.due_at + timedelta(seconds=after.queue_timeout_s)
    if start_by is not None:
        hint = Hint("tasks", task_id, START_BY, after.version)
        await set_timer(timers, hint, start_by + timedelta(seconds=WAIT_SLACK_S))


async def _changed(api: Api, before: Submitted, body: UpdateRequest) -> Submitted:
    """``before`` with what the request changes, checked as a new submission is."""
    given = body.model_fields_set
    declaration = await declaration_of(api, body.task_name or before.task_name)
    changes: dict[str, Any] = {"task_name": declaration.name, "pool": declaration.pool}
    changes |= resolved(declaration, asked(body, given))
    if "scheduled_at" in given:
        if body.scheduled_at is not None:
            check_schedule(body.scheduled_at)
        changes["scheduled_at"] = body.scheduled_at
    if given & {"task_name", "task_args", "task_kwargs"}:
        changes |= await _arguments(api, before, body)
    after = before.model_copy(update=changes)
    await _check_still_unique(api, before, given, after)
    gated = (await api.submitter.queues.get(after.queue)).gated
    return after.model_copy(update={"gated": gated})


async def _check_still_unique(api: Api, before: Submitted, given: Set[str], after: Submitted) -> None:
    """A unique task is answered to whoever submits the same: what it is the same by cannot change."""
    if before.unique_key is None:
        return
    if after.task_name != before.task_name:
        raise IllegalTransition("cannot change the name of a unique task", field="/task_name")
    if given & {"task_args", "task_kwargs"}:
        stored = await _stored_arguments(api, before)
        if before.unique_key == unique_by_arguments(before.task_name, stored["args"], stored["kwargs"]):
            raise IllegalTransition("cannot change the arguments of a task that is unique by them", field="/task_kwargs")


async def _stored_arguments(api: Api, submitted: Submitted) -> dict[str, Any]:
    if submitted.input is None:
        return {"args": submitted.args, "kwargs": submitted.kwargs}
    found: dict[str, Any] = orjson.loads(await api.blobs.get_async(submitted.input))
    return found


async def _arguments(api: Api, before: Submitted, body: UpdateRequest) -> dict[str, Any]:
    stored = await _stored_arguments(api, before)
    args = stored["args"] if body.task_args is None else body.task_args
    kwargs = stored["kwargs"] if body.task_kwargs is None else body.task_kwargs
    encoded = orjson.dumps({"args": args, "kwargs": kwargs})
    declaration = await declaration_of(api, body.task_name or before.task_name)
    blob = await checked_arguments(api, declaration, args, kwargs, encoded)
    if blob is None:
        return {"args": args, "kwargs": kwargs, "input": None}
    return {"args": [], "kwargs": {}, "input": blob}
