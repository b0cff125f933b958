"""From a checked submission to a stored task: the one way in, whichever API it came through."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import structlog

from eventq.events.claim import CLAIMS, AnswerKey, Claim, ClaimKey
from eventq.events.envelope import Stored, Trace
from eventq.events.erasure import left_at
from eventq.events.errors import (
    Conflict,
    IllegalTransition,
    LogDamaged,
    TaskErased,
    TaskNotFound,
    Unavailable,
)
from eventq.events.failpoints import failpoint
from eventq.events.handle import CONFLICTS_MAX, Handled, handle_any, read_state, read_task
from eventq.events.ids import new_id
from eventq.events.specification import submission_in, submission_of
from eventq.events.task import ABSENT, TASKS, Status, Task, from_summary
from eventq.events.task_events import Erased, Idempotency, Submitted
from eventq.services.api import SOURCE, Api
from eventq.services.idempotency import check_same
from eventq.services.preparation import Prepared, Submission, prepare

RETRYABLE = frozenset({Status.FAILED, Status.TIMED_OUT, Status.CANCELLED})
REPLAYABLE = RETRYABLE | {Status.COMPLETED}

TOO_FAST = "the unique key changes hands faster than it can be claimed"


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
    submitted = await prepare(api, submission)
    if submitted.unique_key is not None:
        return await _submit_unique(api, submission, submitted, trace)
    try:
        return await store(api, submission.task_id or new_id(), submitted, trace)
    except IllegalTransition:
        # The same key, at the same moment, in another process.
        if (known := await _known(api, submission.task_id, submission.idempotency)) is None:
            raise
        return known


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


def refuse_when_damaged(api: Api) -> None:
    """What is appended to a damaged log would stand on ground that an operator may have to take away."""
    if api.freshness.halted is not None:
        raise Unavailable(f"the event log is damaged and takes no tasks: {api.freshness.halted.detail}")


async def _known(api: Api, task_id: str | None, idempotency: Idempotency | None) -> Accepted | None:
    """What an earlier request of the same key made: as it was when it was made; ``None`` where there is no key, or nothing was
    made under it. Raises ``KeyReused`` where another request used it."""
    if task_id is None or idempotency is None:
        return None
    first, claim = await asyncio.gather(_first(api, task_id), api.log.last(CLAIMS.name, _claim_of_key(task_id), fresh=True))
    if claim is not None:
        return await _answered(api, claim, idempotency)
    if first is None:
        return None
    submitted = submission_in(first.event)
    check_same(submitted.idempotency, idempotency)
    return Accepted(task_id, first.event.time, submitted, from_summary(first.event.state))


async def _first(api: Api, task_id: str) -> Stored | None:
    """The task's first event; ``None`` where there is no such task. Raises ``TaskErased``."""
    first = await api.log.at(TASKS.name, task_id, 1)
    if first is None and (task := await read_task(api.log, task_id, fresh=True)).version:
        if task.erased:
            raise TaskErased(task_id)
        first = await api.log.at(TASKS.name, task_id, 1)  # it was stored in between
        if first is None:
            raise LogDamaged(f"task {task_id} has no first event", task_id=task_id)
    return first


def _claim_of_key(task_id: str) -> str:
    """The claim that names the task which answers a key of a unique task. ``task_id``: what the key would make otherwise."""
    return f"keyed-{task_id}"


async def _answered(api: Api, claim: Stored, idempotency: Idempotency) -> Accepted | None:
    """The unique task that a request's key was answered with; ``None`` where it died before that was stored."""
    found = CLAIMS.from_summary(claim.event.state)
    assert found.task_id is not None
    check_same(found.idempotency, idempotency)
    first = await _first(api, found.task_id)
    if first is None:
        return None
    submitted = submission_in(first.event)
    duplicate = submitted.idempotency != idempotency
    return Accepted(found.task_id, first.event.time, submitted, from_summary(first.event.state), duplicate)


