"""A workflow by value, with tasks that end as a test says: no broker, no clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from eventq.events.data import EventData
from eventq.events.task_events import Submitted
from eventq.events.workflow import AdvanceWorkflow, CreateWorkflow, decide_workflow
from eventq.events.workflow_events import Definition, Node, NodeKind, WorkflowAdvanced, WorkflowCreated
from eventq.events.workflow_graph import check_graph
from eventq.events.workflow_run import Owner, Run, plan, task_of
from eventq.events.workflow_values import Wanted

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
TASK = Submitted(task_name="echo", pool="cpu", queue="default", priority=5, max_retries=0)


def step(name: str, *depends_on: str, kwargs: dict[str, Any] | None = None, **options: Any) -> Node:
    """A node that is a task."""
    task = TASK.model_copy(update={"kwargs": kwargs or {}})
    return Node(name=name, depends_on=list(depends_on), task=task, **options)


@dataclass
class World:
    """One workflow and the tasks that it makes. ``outcomes``: how a node's task ends, else ``COMPLETED``; ``log``: its events
    and the news of its tasks, in order; ``times``: when the events were written, by their place in it."""

    nodes: Sequence[Node]
    outcomes: dict[str, str] = field(default_factory=dict[str, str])
    results: dict[str, Any] = field(default_factory=dict[str, Any])
    timeout_s: float | None = None
    now: datetime = NOON
    log: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    times: dict[int, datetime] = field(default_factory=dict[int, datetime])

    def __post_init__(self) -> None:
        check_graph(self.nodes)
        self.run = self.new_run()
        self.running: dict[str, Owner] = {}
        self.made: list[str] = []
        self.started: list[str] = []
        deadline = None if self.timeout_s is None else NOON + timedelta(seconds=self.timeout_s)
        created = WorkflowCreated(
            name="w",
            nodes=len(self.nodes),
            definition=Definition(nodes=list(self.nodes)),
            timeout_s=self.timeout_s,
            deadline_at=deadline,
        )
        self.command(CreateWorkflow(created))

    def new_run(self) -> Run:
        run = Run("w")
        run.know(Definition(nodes=list(self.nodes)))
        return run

    def command(self, command: Any) -> list[EventData]:
        events = decide_workflow(command, self.run.state)
        for event in events:
            self.run.apply(f"e{len(self.log)}", self.now, event)
            self.times[len(self.log)] = self.now
            self.log.append(("workflow", event))
        return events

    def known(self) -> dict[Wanted, Any]:
        found: dict[Wanted, Any] = {}
        for node in self.nodes:
            found[Wanted(node.name, False)] = self.results.get(node.name, node.name)
            found[Wanted(node.name, True)] = []
        return found

    def advance(self) -> bool:
        """What a coordinator does once; answers whether there was anything."""
        event = plan(self.run, self.known(), self.now).event
        if event is None:
            return False
        self.command(AdvanceWorkflow(self.run.state.version, event))
        if isinstance(event, WorkflowAdvanced):
            self.started += event.released
        if self.run.state.ending is None or any(owner.compensation for owner in self.run.unmade.values()):
            for task_id, owner in list(self.run.unmade.items()):
                task_of(self.run, owner, self.known())
                self.made.append(task_id)
                self.running[task_id] = owner
                self.note(task_id, "PENDING")
        else:
            for task_id in list(self.run.unmade):
                self.note(task_id, "SCHEDULED")
                self.note(task_id, "CANCELLED")
        if self.run.state.ending is not None:
            for task_id in [each for each, owner in self.running.items() if not owner.compensation]:
                self.end(task_id, "CANCELLED")
        return True

    def note(self, task_id: str, status: str, parent: str | None = None) -> None:
        self.run.note_task(task_id, parent, status)
        self.log.append(("task", (task_id, parent, status)))

    def end(self, task_id: str, status: str | None = None) -> None:
        owner = self.running.pop(task_id)
        name = f"{owner.node} undone" if owner.compensation else owner.node
        self.note(task_id, status or self.outcomes.get(name, "COMPLETED"))

    def settle(self) -> None:
        while self.advance():
            pass

    def go(self, order: random.Random | None = None) -> None:
        """Until nothing moves any more."""
        self.settle()
        while self.running:
            names = list(self.running)
            self.end(names[0] if order is None else order.choice(names))
            if order is None or order.random() < 0.5 or not self.running:
                self.settle()
        self.settle()

    def statuses(self) -> dict[str, str]:
        return {node.name: self.run.status(node.name).value for node in self.nodes}


@st.composite
def graphs(draw: st.DrawFn, *, least: int = 1, waits: bool = False) -> list[Node]:
    """Random graphs: each node depends on some of those before it. ``least``: so many nodes; ``waits``: some are approvals or
    signals."""
    nodes: list[Node] = []
    for number in range(draw(st.integers(least, 12))):
        names = [node.name for node in nodes]
        before = draw(st.lists(st.sampled_from(names), unique=True, max_size=4)) if names else []
        options: dict[str, Any] = {
            "run_if": draw(st.sampled_from(["all_succeeded", "any_succeeded", "always"])),
            "on_failure": draw(st.sampled_from(["fail", "continue", "continue", "continue", "compensate"])),
        }
        kinds: list[NodeKind] = ["task", "task", "approval", "signal"]
        kind = draw(st.sampled_from(kinds)) if waits else "task"
        if kind == "task":
            nodes.append(step(f"n{number}", *before, compensate=draw(st.sampled_from([None, TASK])), **options))
        else:
            timeout_s = draw(st.sampled_from([None, 60.0]))
            signal = f"n{number}" if kind == "signal" else None
            nodes.append(Node(name=f"n{number}", kind=kind, signal=signal, depends_on=before, timeout_s=timeout_s, **options))
    return nodes
