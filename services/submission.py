"""From a checked request to a stored task: the one way in, whichever API it came through."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import nats.errors
import orjson
import structlog
from nats.js.errors import APIError

from eventq.events.claim import CLAIMS, ClaimKey
from eventq.events.data import BlobRef
from eventq.events.envelope import Trace
from eventq.events.errors import (
    Conflict,
    IllegalTransition,
    InvalidInput,
    LogDamaged,
    LogUnavailable,
    TaskErased,
    TaskNotFound,
    Unavailable,
    UnknownTask,
)
from eventq.events.failpoints import failpoint
from eventq.events.handle import CONFLICTS_MAX, Handled, handle_any, read_state, read_task
from eventq.events.ids import new_id
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES, SCHEDULE_AHEAD_MAX_S
from eventq.events.retry import RetryPolicy
from eventq.events.specification import submission_of
from eventq.events.subjects import EVENTS
from eventq.events.task import ABSENT, Status, Task, from_summary
from eventq.events.task_events import Idempotency, Submitted
from eventq.events.worker_events import TaskDeclaration
from eventq.services.api import SOURCE, Api
from eventq.services.http_limits import PARSE_INLINE_MAX_BYTES
from eventq.services.idempotency import check_same

AT_ONCE = 128
"""Submissions of many that are checked before other requests have a turn."""

RETRYABLE = frozenset({Status.FAILED, Status.TIMED_OUT, Status.CANCELLED})
REPLAYABLE = RETRYABLE | {Status.COMPLETED}


class Submission(NamedTuple):
    """What somebody wants run; ``None`` leaves it to the task's declaration. ``scheduled_at``: aware UTC.

    ``unique``: answer an unfinished task of the same name and arguments instead; ``unique_key``: of the same key.
    ``idempotency``: of the request's key, where it had one; ``task_id`` is then made of it.
    """

    task_name: str
    args: list[Any]
    kwargs: dict[str, Any]
    priority: int | None = None
    queue: str | None = None
    max_retries: int | None = None
    retry: RetryPolicy | None = None
    timeout_s: float | None = None
    queue_timeout_s: float | None = None
    heartbeat_timeout_s: float | None = None
    result_ttl_s: float | None = None
    scheduled_at: datetime | None = None
    key: str | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, str] = MappingProxyType({})
    unique: bool = False
    unique_key: str | None = None
    requested_by: str | None = None
    idempotency: Idempotency | None = None
    task_id: str | None = None


class Accepted(NamedTuple):
    """A stored task. ``created_at``: the time of its first event; ``duplicate``: it was there before, under its unique key."""

    task_id: str
    created_at: datetime
    submitted: Submitted
    task: Task
    duplicate: bool = False


async def submit(api: Api, submission: Submission, trace: Trace) -> Accepted:
    """Check everything, then store the task.

    Raises ``UnknownTask`` or ``InvalidInput`` with nothing stored, ``LogFull`` likewise, ``LogUnavailable`` when unknown.
    """
    refuse_when_damaged(api)
    if (known := await _known(api, submission.task_id, submission.idempotency)) is not None:
        return known
    submitted = await prepare(api, submission, await declaration_of(api, submission.task_name), _encoded(submission))
    if submitted.unique_key is not None:
        return await _submit_unique(api, submitted, trace)
    try:
        return await store(api, submission.task_id or new_id(), submitted, trace)
    except IllegalTransition:
        # The same key, at the same moment, in another process.
        if (known := await _known(api, submission.task_id, submission.idempotency)) is None:
            raise
        return known


class Prepared(NamedTuple):
    """One of many submissions, checked. ``outcome``: its event, or why it is refused; ``None`` where something must be looked
    up before its event is made, or stored beside it."""

    wanted: Submission
    outcome: Submitted | BaseException | None


async def prepare_all(api: Api, wanted: Sequence[Submission]) -> list[Prepared]:
    """Check many submissions; nothing is stored. A declaration is asked for once."""
    names = list(dict.fromkeys(each.task_name for each in wanted))
    found = await asyncio.gather(*(declaration_of(api, name) for name in names), return_exceptions=True)
    declarations = dict(zip(names, found, strict=True))
    prepared: list[Prepared] = []
    for number, each in enumerate(wanted):
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
        declaration = declarations[each.task_name]
        outcome: Submitted | BaseException | None = None
        if isinstance(declaration, BaseException):
            outcome = None if each.task_id is not None else declaration  # what is known of the id comes first
        elif not _looks_up(each) and len(encoded := _encoded(each)) <= INLINE_PAYLOAD_MAX_BYTES:
            try:
                outcome = await prepare(api, each, declaration, encoded)
            except Exception as error:
                outcome = error
        prepared.append(Prepared(each, outcome))
    return prepared


async def submit_all(api: Api, prepared: Sequence[Prepared], trace: Trace) -> list[Accepted | BaseException]:
    """Store many submissions. Answers of each what came of it, or why it was refused or is not known to be stored. Those that
    need nothing but their event go to the log together, after the others.

    Raises ``Unavailable`` where the log is damaged, with nothing stored.
    """
    refuse_when_damaged(api)
    outcomes: dict[int, Accepted | BaseException] = {}
    alone: dict[int, Submission] = {}
    tasks: dict[str, Submitted] = {}
    numbers: dict[str, int] = {}
    for number, each in enumerate(prepared):
        match each.outcome:
            case None:
                alone[number] = each.wanted
            case Submitted():
                task_id = new_id()
                tasks[task_id], numbers[task_id] = each.outcome, number
            case refusal:
                outcomes[number] = refusal
    answers = await asyncio.gather(*(submit(api, each, trace) for each in alone.values()), return_exceptions=True)
    outcomes |= zip(alone, answers, strict=True)
    now = datetime.now(UTC)
    for task_id, handled in (await api.submitter.submit_all(tasks, now=now, trace=trace)).items():
        if isinstance(handled, Handled):
            outcomes[numbers[task_id]] = _accepted(api, task_id, tasks[task_id], handled, now)
        else:
            outcomes[numbers[task_id]] = handled
    return [outcomes[number] for number in range(len(prepared))]


def _looks_up(wanted: Submission) -> bool:
    """Whether another task may be answered instead."""
    return wanted.task_id is not None or wanted.unique or wanted.unique_key is not None


def _encoded(wanted: Submission) -> bytes:
    return orjson.dumps({"args": wanted.args, "kwargs": wanted.kwargs})


def refuse_when_damaged(api: Api) -> None:
    """What is appended to a damaged log would stand on ground that an operator may have to take away."""
    if api.freshness.halted is not None:
        raise Unavailable(f"the event log is damaged and takes no tasks: {api.freshness.halted.detail}")


async def prepare(api: Api, wanted: Submission, declaration: TaskDeclaration, encoded: bytes) -> Submitted:
    """The event that the submission will be, its arguments checked, and stored where they are large. ``encoded``: the
    arguments as they would be stored."""
    if wanted.scheduled_at is not None:
        check_schedule(wanted.scheduled_at)
    stored_input = await checked_arguments(api, declaration, wanted.args, wanted.kwargs, encoded)
    return Submitted(
        task_name=declaration.name,
        args=[] if stored_input else wanted.args,
        kwargs={} if stored_input else wanted.kwargs,
        input=stored_input,
        pool=declaration.pool,
        queue=wanted.queue or declaration.queue,
        priority=declaration.priority if wanted.priority is None else wanted.priority,
        max_retries=declaration.max_retries if wanted.max_retries is None else wanted.max_retries,
        retry=wanted.retry,
        timeout_s=declaration.timeout_s if wanted.timeout_s is None else wanted.timeout_s,
        queue_timeout_s=declaration.queue_timeout_s if wanted.queue_timeout_s is None else wanted.queue_timeout_s,
        heartbeat_timeout_s=(
            declaration.heartbeat_timeout_s if wanted.heartbeat_timeout_s is None else wanted.heartbeat_timeout_s
        ),
        result_ttl_s=declaration.result_ttl_s if wanted.result_ttl_s is None else wanted.result_ttl_s,
        scheduled_at=wanted.scheduled_at,
        key=wanted.key,
        tags=list(wanted.tags),
        metadata=dict(wanted.metadata),
        unique_key=_unique_key(wanted),
        idempotency=wanted.idempotency,
        requested_by=wanted.requested_by,
    )


def _unique_key(wanted: Submission) -> str | None:
    """The digest that stands for what the task is unique by: one subject token, whatever the key holds."""
    if not wanted.unique and wanted.unique_key is None:
        return None
    if wanted.unique and wanted.unique_key is not None:
        raise InvalidInput("/unique_key", "cannot be given beside unique, which is by name and arguments")
    if wanted.idempotency is not None:
        raise InvalidInput("/unique", "cannot be combined with an Idempotency-Key: both decide which task is answered")
    if wanted.unique_key is not None:
        by, what = b"key", wanted.unique_key.encode()
    else:  # names have no order
        by, what = b"arguments", orjson.dumps({"args": wanted.args, "kwargs": wanted.kwargs}, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(b"\n".join((by, wanted.task_name.encode(), what))).hexdigest()[:40]


async def checked_arguments(
    api: Api, declaration: TaskDeclaration, args: list[Any], kwargs: dict[str, Any], encoded: bytes
) -> BlobRef | None:
    """Check arguments against the declaration; a reference to them where they are too large to stand in an event."""
    if len(encoded) > PARSE_INLINE_MAX_BYTES:
        await asyncio.to_thread(api.declarations.check, declaration, args, kwargs)
    else:
        api.declarations.check(declaration, args, kwargs)
    if len(encoded) <= INLINE_PAYLOAD_MAX_BYTES:
        return None
    return await api.blobs.put_async(encoded, media_type="application/json")


async def _known(api: Api, task_id: str | None, idempotency: Idempotency | None) -> Accepted | None:
    """What an earlier request of the same key made: as it was when it was made; ``None`` where there is no key, or nothing was
    made under it. Raises ``KeyReused`` where another request used it."""
    if task_id is None or idempotency is None:
        return None
    first = await api.log.at("tasks", task_id, 1)
    if first is None:
        if (await read_task(api.log, task_id, fresh=True)).version:
            raise TaskErased(task_id)
        return None
    submitted = first.event.data
    assert isinstance(submitted, Submitted)
    check_same(submitted.idempotency, idempotency)
    return Accepted(task_id, first.event.time, submitted, from_summary(first.event.state))


async def _submit_unique(api: Api, submitted: Submitted, trace: Trace) -> Accepted:
    """Store the task, or answer the unfinished one that holds its key. See ``events/claim.py`` for why that is without gaps."""
    claim_id = f"unique-{submitted.unique_key}"
    for _ in range(CONFLICTS_MAX):
        claim = await read_state(api.log, CLAIMS, claim_id, fresh=True)
        task_id = claim.task_id
        holder = ABSENT if task_id is None else await read_task(api.log, task_id, fresh=True)
        if task_id is None or holder.finished:
            task_id = new_id()
            try:
                await handle_any(api.log, CLAIMS, claim_id, ClaimKey(claim.version, task_id), source=SOURCE, trace=trace)
            except IllegalTransition:
                continue
            failpoint("submit.after_claim")
        elif holder.version > 0:
            return await _duplicate(api, task_id, holder)
        try:
            return await store(api, task_id, submitted, trace)
        except IllegalTransition:
            continue  # who claimed it lives after all, or another was quicker to help: look again
    raise Conflict("the unique key changes hands faster than it can be claimed")


async def _duplicate(api: Api, task_id: str, holder: Task) -> Accepted:
    first = await api.log.at("tasks", task_id, 1)
    if first is None and holder.erased:
        raise TaskErased(task_id)
    if first is None or not isinstance(first.event.data, Submitted):
        raise LogDamaged(f"task {task_id} has no first event", task_id=task_id)
    api.freshness.note_write(task_id, holder.version)
    return Accepted(task_id, first.event.time, first.event.data, holder, duplicate=True)


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


async def repeat(
    api: Api,
    task_id: str,
    origin: str,
    requested_by: str,
    trace: Trace,
    *,
    new_task_id: str | None = None,
    idempotency: Idempotency | None = None,
) -> Accepted:
    """Store a new task that does again what ``task_id`` did. ``origin``: ``retry`` (not of completed ones) or ``replay``.
    ``new_task_id``: made of what makes it this one repetition and no other; done before, it is answered again.

    Raises ``TaskNotFound``, or ``IllegalTransition`` where the task's status does not admit it.
    """
    refuse_when_damaged(api)
    if (known := await _known(api, new_task_id, idempotency)) is not None:
        return known
    task = await read_task(api.log, task_id, fresh=True)
    if task is ABSENT:
        raise TaskNotFound(task_id)
    if task.status not in (RETRYABLE if origin == "retry" else REPLAYABLE):
        raise IllegalTransition(f"cannot {origin} a task with status {task.status}", status=str(task.status))
    again = (await submission_of(api.log, task_id, task)).model_copy(
        update={
            "scheduled_at": None,
            "gated": False,
            "unique_key": None,
            "idempotency": idempotency,
            "original_task_id": task_id,
            "origin": origin,
            "parent_task_id": None,
            "workflow_id": None,
            "node": None,
            "schedule_id": None,
            "requested_by": requested_by,
        }
    )
    try:
        return await store(api, new_task_id or new_id(), again, trace)
    except IllegalTransition:
        if new_task_id is None:
            raise
        if (known := await _known(api, new_task_id, idempotency)) is not None:
            return known
        return await _duplicate(api, new_task_id, await read_task(api.log, new_task_id, fresh=True))


async def store(api: Api, task_id: str, submitted: Submitted, trace: Trace) -> Accepted:
    """Store a prepared task. Raises ``IllegalTransition`` where its id is taken."""
    now = datetime.now(UTC)
    structlog.contextvars.bind_contextvars(task_id=task_id)
    handled = await api.submitter.submit(task_id, submitted, now=now, trace=trace)
    return _accepted(api, task_id, submitted, handled, now)


def _accepted(api: Api, task_id: str, submitted: Submitted, handled: Handled[Task], now: datetime) -> Accepted:
    api.freshness.note_write(task_id, handled.state.version)
    return Accepted(task_id, now if handled.event is None else handled.event.time, submitted, handled.state)


def check_schedule(scheduled_at: datetime) -> None:
    """Raise ``InvalidInput`` for a time that is too far ahead."""
    now = datetime.now(UTC)
    if scheduled_at - now > timedelta(seconds=SCHEDULE_AHEAD_MAX_S):
        latest = (now + timedelta(seconds=SCHEDULE_AHEAD_MAX_S)).isoformat(timespec="seconds")
        raise InvalidInput("/scheduled_at", "is too far ahead", limit=latest, found=scheduled_at.isoformat())