async def _submit_unique(api: Api, submission: Submission, submitted: Submitted, trace: Trace) -> Accepted:
    """Store the task, or answer the unfinished one that holds its key. See ``events/claim.py`` for why that is without gaps."""
    for _ in range(CONFLICTS_MAX):
        task_id, holder = await _claim(api, submitted, new_id(), trace)
        if (known := await _answer_key(api, submission, task_id, trace)) is not None:
            return known
        if holder.version > 0:
            return await _duplicate(api, task_id, holder)
        try:
            return await store(api, task_id, submitted, trace)
        except IllegalTransition:
            continue  # who claimed it lives after all, or another was quicker to help: look again
    raise Conflict(TOO_FAST)


async def _repeat_unique(api: Api, again: Submitted, key: str | None, trace: Trace) -> Accepted:
    """Store the repetition of a unique task, which holds its unique key from then on. ``key``: what this one repetition is told
    apart by. Raises ``Conflict`` where another unfinished task holds the unique key."""
    for _ in range(CONFLICTS_MAX):
        task_id, holder = await _claim(api, again, new_id(), trace)
        # Looked for only now: where the claim is new, whatever was claimed before has finished, and can be seen.
        answer = await _answer_to(api, key)
        if (done := await _repeated(api, again.original_task_id, key, answer, again.idempotency)) is not None:
            return done
        if holder.version > 0:
            raise Conflict(f"the task is unique, and {task_id}, which is the same, is unfinished", task_id=task_id)
        try:
            if key is not None and answer.task_id != task_id:
                command = AnswerKey(answer.version, task_id, again.idempotency)
                await handle_any(api.log, CLAIMS, _claim_of_key(key), command, source=SOURCE, trace=trace)
                failpoint("submit.after_answer")
            return await store(api, task_id, again, trace)
        except IllegalTransition:
            continue  # the same repetition beside us, or somebody else was quicker: look again
    raise Conflict(TOO_FAST)


async def _answer_to(api: Api, key: str | None) -> Claim:
    """Which unique task answers what is told apart by ``key``."""
    return CLAIMS.absent if key is None else await read_state(api.log, CLAIMS, _claim_of_key(key), fresh=True)


async def _repeated(
    api: Api, original_id: str | None, key: str | None, answer: Claim, idempotency: Idempotency | None
) -> Accepted | None:
    """The repetition of ``original_id`` that ``key`` tells apart, where it was stored before: under ``key`` as its id, or as
    ``answer`` names it. Raises ``KeyReused`` where the request's key was used for another."""
    if key is None:
        return None
    if answer.task_id is not None and idempotency is not None:
        check_same(answer.idempotency, idempotency)
    task_id = answer.task_id or key
    try:
        first = await _first(api, task_id)
    except TaskErased:
        if answer.task_id is not None and await _erased_repeats(api, task_id) != (original_id, idempotency):
            return None  # as below
        raise
    if first is None:
        return None
    submitted = submission_in(first.event)
    if answer.task_id is None and idempotency is not None:
        check_same(submitted.idempotency, idempotency)
    if (submitted.original_task_id, submitted.idempotency) != (original_id, idempotency):
        return None  # another took the place that was claimed for it
    if idempotency is None:
        return await _duplicate(api, task_id, await read_task(api.log, task_id, fresh=True))
    return Accepted(task_id, first.event.time, submitted, from_summary(first.event.state))


async def _erased_repeats(api: Api, task_id: str) -> tuple[str | None, Idempotency | None]:
    """Which task an erased one repeated, under which key."""
    last = await api.log.last(TASKS.name, task_id, fresh=True)
    erased = None if last is None else last.event.data
    submitted = left_at("tasks", erased, 1) if isinstance(erased, Erased) else None
    return (submitted.original_task_id, submitted.idempotency) if isinstance(submitted, Submitted) else (None, None)


