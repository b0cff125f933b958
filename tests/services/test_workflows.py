"""Workflows over a real broker, through the API: what runs when, with what, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventq.events.commands import CleanTask
from eventq.events.ending import end
from eventq.events.errors import IllegalTransition, LogUnavailable, VersionConflict
from eventq.events.handle import handle, handle_any
from eventq.events.limits import NODE_RESULTS_MAX_BYTES
from eventq.events.task_events import Submitted
from eventq.events.workflow import DEADLINE, WORKFLOWS, AdvanceWorkflow, node_task_id
from eventq.events.workflow_events import NodeEnd, WorkflowAdvanced
from eventq.services import coordinator as coordinator_module
from eventq.services.coordinator import TAKERS_MAX
from eventq.services.node_results import NodeResults
from eventq.services.promoter import Promoter
from tests.services.backend import Backend
from tests.services.workflows import Site, TaskFailure, statuses, step
from tests.support.nats import NatsServer
from tests.support.poll import eventually

ECHO = Submitted(task_name="echo", pool="cpu", queue="default", priority=7, max_retries=0)


@pytest.fixture
async def site(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Site]:
    backend = await Backend.start(own_nats_server.url, tmp_path)
    await backend.register_worker()
    yield Site(backend)
    await backend.close()


def fail(_: Submitted) -> Any:
    raise TaskFailure("no")


async def test_results_pass_from_node_to_node(site: Site) -> None:
    site.code["a"] = lambda _: {"list": [1, {"x": 5}]}
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(
            step("a"),
            step("b", "a", task_kwargs={"message": {"part": {"$from": "a", "path": "/list/1/x"}}}),
            step("c", "a", "b", task_kwargs={"message": [{"$from": "a"}, {"$from": "b", "path": "/message"}]}),
        )
        done = await site.until(workflow_id, "COMPLETED")
    assert done["result"] == {"c": {"message": [{"list": [1, {"x": 5}]}, {"part": 5}]}}
    assert done["counts"] == {"COMPLETED": 3}
    assert {"source": "a", "target": "c"} in done["edges"]
    assert set((await site.made()).values()) == {1}
    status, answer = await site.backend.post("/projection/verify")
    assert (status, answer["equal"]) == (200, True), answer


async def test_a_failure_cancels_what_runs_and_a_retry_runs_only_what_did_not_complete(site: Site) -> None:
    site.code["b"] = fail
    site.held = {"slow", "b"}
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(step("a"), step("b", "a", max_retries=0), step("slow"), step("c", "b", "slow"))
        await site.until_node(workflow_id, "b", "RUNNING")
        site.held.discard("b")
        failed = await site.until(workflow_id, "FAILED")
        assert statuses(failed) == {"a": "COMPLETED", "b": "FAILED", "slow": "CANCELLED", "c": "CANCELLED"}
        assert failed["because"] == "b"
        site.held, site.code = set(), {}
        status, answer = await site.backend.post(f"/workflows/{workflow_id}/retry")
        assert (status, answer["run"]) == (200, 2)
        done = await site.until(workflow_id, "COMPLETED")
    assert [node["run"] for node in done["nodes"]] == [1, 2, 2, 2]
    assert (await site.made())[f"{workflow_id} a"] == 1


async def test_completed_work_is_undone_in_reverse_order(site: Site) -> None:
    undone: list[Any] = []
    site.code["c"] = fail
    site.code["a"] = lambda given: undone.append(given.kwargs) if "message" in given.kwargs else "made a"
    undo = {"task_name": "echo", "task_kwargs": {"message": {"$from": "a"}}}
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(
            step("a", compensate=undo), step("b", "a"), step("c", "b", on_failure="compensate", max_retries=0)
        )
        failed = await site.until(workflow_id, "FAILED")
    assert statuses(failed) == {"a": "COMPENSATED", "b": "COMPLETED", "c": "FAILED"}
    assert undone == [{"message": "made a"}]


async def test_people_approve_and_signals_come_early(site: Site) -> None:
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(
            step("a"),
            {"name": "ok", "kind": "approval", "depends_on": ["a"]},
            {"name": "paid", "kind": "signal", "depends_on": ["ok"]},
            step("b", "paid", "ok", task_kwargs={"message": [{"$from": "paid"}, {"$from": "ok", "path": "/by"}]}),
        )
        status, _ = await site.backend.post(f"/workflows/{workflow_id}/signals/paid", {"payload": {"sum": 3}})
        assert status == 200
        await site.until_node(workflow_id, "ok", "WAITING")
        status, _ = await site.backend.post(f"/workflows/{workflow_id}/nodes/ok/approve", {"by": "ada", "comment": "fine"})
        assert status == 200
        done = await site.until(workflow_id, "COMPLETED")
        status, answer = await site.backend.post(f"/workflows/{workflow_id}/nodes/ok/approve", {"by": "ada"})
        assert (status, answer["code"]) == (409, "ILLEGAL_TRANSITION")
    assert done["result"] == {"b": {"message": [{"sum": 3}, "ada"]}}
    assert done["nodes"][1]["result"] == {"approved": True, "by": "ada", "comment": "fine"}
    status, timeline = await site.backend.get(f"/workflows/{workflow_id}/timeline")
    kinds = [event["event_type"] for event in timeline["events"]]
    assert (kinds[0], kinds[-1]) == ("created", "completed")
    assert {"signalled", "approved"} <= set(kinds)


async def test_a_rejection_fails_and_a_wait_times_out(site: Site) -> None:
    async with site.coordinator():
        rejected = await site.submit({"name": "ok", "kind": "approval"})
        late = await site.submit({"name": "s", "kind": "signal", "wait_timeout_seconds": 0.3})
        whole = await site.submit({"name": "ok", "kind": "approval"}, timeout_seconds=0.3)
        await site.until_node(rejected, "ok", "WAITING")
        status, _ = await site.backend.post(f"/workflows/{rejected}/nodes/ok/reject", {"by": "ada"})
        assert status == 200
        assert statuses(await site.until(rejected, "FAILED")) == {"ok": "FAILED"}
        assert statuses(await site.until(late, "FAILED")) == {"s": "TIMED_OUT"}
        assert statuses(await site.until(whole, "TIMED_OUT")) == {"ok": "CANCELLED"}


async def test_a_cancelled_workflow_stops_what_runs(site: Site) -> None:
    site.held = {"a"}
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(step("a"), step("b", "a"))
        await site.until_node(workflow_id, "a", "RUNNING")
        status, answer = await site.backend.post(f"/workflows/{workflow_id}/cancel", {"reason": "enough"})
        assert (status, answer["status"]) == (200, "STOPPING")
        cancelled = await site.until(workflow_id, "CANCELLED")
    assert statuses(cancelled) == {"a": "CANCELLED", "b": "CANCELLED"}
    assert cancelled["cancel_reason"] == "enough"
    assert (await site.made()) == {f"{workflow_id} a": 1}


async def test_what_running_tasks_spawn_belongs_to_their_node(site: Site) -> None:
    site.held = {"a"}
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(step("a"), step("b", "a", task_kwargs={"message": {"$from": "a", "children": True}}))
        parent = node_task_id(workflow_id, "a", 1)

        async def started() -> bool:
            return (await site.task(parent)).status == "RUNNING"

        await eventually(started, timeout=20, what="the parent runs")
        child = ECHO.model_copy(update={"parent_task_id": parent, "workflow_id": workflow_id})
        for number in range(3):
            spawned = child.model_copy(update={"kwargs": {"message": number}})
            await site.backend.api.submitter.submit(f"child-{number}", spawned)
        site.held = set()
        done = await site.until(workflow_id, "COMPLETED")
    assert done["result"] == {"b": {"message": [{"message": 0}, {"message": 1}, {"message": 2}]}}


async def test_two_coordinators_make_every_task_once(site: Site) -> None:
    async with site.coordinator() as one, site.coordinator() as other, site.workers():
        ids = [await site.submit(step("a"), *(step(f"b{n}", "a") for n in range(8)), step("c", "b0", "b7")) for _ in range(10)]
        for workflow_id in ids:
            await site.until(workflow_id, "COMPLETED")
    made = await site.made()
    assert len(made) == 100
    assert set(made.values()) == {1}
    assert one.advanced + other.advanced == sum(
        event.aggregate == "workflows" and event.type != "created" for event in await site.history()
    )


async def test_two_coordinators_that_derive_ids_each_from_its_own_secret_make_a_task_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: each of them by itself would make every task once."""
    secret: ContextVar[str] = ContextVar("secret")  # of the coordinator that was begun with it

    def derived(workflow_id: str, node: str, run: int, *, compensation: bool = False) -> str:
        return node_task_id(f"{secret.get()} {workflow_id}", node, run, compensation=compensation)

    monkeypatch.setattr("eventq.events.workflow_run.node_task_id", derived)
    monkeypatch.setattr("eventq.services.coordinator.HELP_AFTER_S", 0.0)
    secret.set("one")
    async with site.coordinator():
        secret.set("other")
        async with site.coordinator():
            workflow_id = await site.submit(step("a"))

            async def made_twice() -> bool:
                return await site.made() == {f"{workflow_id} a": 2}

            await eventually(made_twice, timeout=20, what="each of them makes it")


