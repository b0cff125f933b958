"""What is left of an event when what it carried is destroyed: pure. The history stays whole, its contents go.

Ids, versions, links, times, names, numbers and codes stay; arguments, results, error messages, tracebacks, metadata, tags and
whatever people wrote by hand goes. Of the events of a workflow and a schedule goes what they give their tasks, and what was
said to a workflow; labels and reasons that are its own stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from eventq.events.catalogue import read_data
from eventq.events.data import BlobRef, ErrorInfo, EventData
from eventq.events.envelope import Event, Stored, encode
from eventq.events.ids import new_id
from eventq.events.schedule_events import ScheduleCreated, ScheduleSpec, ScheduleUpdated
from eventq.events.subjects import PLACEHOLDER
from eventq.events.task import Status
from eventq.events.task_events import (
    Cancelled,
    CancelRequested,
    Completed,
    Erased,
    ErasedEvent,
    Failed,
    Gone,
    Paused,
    PauseRequested,
    Retrying,
    Submitted,
    Updated,
)
from eventq.events.workflow_events import (
    Condition,
    Definition,
    Node,
    NodeApproved,
    NodeRejected,
    WorkflowCreated,
    WorkflowSignalled,
)

NO_MESSAGE = "(erased)"
"""Stands for an error's message."""


@dataclass(frozen=True, slots=True)
class Erase:
    """What a workflow or a schedule gave a task is destroyed. ``reason``: of who asks, which stays in the log; ``events``: what
    is to be left of each of its own that carry something; ``blobs``: keys of what is deleted with them."""

    requested_by: str
    reason: str | None
    events: tuple[ErasedEvent, ...]
    blobs: tuple[str, ...] = ()

    def told(self, model: type[Erased]) -> list[EventData]:
        """As the event of this model; none where nothing is to be destroyed."""
        events, blobs = list(self.events), list(self.blobs)
        gone = model(requested_by=self.requested_by, reason=self.reason, events=events, blobs=blobs)
        return [gone] if events else []


def tombstone(stored: Stored, definition: BlobRef | None = None) -> ErasedEvent | None:
    """What is left of an event; ``None`` where it carries nothing that must go. ``definition``: where what is left of a
    workflow's stored definition lies."""
    event = stored.event
    data = _emptied(event.data)
    if isinstance(data, WorkflowCreated):
        data = data.model_copy(update={"stored": definition})
    state = _emptied_state(event.state) if event.aggregate == "tasks" else event.state
    if data == event.data and state == event.state:
        return None
    left: dict[str, Any] = orjson.loads(encode(event._replace(data=data, state=state)))
    return ErasedEvent(position=stored.position, subject=event.subject, event=left)


def placeholders(erased: Event) -> list[Event]:
    """What holds the places of the events that an ``erased`` event lists."""
    data = erased.data
    assert isinstance(data, Erased)
    return [
        erased._replace(
            id=new_id(),
            type=PLACEHOLDER,
            schema=1,
            version=left.event["version"],
            previous=None,
            attempt=0,
            state={},
            data=Gone(position=left.position, newest=erased.version - 1),
        )
        for left in data.events
    ]


def payload_of(left: ErasedEvent) -> bytes:
    """As a message of the log, as if it had never held more."""
    return orjson.dumps(left.event)


def inputs_of(event: Event) -> list[str]:
    """Keys of blobs that hold arguments which this event refers to."""
    match event.data:
        case Submitted(input=input_) | Updated(submission=Submitted(input=input_)):
            return [] if input_ is None else [input_.key]
        case ScheduleCreated(spec=ScheduleSpec(task=task)) | ScheduleUpdated(spec=ScheduleSpec(task=task)):
            return [] if task.input is None else [task.input.key]
        case _:
            return []


def left_at(kind: str, erased: Erased, version: int) -> EventData | None:
    """What is left of the data of the event at ``version``; ``None`` where ``erased`` does not tell of it."""
    for event in (left.event for left in erased.events):
        if event["version"] == version:
            return read_data(kind, event["type"], event["schema"], event["data"])
    return None


def definition_left(definition: Definition) -> Definition:
    """What is left of a workflow's nodes: which they are, and what depends on what."""
    return Definition(nodes=[_node_left(node) for node in definition.nodes])


def _node_left(node: Node) -> Node:
    return node.model_copy(
        update={
            "task": None if node.task is None else _emptied(node.task),
            "compensate": None if node.compensate is None else _emptied(node.compensate),
            "when": [Condition(node=each.node, path=each.path, op=each.op) for each in node.when],
        }
    )


def _emptied(data: EventData) -> EventData:
    match data:
        case Submitted():
            return data.model_copy(update={"args": [], "kwargs": {}, "input": None, "metadata": {}, "tags": []})
        case Updated():
            return data.model_copy(update={"submission": _emptied(data.submission)})
        case Completed():
            return data.model_copy(update={"result": None, "output": None})
        case Failed() | Retrying():
            return data.model_copy(update={"error": ErrorInfo(type=data.error.type, message=NO_MESSAGE)})
        case Cancelled() | CancelRequested() | Paused() | PauseRequested():
            return data.model_copy(update={"reason": None})
        case WorkflowCreated():
            definition = data.definition
            return data.model_copy(update={"definition": None if definition is None else definition_left(definition)})
        case WorkflowSignalled():
            return data.model_copy(update={"payload": None})
        case NodeApproved() | NodeRejected():
            return data.model_copy(update={"comment": None})
        case ScheduleCreated() | ScheduleUpdated():
            return data.model_copy(update={"spec": data.spec.model_copy(update={"task": _emptied(data.spec.task)})})
        case _:
            return data


def _emptied_state(state: dict[str, Any]) -> dict[str, Any]:
    by_hand = {"cancel_reason", "pause_reason"}
    if state.get("status") in (Status.CANCELLED, Status.PAUSED):
        by_hand.add("reason")
    return {name: value for name, value in state.items() if name not in by_hand}
