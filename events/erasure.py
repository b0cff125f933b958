"""What is left of an event when what it carried is destroyed: pure. The history stays whole, its contents go.

Ids, versions, links, times, names, numbers and codes stay; arguments, results, error messages, tracebacks, metadata, tags and
whatever people wrote by hand goes.
"""

from __future__ import annotations

from typing import Any

import orjson

from eventq.events.catalogue import read_data
from eventq.events.data import ErrorInfo, EventData
from eventq.events.envelope import Event, Stored, encode
from eventq.events.task import Status
from eventq.events.task_events import (
    Cancelled,
    CancelRequested,
    Completed,
    Erased,
    ErasedEvent,
    Failed,
    Paused,
    PauseRequested,
    Retrying,
    Submitted,
    Updated,
)

GONE = "(erased)"
"""Stands for an error's message."""


def tombstone(stored: Stored) -> ErasedEvent | None:
    """What is left of a task's event; ``None`` where it carries nothing that must go."""
    event = stored.event
    data, state = _emptied(event.data), _emptied_state(event.state)
    if data == event.data and state == event.state:
        return None
    left: dict[str, Any] = orjson.loads(encode(event._replace(data=data, state=state)))
    return ErasedEvent(position=stored.position, subject=event.subject, event=left)


def payload_of(left: ErasedEvent) -> bytes:
    """As a message of the log, as if it had never held more."""
    return orjson.dumps(left.event)


def inputs_of(event: Event) -> list[str]:
    """Keys of blobs that hold arguments which this event refers to."""
    match event.data:
        case Submitted(input=input_) | Updated(submission=Submitted(input=input_)):
            return [] if input_ is None else [input_.key]
        case _:
            return []


def submission_left(erased: Erased) -> Submitted | None:
    """What is left of the task's submission; ``None`` where it carried nothing that had to go."""
    for left in erased.events:
        event = left.event
        if event["version"] == 1:
            data = read_data("tasks", event["type"], event["schema"], event["data"])
            return data if isinstance(data, Submitted) else None
    return None


def _emptied(data: EventData) -> EventData:
    match data:
        case Submitted():
            return data.model_copy(update={"args": [], "kwargs": {}, "input": None, "metadata": {}, "tags": []})
        case Updated():
            return data.model_copy(update={"submission": _emptied(data.submission)})
        case Completed():
            return data.model_copy(update={"result": None, "output": None})
        case Failed() | Retrying():
            return data.model_copy(update={"error": ErrorInfo(type=data.error.type, message=GONE)})
        case Cancelled() | CancelRequested() | Paused() | PauseRequested():
            return data.model_copy(update={"reason": None})
        case _:
            return data


def _emptied_state(state: dict[str, Any]) -> dict[str, Any]:
    by_hand = {"cancel_reason", "pause_reason"}
    if state.get("status") in (Status.CANCELLED, Status.PAUSED):
        by_hand.add("reason")
    return {name: value for name, value in state.items() if name not in by_hand}
