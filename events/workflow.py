"""The rules of a workflow as a whole: small state, which travels in each of its events. Pure, like a task's.

What each node is doing is too much to travel with every event: ``workflow_run`` folds that from the whole history.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid5

from pydantic import Field

from eventq.events.aggregate import State, modelled
from eventq.events.data import JSON, EventData
from eventq.events.erasure import Erase
from eventq.events.errors import IllegalTransition, WorkflowNotFound
from eventq.events.limits import SIGNALS_MAX
from eventq.events.workflow_events import (
    Ending,
    NodeApproved,
    NodeRejected,
    WorkflowAdvanced,
    WorkflowCancelled,
    WorkflowCancelRequested,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowErased,
    WorkflowExpired,
    WorkflowFailed,
    WorkflowRetried,
    WorkflowSignalled,
    WorkflowTimedOut,
)

DEADLINE = "deadline"
"""What a hint about a workflow is: something in it may have waited too long."""

_IDS = UUID("6f0f7f5e-2a54-4c6b-9d7c-1c8f3a0c5d21")


class WorkflowStatus(StrEnum):
    """Where a workflow is in its life. ``ABSENT`` is never stored. ``STOPPING``: it will end, once all that runs has."""

    ABSENT = "ABSENT"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


ENDED = frozenset({WorkflowStatus.COMPLETED, WorkflowStatus.FAILED, WorkflowStatus.CANCELLED, WorkflowStatus.TIMED_OUT})
RETRYABLE = ENDED - {WorkflowStatus.COMPLETED}


class Workflow(State):
    """The fold of a workflow's events, without its nodes. ``counts``: nodes by status, of those that are not blocked;
    ``approvals``: the nodes that wait for somebody's word; ``because``: the node whose failure ends it; ``erased``: the
    arguments of its tasks were destroyed."""

    status: WorkflowStatus = WorkflowStatus.ABSENT
    name: str = ""
    run: int = 1
    nodes: int = 0
    counts: dict[str, int] = Field(default_factory=dict[str, int])
    approvals: list[str] = Field(default_factory=list[str])
    signals: int = 0
    ending: Ending | None = None
    because: str | None = None
    compensate: bool = False
    cancel_requested_by: str | None = None
    cancel_reason: str | None = None
    timeout_s: float | None = None
    deadline_at: datetime | None = None
    tags: list[str] = Field(default_factory=list[str])
    metadata: dict[str, str] = Field(default_factory=dict[str, str])
    requested_by: str | None = None
    created_at: datetime | None = None
    ended_at: datetime | None = None
    erased: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class CreateWorkflow:
    """Somebody wants it run."""

    created: WorkflowCreated


@dataclass(frozen=True, slots=True)
class AdvanceWorkflow:
    """A coordinator decided what follows, at version ``version``: after any other event it must decide anew."""

    version: int
    event: WorkflowAdvanced | WorkflowExpired | WorkflowCompleted | WorkflowFailed | WorkflowCancelled | WorkflowTimedOut


@dataclass(frozen=True, slots=True)
class AnswerNode:
    """Somebody approves or rejects a node."""

    node: str
    approved: bool
    by: str
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class SignalWorkflow:
    """Somebody sends a signal."""

    name: str
    payload: JSON
    requested_by: str


@dataclass(frozen=True, slots=True)
class CancelWorkflow:
    """Somebody wants it to stop."""

    requested_by: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RetryWorkflow:
    """Somebody wants what did not complete to run again."""

    requested_by: str
    now: datetime


@dataclass(frozen=True, slots=True)
class EraseWorkflow(Erase):
    """A task of it is erased."""


WorkflowCommand = (
    CreateWorkflow | AdvanceWorkflow | AnswerNode | SignalWorkflow | CancelWorkflow | RetryWorkflow | EraseWorkflow
)


def node_task_id(workflow_id: str, node: str, run: int, *, compensation: bool = False) -> str:
    """The id of the one task of a node in a run, or of the one that undoes its work."""
    return str(uuid5(_IDS, f"{workflow_id} {node} {run}{' undone' if compensation else ''}"))


def decide_workflow(command: WorkflowCommand, workflow: Workflow) -> list[EventData]:
    """What follows; empty where the command is already fulfilled. Raises :class:`IllegalTransition`."""
    if isinstance(command, CreateWorkflow):
        if workflow.version:
            raise IllegalTransition("there is a workflow of this id already", status=workflow.status.value)
        return [command.created]
    if isinstance(command, AdvanceWorkflow):
        if command.version != workflow.version or workflow.ended:
            raise IllegalTransition("cannot advance on an outdated view of the workflow", status=workflow.status.value)
        return [command.event]
    if isinstance(command, RetryWorkflow):
        return [_retried(command, workflow)]
    if isinstance(command, EraseWorkflow):
        return _erased(command, workflow)
    if isinstance(command, CancelWorkflow) and (workflow.cancel_requested_by or workflow.status is WorkflowStatus.CANCELLED):
        return []
    if workflow.ended:
        raise _refused(command, workflow)
    if isinstance(command, CancelWorkflow):
        return [WorkflowCancelRequested(requested_by=command.requested_by, reason=command.reason)]
    if workflow.ending is not None:
        raise _refused(command, workflow)
    if isinstance(command, SignalWorkflow):
        if workflow.signals >= SIGNALS_MAX:
            raise IllegalTransition(f"the workflow has got {SIGNALS_MAX} signals, which is the limit", limit=SIGNALS_MAX)
        return [WorkflowSignalled(name=command.name, payload=command.payload, requested_by=command.requested_by)]
    if command.node not in workflow.approvals:
        raise IllegalTransition(f"node {command.node[:80]!r} does not wait for approval", status=workflow.status.value)
    model = NodeApproved if command.approved else NodeRejected
    return [model(node=command.node, by=command.by, comment=command.comment)]


def _refused(command: AnswerNode | SignalWorkflow | CancelWorkflow, workflow: Workflow) -> IllegalTransition:
    verb = {AnswerNode: "answer", SignalWorkflow: "signal", CancelWorkflow: "cancel"}[type(command)]
    return IllegalTransition(f"cannot {verb} a workflow with status {workflow.status}", status=workflow.status.value)


def _retried(command: RetryWorkflow, workflow: Workflow) -> WorkflowRetried:
    if workflow.status not in RETRYABLE:
        raise IllegalTransition(f"cannot retry a workflow with status {workflow.status}", status=workflow.status.value)
    if workflow.erased:
        raise IllegalTransition("cannot retry a workflow whose arguments were erased", status=workflow.status.value)
    deadline = None if workflow.timeout_s is None else command.now + timedelta(seconds=workflow.timeout_s)
    return WorkflowRetried(run=workflow.run + 1, requested_by=command.requested_by, deadline_at=deadline)


def _erased(command: EraseWorkflow, workflow: Workflow) -> list[EventData]:
    if not workflow.ended:
        raise IllegalTransition(
            f"cannot erase a task of a workflow with status {workflow.status}, which may need its arguments yet: cancel the "
            "workflow, or wait until it has ended",
            status=workflow.status.value,
        )
    return command.told(WorkflowErased)


_TERMINAL: dict[type[EventData], WorkflowStatus] = {
    WorkflowCompleted: WorkflowStatus.COMPLETED,
    WorkflowFailed: WorkflowStatus.FAILED,
    WorkflowCancelled: WorkflowStatus.CANCELLED,
    WorkflowTimedOut: WorkflowStatus.TIMED_OUT,
}


def evolve_workflow(workflow: Workflow, event_id: str, at: datetime, data: EventData) -> Workflow:
    """The workflow after its next event."""
    if (terminal := _TERMINAL.get(type(data))) is not None:
        return workflow.after(event_id, status=terminal, ended_at=at, approvals=[])
    match data:
        case WorkflowCreated():
            return workflow.after(
                event_id,
                status=WorkflowStatus.RUNNING,
                name=data.name,
                nodes=data.nodes,
                timeout_s=data.timeout_s,
                deadline_at=data.deadline_at,
                tags=data.tags,
                metadata=data.metadata,
                requested_by=data.requested_by,
                created_at=at,
            )
        case WorkflowAdvanced():
            return _advanced(workflow, event_id, data)
        case NodeApproved() | NodeRejected():
            return workflow.after(event_id, approvals=[name for name in workflow.approvals if name != data.node])
        case WorkflowSignalled():
            return workflow.after(event_id, signals=workflow.signals + 1)
        case WorkflowCancelRequested():
            ending = workflow.ending or "CANCELLED"
            return workflow.after(
                event_id,
                status=WorkflowStatus.STOPPING,
                ending=ending,
                cancel_requested_by=data.requested_by,
                cancel_reason=data.reason,
            )
        case WorkflowErased():
            return workflow.after(event_id, erased=True)
        case WorkflowExpired():
            return workflow.after(event_id, status=WorkflowStatus.STOPPING, ending=workflow.ending or "TIMED_OUT")
        case WorkflowRetried():
            return workflow.after(
                event_id,
                status=WorkflowStatus.RUNNING,
                run=data.run,
                counts={name: n for name, n in workflow.counts.items() if name == "COMPLETED"},
                deadline_at=data.deadline_at,
                ending=None,
                because=None,
                compensate=False,
                cancel_requested_by=None,
                cancel_reason=None,
                ended_at=None,
            )
        case _:
            raise IllegalTransition(f"{type(data).__name__} is not an event of a workflow")


def _advanced(workflow: Workflow, event_id: str, data: WorkflowAdvanced) -> Workflow:
    counts = dict(workflow.counts)

    def add(status: str, number: int = 1) -> None:
        counts[status] = counts.get(status, 0) + number

    for end in data.finished:
        add("WAITING" if end.waited else "RUNNING", -1)
        add(end.outcome)
    for skip in data.skipped:
        add("FAILED" if skip.reason == "failed" else "SKIPPED")
    add("RUNNING", len(data.released))
    add("WAITING", len(data.waiting))
    for end in data.compensated:
        if end.outcome == "COMPLETED":
            add("COMPLETED", -1)
            add("COMPENSATED")
    over = {end.node for end in data.finished if end.waited}
    changes: dict[str, object] = {
        "counts": {name: number for name, number in counts.items() if number},
        "approvals": [*(name for name in workflow.approvals if name not in over), *data.approvals],
    }
    if data.ending is not None and workflow.ending is None:
        changes |= {
            "status": WorkflowStatus.STOPPING,
            "ending": data.ending,
            "because": data.because,
            "compensate": data.compensate,
        }
    return workflow.after(event_id, **changes)


NO_WORKFLOW = Workflow()

WORKFLOWS = modelled("workflows", Workflow, decide_workflow, evolve_workflow, WorkflowNotFound, (CreateWorkflow,))
