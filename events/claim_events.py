"""The events of claims on keys."""

from __future__ import annotations

from eventq.events.data import EventData
from eventq.events.task_events import Idempotency


class Claimed(EventData):
    """The key is this task's until it has finished."""

    task_id: str


class Answered(EventData):
    """A request for a unique task, or for a repetition of one, is answered with this task: for ever, or where a repetition
    found another in its place until a later event names the right one. ``idempotency``: of a request that had a key."""

    task_id: str
    idempotency: Idempotency | None = None
