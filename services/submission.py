"""From a checked request to a stored task: the one way in, whichever API it came through."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import nats.errors
import orjson
import structlog
from nats.js.errors import APIError

from eventq.events.data import BlobRef
from eventq.events.envelope import Trace
from eventq.events.errors import (
    IllegalTransition,
    InvalidInput,
    LogDamaged,
    LogUnavailable,
    TaskNotFound,
    Unavailable,
    UnknownTask,
)
from eventq.events.handle import read_task
from eventq.events.ids import new_id
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES, SCHEDULE_AHEAD_MAX_S
from eventq.events.subjects import EVENTS
from eventq.events.task import ABSENT, Status, Task
from eventq.events.task_events import Submitted
from eventq.events.worker_events import TaskDeclaration
from eventq.services.api import Api
from eventq.services.http_limits import PARSE_INLINE_MAX_BYTES

RETRYABLE = frozenset({Status.FAILED, Status.TIMED_OUT, Status.CANCELLED})
REPLAYABLE = RETRYABLE | {Status.COMPLETED}


@dataclass(frozen=True, slots=True)
class Submission:
    """What somebody wants run; ``None`` leaves it to the task's declaration. ``scheduled_at``: aware UTC."""

    task_name: str
    args: list[Any] = field(default_factory=list[Any])
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    priority: int | None = None
    queue: str | None = None
    max_retries: int | None = None
    timeout_s: float | None = None
    scheduled_at: datetime | None = None
    requested_by: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A stored task. ``created_at``: the time of its first event."""

    task_id: str
    created_at: datetime
    submitted: Submitted
    task: Task


async def submit(api: Api, submission: Submission, trace: Trace) -> Accepted:
    """Check everything, then store the task.

    Raises ``UnknownTask`` or ``InvalidInput`` with nothing stored, ``LogFull`` likewise, ``LogUnavailable`` when unknown.
    """
    if api.freshness.halted is not None:
        # What is appended to a damaged log would stand on ground that an operator may have to take away.
        raise Unavailable(f"the event log is damaged and takes no tasks: {api.freshness.halted.detail}")
    declaration = await declaration_of(api, submission.task_name)
    now = datetime.now(UTC)
    _check_schedule(submission.scheduled_at, now)
    encoded = orjson.dumps({"args": submission.args, "kwargs": submission.kwargs})
    if len(encoded) > PARSE_INLINE_MAX_BYTES:
        await asyncio.to_thread(api.declarations.check, declaration, submission.args, submission.kwargs)
    else:
        api.declarations.check(declaration, submission.args, submission.kwargs)
    stored_input: BlobRef | None = None
    if len(encoded) > INLINE_PAYLOAD_MAX_BYTES:
        stored_input = await api.blobs.put_async(encoded, media_type="application/json")
    return await _store(api, _event(declaration, submission, stored_input), now, trace)


async def declaration_of(api: Api, task_name: str) -> TaskDeclaration:
    """What a worker declared, be it an instant ago: a name is called unknown only once the whole log has been folded."""
    try:
        return await api.declarations.get(task_name)
    except UnknownTask:
        try:
            facts = await api.log.broker.stream_facts(EVENTS)
        except (nats.errors.Error, APIError, TimeoutError) as error:
            raise LogUnavailable(f"nothing was stored: the broker does not tell where the log ends: {error!r}") from error
        await api.freshness.wait_for_position(0 if facts is None else facts.last, api.limits.read_wait_s)
        return await api.declarations.get(task_name)


async def repeat(api: Api, task_id: str, origin: str, requested_by: str, trace: Trace) -> Accepted:
    """Store a new task that does again what ``task_id`` did. ``origin``: ``retry`` (not of completed ones) or ``replay``.

    Raises ``TaskNotFound``, or ``IllegalTransition`` where the task's status does not admit it.
    """
    task = await read_task(api.log, task_id, fresh=True)
    if task is ABSENT:
        raise TaskNotFound(task_id)
    if task.status not in (RETRYABLE if origin == "retry" else REPLAYABLE):
        raise IllegalTransition(f"cannot {origin} a task with status {task.status}", status=str(task.status))
    first = await api.log.at("tasks", task_id, 1)
    if first is None or not isinstance(first.event.data, Submitted):
        raise LogDamaged(f"task {task_id} has no first event", task_id=task_id)
    again = first.event.data.model_copy(
        update={
            "scheduled_at": None,
            "original_task_id": task_id,
            "origin": origin,
            "requested_by": requested_by,
        }
    )
    return await _store(api, again, datetime.now(UTC), trace)


async def _store(api: Api, submitted: Submitted, now: datetime, trace: Trace) -> Accepted:
    task_id = new_id()
    structlog.contextvars.bind_contextvars(task_id=task_id)
    handled = await api.submitter.submit(task_id, submitted, now=now, trace=trace)
    api.freshness.note_write(task_id, handled.state.version)
    return Accepted(task_id, now if handled.event is None else handled.event.time, submitted, handled.state)


def _event(declaration: TaskDeclaration, wanted: Submission, stored_input: BlobRef | None) -> Submitted:
    return Submitted(
        task_name=declaration.name,
        args=[] if stored_input else wanted.args,
        kwargs={} if stored_input else wanted.kwargs,
        input=stored_input,
        pool=declaration.pool,
        queue=wanted.queue or declaration.queue,
        priority=declaration.priority if wanted.priority is None else wanted.priority,
        max_retries=declaration.max_retries if wanted.max_retries is None else wanted.max_retries,
        timeout_s=declaration.timeout_s if wanted.timeout_s is None else wanted.timeout_s,
        scheduled_at=wanted.scheduled_at,
        requested_by=wanted.requested_by,
    )


def _check_schedule(scheduled_at: datetime | None, now: datetime) -> None:
    if scheduled_at is not None and scheduled_at - now > timedelta(seconds=SCHEDULE_AHEAD_MAX_S):
        latest = (now + timedelta(seconds=SCHEDULE_AHEAD_MAX_S)).isoformat(timespec="seconds")
        raise InvalidInput("/scheduled_at", "is too far ahead", limit=latest, found=scheduled_at.isoformat())
