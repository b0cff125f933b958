"""How far each node of a workflow is, folded from its whole history, and what follows from that. Pure: no I/O, no clock.

A coordinator keeps a :class:`Run` of each unfinished workflow. It is shown the workflow's events and the ends of its tasks, in
the order of the log, and each costs as much as the nodes it concerns. :func:`plan` then says what to append next, if anything:
the same for every coordinator that has seen as much, and refused by the version check where another was first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from eventq.events.data import JSON, EventData
from eventq.events.limits import CHILDREN_MAX
from eventq.events.task import TERMINAL, Status
from eventq.events.task_events import Submitted
from eventq.events.workflow import NO_WORKFLOW, Workflow, evolve_workflow, node_task_id
from eventq.events.workflow_events import (
    Definition,
    NodeApproved,
    NodeEnd,
    NodeRejected,
    NodeSkip,
    Outcome,
    WorkflowAdvanced,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowExpired,
    WorkflowFailed,
    WorkflowRetried,
    WorkflowSignalled,
    WorkflowTimedOut,
)
from eventq.events.workflow_graph import Graph
from eventq.events.workflow_values import TOO_MUCH, Unresolved, Wanted, all_hold, resolve, wanted_by_task

BATCH_MAX = 300
"""Nodes that one event tells of: with names of 64 characters and reasons it stays well below the limit of an event."""

CHILDREN_BATCH_MAX = 2_000
"""Spawned tasks that one event names, for the same reason."""

REASON_MAX_CHARS = 200

PlannedEvent = WorkflowAdvanced | WorkflowExpired | WorkflowCompleted | WorkflowFailed | WorkflowCancelled | WorkflowTimedOut


class NodeStatus(StrEnum):
    """Where a node is. ``BLOCKED``: what it depends on has not ended; ``RUNNING``: its task was made, or is about to be;
    ``WAITING``: for an approval or a signal; ``COMPENSATED``: it completed and its work was undone."""

    BLOCKED = "BLOCKED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"
    COMPENSATED = "COMPENSATED"


SETTLED = frozenset(NodeStatus) - {NodeStatus.BLOCKED, NodeStatus.RUNNING, NodeStatus.WAITING}
"""From here a node goes nowhere in this run, but for compensation."""


class Owner(NamedTuple):
    """What a task of the workflow is for."""

    node: str
    compensation: bool


@dataclass(slots=True)
class TaskTree:
    """A node's task and all that it spawned. ``open``: those that have not ended; ``failed_child``: one that went wrong."""

    status: str | None = None
    open: int = 0
    failed_child: str | None = None
    children: list[str] = field(default_factory=list[str])
    cancelled: set[str] = field(default_factory=set[str])

    @property
    def ended(self) -> bool:
        """Whether all of it has ended."""
        return self.status is not None and self.open == 0


