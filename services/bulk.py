"""Doing one thing with many tasks: what a filter selects is counted first, and done only if it is still the same.

A preview names the selection by the digest of its ids and versions. Carrying it out reads the selection again, as new as the
log, and refuses where the digest differs. Each task is then acted on at the version that was selected, or refused by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from eventq.events.commands import CancelTask, CleanTask, Command, PauseTask, ResumeTask
from eventq.events.envelope import Trace
from eventq.events.errors import EventqError, InvalidInput, VersionConflict
from eventq.events.handle import handle, read_task
from eventq.events.task import ACCEPTS, Status, Task
from eventq.projections.queries import TaskFilter
from eventq.services.api import SOURCE, Api
from eventq.services.bulk_models import SAMPLE_MAX, Action, BulkAnswer, BulkRequest, DoneAnswer, SelectionChanged, TaskSelector
from eventq.services.disposal import clean
from eventq.services.idempotency import keyed_id
from eventq.services.reading import up_to_date
from eventq.services.submission import RETRYABLE, repeat
from eventq.services.task_control import resume

CONCURRENCY = 64
"""Tasks that one request acts on at once."""

ADMITS: dict[Action, frozenset[Status]] = {
    "cancel": ACCEPTS[CancelTask],
    "retry": RETRYABLE,
    "delete": ACCEPTS[CleanTask],
    "pause": ACCEPTS[PauseTask],
    "resume": ACCEPTS[ResumeTask] & {Status.PAUSED},
}
"""Statuses of the tasks that an action selects."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Selection:
    """Tasks with their versions, in order of their ids, at one position. ``excluded``: others that match."""

    tasks: list[tuple[str, int]]
    position: int
    excluded: int

    @property
    def digest(self) -> str:
        """Stands for which tasks they are, and in which state."""
        lines = (f"{task_id}:{version}\n".encode() for task_id, version in self.tasks)
        return hashlib.sha256(b"".join(lines)).hexdigest()


def filter_of(selector: TaskSelector) -> TaskFilter:
    """The selector as the projection takes it. Raises ``InvalidInput`` for an empty one that does not say ``all``."""
    if not (selector.all or selector.model_dump(exclude_defaults=True, exclude={"all"})):
        hint = "give a condition, or say all: true"
        raise InvalidInput("/filter", "selects every task without saying so", hint=hint)
    return TaskFilter(
        statuses=tuple(map(Status, selector.status)),
        priority=selector.priority,
        queue=selector.queue_name,
        task_name=selector.task_name,
        key=selector.key,
        reason=selector.reason,
        tags=tuple(selector.tags),
        metadata=tuple(selector.metadata.items()),
        workflow_id=selector.workflow_id,
        schedule_id=selector.schedule_id,
        parent_task_id=selector.parent_task_id,
        created_after=selector.created_after,
        created_before=selector.created_before,
        updated_after=selector.updated_after,
        updated_before=selector.updated_before,
    )


async def carry_out(api: Api, body: BulkRequest, requested_by: str, trace: Trace) -> BulkAnswer:
    """The preview, or the outcome where ``body.expected`` says what it was to be. Raises ``SelectionChanged``."""
    wanted = _undone(body.action, filter_of(body.filter))
    found = await select(api, wanted, ADMITS[body.action])
    preview = BulkAnswer(
        action=body.action,
        executed=False,
        position=found.position,
        count=len(found.tasks),
        digest=found.digest,
        excluded=found.excluded,
        sample=[task_id for task_id, _ in found.tasks[:SAMPLE_MAX]],
    )
    if body.expected is None:
        return preview
    if (body.expected.count, body.expected.digest) != (preview.count, preview.digest):
        raise SelectionChanged(
            f"the filter selects other tasks than at position {body.expected.position}, or they have changed",
            preview=preview.model_dump(mode="json"),
            limit=body.expected.count,
            found=preview.count,
        )

    async def act(task: tuple[str, int]) -> DoneAnswer:
        return await _act(api, body, task, preview.digest, requested_by, trace)

    tasks = await each(found.tasks, act)
    done = sum(task.error is None for task in tasks)
    return preview.model_copy(update={"executed": True, "done": done, "refused": len(tasks) - done, "tasks": tasks})