async def test_a_coordinator_that_starts_late_goes_on_where_the_log_ends(site: Site) -> None:
    async with site.workers():
        async with site.coordinator():
            site.held = {"a"}
            workflow_id = await site.submit(step("a"), step("b", "a"))
            await site.until_node(workflow_id, "a", "RUNNING")
        site.held = set()
        async with site.coordinator():
            await site.until(workflow_id, "COMPLETED")
            status, _ = await site.backend.post(f"/workflows/{workflow_id}/retry")
            assert status == 409
    assert set((await site.made()).values()) == {1}


async def test_large_definitions_and_arguments_go_through_the_blob_store(site: Site) -> None:
    text = "x" * 40_000
    both = [{"$from": "a", "path": "/message"}, {"$from": "b", "path": "/message"}]
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(
            step("a", task_kwargs={"message": text}),
            step("b", task_kwargs={"message": text}),
            step("c", "a", "b", task_kwargs={"message": both}),
        )
        done = await site.until(workflow_id, "COMPLETED")
    last = await site.backend.log.at("tasks", done["nodes"][2]["task_id"], 1)
    assert last is not None
    assert isinstance(last.event.data, Submitted)
    assert last.event.data.input is not None
    assert last.event.data.input.size_bytes > 80_000
    first = await site.backend.log.at("workflows", workflow_id, 1)
    assert first is not None
    assert "definition" not in first.event.data.wire()