class Run:
    """One unfinished workflow. ``tasks``: unfinished tasks of it, each with the task at the root of its tree."""

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self.state: Workflow = NO_WORKFLOW
        self.created: WorkflowCreated | None = None
        self.graph: Graph | None = None
        self.nodes: dict[str, NodeStatus] = {}
        self.runs: dict[str, int] = {}
        """In which run a node was started last."""
        self.shown_children: dict[str, list[str]] = {}
        self.waiting: dict[str, datetime | None] = {}
        """Nodes that wait for somebody, each with the time at which it gives up."""
        self.answers: dict[str, NodeApproved | NodeRejected] = {}
        self.signals: dict[str, JSON] = {}
        """The newest payload of each signal that came."""
        self._heard: dict[str, dict[str, JSON]] = {}
        """The signals as they were when a wait ended: what comes later changes nothing for who took a payload."""
        self.trees: dict[str, TaskTree] = {}
        self.tasks: dict[str, str] = {}
        self.unmade: dict[str, Owner] = {}
        """Tasks that were released and have not been seen in the log."""
        self.voids: dict[str, None] = {}
        """Unfinished tasks that were made only so that nobody can make them: for a later time, which no step is."""
        self.completed_order: list[str] = []
        self.compensations: dict[str, Outcome | None] = {}
        self._owners: dict[str, Owner] = {}
        self._ended: dict[str, None] = {}
        self._left: dict[str, int] = {}
        self._ready: dict[str, None] = {}
        self._settled = 0

    def know(self, definition: Definition) -> None:
        """From now on the nodes are known, whatever was folded before."""
        self.graph = Graph.of(definition)
        self._count()

    def status(self, node: str) -> NodeStatus:
        """Where a node is."""
        return self.nodes.get(node, NodeStatus.BLOCKED)

    def task_id(self, node: str, *, compensation: bool = False) -> str:
        """The id of the node's task in the run in which it was started last."""
        run = self.state.run if compensation else self.runs[node]
        return node_task_id(self.workflow_id, node, run, compensation=compensation)

    def apply(self, event_id: str, at: datetime, data: EventData) -> None:
        """Fold the workflow's next event. ``at``: aware UTC, when it was written."""
        self.state = evolve_workflow(self.state, event_id, at, data)
        match data:
            case WorkflowCreated():
                self.created = data
            case WorkflowAdvanced():
                self._apply_advanced(at, data)
            case NodeApproved() | NodeRejected():
                self.answers[data.node] = data
            case WorkflowSignalled():
                self.signals[data.name] = data.payload
            case WorkflowRetried():
                self._start_over()
            case _:
                pass

    def note_task(self, task_id: str, parent_id: str | None, status: str) -> None:
        """Fold the news of one task of the workflow: it exists, and is in ``status``."""
        if (root := self.tasks.get(task_id)) is None:
            if status in TERMINAL and task_id not in self.unmade:
                return  # it was over before it was known, or is none of ours
            if (adopted := self._adopt(task_id, parent_id)) is None:
                return
            root = adopted
            if task_id == root and status == Status.SCHEDULED:
                self.voids[task_id] = None
        tree = self.trees[root]
        if Status(status) not in TERMINAL:
            return
        del self.tasks[task_id]
        self.voids.pop(task_id, None)
        tree.open -= 1
        if task_id == root:
            tree.status = status
        elif status != Status.COMPLETED and tree.failed_child is None:
            tree.failed_child = task_id
        if tree.ended:
            self._ended[root] = None

    def unfinished_tasks(self) -> Iterator[tuple[str, TaskTree]]:
        """Tasks that have not ended, each with its tree."""
        return ((task_id, self.trees[root]) for task_id, root in self.tasks.items())

    def owner(self, task_id: str) -> Owner | None:
        """What a task at the root of a tree is for; ``None`` where it is none of ours, or is over and recorded."""
        return self._owners.get(task_id)

    def children_of(self, node: str) -> list[str]:
        """The tasks that the node's task spawned, in order; up to one more than anybody may ask the results of."""
        tree = self.trees.get(self.task_id(node)) if node in self.runs else None
        return self.shown_children.get(node, []) if tree is None else tree.children[: CHILDREN_MAX + 1]

    def payload_of(self, node: str) -> JSON:
        """What the signal carried that the node waited for."""
        assert self.graph is not None
        return self._heard.get(node, self.signals)[self.graph.nodes[node].signal or ""]

    def next_deadline(self) -> datetime | None:
        """The earliest time at which something gives up."""
        if self.state.ending is not None or self.state.ended:
            return None
        times = [at for at in self.waiting.values() if at is not None]
        if self.state.deadline_at is not None:
            times.append(self.state.deadline_at)
        return min(times, default=None)

    def _adopt(self, task_id: str, parent_id: str | None) -> str | None:
        root: str | None
        if task_id in self.unmade:
            del self.unmade[task_id]
            root = task_id
            self.trees[root] = TaskTree()
        else:
            if parent_id is None:
                return None
            root = self.tasks.get(parent_id, parent_id if parent_id in self.trees else None)
            if root is None:
                return None
            if parent_id == root:
                self.trees[root].children.append(task_id)
            self._ended.pop(root, None)
        self.tasks[task_id] = root
        self.trees[root].open += 1
        return root

    def _apply_advanced(self, at: datetime, data: WorkflowAdvanced) -> None:
        for end in data.finished:
            self._forget_task(end)
            if end.children:
                self.shown_children[end.node] = end.children
            if end.outcome == "COMPLETED":
                self.completed_order.append(end.node)
            self._settle(end.node, NodeStatus(end.outcome))
        for skip in data.skipped:
            self._settle(skip.node, NodeStatus.FAILED if skip.reason == "failed" else NodeStatus.SKIPPED)
        for node in data.released:
            self._start(node, NodeStatus.RUNNING)
            self._expect(node, compensation=False)
        for node in data.waiting:
            self._start(node, NodeStatus.WAITING)
            timeout_s = None if self.graph is None else self.graph.nodes[node].timeout_s
            self.waiting[node] = None if timeout_s is None else at + timedelta(seconds=timeout_s)
        for node in data.compensating:
            self.compensations[node] = None
            self._expect(node, compensation=True)
        for end in data.compensated:
            self._forget_task(end, compensation=True)
            self.compensations[end.node] = end.outcome
            if end.outcome == "COMPLETED":
                self.nodes[end.node] = NodeStatus.COMPENSATED

    def _start(self, node: str, status: NodeStatus) -> None:
        self.nodes[node] = status
        self.runs[node] = self.state.run
        self._ready.pop(node, None)

    def _expect(self, node: str, *, compensation: bool) -> None:
        task_id = self.task_id(node, compensation=compensation)
        self._owners[task_id] = self.unmade[task_id] = Owner(node, compensation)

    def _forget_task(self, end: NodeEnd, *, compensation: bool = False) -> None:
        if end.waited:
            self.waiting.pop(end.node, None)
            self._heard[end.node] = dict(self.signals)
            return
        task_id = self.task_id(end.node, compensation=compensation)
        self.trees.pop(task_id, None)
        self.unmade.pop(task_id, None)
        self._owners.pop(task_id, None)
        self._ended.pop(task_id, None)

    def _settle(self, node: str, status: NodeStatus) -> None:
        self.nodes[node] = status
        self._settled += 1
        self._ready.pop(node, None)
        if self.graph is not None:
            self._ready |= dict.fromkeys(cleared(self.graph, self._left, self.nodes, [node]))

    def _start_over(self) -> None:
        self.nodes = {name: status for name, status in self.nodes.items() if status is NodeStatus.COMPLETED}
        self.completed_order = [name for name in self.completed_order if name in self.nodes]
        self.compensations = {}
        self.waiting = {}
        self.answers = {name: answer for name, answer in self.answers.items() if name in self.nodes}
        self._heard = {name: signals for name, signals in self._heard.items() if name in self.nodes}
        self.trees, self.tasks, self.unmade, self.voids = {}, {}, {}, {}
        self._owners, self._ended = {}, {}
        self._count()

    def _count(self) -> None:
        """Count anew what each node still waits for."""
        self._settled = sum(status in SETTLED for status in self.nodes.values())
        self._left, self._ready = {}, {}
        if self.graph is None:
            return
        self._left = {name: len(node.depends_on) for name, node in self.graph.nodes.items()}
        first = [name for name, left in self._left.items() if left == 0]
        ended = [name for name in first if self.status(name) in SETTLED]
        blocked = [name for name in first if name not in self.nodes]
        self._ready = dict.fromkeys(blocked + cleared(self.graph, self._left, self.nodes, ended))

    # What plan() looks at.

    @property
    def ready(self) -> list[str]:
        """Blocked nodes all of whose dependencies have ended."""
        return list(self._ready)

    @property
    def over(self) -> list[str]:
        """Tasks that have ended with all that they spawned, and of which no event of the workflow tells yet."""
        return list(self._ended)

    @property
    def settled(self) -> bool:
        """Whether every node has ended."""
        return self.graph is not None and self._settled == len(self.graph.nodes)

    @property
    def busy(self) -> bool:
        """Whether any task or wait of it has not ended."""
        return bool(self.trees or self.unmade or self.waiting)

    @property
    def left(self) -> Mapping[str, int]:
        """See :func:`cleared`."""
        return self._left