async def _claim(api: Api, submitted: Submitted, new_task_id: str, trace: Trace) -> tuple[str, Task]:
    """The task that holds the unique key, and ``ABSENT`` where it is to be stored: as ``new_task_id``, or as what somebody has
    claimed the key for who did not store it."""
    claim_id = f"unique-{submitted.unique_key}"
    for _ in range(CONFLICTS_MAX):
        claim = await read_state(api.log, CLAIMS, claim_id, fresh=True)
        if claim.task_id is not None:
            holder = await read_task(api.log, claim.task_id, fresh=True)
            if not holder.finished:
                return claim.task_id, holder
        try:
            await handle_any(api.log, CLAIMS, claim_id, ClaimKey(claim.version, new_task_id), source=SOURCE, trace=trace)
        except IllegalTransition:
            continue
        failpoint("submit.after_claim")
        return new_task_id, ABSENT
    raise Conflict(TOO_FAST)


async def _answer_key(api: Api, submission: Submission, task_id: str, trace: Trace) -> Accepted | None:
    """Write down, once, that ``task_id`` answers the request's key, if it has one. What was written down before and is stored
    is the answer."""
    if submission.task_id is None or submission.idempotency is None:
        return None
    answer = AnswerKey(0, task_id, submission.idempotency)
    try:
        await handle_any(api.log, CLAIMS, _claim_of_key(submission.task_id), answer, source=SOURCE, trace=trace)
    except IllegalTransition:
        return await _known(api, submission.task_id, submission.idempotency)
    failpoint("submit.after_answer")
    return None


async def _duplicate(api: Api, task_id: str, holder: Task) -> Accepted:
    first = await _first(api, task_id)
    assert first is not None, "it was read"
    api.freshness.note_write(task_id, holder.version)
    return Accepted(task_id, first.event.time, submission_in(first.event), holder, duplicate=True)


async def repeat(
    api: Api,
    task_id: str,
    origin: str,
    requested_by: str,
    trace: Trace,
    *,
    key: str | None = None,
    idempotency: Idempotency | None = None,
) -> Accepted:
    """Store a new task that does again what ``task_id`` did. ``origin``: ``retry`` (not of completed ones) or ``replay``.
    ``key``: an id, made of what makes it this one repetition and no other; done before, it is answered again.

    Raises ``TaskNotFound``, ``IllegalTransition`` where the task's status does not admit it, or ``Conflict`` where it is unique
    and another that is the same is unfinished.
    """
    refuse_when_damaged(api)
    if (done := await repetition(api, task_id, key, idempotency)) is not None:
        return done
    task = await read_task(api.log, task_id, fresh=True)
    if task is ABSENT:
        raise TaskNotFound(task_id)
    if task.status not in (RETRYABLE if origin == "retry" else REPLAYABLE):
        raise IllegalTransition(f"cannot {origin} a task with status {task.status}", status=str(task.status))
    again = (await submission_of(api.log, task_id, task)).model_copy(
        update={
            "scheduled_at": None,
            "gated": False,
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
    if again.unique_key is not None:
        return await _repeat_unique(api, again, key, trace)
    try:
        return await store(api, key or new_id(), again, trace)
    except IllegalTransition:
        if (done := await repetition(api, task_id, key, idempotency)) is None:
            raise
        return done


async def repetition(api: Api, task_id: str, key: str | None, idempotency: Idempotency | None = None) -> Accepted | None:
    """What :func:`repeat` with this ``key`` made before, if it did. Raises ``KeyReused`` and ``TaskErased``."""
    return await _repeated(api, task_id, key, await _answer_to(api, key), idempotency)


async def store(api: Api, task_id: str, submitted: Submitted, trace: Trace) -> Accepted:
    """Store a prepared task. Raises ``IllegalTransition`` where its id is taken."""
    now = datetime.now(UTC)
    structlog.contextvars.bind_contextvars(task_id=task_id)
    handled = await api.submitter.submit(task_id, submitted, now=now, trace=trace)
    return _accepted(api, task_id, submitted, handled, now)


def _accepted(api: Api, task_id: str, submitted: Submitted, handled: Handled[Task], now: datetime) -> Accepted:
    api.freshness.note_write(task_id, handled.state.version)
    return Accepted(task_id, now if handled.event is None else handled.event.time, submitted, handled.state)