def _undone(action: Action, wanted: TaskFilter) -> TaskFilter:
    """Those of them with whom the action has not been done: a deletion or a retry leaves the task's status as it was."""
    match action:
        case "delete":
            return replace(wanted, cleaned=False)
        case "retry":
            return replace(wanted, unretried=True)
        case _:
            return wanted


async def select(api: Api, wanted: TaskFilter, admits: frozenset[Status]) -> Selection:
    """What matches and has one of the statuses ``admits``, as new as the log. Raises ``InvalidInput`` above the limit."""
    await up_to_date(api)
    statuses = tuple(status for status in Status if status in admits and status in (wanted.statuses or admits))
    most = api.limits.bulk_tasks_max
    if not statuses:
        matching = await api.queries.matching(wanted, limit=0)
        return Selection([], matching.as_of, matching.total)
    found = await api.queries.matching(replace(wanted, statuses=statuses), limit=most)
    if found.total > most:
        raise InvalidInput("/filter", f"selects more than {most} tasks", limit=most, found=found.total)
    whole = await api.queries.matching(wanted, limit=0)
    return Selection(found.tasks, found.as_of, max(0, whole.total - found.total))


async def each(things: Sequence[T], act: Callable[[T], Awaitable[DoneAnswer]]) -> list[DoneAnswer]:
    """``act`` on all, a bounded number at once; answers in order."""
    answers: list[DoneAnswer] = []
    for some in _chunks(things):
        answers += await asyncio.gather(*map(act, some))
    return answers


async def attempt(task_id: str, act: Awaitable[DoneAnswer]) -> DoneAnswer:
    """What came of one: a refusal, or an outcome that is unknown, is an answer as well."""
    try:
        return await act
    except EventqError as error:
        return DoneAnswer(task_id=task_id, status=None, code=error.code, error=error.detail)


async def _act(
    api: Api, body: BulkRequest, selected: tuple[str, int], digest: str, requested_by: str, trace: Trace
) -> DoneAnswer:
    task_id, version = selected
    return await attempt(task_id, _acted(api, body, task_id, version, digest, requested_by, trace))


async def _acted(
    api: Api, body: BulkRequest, task_id: str, version: int, digest: str, requested_by: str, trace: Trace
) -> DoneAnswer:
    task = await read_task(api.log, task_id, fresh=True)
    if task.version != version:
        raise VersionConflict(task_id, version + 1)
    if body.action == "retry":
        # The key comes of the original and the selection: carried out twice at once, it makes no second one.
        accepted = await repeat(api, task_id, "retry", requested_by, trace, key=keyed_id(task_id, "bulk-retry", digest))
        return DoneAnswer(task_id=task_id, status=task.status, new_task_id=accepted.task_id)
    after = await _steer(api, body, task_id, task, requested_by, trace)
    api.freshness.note_write(task_id, after.version)
    return DoneAnswer(task_id=task_id, status=after.status)


async def _steer(api: Api, body: BulkRequest, task_id: str, task: Task, requested_by: str, trace: Trace) -> Task:
    command: Command
    match body.action:
        case "cancel":
            command = CancelTask(requested_by, body.reason)
        case "pause":
            command = PauseTask(requested_by, body.reason)
        case "resume":
            return await resume(api, task_id, requested_by, trace, version=task.version)
        case _:
            return await clean(api.log, api.blobs, task_id, requested_by, trace)
    return (await handle(api.log, task_id, command, source=SOURCE, trace=trace, task=task, anew=False)).state


def _chunks(things: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(things), CONCURRENCY):
        yield things[start : start + CONCURRENCY]