def cleared(
    graph: Graph, left: MutableMapping[str, int], statuses: Mapping[str, NodeStatus], nodes: Iterable[str]
) -> list[str]:
    """Blocked nodes that wait for nothing any more, now that ``nodes`` have ended and all before them. ``left``, of each node:
    how many of its dependencies, or of what is before those, have not ended; counted down here.

    In a retry a node may have completed before, and something before it is run again: what comes after it waits for that.
    """
    found: list[str] = []
    clear = list(nodes)
    for name in clear:  # which grows meanwhile
        for after in graph.dependents[name]:
            left[after] -= 1
            if left[after] > 0:
                continue
            if (status := statuses.get(after)) is None:
                found.append(after)
            elif status in SETTLED:
                clear.append(after)
    return found


@dataclass(frozen=True, slots=True)
class Plan:
    """What to append next, or the results that must be known to say so. ``wanting``: the node that the first of them is for."""

    event: PlannedEvent | None = None
    missing: Sequence[Wanted] = ()
    wanting: str | None = None


def plan(
    run: Run,
    results: Mapping[Wanted, JSON],
    now: datetime,
    lost: Mapping[Wanted, str] | None = None,
    *,
    greedy: str | None = None,
    enough: bool = False,
) -> Plan:
    """What follows at ``now`` from all that the run was shown. ``results``: those known; ``lost``: those that nobody can
    know any more, each with the reason; ``greedy``: a node that wants more than can be known at once, and fails for it;
    ``enough``: rather tell what follows without those that are missing, if anything. Missing results come node by node."""
    state = run.state
    if state.ended or run.graph is None:
        return Plan()
    if state.ending is None and state.deadline_at is not None and state.deadline_at <= now:
        return Plan(WorkflowExpired(deadline_at=state.deadline_at))
    draft = _Draft(run, results, lost or {}, greedy)
    draft.end_tasks()
    draft.end_waits(now)
    if state.ending is None and not draft.stopped:
        draft.start_nodes()
    event = draft.event()
    if draft.missing and not (enough and event is not None):
        return Plan(missing=tuple(draft.missing), wanting=draft.wanting)
    if event is not None:
        return Plan(event)
    if state.ending is None:
        return Plan(WorkflowCompleted() if run.settled else None)
    return Plan(None if run.busy else _last(run))


