"""The events of a workflow: what it consists of, how far it is, what people said, and how it ended."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from eventq.events.data import JSON, BlobRef, EventData
from eventq.events.task_events import Erased, Idempotency, Submitted

NodeKind = Literal["task", "approval", "signal"]
RunIf = Literal["all_succeeded", "any_succeeded", "always"]
OnFailure = Literal["fail", "continue", "compensate"]
Operator = Literal["equals", "not_equals", "exists", "not_exists", "less", "less_or_equal", "greater", "greater_or_equal"]
Outcome = Literal["COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"]
Ending = Literal["FAILED", "CANCELLED", "TIMED_OUT"]


class Condition(EventData):
    """A question to the result of the node ``node``, at the JSON pointer ``path`` in it."""

    node: str
    path: str = ""
    op: Operator = "equals"
    value: JSON = None


class Node(EventData):
    """One step. ``task`` and ``compensate``: what is submitted, complete but for the references in the arguments; ``signal``:
    the name that is waited for; ``timeout_s``: how long an approval or signal is waited for."""

    name: str
    kind: NodeKind = "task"
    depends_on: list[str] = Field(default_factory=list)
    task: Submitted | None = None
    compensate: Submitted | None = None
    signal: str | None = None
    when: list[Condition] = Field(default_factory=list[Condition])
    run_if: RunIf = "all_succeeded"
    on_failure: OnFailure = "fail"
    timeout_s: float | None = None


class Definition(EventData):
    """All steps of a workflow, in the order in which they were given."""

    nodes: list[Node]


class WorkflowCreated(EventData):
    """A workflow was accepted. ``definition`` is ``None`` where ``stored`` holds it as a blob. ``deadline_at``: when it times
    out as a whole."""

    name: str
    nodes: int
    definition: Definition | None = None
    stored: BlobRef | None = None
    deadline_at: datetime | None = None
    timeout_s: float | None = None
    tags: list[str] = Field(default_factory=list)
    metadata: dict[str, str] = Field(default_factory=dict)
    idempotency: Idempotency | None = None
    requested_by: str | None = None

    def wire(self) -> dict[str, JSON]:
        """Without what is as usual: a node has thirty fields, most of them empty."""
        return self.model_dump(exclude_defaults=True)


class NodeEnd(EventData):
    """A node that was started has ended. ``waited``: it was an approval or a signal. ``children``: the tasks that its task
    spawned, in order, where another node asks for their results."""

    node: str
    outcome: Outcome
    reason: str | None = None
    waited: bool = False
    children: list[str] = Field(default_factory=list)


class NodeSkip(EventData):
    """A node that is not started. ``dependencies``: not those succeeded that had to; ``condition``: its condition does not
    hold; ``failed``: it cannot be started (``detail`` says why) and counts as failed."""

    node: str
    reason: Literal["dependencies", "condition", "failed"]
    detail: str | None = None


class WorkflowAdvanced(EventData):
    """News of the workflow, and what follows from it at once. ``released``: nodes whose tasks are now made; ``waiting``: nodes
    that now wait for somebody; ``compensating``: completed nodes whose work is now undone; ``compensated``: how that went.
    ``ending``: the workflow stops and will end so, because of the node ``because``; ``compensate``: and undoes its work."""

    finished: list[NodeEnd] = Field(default_factory=list[NodeEnd])
    skipped: list[NodeSkip] = Field(default_factory=list[NodeSkip])
    released: list[str] = Field(default_factory=list)
    waiting: list[str] = Field(default_factory=list)
    approvals: list[str] = Field(default_factory=list)
    compensating: list[str] = Field(default_factory=list)
    compensated: list[NodeEnd] = Field(default_factory=list[NodeEnd])
    ending: Literal["FAILED"] | None = None
    because: str | None = None
    compensate: bool = False

    def wire(self) -> dict[str, JSON]:
        """Without what is empty: it is the workflow's most frequent event."""
        return self.model_dump(exclude_defaults=True)


class NodeApproved(EventData):
    """Somebody approved the node."""

    node: str
    by: str
    comment: str | None = None


class NodeRejected(EventData):
    """Somebody rejected the node: it fails."""

    node: str
    by: str
    comment: str | None = None


class WorkflowSignalled(EventData):
    """A signal came. It is kept for the nodes that wait for it now or later; the newest of a name counts."""

    name: str
    payload: JSON = None
    requested_by: str | None = None


class WorkflowCancelRequested(EventData):
    """Somebody wants the workflow to stop: what runs is cancelled, nothing new starts."""

    requested_by: str
    reason: str | None = None


class WorkflowExpired(EventData):
    """The workflow is over its ``deadline_at``: what runs is cancelled, nothing new starts."""

    deadline_at: datetime


class WorkflowRetried(EventData):
    """What did not complete runs again, as run ``run``; what completed keeps its results. ``deadline_at``: of this run."""

    run: int
    requested_by: str
    deadline_at: datetime | None = None


class WorkflowCompleted(EventData):
    """Every node has ended. The result is what its last nodes returned."""


class WorkflowFailed(EventData):
    """All has stopped, because the node ``node`` failed. ``uncompensated``: nodes whose work could not be undone."""

    node: str | None = None
    uncompensated: list[str] = Field(default_factory=list)


class WorkflowCancelled(EventData):
    """All has stopped, as was asked for."""


class WorkflowTimedOut(EventData):
    """All has stopped, because the workflow took too long."""


class WorkflowErased(Erased):
    """The arguments of an ended workflow's tasks, and what was said to it, were destroyed, because one of its tasks was erased.
    A long history takes several of these."""