async def test_a_node_that_takes_too_much_fails_and_others_beside_it_take_what_they_need(site: Site) -> None:
    """Each node reads large results of its own; all together are more than is read at once, and those of ``greedy`` alone."""
    large = await site.backend.api.blobs.put_async(orjson.dumps("x" * 15 * 1024 * 1024), media_type="application/json")
    wants = {"b": 4, "c": 4, "greedy": 5}
    sources = {name: [f"{name}{number}" for number in range(count)] for name, count in wants.items()}
    site.code |= dict.fromkeys([each for some in sources.values() for each in some], lambda _: large)
    site.code |= dict.fromkeys(wants, lambda _: "ran")
    takers = [
        step(name, *some, task_kwargs={"message": [{"$from": each} for each in some]}, on_failure="continue")
        for name, some in sources.items()
    ]
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(*(step(each) for some in sources.values() for each in some), *takers)
        done = await site.until(workflow_id, "COMPLETED", patience_s=60)
    assert {name: status for name, status in statuses(done).items() if name in wants} == {
        "b": "COMPLETED",
        "c": "COMPLETED",
        "greedy": "FAILED",
    }
    reason = next(node["reason"] for node in done["nodes"] if node["name"] == "greedy")
    assert f"larger than {NODE_RESULTS_MAX_BYTES} bytes together" in reason


