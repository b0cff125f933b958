"""Rows of the projection as the API's answers."""

from __future__ import annotations

from typing import Any

from eventq.events.task import Status
from eventq.projections.queries import AttemptRow, EventRow, LogRow, ProgressRow, TaskRow, Timeline
from eventq.services.answers import (
    CompareAnswer,
    Links,
    ProgressAnswer,
    TaskAnswer,
    TimelineAnswer,
    TimelineAttempt,
    TimelineEvent,
    TimelineLog,
    Timing,
)

TASKS_PATH = "/api/v1/tasks"


def etag(version: int) -> str:
    """A task's version as an entity tag."""
    return f'"{version}"'


def task_path(task_id: str) -> str:
    """Where a task is read."""
    return f"{TASKS_PATH}/{task_id}"


def links(task_id: str, original_task_id: str | None) -> Links:
    """Where to go on from a task."""
    return Links(
        self=task_path(task_id),
        timeline=f"{task_path(task_id)}/timeline",
        original=None if original_task_id is None else task_path(original_task_id),
    )


def task_answer(row: TaskRow, subtasks: list[str] | None = None) -> TaskAnswer:
    """A row of the projection as an answer. ``subtasks``: ids of what it spawned, where they were asked for."""
    return TaskAnswer(
        task_id=row.task_id,
        task_name=row.task_name,
        status=row.status,
        reason=row.reason,
        priority=row.priority,
        queue_name=row.queue,
        pool=row.pool,
        worker_id=row.worker_id,
        created_at=row.created_at,
        scheduled_at=row.scheduled_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        due_at=row.due_at,
        updated_at=row.updated_at,
        attempt=row.attempt,
        retry_count=row.failures,
        max_retries=row.max_retries,
        timeout_seconds=row.timeout_s,
        queue_timeout_seconds=row.queue_timeout_s,
        heartbeat_timeout_seconds=row.heartbeat_timeout_s,
        result_ttl_seconds=row.result_ttl_s,
        start_by=row.start_by,
        key=row.key,
        tags=row.tags,
        metadata=row.metadata,
        held=row.status is Status.PENDING and row.ready == 0,
        cancel_requested=row.cancel_requested_by is not None,
        pause_requested=row.pause_requested_by is not None and row.status is Status.RUNNING,
        task_args=None if row.input else row.args,
        task_kwargs=None if row.input else row.kwargs,
        input=row.input,
        progress=progress_answer(row.progress),
        result=row.result,
        output=row.output,
        error=row.error,
        original_task_id=row.original_task_id,
        origin=row.origin,
        parent_task_id=row.parent_task_id,
        subtasks=subtasks,
        workflow_id=row.workflow_id,
        node=row.node,
        schedule_id=row.schedule_id,
        cleaned=row.cleaned,
        erased=row.erased,
        version=row.version,
        as_of=row.as_of,
        links=links(row.task_id, row.original_task_id),
    )


def timeline_answer(row: TaskRow, story: Timeline) -> TimelineAnswer:
    """The whole story of a task, up to what ``row`` says: events that came between the two reads are left for the next."""
    return TimelineAnswer(
        task_id=row.task_id,
        task_name=row.task_name,
        status=row.status,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        duration_seconds=duration_s(row),
        events=[timeline_event(event) for event in story.events if event.version <= row.version],
        attempts=[_timeline_attempt(attempt) for attempt in story.attempts if attempt.attempt <= row.attempt],
        progress=progress_answer(row.progress),
        logs=[_timeline_log(line) for line in story.logs],
        version=row.version,
        as_of=row.as_of,
    )


def compare_answer(one: TaskRow, two: TaskRow) -> CompareAnswer:
    """What two tasks have in common."""
    return CompareAnswer(
        same_function=one.task_name == two.task_name,
        same_args=_arguments(one) == _arguments(two),
        same_priority=one.priority == two.priority,
        same_status=one.status == two.status,
        same_result=_result(one) == _result(two),
        timing=Timing(task1_duration=duration_s(one), task2_duration=duration_s(two)),
    )


def progress_answer(row: ProgressRow | None) -> ProgressAnswer | None:
    """The newest progress line."""
    if row is None:
        return None
    return ProgressAnswer(
        done=row.done, total=row.total, unit=row.unit, message=row.message, attempt=row.attempt, updated_at=row.time
    )


def duration_s(row: TaskRow) -> float | None:
    """Seconds from the start of the last attempt to the end of the task; ``None`` while there is no end or was no start."""
    if row.started_at is None or row.completed_at is None:
        return None
    return max(0.0, (row.completed_at - row.started_at).total_seconds())


def _arguments(row: TaskRow) -> tuple[Any, ...]:
    return (row.input.sha256,) if row.input else (row.args, row.kwargs)


def _result(row: TaskRow) -> tuple[Any, ...]:
    return (row.output.sha256,) if row.output else (row.result,)


def timeline_event(event: EventRow) -> TimelineEvent:
    """One event of a timeline."""
    return TimelineEvent(
        timestamp=event.time,
        event_type=event.type,
        details=event.data,
        version=event.version,
        position=event.position,
        attempt=event.attempt,
        source=event.source,
        event_id=event.event_id,
    )


def _timeline_attempt(row: AttemptRow) -> TimelineAttempt:
    return TimelineAttempt(
        attempt=row.attempt,
        worker_id=row.worker_id,
        hostname=row.hostname,
        device=row.device,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        error=row.error,
    )


def _timeline_log(line: LogRow) -> TimelineLog:
    return TimelineLog(timestamp=line.time, attempt=line.attempt, level=line.level, message=line.message, fields=line.fields)
