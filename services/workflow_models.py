"""What the routes of workflows take and answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from eventq.events.data import BlobRef, ErrorInfo
from eventq.events.ids import check_id, check_name
from eventq.events.limits import (
    CONDITIONS_MAX,
    NAME_MAX_CHARS,
    REASON_MAX_CHARS,
    WORKFLOW_NODES_MAX,
    WORKFLOW_TIMEOUT_MAX_S,
)
from eventq.events.workflow import WorkflowStatus
from eventq.events.workflow_events import NodeKind, OnFailure, Operator, RunIf
from eventq.events.workflow_run import NodeStatus
from eventq.services.answers import Answer, TimelineEvent
from eventq.services.http_limits import OFFSET_MAX, PAGE_DEFAULT, PAGE_MAX
from eventq.services.schemas import POSITION_MAX, Arguments, Closed, Metadata, Tags, TaskName, TaskOptions, checked

WorkflowState = Literal["RUNNING", "STOPPING", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]


WorkflowId = Annotated[str, checked(check_id, "workflow_id")]
NodeName = Annotated[str, checked(check_name, "node")]
SignalName = Annotated[str, checked(check_name, "signal")]
Person = Annotated[str, Field(min_length=1, max_length=NAME_MAX_CHARS)]


class ConditionBody(Closed):
    """A question to a result: what stands at the JSON pointer `path` in it, compared with `value`."""

    node: NodeName
    path: str = Field("", max_length=REASON_MAX_CHARS)
    op: Operator = "equals"
    value: Any = None


class CompensationBody(Closed):
    """The task that undoes what the node did. Its arguments may refer to the node's own result."""

    task_name: TaskName
    task_args: Arguments = Field(default_factory=list[Any])
    task_kwargs: dict[str, Any] = Field(default_factory=dict)


class NodeBody(TaskOptions):
    """One step. `{"$from": "node"}` anywhere in the arguments stands for that node's result, with `"path": "/a/0"` for a part
    of it, with `"children": true` for the list of the results of the tasks that it spawned."""

    name: NodeName
    kind: NodeKind = "task"
    depends_on: list[NodeName] = Field(default_factory=list[str], max_length=WORKFLOW_NODES_MAX)
    task_name: TaskName | None = Field(None, description="Required of tasks.")
    task_args: Arguments = Field(default_factory=list[Any])
    task_kwargs: dict[str, Any] = Field(default_factory=dict)
    signal: SignalName | None = Field(None, description="Of signals: the name that is waited for. By default the node's.")
    when: list[ConditionBody] = Field(
        default_factory=list[ConditionBody], max_length=CONDITIONS_MAX, description="All must hold, or the node is skipped."
    )
    run_if: RunIf = Field("all_succeeded", description="Which of its dependencies must have completed.")
    on_failure: OnFailure = Field("fail", description="What its failure means for the workflow.")
    compensate: CompensationBody | None = None
    wait_timeout_seconds: float | None = Field(
        None, gt=0, le=WORKFLOW_TIMEOUT_MAX_S, description="Of approvals and signals: how long they are waited for."
    )


class WorkflowRequest(Closed):
    """A directed acyclic graph of steps."""

    name: Person
    nodes: list[NodeBody] = Field(min_length=1, max_length=WORKFLOW_NODES_MAX)
    timeout_seconds: float | None = Field(None, gt=0, le=WORKFLOW_TIMEOUT_MAX_S, description="For the whole.")
    tags: Tags = Field(default_factory=list[str])
    metadata: Metadata = Field(default_factory=dict[str, str])


class WorkflowPath(Closed):
    """One workflow."""

    workflow_id: WorkflowId


class NodePath(Closed):
    """One node of a workflow."""

    workflow_id: WorkflowId
    node: NodeName


class SignalPath(Closed):
    """One signal to a workflow."""

    workflow_id: WorkflowId
    name: SignalName


class WorkflowsQuery(Closed):
    """Which workflows."""

    status: list[WorkflowState] = Field(default_factory=list[WorkflowState], description="Repeat it for several.")
    name: Person | None = None
    limit: int = Field(PAGE_DEFAULT, ge=1, le=PAGE_MAX)
    offset: int = Field(0, ge=0, le=OFFSET_MAX)
    min_position: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this position is visible.")


class CancelWorkflowRequest(Closed):
    """Why; may be left out with the whole body."""

    reason: str | None = Field(None, max_length=REASON_MAX_CHARS)


class AnswerRequest(Closed):
    """Who approves or rejects, and why."""

    by: Person
    comment: str | None = Field(None, max_length=REASON_MAX_CHARS)


class SignalRequest(Closed):
    """What comes with the signal: any JSON, up to 64 KiB. It is the result of the nodes that wait for it."""

    payload: Any = None


class NodeAnswer(Answer):
    """A node. `task_id`: of the run in which it was started last; `result`: null where it is none or large, `output` then
    refers to it, or the task has it; `compensation`: how the undoing of its work goes."""

    name: str
    kind: NodeKind
    depends_on: list[str]
    status: NodeStatus
    reason: str | None
    run: int | None
    task_name: str | None
    task_id: str | None
    task_status: str | None
    run_if: RunIf
    on_failure: OnFailure
    compensation: str | None
    result: Any
    output: BlobRef | None
    error: ErrorInfo | None
    started_at: datetime | None
    ended_at: datetime | None


class WorkflowSummary(Answer):
    """A workflow without its nodes. `counts`: nodes by status; `because`: the node whose failure ended it; `approvals`: the
    nodes that wait for somebody's word; `erased`: what it gave its tasks was destroyed, because one of them was erased."""

    workflow_id: str
    name: str
    status: WorkflowStatus
    run: int
    nodes_total: int
    counts: dict[str, int]
    approvals: list[str]
    because: str | None
    cancel_requested_by: str | None
    cancel_reason: str | None
    timeout_seconds: float | None
    deadline_at: datetime | None
    tags: list[str]
    metadata: dict[str, str]
    created_at: datetime | None
    ended_at: datetime | None
    erased: bool
    version: int


class Edge(Answer):
    """A dependency: the node `target` starts after the node `source`."""

    source: str
    target: str


class WorkflowAnswer(WorkflowSummary):
    """A workflow with its nodes and edges. `result`: what its last nodes returned, by node, once it has completed."""

    nodes: list[NodeAnswer]
    edges: list[Edge]
    result: dict[str, Any] | None
    as_of: int


class WorkflowListAnswer(Answer):
    """A page of workflows, newest first."""

    total: int
    limit: int
    offset: int
    workflows: list[WorkflowSummary]
    as_of: int


class WorkflowTimelineAnswer(Answer):
    """What happened to a workflow, oldest first. The tasks of its nodes have timelines of their own."""

    workflow_id: str
    status: WorkflowStatus
    events: list[TimelineEvent]
    as_of: int