async def test_a_node_that_takes_too_much_keeps_nobody_from_the_results_that_it_wanted(site: Site) -> None:
    large = await site.backend.api.blobs.put_async(orjson.dumps("x" * 15 * 1024 * 1024), media_type="application/json")
    sources, modest = [f"r{number}" for number in range(5)], [f"m{number}" for number in range(5)]

    def give_much(_: Submitted) -> Any:
        return large

    def give_little(_: Submitted) -> Any:
        return "ran"

    site.code |= dict.fromkeys(sources, give_much) | dict.fromkeys(modest, give_little)
    takers = [
        step("greedy", *sources, task_kwargs={"message": [{"$from": each} for each in sources]}, on_failure="continue"),
        *(
            step(name, *sources, task_kwargs={"message": {"$from": source}}, on_failure="continue")
            for name, source in zip(modest, sources, strict=True)
        ),
    ]
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(*map(step, sources), *takers)
        done = await site.until(workflow_id, "COMPLETED", patience_s=60)
    assert {name: status for name, status in statuses(done).items() if name not in sources} == {
        "greedy": "FAILED",
        **dict.fromkeys(modest, "COMPLETED"),
    }


async def test_only_few_hold_results_in_memory_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many workflows there are: all of these can go on when the second coordinator begins."""
    taking, most, enough = 0, 0, asyncio.Event()
    honest = NodeResults.fetch

    async def counted(*arguments: Any) -> None:
        nonlocal taking, most
        taking += 1
        most = max(most, taking)
        if taking >= TAKERS_MAX:
            enough.set()
        await enough.wait()
        await honest(*arguments)
        taking -= 1

    async with site.coordinator():
        nodes = step("a"), step("b", "a", task_kwargs={"message": {"$from": "a"}})
        ids = [await site.submit(*nodes) for _ in range(2 * TAKERS_MAX)]
        await eventually(lambda: made_of_all(site, ids, "a"), timeout=20)
    async with site.workers():
        await eventually(lambda: completed(site, [node_task_id(workflow_id, "a", 1) for workflow_id in ids]), timeout=20)
        monkeypatch.setattr(NodeResults, "fetch", counted)
        async with site.coordinator():
            for workflow_id in ids:
                await site.until(workflow_id, "COMPLETED")
    assert most == TAKERS_MAX


async def test_a_step_that_takes_no_results_waits_for_none_who_do(site: Site) -> None:
    async with site.coordinator() as coordinator, site.workers(), AsyncExitStack() as all_places:
        for _ in range(TAKERS_MAX):  # as where the blob store takes its time
            await all_places.enter_async_context(coordinator._takers)  # pyright: ignore[reportPrivateUsage]
        await site.until(await site.submit(step("a"), step("b", "a")), "COMPLETED")


async def made_of_all(site: Site, workflow_ids: list[str], node: str) -> bool:
    made = await site.made()
    return all(made[f"{workflow_id} {node}"] for workflow_id in workflow_ids)


async def completed(site: Site, task_ids: list[str]) -> bool:
    tasks = [(await site.backend.get(f"/tasks/{task_id}"))[1] for task_id in task_ids]
    return all(task["status"] == "COMPLETED" for task in tasks)


async def test_a_signal_that_comes_after_its_node_has_ended_changes_nothing(site: Site) -> None:
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(
            {"name": "paid", "kind": "signal"},
            {"name": "ok", "kind": "approval"},
            step("b", "paid", "ok", task_kwargs={"message": {"$from": "paid"}}),
        )
        await site.backend.post(f"/workflows/{workflow_id}/signals/paid", {"payload": 3})
        await site.until_node(workflow_id, "paid", "COMPLETED")
        await site.backend.post(f"/workflows/{workflow_id}/signals/paid", {"payload": 4})
        await site.backend.post(f"/workflows/{workflow_id}/nodes/ok/approve", {"by": "ada"})
        done = await site.until(workflow_id, "COMPLETED")
    assert done["result"] == {"b": {"message": 3}}
    assert done["nodes"][0]["result"] == 3


async def test_one_key_makes_one_workflow(site: Site) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await site.submit(step("a"), headers=headers)
    assert await site.submit(step("a"), headers=headers) == first
    body = {"name": "w", "nodes": [step("other")]}
    status, answer = await site.backend.post("/workflows", body, headers=headers)
    assert (status, answer["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize(
    ("nodes", "field", "said"),
    [
        ([step("a", "b"), step("b", "a")], "/nodes", "cycle: "),
        ([step("a", task_name="ecko")], "/nodes/0/task_name", "not a task"),
        ([step("a", task_kwargs={"massage": 1})], "/nodes/0/task_kwargs/massage", "not a parameter"),
        (
            [step("a"), {"name": "b", "depends_on": ["a"], "task_name": "resize", "task_kwargs": {"name": {"$from": "a"}}}],
            "/nodes/1/task_kwargs/width",
            "is required",
        ),
        ([step("a", task_kwargs={"message": {"$from": "z"}})], "/nodes/0/task_kwargs/message/$from", "not the name"),
        ([step("a", task_kwargs={"message": [{"$from": 1}]})], "/nodes/0/task_kwargs/message/0", "must be a reference"),
        ([step("a", task_args=[{"$from": "a", "path": "x"}])], "/nodes/0/task_args/0/path", "must be a JSON pointer"),
        ([step("a", depend_on=[])], "/nodes/0/depend_on", "is not a known field"),
        ([{"name": "a", "kind": "approval", "task_name": "echo"}], "/nodes/0/task_name", "runs no task"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_stored(
    site: Site, nodes: list[dict[str, Any]], field: str, said: str
) -> None:
    before = await site.backend.last_position()
    status, answer = await site.backend.post("/workflows", {"name": "w", "nodes": nodes})
    assert (status, answer["field"]) == (400, field), answer
    assert said in answer["detail"]
    assert await site.backend.last_position() == before


async def test_lists_filter_by_status_and_name(site: Site) -> None:
    async with site.coordinator(), site.workers():
        done = await site.submit(step("a"), name="one")
        await site.submit({"name": "ok", "kind": "approval"}, name="two")
        await site.until(done, "COMPLETED")
    status, page = await site.backend.get("/workflows", params={"status": "COMPLETED"})
    assert (status, [each["workflow_id"] for each in page["workflows"]]) == (200, [done])
    status, page = await site.backend.get("/workflows", params={"name": "two"})
    assert (page["total"], page["workflows"][0]["name"]) == (1, "two")
    status, _ = await site.backend.get("/workflows/nothing")
    assert status == 404


async def test_wide_and_deep_graphs_run(site: Site) -> None:
    async with site.coordinator(), site.workers(16):
        wide = await site.submit(step("a"), *(step(f"n{n}", "a") for n in range(300)))
        chain = [step("n0"), *(step(f"n{n}", f"n{n - 1}") for n in range(1, 100))]
        deep = await site.submit(*chain)
        many = [await site.submit(step("a"), *(step(f"b{n}", "a") for n in range(8)), step("c", "b0")) for _ in range(100)]
        for workflow_id in (wide, deep, *many):
            await site.until(workflow_id, "COMPLETED", patience_s=60)
    assert set((await site.made()).values()) == {1}


async def test_what_was_released_and_never_made_never_runs_once_the_workflow_is_cancelled(site: Site) -> None:
    """The coordinator died between its event and the tasks; before the next one looks, somebody cancels."""
    workflow_id = await site.submit(step("a"), step("b", "a"))
    log = site.backend.log
    command = AdvanceWorkflow(1, WorkflowAdvanced(released=["a"]))
    await handle_any(log, WORKFLOWS, workflow_id, command, source="dead")
    status, _ = await site.backend.post(f"/workflows/{workflow_id}/cancel")
    assert status == 200
    async with site.coordinator(), site.workers():
        cancelled = await site.until(workflow_id, "CANCELLED")
    assert statuses(cancelled) == {"a": "CANCELLED", "b": "CANCELLED"}
    task_id = node_task_id(workflow_id, "a", 1)
    with pytest.raises(IllegalTransition):
        await site.backend.api.submitter.submit(task_id, ECHO)
    assert [event.type for event in await site.history() if event.aggregate_id == task_id] == ["submitted", "cancelled"]


async def test_what_was_released_and_never_made_is_made_by_another_coordinator(site: Site) -> None:
    workflow_id = await site.submit(step("a"), step("b", "a"))
    command = AdvanceWorkflow(1, WorkflowAdvanced(released=["a"]))
    await handle_any(site.backend.log, WORKFLOWS, workflow_id, command, source="dead")
    async with site.coordinator(), site.coordinator(), site.workers():
        await site.until(workflow_id, "COMPLETED")
    assert set((await site.made()).values()) == {1}


async def test_an_ended_workflow_is_retried_by_a_coordinator_that_never_saw_it(site: Site) -> None:
    site.code["b"] = fail
    site.held = {"a"}
    async with site.workers():
        async with site.coordinator():
            workflow_id = await site.submit(
                step("a"),
                step("b", "a", max_retries=0),
                step("c", "b", task_kwargs={"message": [{"$from": "a", "children": True}, {"$from": "a"}]}),
            )
            await site.until_node(workflow_id, "a", "RUNNING")
            parent = node_task_id(workflow_id, "a", 1)

            async def started() -> bool:
                return (await site.task(parent)).status == "RUNNING"

            await eventually(started, timeout=20, what="the parent runs")
            fields = {"parent_task_id": parent, "workflow_id": workflow_id, "kwargs": {"message": 1}}
            child = ECHO.model_copy(update=fields)
            await site.backend.api.submitter.submit("child", child)
            site.held = set()
            await site.until(workflow_id, "FAILED")
        site.code = {}
        async with site.coordinator():
            status, _ = await site.backend.post(f"/workflows/{workflow_id}/retry")
            assert status == 200
            done = await site.until(workflow_id, "COMPLETED")
    assert done["result"] == {"c": {"message": [[{"message": 1}], []]}}


async def test_a_result_that_was_given_up_fails_the_node_that_needs_it(site: Site) -> None:
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(
            step("a"),
            {"name": "ok", "kind": "approval", "depends_on": ["a"]},
            step("b", "ok", task_kwargs={"message": {"$from": "a"}}),
        )
        await site.until_node(workflow_id, "ok", "WAITING")
    await handle(site.backend.log, node_task_id(workflow_id, "a", 1), CleanTask("ada", "requested"), source="test")
    async with site.coordinator():
        await site.backend.post(f"/workflows/{workflow_id}/nodes/ok/approve", {"by": "ada"})
        failed = await site.until(workflow_id, "FAILED")
    assert "given up" in failed["nodes"][2]["reason"]


async def test_a_result_that_was_given_up_before_the_released_task_was_made_fails_the_node(site: Site) -> None:
    site.held = {"a"}
    async with site.workers():
        async with site.coordinator():
            workflow_id = await site.submit(step("a"), step("b", "a", task_kwargs={"message": {"$from": "a"}}))
            await site.until_node(workflow_id, "a", "RUNNING")
        site.held = set()
        task_id = node_task_id(workflow_id, "a", 1)

        async def completed() -> bool:
            return (await site.task(task_id)).status == "COMPLETED"

        await eventually(completed, timeout=20, what="the task completes")
        event = WorkflowAdvanced(finished=[NodeEnd(node="a", outcome="COMPLETED")], released=["b"])
        await handle_any(site.backend.log, WORKFLOWS, workflow_id, AdvanceWorkflow(2, event), source="dead")
        await handle(site.backend.log, task_id, CleanTask("ada", "requested"), source="test")
        async with site.coordinator():
            failed = await site.until(workflow_id, "FAILED")
    assert statuses(failed) == {"a": "COMPLETED", "b": "CANCELLED"}
    assert failed["because"] == "b"


@pytest.mark.parametrize("dies", [False, True])
async def test_a_released_task_that_was_made_for_nothing_is_cancelled_whoever_is_cut_off_before(
    site: Site, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """Its id was taken by a task of the next day, and the broker failed, or the coordinator died, before that was cancelled."""
    site.held = {"a"}
    async with site.workers():
        async with site.coordinator():
            workflow_id = await site.submit(step("a"), step("b", "a", task_kwargs={"message": {"$from": "a"}}))
            await site.until_node(workflow_id, "a", "RUNNING")
        site.held = set()
        task_id = node_task_id(workflow_id, "a", 1)

        async def completed() -> bool:
            return (await site.task(task_id)).status == "COMPLETED"

        await eventually(completed, timeout=20, what="the task completes")
        event = WorkflowAdvanced(finished=[NodeEnd(node="a", outcome="COMPLETED")], released=["b"])
        await handle_any(site.backend.log, WORKFLOWS, workflow_id, AdvanceWorkflow(2, event), source="dead")
        await handle(site.backend.log, task_id, CleanTask("ada", "requested"), source="test")
        failures = fail_first(monkeypatch, LogUnavailable("the broker is away"))
        async with site.coordinator():
            await eventually(lambda: failures, timeout=20, what="the coordinator is cut off")
            if not dies:
                await site.until(workflow_id, "FAILED")
        async with site.coordinator():
            failed = await site.until(workflow_id, "FAILED")
    assert statuses(failed) == {"a": "COMPLETED", "b": "CANCELLED"}


async def test_a_cancellation_that_lost_every_race_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.held = {"a"}
    async with site.coordinator(), site.workers():
        workflow_id = await site.submit(step("a"))
        task_id = node_task_id(workflow_id, "a", 1)

        async def running() -> bool:
            return (await site.task(task_id)).status == "RUNNING"

        await eventually(running, timeout=20, what="the task runs")
        failures = fail_first(monkeypatch, VersionConflict(task_id, 3))
        await site.backend.post(f"/workflows/{workflow_id}/cancel")
        await site.until(workflow_id, "CANCELLED")
    assert failures


async def test_a_timer_ends_a_wait_though_the_schedulers_clock_is_behind(site: Site) -> None:
    def now() -> datetime:
        return datetime.now(UTC) - timedelta(hours=1)

    async with site.coordinator(now=now) as coordinator:
        promoter = Promoter(site.backend.broker, {("workflows", DEADLINE): coordinator.deadline})
        promoting = asyncio.create_task(promoter.run())
        workflow_id = await site.submit({"name": "ok", "kind": "approval"}, timeout_seconds=1)
        await site.until(workflow_id, "TIMED_OUT")
        await end(promoting)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_wait_lasts_as_long_as_it_is_to_whatever_the_hosts_clock_says(
    site: Site, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=hours)

    for module in ("events.handle", "services.coordinator", "services.clock"):
        monkeypatch.setattr(f"eventq.{module}.datetime", Wrong)
    async with site.coordinator() as coordinator:
        promoter = Promoter(site.backend.broker, {("workflows", DEADLINE): coordinator.deadline})
        promoting = asyncio.create_task(promoter.run())
        wait = {"kind": "approval", "on_failure": "continue"}
        short, long = ({"name": name, "wait_timeout_seconds": s, **wait} for name, s in (("short", 1), ("long", 600)))
        after = {"name": "after", "kind": "signal", "depends_on": ["short"], "run_if": "always"}
        workflow_id = await site.submit(short, long, after)
        await site.until_node(workflow_id, "after", "WAITING")
        waiting = await site.get(workflow_id)
        await end(promoting)
    assert statuses(waiting) == {"short": "TIMED_OUT", "long": "WAITING", "after": "WAITING"}


async def test_each_wait_has_a_timer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks now and then whether something is due."""
    monkeypatch.setattr(coordinator_module, "LOOK_EVERY_S", float("inf"))
    async with site.coordinator() as coordinator:
        promoter = Promoter(site.backend.broker, {("workflows", DEADLINE): coordinator.deadline})
        promoting = asyncio.create_task(promoter.run())
        wait = {"kind": "approval", "on_failure": "continue"}
        nodes = [{"name": f"w{number}", "wait_timeout_seconds": 1 + number / 5, **wait} for number in range(3)]
        workflow_id = await site.submit(*nodes)
        ended = await site.until(workflow_id, "COMPLETED")
        await end(promoting)
    assert statuses(ended) == dict.fromkeys(("w0", "w1", "w2"), "TIMED_OUT")


def fail_first(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[Exception]:
    """The coordinator's first command to a task fails so; the list tells once it has."""
    failures: list[Exception] = []

    async def failing(*args: Any, **kwargs: Any) -> Any:
        if not failures:
            failures.append(error)
            raise error
        return await handle(*args, **kwargs)

    monkeypatch.setattr(coordinator_module, "handle", failing)
    return failures
