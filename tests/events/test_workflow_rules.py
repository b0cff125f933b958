"""The rules of workflows, by value: no broker, no clock, tasks that end as the test says."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventq.events.erasure import definition_left
from eventq.events.errors import IllegalTransition, InvalidInput
from eventq.events.limits import NODE_RESULTS_MAX_BYTES
from eventq.events.task_events import ErasedEvent
from eventq.events.workflow import (
    AdvanceWorkflow,
    AnswerNode,
    CancelWorkflow,
    EraseWorkflow,
    RetryWorkflow,
    SignalWorkflow,
    WorkflowStatus,
    node_task_id,
)
from eventq.events.workflow_events import Condition, Definition, Node, WorkflowAdvanced, WorkflowErased
from eventq.events.workflow_graph import check_graph
from eventq.events.workflow_run import SETTLED, NodeStatus, Owner, Run, plan, task_of
from eventq.events.workflow_values import Unresolved, Wanted, resolve
from tests.events.workflow_world import NOON, TASK, World, graphs, step


def test_a_chain_runs_in_order_and_hands_results_on() -> None:
    world = World([step("a"), step("b", "a", kwargs={"message": {"$from": "a"}}), step("c", "b")])
    world.go()
    assert world.run.state.status is WorkflowStatus.COMPLETED
    assert world.started == ["a", "b", "c"]
    submitted = task_of(world.run, Owner("b", False), {Wanted("a", False): {"x": 1}})
    assert (submitted.kwargs, submitted.workflow_id, submitted.node) == ({"message": {"x": 1}}, "w", "b")


def test_a_failure_stops_what_runs_and_starts_nothing_more() -> None:
    world = World([step("a"), step("b"), step("c", "a"), step("d", "b")], {"a": "FAILED"})
    world.go()
    assert world.run.state.status is WorkflowStatus.FAILED
    assert world.run.state.because == "a"
    assert world.statuses() == {"a": "FAILED", "b": "CANCELLED", "c": "BLOCKED", "d": "BLOCKED"}


def test_a_failure_that_is_borne_skips_dependents_and_the_rest_goes_on() -> None:
    nodes = [
        step("a", on_failure="continue"),
        step("b"),
        step("c", "a"),
        step("d", "c"),
        step("e", "a", "b", run_if="any_succeeded"),
        step("f", "a", run_if="always"),
    ]
    world = World(nodes, {"a": "FAILED"})
    world.go()
    assert world.run.state.status is WorkflowStatus.COMPLETED
    assert world.statuses() == {
        "a": "FAILED",
        "b": "COMPLETED",
        "c": "SKIPPED",
        "d": "SKIPPED",
        "e": "COMPLETED",
        "f": "COMPLETED",
    }


def test_compensation_undoes_what_completed_last_first() -> None:
    nodes = [
        step("a", compensate=TASK),
        step("b", "a", compensate=TASK),
        step("c", "b"),
        step("d", "c", on_failure="compensate"),
    ]
    world = World(nodes, {"d": "FAILED"})
    world.go()
    assert world.run.state.status is WorkflowStatus.FAILED
    assert world.made[-2:] == [node_task_id("w", name, 1, compensation=True) for name in ("b", "a")]
    assert world.statuses() == {"a": "COMPENSATED", "b": "COMPENSATED", "c": "COMPLETED", "d": "FAILED"}


def test_a_compensation_that_fails_is_told_and_the_others_run() -> None:
    nodes = [step("a", compensate=TASK), step("b", "a", compensate=TASK), step("c", "b", on_failure="compensate")]
    world = World(nodes, {"c": "FAILED", "b undone": "FAILED"})
    world.go()
    assert world.statuses() == {"a": "COMPENSATED", "b": "COMPLETED", "c": "FAILED"}
    assert world.log[-1][1].uncompensated == ["b"]


def test_a_condition_that_does_not_hold_skips_the_node() -> None:
    nodes = [
        step("a"),
        step("b", "a", when=[Condition(node="a", path="/n", op="greater", value=3)]),
        step("c", "a", when=[Condition(node="a", path="/n", op="less_or_equal", value=3)]),
    ]
    world = World(nodes, results={"a": {"n": 3}})
    world.go()
    assert world.statuses() == {"a": "COMPLETED", "b": "SKIPPED", "c": "COMPLETED"}


def test_a_reference_that_leads_nowhere_fails_the_node() -> None:
    world = World([step("a"), step("b", "a", kwargs={"x": {"$from": "a", "path": "/nothing"}})], results={"a": {}})
    world.go()
    assert world.statuses() == {"a": "COMPLETED", "b": "FAILED"}
    assert world.run.state.status is WorkflowStatus.FAILED


def test_approvals_wait_and_the_word_decides() -> None:
    for approved, status in ((True, WorkflowStatus.COMPLETED), (False, WorkflowStatus.FAILED)):
        world = World([step("a"), Node(name="ok", kind="approval", depends_on=["a"]), step("b", "ok")])
        with pytest.raises(IllegalTransition):
            world.command(AnswerNode("ok", approved, "ada"))
        world.go()
        assert world.run.state.approvals == ["ok"]
        world.command(AnswerNode("ok", approved, "ada"))
        with pytest.raises(IllegalTransition):
            world.command(AnswerNode("ok", not approved, "bob"))
        world.go()
        assert world.run.state.status is status


def test_an_early_signal_is_kept() -> None:
    world = World([step("a"), Node(name="s", kind="signal", signal="paid", depends_on=["a"])])
    world.command(SignalWorkflow("paid", {"amount": 1}, "ada"))
    world.go()
    assert world.run.state.status is WorkflowStatus.COMPLETED


def test_a_signal_after_the_wait_has_ended_does_not_change_what_was_heard() -> None:
    world = World([Node(name="s", kind="signal", signal="paid"), Node(name="ok", kind="approval")])
    world.command(SignalWorkflow("paid", 1, "ada"))
    world.command(SignalWorkflow("paid", 2, "ada"))
    world.settle()
    assert world.run.status("s") == "COMPLETED"
    world.command(SignalWorkflow("paid", 3, "ada"))
    assert world.run.payload_of("s") == 2
    assert world.run.signals == {"paid": 3}


def test_what_can_be_told_without_missing_results_is_told_where_no_more_can_be_had() -> None:
    world = World([step("a"), step("b", "a", kwargs={"x": {"$from": "a"}}), step("c", "a")])
    world.settle()
    world.end(node_task_id("w", "a", 1))
    assert plan(world.run, {}, NOON).missing == (Wanted("a", False),)
    event = plan(world.run, {}, NOON, enough=True).event
    assert isinstance(event, WorkflowAdvanced)
    assert ([end.node for end in event.finished], event.released) == (["a"], ["c"])
    world.command(AdvanceWorkflow(world.run.state.version, event))
    assert plan(world.run, {}, NOON, enough=True).missing == (Wanted("a", False),), "nothing can be told without"


def test_a_signal_that_comes_too_late_starts_nothing_again() -> None:
    world = World([Node(name="s", kind="signal", signal="paid"), step("a", "s"), Node(name="ok", kind="approval")])
    world.command(SignalWorkflow("paid", 1, "ada"))
    world.go()
    world.command(SignalWorkflow("paid", 2, "ada"))
    world.go()
    assert (world.started, world.statuses()) == (["a"], {"s": "COMPLETED", "a": "COMPLETED", "ok": "WAITING"})
    world.command(CancelWorkflow("ada"))
    world.go()
    assert world.run.state.status is WorkflowStatus.CANCELLED
    with pytest.raises(IllegalTransition):
        world.command(SignalWorkflow("paid", 3, "ada"))


def test_waits_and_workflows_time_out() -> None:
    world = World([Node(name="ok", kind="approval", timeout_s=60)])
    world.settle()
    assert world.run.next_deadline() == NOON + timedelta(seconds=60)
    world.now += timedelta(seconds=60)
    world.settle()
    assert world.statuses() == {"ok": "TIMED_OUT"}
    assert world.run.state.status is WorkflowStatus.FAILED
    world = World([step("a"), step("b", "a")], timeout_s=5)
    world.settle()
    world.now += timedelta(seconds=5)
    world.settle()
    assert world.run.state.status is WorkflowStatus.TIMED_OUT


def test_a_retry_runs_what_did_not_complete_again() -> None:
    world = World([step("a"), step("b", "a"), step("c", "b")], {"b": "FAILED"})
    world.go()
    world.outcomes = {}
    world.command(RetryWorkflow("ada", world.now))
    world.started.clear()
    world.go()
    assert world.started == ["b", "c"]
    assert world.made[-2:] == [node_task_id("w", name, 2) for name in ("b", "c")]
    assert world.run.state.status is WorkflowStatus.COMPLETED
    assert world.run.state.counts == {"COMPLETED": 3}


CREATED = {"version": 1, "type": "created", "schema": 1, "data": {"name": "w", "nodes": 1}}
ERASE = EraseWorkflow("ada", "asked to", (ErasedEvent(position=1, subject="workflows.w.1.created", event=CREATED),), ("blob",))


def test_an_ended_workflow_is_emptied_and_not_retried() -> None:
    world = World([step("a"), step("b", "a")], {"b": "FAILED"})
    world.go()
    assert world.command(replace(ERASE, events=())) == [], "where nothing is to be erased nothing follows"
    assert world.command(ERASE) == [
        WorkflowErased(requested_by="ada", reason="asked to", events=list(ERASE.events), blobs=["blob"])
    ]
    assert (world.run.state.status, world.run.state.erased) == (WorkflowStatus.FAILED, True)
    with pytest.raises(IllegalTransition, match="arguments were erased"):
        world.command(RetryWorkflow("ada", world.now))


def test_what_a_workflow_may_need_yet_is_not_erased() -> None:
    world = World([step("a"), step("b", "a")])
    for events in (ERASE.events, ()):
        with pytest.raises(IllegalTransition, match="may need its arguments yet"):
            world.command(replace(ERASE, events=events))


@pytest.mark.parametrize("where", ["kwargs", "args", "compensate", "when", "tags"])
def test_what_is_left_of_a_definition_is_its_structure(where: str) -> None:
    given = {"args": ["secret"], "kwargs": {"x": "secret"}, "tags": ["secret"]}
    changes = {name: value for name, value in given.items() if name == where or (name, where) == ("kwargs", "compensate")}
    task = TASK.model_copy(update=changes)
    condition = [Condition(node="a", path="/n", value="secret")] if where == "when" else []
    node = Node(name="b", depends_on=["a"], task=task, compensate=task if where == "compensate" else None, when=condition)
    (left,) = definition_left(Definition(nodes=[node])).nodes
    assert "secret" not in left.model_dump_json()
    assert (left.name, left.depends_on, [(each.node, each.path) for each in left.when]) == (
        "b",
        ["a"],
        [("a", "/n") for _ in condition],
    )
    assert (left.compensate is None) == (node.compensate is None)


def test_what_completed_is_not_run_again_though_what_comes_before_it_is() -> None:
    nodes = [
        step("a", on_failure="continue"),
        step("b", "a", run_if="always"),
        step("c", "b", kwargs={"x": {"$from": "a"}}),
        step("d", "c"),
    ]
    world = World(nodes, {"a": "FAILED", "c": "FAILED"})
    world.go()
    world.outcomes = {}
    world.started.clear()
    world.command(RetryWorkflow("ada", world.now))
    world.settle()
    assert world.started == ["a"], "c wants the result of a, although b, between them, has completed"
    world.go()
    assert world.started == ["a", "c", "d"]
    assert world.run.state.status is WorkflowStatus.COMPLETED
    assert world.run.state.counts == {"COMPLETED": 4}


def test_what_was_undone_is_done_again_before_what_comes_after_it() -> None:
    nodes = [
        step("reserve", compensate=TASK),
        step("check", "reserve"),
        step("pay", "check", on_failure="compensate"),
        step("ship", "pay", kwargs={"from": {"$from": "reserve"}}),
    ]
    world = World(nodes, {"pay": "FAILED"})
    world.go()
    world.outcomes = {}
    world.started.clear()
    world.command(RetryWorkflow("ada", world.now))
    world.settle()
    assert world.started == ["reserve"]
    world.go()
    assert world.started == ["reserve", "pay", "ship"]
    assert world.run.state.counts == {"COMPLETED": 4}


def test_a_cancelled_workflow_starts_nothing_and_is_cancelled_once_all_has_stopped() -> None:
    world = World([step("a"), step("b", "a")])
    world.settle()
    world.command(CancelWorkflow("ada", "enough"))
    assert world.run.state.status == "STOPPING"
    assert plan(world.run, {}, NOON).event is None
    (a,) = world.running
    world.end(a, "CANCELLED")
    world.settle()
    assert world.run.state.status == "CANCELLED"
    assert not world.command(CancelWorkflow("ada", "again"))


def test_a_node_lasts_until_all_that_it_spawned_has_ended() -> None:
    world = World([step("a"), step("b", "a")])
    world.settle()
    (a,) = world.running
    world.note("child", "PENDING", a)
    world.note("grandchild", "PENDING", "child")
    world.end(a)
    world.note("child", "COMPLETED", a)
    world.settle()
    assert world.statuses() == {"a": "RUNNING", "b": "BLOCKED"}
    world.note("grandchild", "COMPLETED", "child")
    world.settle()
    assert world.statuses() == {"a": "COMPLETED", "b": "RUNNING"}


def test_a_child_that_fails_fails_the_node() -> None:
    world = World([step("a")])
    world.settle()
    (a,) = world.running
    world.note("child", "PENDING", a)
    world.note("child", "FAILED", a)
    world.end(a)
    world.settle()
    assert world.run.state.status is WorkflowStatus.FAILED


def test_an_outdated_view_advances_nothing() -> None:
    world = World([step("a")])
    event = plan(world.run, {}, NOON).event
    assert event is not None
    world.command(SignalWorkflow("x", None, "ada"))
    with pytest.raises(IllegalTransition):
        world.command(AdvanceWorkflow(1, event))


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([step("a", "c"), step("b", "a"), step("c", "b")], "a -> b -> c -> a"),
        ([step("a", "a")], "a -> a"),
        ([step("a"), step("a")], "another node"),
        ([step("a", "x")], "not the name"),
        ([step("a"), step("b", kwargs={"x": {"$from": "a"}})], "does not depend on"),
        ([step("a"), step("b", "a", kwargs={"x": {"$from": "a", "typo": 1}})], "must be a reference"),
        ([step("a"), step("b", when=[Condition(node="a")])], "does not depend on"),
        ([step(f"n{number}") for number in range(1001)], "1 to 1000"),
    ],
)
def test_what_is_no_workflow_is_refused_by_name(nodes: list[Node], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_graph(nodes)
    # Where a cycle is entered is the search's business.
    found = caught.value.detail
    turns = [said, said.replace("a -> b -> c -> a", "b -> c -> a -> b"), said.replace("a -> b -> c -> a", "c -> a -> b -> c")]
    assert any(turn in found for turn in turns), found


@settings(max_examples=300, deadline=None)
@given(graphs(), st.data(), st.randoms(use_true_random=False))
def test_random_graphs_end_and_start_nothing_early(nodes: list[Node], data: st.DataObject, order: random.Random) -> None:
    ends = st.sampled_from(["COMPLETED", "COMPLETED", "COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"])
    world = World(nodes, {node.name: data.draw(ends) for node in nodes})
    world.go(order)
    state = world.run.state
    assert state.ended
    ended = {name for name, status in world.statuses().items() if NodeStatus(status) in SETTLED}
    assert ended == {node.name for node in nodes} or state.status is not WorkflowStatus.COMPLETED
    assert len(world.made) == len(set(world.made))
    assert len(world.started) == len(set(world.started))
    told: set[str] = set()
    depends_on = {node.name: set(node.depends_on) for node in nodes}
    for kind, event in world.log:
        if kind == "workflow" and isinstance(event, WorkflowAdvanced):
            told |= {end.node for end in event.finished} | {skip.node for skip in event.skipped}
            assert all(depends_on[name] <= told for name in event.released)
    counted = {s: list(world.statuses().values()).count(s) for s in world.statuses().values() if s != "BLOCKED"}
    assert state.counts == counted


@settings(max_examples=200, deadline=None)
@given(graphs(), st.data(), st.randoms(use_true_random=False))
def test_the_fold_of_the_log_is_the_same_whoever_folds_it(nodes: list[Node], data: st.DataObject, order: random.Random) -> None:
    """A coordinator that starts anew, and one that knows the nodes only late, see what the first one saw."""
    ends = st.sampled_from(["COMPLETED", "COMPLETED", "FAILED"])
    world = World(nodes, {node.name: data.draw(ends) for node in nodes})
    world.go(order)
    cut = data.draw(st.integers(1, len(world.log)))
    early, late = world.new_run(), Run("w")
    number = 0
    for position, (kind, news) in enumerate(world.log):
        for run in (early, late):
            if kind == "workflow":
                run.apply(f"e{position}", NOON, news)
            else:
                run.note_task(*news)
        if position + 1 == cut:
            late.know(Definition(nodes=list(nodes)))
        number += 1
    assert number == len(world.log)
    for run in (early, late):
        assert run.nodes == world.run.nodes
        assert run.state.counts == world.run.state.counts
        assert sorted(run.ready) == sorted(world.run.ready)
        assert run.completed_order == world.run.completed_order


def test_a_result_is_taken_often_but_not_until_it_is_too_large() -> None:
    results = {Wanted("a", False): {"text": "x" * 1024 * 1024}}
    whole, part = {"$from": "a"}, {"$from": "a", "path": "/text"}
    assert resolve([whole, part, part], results) == [results[Wanted("a", False)], *["x" * 1024 * 1024] * 2]
    with pytest.raises(Unresolved, match=f"larger than {NODE_RESULTS_MAX_BYTES} bytes together"):
        resolve({"message": [whole] * 40 + [part] * 40}, results)