def _last(run: Run) -> PlannedEvent:
    """What follows once all has stopped: undoing, one node after the other, the last that completed first; then the end."""
    assert run.graph is not None
    state = run.state
    if state.compensate and state.ending == "FAILED":
        for name in reversed(run.completed_order):
            if run.graph.nodes[name].compensate is not None and name not in run.compensations:
                return WorkflowAdvanced(compensating=[name])
    match state.ending:
        case "CANCELLED":
            return WorkflowCancelled()
        case "TIMED_OUT":
            return WorkflowTimedOut()
        case _:
            failed = [name for name, outcome in run.compensations.items() if outcome != "COMPLETED"]
            return WorkflowFailed(node=state.because, uncompensated=failed)


class _Draft:
    """One event while it is thought out, and what would be true after it."""

    def __init__(self, run: Run, results: Mapping[Wanted, JSON], lost: Mapping[Wanted, str], greedy: str | None) -> None:
        assert run.graph is not None
        self._run = run
        self._graph = run.graph
        self._results = results
        self._lost = lost
        self._greedy = greedy
        self._after: dict[str, NodeStatus] = {}
        self._left = dict(run.left)
        self._ready: list[str] = run.ready
        self._finished: list[NodeEnd] = []
        self._compensated: list[NodeEnd] = []
        self._skipped: list[NodeSkip] = []
        self._released: list[str] = []
        self._waiting: list[str] = []
        self._because: str | None = None
        self._compensate = False
        self.missing: dict[Wanted, None] = {}
        self.wanting: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a node failed that ends the workflow."""
        return self._because is not None

    def event(self) -> WorkflowAdvanced | None:
        """What has come together; ``None`` where nothing has."""
        if not self._told() and not self._compensated:
            return None
        approvals = [name for name in self._waiting if self._graph.nodes[name].kind == "approval"]
        return WorkflowAdvanced(
            finished=self._finished,
            skipped=self._skipped,
            released=self._released,
            waiting=self._waiting,
            approvals=approvals,
            compensated=self._compensated,
            ending="FAILED" if self.stopped else None,
            because=self._because,
            compensate=self._compensate,
        )

    def end_tasks(self) -> None:
        """Tell of tasks that have ended."""
        named = 0
        for task_id in self._run.over:
            owner, tree = self._run.owner(task_id), self._run.trees[task_id]
            if owner is None:
                continue
            end = self._end_of(owner, tree)
            named += len(end.children)
            if self._told() >= BATCH_MAX or (named > CHILDREN_BATCH_MAX and self._told()):
                return
            if owner.compensation:
                self._compensated.append(end)
            else:
                self._end(end)

    def end_waits(self, now: datetime) -> None:
        """Tell of waits that are over: answered, signalled, too long, or for nothing because the workflow stops."""
        for name, deadline in self._run.waiting.items():
            if self._told() >= BATCH_MAX:
                return
            if (end := self._wait_end(name, deadline, now)) is not None:
                self._end(end)

    def start_nodes(self) -> None:
        """Start, or skip, whatever can be; a skipped node may be what others waited for."""
        number = 0
        while number < len(self._ready) and self._told() < BATCH_MAX and not self.stopped:
            self._start(self._ready[number])
            number += 1

    def _told(self) -> int:
        return len(self._finished) + len(self._skipped) + len(self._released) + len(self._waiting)

    def _end_of(self, owner: Owner, tree: TaskTree) -> NodeEnd:
        status = Status(tree.status or Status.FAILED)
        reason = None
        if status is Status.COMPLETED and tree.failed_child is not None:
            status, reason = Status.FAILED, f"task {tree.failed_child}, which it spawned, did not complete"
        shown = owner.node in self._graph.shown_children and not owner.compensation
        children = tree.children[: CHILDREN_MAX + 1] if shown else []
        return NodeEnd(node=owner.node, outcome=status.value, reason=reason, children=children)  # type: ignore[arg-type]

    def _wait_end(self, name: str, deadline: datetime | None, now: datetime) -> NodeEnd | None:
        run, node = self._run, self._graph.nodes[name]
        answer = run.answers.get(name)
        if isinstance(answer, NodeApproved) or (node.kind == "signal" and node.signal in run.signals):
            return NodeEnd(node=name, outcome="COMPLETED", waited=True)
        if isinstance(answer, NodeRejected):
            return NodeEnd(node=name, outcome="FAILED", reason=f"rejected by {answer.by}"[:REASON_MAX_CHARS], waited=True)
        if run.state.ending is not None or self.stopped:
            return NodeEnd(node=name, outcome="CANCELLED", waited=True)
        if deadline is not None and deadline <= now:
            return NodeEnd(node=name, outcome="TIMED_OUT", reason=f"nobody came within {node.timeout_s:g} s", waited=True)
        return None

    def _end(self, end: NodeEnd) -> None:
        self._finished.append(end)
        self._settled(end.node, NodeStatus(end.outcome))

    def _settled(self, name: str, status: NodeStatus) -> None:
        self._after[name] = status
        if status not in (NodeStatus.COMPLETED, NodeStatus.SKIPPED):
            self._fail(name)
        self._ready += cleared(self._graph, self._left, self._run.nodes, [name])

    def _fail(self, name: str) -> None:
        policy = self._graph.nodes[name].on_failure
        if policy == "continue" or self._run.state.ending is not None or self.stopped:
            return
        self._because = name
        self._compensate = policy == "compensate"

    def _status(self, name: str) -> NodeStatus:
        return self._after.get(name) or self._run.status(name)

    def _start(self, name: str) -> None:
        node = self._graph.nodes[name]
        succeeded = [self._status(before) is NodeStatus.COMPLETED for before in node.depends_on]
        if (node.run_if == "all_succeeded" and not all(succeeded)) or (
            node.run_if == "any_succeeded" and succeeded and not any(succeeded)
        ):
            self._skip(NodeSkip(node=name, reason="dependencies"))
            return
        results = self._results_for(name)
        if results is None:
            return
        if isinstance(results, str):
            self._skip(NodeSkip(node=name, reason="failed", detail=results[:REASON_MAX_CHARS]))
            return
        if not all_hold(node.when, results):
            self._skip(NodeSkip(node=name, reason="condition"))
            return
        if node.task is None:
            self._waiting.append(name)
            return
        try:
            resolve([node.task.args, node.task.kwargs], results)
        except Unresolved as error:
            self._skip(NodeSkip(node=name, reason="failed", detail=str(error)[:REASON_MAX_CHARS]))
            return
        self._released.append(name)

    def _skip(self, skip: NodeSkip) -> None:
        self._skipped.append(skip)
        self._settled(skip.node, NodeStatus.FAILED if skip.reason == "failed" else NodeStatus.SKIPPED)

    def _results_for(self, name: str) -> dict[Wanted, JSON] | str | None:
        """The results that the node needs; ``None`` where some are to be fetched first; a sentence where that is in vain."""
        if name == self._greedy:
            return TOO_MUCH
        found: dict[Wanted, JSON] = {}
        missing: list[Wanted] = []
        for wanted in self._graph.wanted[name]:
            if self._status(wanted.node) is not NodeStatus.COMPLETED:
                found[wanted] = None  # of what was skipped or failed there is no result
            elif wanted in self._lost:
                return self._lost[wanted]
            elif wanted in self._results:
                found[wanted] = self._results[wanted]
            else:
                missing.append(wanted)
        if missing:
            self.wanting = self.wanting or name
            self.missing |= dict.fromkeys(missing)
            return None
        return found


def task_of(run: Run, owner: Owner, results: Mapping[Wanted, JSON]) -> Submitted:
    """What is submitted for a node, with its references replaced. ``results``: all that :func:`needed_by` names.

    Raises :class:`Unresolved`."""
    assert run.graph is not None
    node = run.graph.nodes[owner.node]
    template = node.compensate if owner.compensation else node.task
    assert template is not None
    known = {wanted: results.get(wanted) for wanted in wanted_by_task(template)}
    args, kwargs = resolve([template.args, template.kwargs], known)
    changes = {"args": args, "kwargs": kwargs, "workflow_id": run.workflow_id, "node": owner.node}
    return template.model_copy(update=changes)


def needed_by(run: Run, owner: Owner) -> frozenset[Wanted]:
    """The results that a node's task is made with, of those nodes that have one."""
    assert run.graph is not None
    node = run.graph.nodes[owner.node]
    template = node.compensate if owner.compensation else node.task
    assert template is not None
    had = (NodeStatus.COMPLETED, NodeStatus.COMPENSATED)
    return frozenset(wanted for wanted in wanted_by_task(template) if run.status(wanted.node) in had)
