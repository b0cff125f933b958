"""What the routes of selections and dead letters take and answer."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from eventq.events.data import ErrorInfo
from eventq.events.errors import Conflict
from eventq.events.limits import REASON_MAX_CHARS
from eventq.events.task import Status
from eventq.services.answers import Answer
from eventq.services.http_limits import OFFSET_MAX, PAGE_DEFAULT, PAGE_MAX
from eventq.services.schemas import (
    POSITION_MAX,
    Closed,
    KeyName,
    Metadata,
    Priority,
    QueueName,
    StatusName,
    Tags,
    TaskId,
    TaskName,
    Utc,
)

Action = Literal["cancel", "retry", "delete", "pause", "resume"]

SAMPLE_MAX = 20
"""Ids that a preview shows."""

REDRIVE_MAX = 10_000


class SelectionChanged(Conflict):
    """What the filter selects is not what the preview said. Nothing was done; ``fields["preview"]`` is a new preview."""

    code = "SELECTION_CHANGED"


class TaskSelector(Closed):
    """Which tasks: all that is given must hold. An empty one selects nothing unless it says `all`."""

    all: bool = Field(False, description="Every task, which an empty filter must say.")
    status: list[StatusName] = Field(default_factory=list[StatusName], max_length=len(Status))
    priority: Priority | None = None
    queue_name: QueueName | None = None
    task_name: TaskName | None = None
    key: KeyName | None = None
    tags: Tags = Field(default_factory=list[str], description="Those that have all of them.")
    metadata: Metadata = Field(default_factory=dict[str, str], description="Those that have all of these pairs.")
    reason: str | None = Field(None, max_length=REASON_MAX_CHARS, description="Why it is as it is, such as `poison`.")
    workflow_id: TaskId | None = None
    schedule_id: TaskId | None = None
    parent_task_id: TaskId | None = None
    created_after: Utc | None = None
    created_before: Utc | None = None
    updated_after: Utc | None = None
    updated_before: Utc | None = None


class Expected(Closed):
    """What the preview said: the action is carried out only if it still holds."""

    position: int = Field(ge=0, le=POSITION_MAX)
    count: int = Field(ge=0)
    digest: str = Field(min_length=64, max_length=64)


class BulkRequest(Closed):
    """What to do with which tasks. Without `expected` nothing is done: the answer is a preview."""

    action: Action
    filter: TaskSelector
    reason: str | None = Field(None, max_length=REASON_MAX_CHARS)
    expected: Expected | None = None


class DoneAnswer(Answer):
    """One task of a selection: done, or refused with an `error`. ``new_task_id``: of the task that repeats it."""

    task_id: str
    status: Status | None
    new_task_id: str | None = None
    code: str | None = None
    error: str | None = None


class BulkAnswer(Answer):
    """A preview, or what was done. ``digest``: of the ids and versions; ``excluded``: tasks that match the filter and whose
    status does not admit the action."""

    action: Action
    executed: bool
    position: int
    count: int
    digest: str
    excluded: int
    sample: list[str]
    done: int | None = None
    refused: int | None = None
    tasks: list[DoneAnswer] | None = None


class DeadLettersQuery(Closed):
    """Which dead letters, newest first."""

    queue_name: QueueName | None = None
    task_name: TaskName | None = None
    key: KeyName | None = None
    tag: Tags = Field(default_factory=list[str], description="Repeat it: those that have all of them.")
    reason: str | None = Field(None, max_length=REASON_MAX_CHARS, description="Such as `poison` or `queue_timeout`.")
    failed_after: Utc | None = None
    failed_before: Utc | None = None
    limit: int = Field(PAGE_DEFAULT, ge=1, le=PAGE_MAX)
    offset: int = Field(0, ge=0, le=OFFSET_MAX)
    min_position: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this position is visible.")


class EvidenceAnswer(Answer):
    """One attempt that ended with the loss of its worker."""

    attempt: int
    worker_id: str
    hostname: str
    started_at: datetime
    ended_at: datetime | None


class DeadLetterAnswer(Answer):
    """A task that ended badly and that nobody has run again. ``evidence``: of poison, the workers that it cost."""

    task_id: str
    task_name: str
    queue_name: str
    status: Status
    reason: str | None
    error: ErrorInfo | None
    attempts: int
    failures: int
    losses: int
    key: str | None
    tags: list[str]
    metadata: dict[str, str]
    created_at: datetime
    failed_at: datetime | None
    evidence: list[EvidenceAnswer]
    links: dict[str, Any]


class DeadLetterListAnswer(Answer):
    """A page of dead letters. ``total``: all that match."""

    total: int
    limit: int
    offset: int
    dead_letters: list[DeadLetterAnswer]
    as_of: int


class RedriveRequest(Closed):
    """Which dead letters: by their ids, or all that a filter selects."""

    task_ids: list[TaskId] | None = Field(None, min_length=1, max_length=REDRIVE_MAX)
    filter: TaskSelector | None = None


class RedriveAnswer(Answer):
    """What became of each."""

    redriven: int
    refused: int
    tasks: list[DoneAnswer]
