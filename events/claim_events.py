"""The events of claims on keys."""

from __future__ import annotations

from eventq.events.data import EventData
from eventq.events.task_events import Idempotency


class Claimed(EventData):
    """The key is this task's until it has finished."""

    task_id: str


class Answered(EventData):
    """A request for a unique task under an ``Idempotency-Key`` is answered with this task, for ever."""

    task_id: str
    idempotency: Idempotency
