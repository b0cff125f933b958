"""The events of claims on unique keys."""

from __future__ import annotations

from eventq.events.data import EventData


class Claimed(EventData):
    """The key is this task's until it has finished."""

    task_id: str
