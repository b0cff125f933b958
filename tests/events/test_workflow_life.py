"""Any order of anything that can happen to a workflow: commands, ends of tasks, crashes, outdated views, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from eventq.events import workflow_run
from eventq.events.data import EventData
from eventq.events.errors import IllegalTransition
from eventq.events.task import TERMINAL
from eventq.events.task_events import ErasedEvent
from eventq.events.workflow import (
    AdvanceWorkflow,
    AnswerNode,
    CancelWorkflow,
    EraseWorkflow,
    RetryWorkflow,
    SignalWorkflow,
    Workflow,
    WorkflowStatus,
    decide_workflow,
)
from eventq.events.workflow_events import Node, WorkflowAdvanced
from eventq.events.workflow_graph import Graph
from eventq.events.workflow_run import SETTLED, NodeStatus, Run, cleared, plan
from tests.events import workflow_world
from tests.events.workflow_world import TASK, World, graphs, step

WHICH = st.integers(0, 1_000)
CREATED = {"version": 1, "type": "created", "schema": 1, "data": {"name": "w", "nodes": 1}}
ERASE = EraseWorkflow("ada", None, (ErasedEvent(position=1, subject="workflows.w.1.created", event=CREATED),))
ENDS = st.sampled_from(["COMPLETED", "COMPLETED", "COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"])


class WorkflowLife(RuleBasedStateMachine):
    """`world`: one workflow, its log and its tasks. `children`: unfinished spawned tasks, each with its parent."""

    @initialize(nodes=graphs(least=8, waits=True), timeout_s=st.sampled_from([None, None, 300.0]))
    def create(self, nodes: list[Node], timeout_s: float | None) -> None:
        self.world = World(nodes, timeout_s=timeout_s)
        self.children: dict[str, str] = {}
        self.spawned = 0
        self.outdated: list[AdvanceWorkflow] = []
        self.before: dict[str, set[str]] = {}
        for node in nodes:
            self.before[node.name] = set(node.depends_on).union(*(self.before[name] for name in node.depends_on))

    def ask(self, command: Any) -> bool:
        """Carry it out, or see that a refusal changes nothing."""
        before = (self.world.run.state, len(self.world.log))
        try:
            return bool(self.world.command(command))
        except IllegalTransition:
            assert (self.world.run.state, len(self.world.log)) == before
            return False

    @rule(steps=st.integers(1, 3))
    def a_coordinator_goes_on(self, steps: int) -> None:
        for _ in range(steps):
            world = self.world
            was = dict(world.run.nodes)
            event = plan(world.run, world.known(), world.now).event
            if event is None:
                return
            self.outdated.append(AdvanceWorkflow(world.run.state.version, event))
            if isinstance(event, WorkflowAdvanced):
                self.judge(event, was)
            assert world.advance()
            if world.run.state.ending is not None:
                for child, root in list(self.children.items()):
                    if root not in world.running:  # what undoes work is not cancelled, nor what that spawned
                        self.end_child(child, "CANCELLED")

    @rule(chance=st.randoms(use_true_random=False), steps=st.integers(10, 60))
    def a_while_goes_by(self, chance: Random, steps: int) -> None:
        """What mostly happens: tasks end, the coordinator goes on, people answer, and what has ended badly is retried."""
        for _ in range(steps):
            self.a_coordinator_goes_on(chance.randint(0, 2))
            self.nothing_runs_of_what_has_ended()
            which, end = chance.randint(0, 1_000), chance.choice(["COMPLETED"] * 4 + ["FAILED"])
            if self.children:
                self.a_spawned_task_ends(which, end)
            elif self.world.running:
                self.a_task_ends(which, end)
            elif self.world.run.state.ended:
                self.somebody_retries()
            elif chance.random() < 0.5:
                self.somebody_answers(which, chance.random() < 0.8)
            else:
                self.somebody_signals(which)

    def judge(self, event: WorkflowAdvanced, was: dict[str, NodeStatus]) -> None:
        """Nothing starts that has begun or ended already, or before all that comes before it, directly or not, has ended."""
        assert self.world.run.state.ending is None or not (event.released or event.waiting or event.skipped)
        settled = {name for name, status in was.items() if status in SETTLED}
        settled |= {end.node for end in event.finished} | {skip.node for skip in event.skipped}
        for name in (*event.released, *event.waiting, *(skip.node for skip in event.skipped)):
            assert name not in was
            assert self.before[name] <= settled
        for name in event.compensating:
            assert was[name] is NodeStatus.COMPLETED

    @precondition(lambda self: self.world.running)
    @rule(which=WHICH, status=ENDS)
    def a_task_ends(self, which: int, status: str) -> None:
        running = list(self.world.running)
        self.world.end(running[which % len(running)], status)

    @precondition(lambda self: self.world.running)
    @rule(which=WHICH)
    def a_task_spawns_another(self, which: int) -> None:
        running = list(self.world.running)
        parent = running[which % len(running)]
        child = f"child-{self.spawned}"
        self.spawned += 1
        self.children[child] = parent
        self.world.note(child, "PENDING", parent)

    @precondition(lambda self: self.children)
    @rule(which=WHICH, status=ENDS)
    def a_spawned_task_ends(self, which: int, status: str) -> None:
        self.end_child(list(self.children)[which % len(self.children)], status)

    def end_child(self, child: str, status: str) -> None:
        self.world.note(child, status, self.children.pop(child))

    @rule(which=WHICH, approved=st.booleans())
    def somebody_answers(self, which: int, approved: bool) -> None:
        nodes = self.world.run.state.approvals or [node.name for node in self.world.nodes]
        self.ask(AnswerNode(nodes[which % len(nodes)], approved, "ada"))

    @rule(which=WHICH)
    def somebody_signals(self, which: int) -> None:
        names = list(self.world.run.waiting) or [node.name for node in self.world.nodes]
        self.ask(SignalWorkflow(names[which % len(names)], which, "ada"))

    @rule(sure=st.integers(0, 9))
    def somebody_cancels(self, sure: int) -> None:
        """Seldom: little follows."""
        if sure == 9:
            self.ask(CancelWorkflow("ada"))

    @rule()
    def somebody_retries(self) -> None:
        ended = self.world.run.state.status
        if self.ask(RetryWorkflow("ada", self.world.now)):
            assert ended in {WorkflowStatus.FAILED, WorkflowStatus.CANCELLED, WorkflowStatus.TIMED_OUT}

    @rule(sure=st.integers(0, 19))
    def a_task_of_it_is_erased(self, sure: int) -> None:
        """Seldom: nothing follows."""
        if sure == 19:
            ended = self.world.run.state.ended
            assert self.ask(ERASE) == ended

    @invariant()
    def what_was_emptied_never_runs_again(self) -> None:
        assert self.world.run.state.ended or not self.world.run.state.erased

    @rule(seconds=st.sampled_from([1, 60, 400]))
    def time_passes(self, seconds: int) -> None:
        self.world.now += timedelta(seconds=seconds)

    @precondition(lambda self: self.outdated)
    @rule(which=WHICH)
    def a_coordinator_with_an_outdated_view_is_refused(self, which: int) -> None:
        command = self.outdated[which % len(self.outdated)]
        if command.version != self.world.run.state.version:
            assert not self.ask(command)

    @rule()
    def news_come_twice(self) -> None:
        for kind, news in self.world.log[-3:]:
            if kind == "task" and news[2] in TERMINAL:
                self.world.run.note_task(*news)

    @rule()
    def a_coordinator_crashes(self) -> None:
        """The next one folds the log, and knows what the first one knew."""
        fresh, known = self.world.new_run(), self.world.run
        for number, (kind, news) in enumerate(self.world.log):
            if kind == "workflow":
                fresh.apply(f"e{number}", self.world.times[number], news)
            else:
                fresh.note_task(*news)
        assert (fresh.state, fresh.nodes, fresh.runs) == (known.state, known.nodes, known.runs)
        assert (sorted(fresh.ready), sorted(fresh.over)) == (sorted(known.ready), sorted(known.over))
        assert (fresh.waiting, fresh.unmade, fresh.tasks) == (known.waiting, known.unmade, known.tasks)
        assert fresh.completed_order == known.completed_order
        self.world.run = fresh

    @invariant()
    def versions_have_no_gap(self) -> None:
        assert self.world.run.state.version == sum(kind == "workflow" for kind, _ in self.world.log)

    @invariant()
    def the_counts_are_those_of_the_nodes(self) -> None:
        assert self.world.run.state.counts == Counter(status.value for status in self.world.run.nodes.values())

    @invariant()
    def no_task_is_made_twice(self) -> None:
        assert len(self.world.made) == len(set(self.world.made))

    @invariant()
    def nothing_runs_of_what_has_ended(self) -> None:
        run = self.world.run
        if run.state.ended:
            assert not self.world.running
            assert not run.busy
        if run.state.status is WorkflowStatus.COMPLETED:
            assert run.settled

    def teardown(self) -> None:
        """Whatever happened: once all that runs ends, and nobody is waited for, the workflow ends."""
        if not hasattr(self, "world"):
            return
        world = self.world
        for child in list(self.children):
            self.end_child(child, "COMPLETED")
        world.go()
        if not world.run.state.ended:
            assert world.run.waiting, "nothing runs, nobody is waited for, and it goes on"
            self.ask(CancelWorkflow("ada"))
            world.go()
        assert world.run.state.ended
        self.nothing_runs_of_what_has_ended()


WorkflowLife.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)

TestWorkflowLife = WorkflowLife.TestCase


LIVES = 400


def some_nodes(chance: Random) -> list[Node]:
    """As `graphs`, by plain chance."""
    nodes: list[Node] = []
    for number in range(chance.randint(6, 12)):
        names = [node.name for node in nodes]
        before = chance.sample(names, min(len(names), chance.randint(0, 3)))
        options: dict[str, Any] = {
            "run_if": chance.choice(["all_succeeded", "any_succeeded", "always"]),
            "on_failure": chance.choice(["fail", "continue", "continue", "continue", "compensate"]),
        }
        if chance.random() < 0.7:
            nodes.append(step(f"n{number}", *before, compensate=chance.choice([None, TASK]), **options))
        else:
            timeout_s = chance.choice([None, 60.0])
            nodes.append(Node(name=f"n{number}", kind="approval", depends_on=before, timeout_s=timeout_s, **options))
    return nodes


def wander(seed: int) -> None:
    """One life by plain chance: the same everywhere, whatever Hypothesis finds worth trying."""
    chance, machine = Random(seed), WorkflowLife()
    machine.create(some_nodes(chance), chance.choice([None, None, 300.0]))
    for _ in range(12):
        machine.a_while_goes_by(chance, chance.randint(2, 20))
        match chance.choice(["spawn", "cancel", "time", "crash", "twice", "outdated", "nothing"]):
            case "spawn" if machine.world.running:
                machine.a_task_spawns_another(chance.randint(0, 1_000))
            case "cancel":
                machine.somebody_cancels(9)
            case "time":
                machine.time_passes(chance.choice([1, 60, 400]))
            case "crash":
                machine.a_coordinator_crashes()
            case "twice":
                machine.news_come_twice()
            case "outdated" if machine.outdated:
                machine.a_coordinator_with_an_outdated_view_is_refused(chance.randint(0, 1_000))
            case _:
                pass
        machine.versions_have_no_gap()
        machine.the_counts_are_those_of_the_nodes()
        machine.no_task_is_made_twice()
        machine.nothing_runs_of_what_has_ended()
    machine.teardown()


def test_lives_by_plain_chance_are_sound() -> None:
    for seed in range(LIVES):
        wander(seed)


def only_what_comes_right_before_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    def hasty(run: Run) -> list[str]:
        assert run.graph is not None
        free = [n.name for n in run.graph.nodes.values() if all(run.status(before) in SETTLED for before in n.depends_on)]
        return [name for name in free if name not in run.nodes]

    patch.setattr(Run, "ready", property(hasty))


def what_completed_is_in_nobodys_way(patch: pytest.MonkeyPatch) -> None:
    """Nor does it let pass what it stands before."""

    def short(graph: Graph, left: dict[str, int], statuses: dict[str, NodeStatus], nodes: Iterable[str]) -> list[str]:
        found = cleared(graph, left, dict.fromkeys(statuses, NodeStatus.RUNNING), nodes)
        return [name for name in found if name not in statuses]

    patch.setattr(workflow_run, "cleared", short)


def outdated_views_pass(patch: pytest.MonkeyPatch) -> None:
    def trusting(command: Any, state: Workflow) -> list[EventData]:
        if isinstance(command, AdvanceWorkflow):
            command = replace(command, version=state.version)
        return decide_workflow(command, state)

    patch.setattr(workflow_world, "decide_workflow", trusting)


def what_ends_leaves_tasks_behind(patch: pytest.MonkeyPatch) -> None:
    def idle(run: Run) -> bool:
        return bool(run.waiting)

    patch.setattr(Run, "busy", property(idle))


@pytest.mark.parametrize(
    "bug",
    [
        only_what_comes_right_before_is_waited_for,
        what_completed_is_in_nobodys_way,
        outdated_views_pass,
        what_ends_leaves_tasks_behind,
    ],
)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        test_lives_by_plain_chance_are_sound()
