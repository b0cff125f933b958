"""Erasing a task that a workflow or a schedule made: what these hold of its arguments goes with it, in the bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client
from structlog.testing import capture_logs

from eventq.events.atomic import store_together
from eventq.events.commands import CompleteAttempt
from eventq.events.ending import end
from eventq.events.envelope import Event
from eventq.events.errors import IllegalTransition, LogUnavailable, PayloadTooLarge
from eventq.events.handle import handle, handle_any, read_state
from eventq.events.ingest import Outgoing
from eventq.events.reader import Message, Tail
from eventq.events.schedule import SCHEDULES, Schedule, TriggerSchedule
from eventq.events.submitter import Submitter
from eventq.events.task import from_summary
from eventq.events.task_events import Submitted
from eventq.events.workflow import WORKFLOWS, SignalWorkflow
from eventq.projections.rebuild import rebuild_after_erasures, verify
from eventq.services import erase as erasure
from eventq.services import overwriting
from eventq.services.follower import Follower
from eventq.services.overwriting import dispose
from eventq.services.schedules import ScheduleSweep, TickMaker, read_schedule, tick_hint
from tests.services.backend import Backend
from tests.services.secrets import SECRET, bytes_hold, disposing, first_position, replace_dispose, stands
from tests.services.workflows import Site, step
from tests.support.nats import NatsServer
from tests.support.poll import eventually

LARGE = SECRET * 4_000
"""Above what stands in an event."""


@pytest.fixture
def site(backend: Backend) -> Site:
    """Tasks return nothing of what they were given."""

    def nothing(_: Any) -> None:
        return None

    return Site(backend, code=dict.fromkeys(("a", "b", "undone"), nothing))


async def erased(site: Site, task_id: str) -> dict[str, Any]:
    status, answer = await site.backend.post(f"/tasks/{task_id}/erase", {"reason": "asked to"})
    assert status == 200, answer
    return dict(answer)


async def is_nowhere(backend: Backend, server: NatsServer, folder: Path) -> None:
    """Wait until no file of broker, blob store and projection holds the secret; the tables are as the log makes them."""
    assert bytes_hold(server.store_dir) == []
    assert bytes_hold(folder / "blobs") == []
    forgetting = asyncio.create_task(rebuild_after_erasures(backend.projector, quiet_s=0))

    async def forgotten() -> bool:
        return not bytes_hold(folder / "projection")

    await eventually(forgotten, what="the file of the projection is made anew")
    await end(forgetting)
    assert (await verify(backend.projector.store, backend.broker)).equal
    status, rebuilt = await backend.post("/projection/rebuild")
    assert status == 200, rebuilt
    assert (await verify(backend.projector.store, backend.broker)).equal


def secret_nodes(text: str) -> list[dict[str, Any]]:
    """A workflow that carries the text wherever it can give a task something, or is told something."""
    return [
        step("a", task_kwargs={"message": text}, tags=[SECRET], metadata={"whose": SECRET}),
        {"name": "ok", "kind": "approval", "depends_on": ["a"]},
        {"name": "paid", "kind": "signal", "depends_on": ["a"]},
        step(
            "b",
            "ok",
            "paid",
            task_kwargs={"message": SECRET},
            when=[{"node": "a", "op": "not_equals", "value": SECRET}],
            compensate={"task_name": "echo", "task_kwargs": {"message": SECRET}},
        ),
    ]


async def run_secretly(site: Site, text: str = SECRET, **options: Any) -> dict[str, Any]:
    """Such a workflow, once it has completed."""
    async with site.coordinator(), site.workers(2):
        workflow_id = await site.submit(*secret_nodes(text), **options)
        await site.until_node(workflow_id, "ok", "WAITING")
        approval = {"by": "ada", "comment": SECRET}
        assert (await site.backend.post(f"/workflows/{workflow_id}/nodes/ok/approve", approval))[0] == 200
        assert (await site.backend.post(f"/workflows/{workflow_id}/signals/paid", {"payload": [SECRET]}))[0] == 200
        return await site.until(workflow_id, "COMPLETED")


def task_of(workflow: dict[str, Any], node: str) -> str:
    return str({each["name"]: each for each in workflow["nodes"]}[node]["task_id"])


@pytest.mark.parametrize("text", [SECRET, LARGE], ids=["in the event", "in the blob store"])
async def test_a_workflow_keeps_nothing_of_what_it_gave_once_its_tasks_are_erased(
    site: Site, own_nats_server: NatsServer, tmp_path: Path, text: str
) -> None:
    workflow = await run_secretly(site, text)
    assert bytes_hold(own_nats_server.store_dir), "else this test shows nothing"
    for node in ("a", "b"):
        assert (await erased(site, task_of(workflow, node)))["message"] == "Task erased"
    await is_nowhere(site.backend, own_nats_server, tmp_path)
    after = await site.get(workflow["workflow_id"])
    assert after["erased"]
    assert [(node["name"], node["status"], node["depends_on"]) for node in after["nodes"]] == [
        ("a", "COMPLETED", []),
        ("ok", "COMPLETED", ["a"]),
        ("paid", "COMPLETED", ["a"]),
        ("b", "COMPLETED", ["ok", "paid"]),
    ]
    _, story = await site.backend.get(f"/workflows/{workflow['workflow_id']}/timeline")
    kinds = [event["event_type"] for event in story["events"]]
    assert (kinds[0], kinds[-1], kinds.count("erased")) == ("created", "erased", 1), "the second task finds it empty"


async def test_the_tasks_of_a_workflow_that_are_not_erased_keep_what_they_were_given(site: Site) -> None:
    workflow = await run_secretly(site)
    await erased(site, task_of(workflow, "a"))
    _, other = await site.backend.get(f"/tasks/{task_of(workflow, 'b')}")
    assert (other["erased"], other["task_kwargs"]) == (False, {"message": SECRET})


async def test_a_task_is_not_erased_while_its_workflow_may_need_it(site: Site) -> None:
    async with site.coordinator(), site.workers(2):
        workflow_id = await site.submit(*secret_nodes(SECRET))
        await site.until_node(workflow_id, "ok", "WAITING")
        task_id = task_of(await site.get(workflow_id), "a")
        before = await site.backend.last_position()
        status, answer = await site.backend.post(f"/tasks/{task_id}/erase")
        assert (status, answer["code"]) == (409, "ILLEGAL_TRANSITION")
        assert "workflow with status RUNNING" in answer["detail"]
        assert await site.backend.last_position() == before
        assert (await site.backend.post(f"/workflows/{workflow_id}/cancel"))[0] == 200
        await site.until(workflow_id, "CANCELLED")
    await erased(site, task_id)
    status, answer = await site.backend.post(f"/workflows/{workflow_id}/retry")
    assert (status, answer["detail"]) == (409, "cannot retry a workflow whose arguments were erased")


async def test_a_long_history_takes_several_events(
    site: Site, own_nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "LEFT_MAX_BYTES", 2_000)
    workflow = await run_secretly(site)
    for node in ("a", "b"):
        await erased(site, task_of(workflow, node))
    await is_nowhere(site.backend, own_nats_server, tmp_path)
    history = [event for event in await site.history() if event.aggregate == "workflows"]
    assert [event.type for event in history].count("erased") > 1
    assert len((await site.get(workflow["workflow_id"]))["nodes"]) == 4


async def test_the_request_of_an_erased_workflow_is_answered_as_before(site: Site) -> None:
    key = {"Idempotency-Key": "once"}
    workflow = await run_secretly(site, headers=key)
    await erased(site, task_of(workflow, "a"))
    body = {"name": "w", "nodes": secret_nodes(SECRET)}
    status, answer = await site.backend.post("/workflows", body, headers=key)
    assert (status, answer["workflow_id"], answer["status"]) == (201, workflow["workflow_id"], "COMPLETED")
    status, answer = await site.backend.post("/workflows", body | {"name": "other"}, headers=key)
    assert (status, answer["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_workflows_of_the_same_large_definition_have_one_each(site: Site, tmp_path: Path) -> None:
    one, other = await run_secretly(site, LARGE), await run_secretly(site, LARGE)
    await asyncio.gather(erased(site, task_of(one, "a")), erased(site, task_of(one, "b")))
    assert bytes_hold(tmp_path / "blobs")
    assert len((await site.get(other["workflow_id"]))["nodes"]) == 4
    await asyncio.gather(erased(site, task_of(other, "a")), erased(site, task_of(other, "b")))
    assert bytes_hold(tmp_path / "blobs") == []


async def test_a_definition_that_is_damaged_is_deleted_and_its_structure_lost(site: Site, tmp_path: Path) -> None:
    workflow = await run_secretly(site, LARGE)
    for path in bytes_hold(tmp_path / "blobs" / "workflows"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    for node in ("a", "b"):
        await erased(site, task_of(workflow, node))
    assert bytes_hold(tmp_path / "blobs") == []
    assert (await site.get(workflow["workflow_id"]))["nodes"] == []


async def test_a_rejection_keeps_no_comment(site: Site, own_nats_server: NatsServer) -> None:
    async with site.coordinator(), site.workers(2):
        workflow_id = await site.submit(step("a"), {"name": "ok", "kind": "approval", "depends_on": ["a"]})
        await site.until_node(workflow_id, "ok", "WAITING")
        rejection = {"by": "ada", "comment": SECRET}
        assert (await site.backend.post(f"/workflows/{workflow_id}/nodes/ok/reject", rejection))[0] == 200
        failed = await site.until(workflow_id, "FAILED")
    await erased(site, task_of(failed, "a"))
    assert bytes_hold(own_nats_server.store_dir) == []


async def test_a_coordinator_minds_no_erasure(site: Site) -> None:
    with capture_logs() as told:
        async with site.coordinator(), site.workers(2):
            done = await site.until(await site.submit(step("a", task_kwargs={"message": SECRET})), "COMPLETED")
            await erased(site, task_of(done, "a"))
            await site.until(await site.submit(step("c")), "COMPLETED")
    assert "coordinator.workflow_waits" not in [entry["event"] for entry in told]


async def test_what_a_task_of_a_running_workflow_spawned_is_the_spawners_and_is_erased(site: Site) -> None:
    async with site.coordinator(), site.workers(2):
        workflow_id = await site.submit({"name": "ok", "kind": "approval", "depends_on": []})
        await site.until_node(workflow_id, "ok", "WAITING")
        spawned = Submitted(
            task_name="echo", kwargs={"message": SECRET}, pool="cpu", queue="default", priority=7, max_retries=0
        ).model_copy(update={"workflow_id": workflow_id, "parent_task_id": "parent"})
        await site.backend.api.submitter.submit("spawned", spawned)

        async def completed() -> bool:
            return (await site.task("spawned")).finished

        await eventually(completed, what="the spawned task completes")
        await erased(site, "spawned")


async def test_many_tasks_of_a_workflow_are_erased_at_once_and_it_is_emptied_once(site: Site) -> None:
    names = [f"n{number}" for number in range(30)]
    async with site.coordinator(), site.workers(4):
        workflow_id = await site.submit(*(step(name, task_kwargs={"message": SECRET}) for name in names))
        workflow = await site.until(workflow_id, "COMPLETED")
    await asyncio.gather(*(erased(site, task_of(workflow, name)) for name in names))
    emptied = [event for event in await site.history() if (event.aggregate, event.type) == ("workflows", "erased")]
    assert len(emptied) == 1


async def test_erasing_again_empties_a_workflow_that_an_earlier_build_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `a` itself nothing had to be destroyed: its first event still stands."""
    async with site.coordinator(), site.workers(2):
        workflow_id = await site.submit(step("a"), step("b", "a", task_kwargs={"message": SECRET}))
        workflow = await site.until(workflow_id, "COMPLETED")

    async def none(*_: Any) -> None:
        return None

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "_empty_givers", none)
        await erased(site, task_of(workflow, "a"))
    assert not (await site.get(workflow_id))["erased"]
    await erased(site, task_of(workflow, "a"))
    assert (await site.get(workflow_id))["erased"]


async def test_a_history_that_is_too_long_is_refused_before_the_workflow_is_emptied(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = await run_secretly(site)
    before = await site.backend.last_position()

    def too_large(*_: Any) -> None:
        raise PayloadTooLarge("task_id", "has too many events")

    monkeypatch.setattr(erasure, "_check_size", too_large)
    assert (await site.backend.post(f"/tasks/{task_of(workflow, 'a')}/erase"))[0] == 413
    assert await site.backend.last_position() == before


async def test_a_broker_that_stands_still_does_not_make_a_workflow_look_empty(
    site: Site, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = await run_secretly(site)
    monkeypatch.setattr(overwriting, "SILENCE_S", 0.3)
    honest = Tail.next

    async def silent(tail: Tail, timeout_s: float | None = None) -> list[Message]:
        return [] if timeout_s == overwriting.SILENCE_S else await honest(tail, timeout_s)

    with monkeypatch.context() as patch:
        patch.setattr(Tail, "next", silent)
        status, answer = await site.backend.post(f"/tasks/{task_of(workflow, 'a')}/erase")
        assert (status, answer["code"]) == (503, "LOG_UNAVAILABLE")
    for node in ("a", "b"):
        await erased(site, task_of(workflow, node))
    assert bytes_hold(own_nats_server.store_dir) == []


async def test_nobody_writes_where_an_erased_event_stood(site: Site) -> None:
    """A schedule that goes on, a workflow and a task, each beside a writer that has not looked for long."""
    backend = site.backend
    async with site.coordinator(), site.workers(2):
        workflow_id = await site.submit(*secret_nodes(SECRET))
        await site.until_node(workflow_id, "ok", "WAITING")
        old_workflow = await read_state(backend.log, WORKFLOWS, workflow_id, fresh=True)
        await backend.post(f"/workflows/{workflow_id}/nodes/ok/approve", {"by": "ada", "comment": SECRET})
        await backend.post(f"/workflows/{workflow_id}/signals/paid", {"payload": [SECRET]})
        workflow = await site.until(workflow_id, "COMPLETED")
    task_id = task_of(workflow, "b")
    started = await backend.log.at("tasks", task_id, 2)
    assert started is not None
    await erased(site, task_id)
    scheduled_task = await scheduled(backend)
    old_schedule = await read_schedule(backend.log, "nightly", fresh=True)
    for name in ("secret", "harmless"):
        async with backend.client.patch(
            "/api/v1/schedules/nightly", json={"task_kwargs": {"width": 1, "name": name}}
        ) as answer:
            assert answer.status == 200
    await erased(site, scheduled_task)

    signal = SignalWorkflow("paid", 1, "late")
    with pytest.raises(IllegalTransition):
        await handle_any(backend.log, WORKFLOWS, workflow_id, signal, source="late", state=old_workflow)
    late = CompleteAttempt(attempt=1, result="late", output=None, duration_s=0.1)
    with pytest.raises(IllegalTransition):
        await handle(backend.log, task_id, late, source="late", task=from_summary(started.event.state))
    trigger = TriggerSchedule("late-trigger", "late")
    handled = await handle_any(backend.log, SCHEDULES, "nightly", trigger, source="late", state=old_schedule)
    assert handled.state.version == 6, "it looked again"
    assert (await verify(backend.projector.store, backend.broker)).equal
    assert (await site.get(workflow_id))["status"] == "COMPLETED"


@pytest.mark.parametrize("giver", ["workflow", "schedule"])
async def test_an_erasure_that_was_stored_in_part_destroys_nothing_and_is_done_again(
    site: Site, own_nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, giver: str
) -> None:
    """As a broker leaves it that has no room for all: placeholders, and no event."""
    backend = site.backend
    if giver == "workflow":
        workflow = await run_secretly(site)
        kind, giver_id, task_ids = "workflows", str(workflow["workflow_id"]), [task_of(workflow, node) for node in ("a", "b")]
    else:
        kind, giver_id, task_ids = "schedules", "nightly", [await scheduled(backend)]
        await delete_schedule(backend)
    newest = {key: await backend.log.last(*key, fresh=True) for key in (("tasks", task_ids[0]), (kind, giver_id))}

    async def in_part(nc: Client, messages: Sequence[Outgoing]) -> int:
        await store_together(nc, messages[:-1])
        raise LogUnavailable("no room left")

    async def nothing(*_: Any) -> None:
        return None

    with monkeypatch.context() as patch:
        patch.setattr("eventq.events.log.store_together", in_part)
        assert (await backend.post(f"/tasks/{task_ids[0]}/erase"))[0] == 503, "the giver's"
        patch.setattr(erasure, "_empty_givers", nothing)
        assert (await backend.post(f"/tasks/{task_ids[0]}/erase"))[0] == 503, "the task's own"
    for key, before in newest.items():
        assert await backend.log.last(*key, fresh=True) == before
    _, task = await backend.get(f"/tasks/{task_ids[0]}")
    assert (task["status"], task["erased"]) == ("COMPLETED", False)
    for task_id in task_ids:
        await erased(site, task_id)
    await is_nowhere(backend, own_nats_server, tmp_path)


async def test_an_erasure_that_was_not_completed_is_by_the_next_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = await run_secretly(site)
    first = await first_position(site.backend.log, workflow["workflow_id"], "workflows")

    async def dies(*_: Any) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        replace_dispose(patch, dies)
        assert (await site.backend.post(f"/tasks/{task_of(workflow, 'a')}/erase"))[0] == 500
    assert await stands(site.backend.broker, first)
    await erased(site, task_of(workflow, "b"))
    assert not await stands(site.backend.broker, first)


async def test_two_schedules_that_share_large_arguments_and_are_emptied_at_once_leave_none(
    backend: Backend, tmp_path: Path
) -> None:
    names, task_ids = ("one", "other"), list[str]()
    for name in names:
        body = {"schedule_id": name, "cron": "0 0 * * *", "task_name": "resize", "task_kwargs": {"width": 1, "name": LARGE}}
        assert (await backend.post("/schedules", body))[0] == 201
        _, made = await backend.post(f"/schedules/{name}/trigger")
        await backend.complete(made["task_id"])
        task_ids.append(made["task_id"])
    for name in names:
        async with backend.client.patch(f"/api/v1/schedules/{name}", json={"task_kwargs": {"width": 1}}) as answer:
            assert answer.status == 200
    answers = await asyncio.gather(*(backend.post(f"/tasks/{task_id}/erase") for task_id in task_ids))
    assert [status for status, _ in answers] == [200, 200]
    assert bytes_hold(tmp_path / "blobs") == []


async def test_a_tick_beside_a_change_and_an_erasure_looks_again(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = {"schedule_id": "nightly", "cron": "* * * * *", "task_name": "resize"}
    assert (await backend.post("/schedules", {**schedule, "task_kwargs": {"width": 1, "name": SECRET}}))[0] == 201
    task_id = await triggered(backend)
    known = await read_schedule(backend.log, "nightly", fresh=True)
    assert known.next_at is not None
    now, honest = known.next_at + timedelta(seconds=1), read_state

    async def clock() -> datetime:
        return now

    async def overtaken(*what: Any, **how: Any) -> Any:
        state = await honest(*what, **how)
        with monkeypatch.context() as patch:
            patch.setattr("eventq.services.schedules.read_state", honest)
            if not changed:
                changed.append(True)
                await change_schedule(backend, task_kwargs={"width": 2, "name": "harmless"})
                assert (await backend.post(f"/tasks/{task_id}/erase"))[0] == 200
        return state

    changed: list[bool] = []
    monkeypatch.setattr("eventq.services.schedules.read_state", overtaken)
    ticks = TickMaker(backend.log, Submitter(backend.log, source="s"), source="s", now=clock)
    assert await ticks.tick(tick_hint("nightly"))
    assert ticks.ticked == 1
    (made,) = (await read_schedule(backend.log, "nightly", fresh=True)).last_task_ids
    _, task = await backend.get(f"/tasks/{made}?min_version=1")
    assert task["task_kwargs"] == {"width": 2, "name": "harmless"}


async def test_without_placeholders_a_late_writer_would_rewrite_history(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    backend = site.backend

    def none(_: Any) -> list[Event]:
        return []

    monkeypatch.setattr("eventq.events.log.placeholders", none)
    task_id = (await backend.submit(task_kwargs={"width": 1, "name": SECRET}))["task_id"]
    begun = await backend.begin(task_id)
    late = CompleteAttempt(attempt=1, result=SECRET, output=None, duration_s=0.1)
    await backend.command(task_id, late)
    await erased(site, task_id)
    handled = await handle(backend.log, task_id, late, source="late", task=begun)
    assert handled.state.version == 3
    await eventually(lambda: backend.projector.halted is not None, what="the projector halts")


async def test_coordinators_that_start_later_mind_nothing(site: Site) -> None:
    workflow = await run_secretly(site)
    await erased(site, task_of(workflow, "a"))
    async with site.coordinator(), site.workers(1):
        workflow_id = await site.submit(step("c"))
        await site.until(workflow_id, "COMPLETED")
    assert (await site.get(workflow["workflow_id"]))["status"] == "COMPLETED"


async def scheduled(backend: Backend, text: str = SECRET) -> str:
    """A completed task of the schedule `nightly`, which gives it the text; its id."""
    schedule = {
        "schedule_id": "nightly",
        "cron": "0 0 * * *",
        "task_name": "resize",
        "task_kwargs": {"width": 1, "name": text},
        "tags": [SECRET],
        "metadata": {"whose": SECRET},
    }
    status, answer = await backend.post("/schedules", schedule)
    assert status == 201, answer
    return await triggered(backend)


async def triggered(backend: Backend) -> str:
    status, made = await backend.post("/schedules/nightly/trigger")
    assert status == 201, made
    await backend.complete(made["task_id"])
    return str(made["task_id"])


async def change_schedule(backend: Backend, **changes: Any) -> None:
    async with backend.client.patch("/api/v1/schedules/nightly", json=changes) as answer:
        assert answer.status == 200


async def delete_schedule(backend: Backend) -> None:
    async with backend.client.delete("/api/v1/schedules/nightly") as answer:
        assert answer.status == 204


@pytest.mark.parametrize("text", [SECRET, LARGE], ids=["in the event", "in the blob store"])
async def test_a_deleted_schedule_keeps_nothing_of_what_it_gave(
    backend: Backend, own_nats_server: NatsServer, tmp_path: Path, text: str
) -> None:
    task_id = await scheduled(backend, text)
    second = await triggered(backend)
    assert (await backend.post("/schedules/nightly/pause"))[0] == 200
    await delete_schedule(backend)
    for each in (task_id, second):
        status, answer = await backend.post(f"/tasks/{each}/erase")
        assert (status, answer.get("message")) == (200, "Task erased"), answer
    await is_nowhere(backend, own_nats_server, tmp_path)
    _, page = await backend.get("/schedules?status=DELETED")
    assert [(each["task_name"], each["task_kwargs"]) for each in page["schedules"]] == [("resize", {})]
    for method, path in (("PATCH", "/schedules/nightly"), ("POST", "/schedules/nightly/trigger")):
        async with backend.client.request(method, f"/api/v1{path}", json={} if method == "PATCH" else None) as refused:
            assert refused.status == 409


async def test_a_task_is_not_erased_while_its_schedule_makes_others_of_the_same_arguments(backend: Backend) -> None:
    task_id, before = await scheduled(backend), await backend.last_position()
    status, answer = await backend.post(f"/tasks/{task_id}/erase")
    assert (status, answer["code"]) == (409, "ILLEGAL_TRANSITION")
    assert answer["detail"].startswith("schedule nightly still gives its tasks these arguments")
    assert await backend.last_position() == before


async def test_a_schedule_that_was_changed_keeps_only_what_it_gives_now(
    backend: Backend, own_nats_server: NatsServer, tmp_path: Path
) -> None:
    task_id = await scheduled(backend)
    await change_schedule(backend, task_kwargs={"width": 2, "name": "harmless"}, tags=["t"], metadata={})
    assert (await backend.post(f"/tasks/{task_id}/erase"))[0] == 200
    await is_nowhere(backend, own_nats_server, tmp_path)
    _, made = await backend.post("/schedules/nightly/trigger")
    _, task = await backend.get(f"/tasks/{made['task_id']}")
    assert (task["task_kwargs"], task["tags"]) == ({"width": 2, "name": "harmless"}, ["t"])


async def test_no_event_of_a_schedule_carries_arguments_but_those_that_set_them(backend: Backend) -> None:
    await scheduled(backend)
    await backend.post("/schedules/nightly/pause")
    last = await backend.log.last(SCHEDULES.name, "nightly")
    assert last is not None
    assert SECRET not in orjson.dumps(last.event.state).decode()
    schedule = await read_state(backend.log, SCHEDULES, "nightly")
    assert schedule.spec_version == 1
    with pytest.raises(IllegalTransition, match="makes something else now"):
        _ = schedule.required_spec


async def test_the_same_large_arguments_are_the_same_arguments(backend: Backend) -> None:
    task_id = await scheduled(backend, LARGE)
    assert (await backend.post(f"/tasks/{task_id}/erase"))[0] == 409


async def test_a_task_of_a_schedule_without_arguments_is_erased_at_any_time(backend: Backend) -> None:
    schedule = {"schedule_id": "nightly", "cron": "0 0 * * *", "task_name": "echo"}
    assert (await backend.post("/schedules", schedule))[0] == 201
    task_id = await triggered(backend)
    assert (await backend.post(f"/tasks/{task_id}/erase"))[0] == 200


async def test_what_was_set_by_a_change_is_erased_as_well(
    backend: Backend, own_nats_server: NatsServer, tmp_path: Path
) -> None:
    schedule = {"schedule_id": "nightly", "cron": "0 0 * * *", "task_name": "resize", "task_kwargs": {"width": 1}}
    assert (await backend.post("/schedules", schedule))[0] == 201
    task_ids: list[str] = []
    for text in (LARGE, SECRET, "harmless"):
        async with backend.client.patch(
            "/api/v1/schedules/nightly", json={"task_kwargs": {"width": 1, "name": text}}
        ) as answer:
            assert answer.status == 200
        task_ids.append(await triggered(backend))
    assert (await backend.post(f"/tasks/{task_ids[-1]}/erase"))[0] == 409
    for task_id in task_ids[:-1]:
        assert (await backend.post(f"/tasks/{task_id}/erase"))[0] == 200
    await is_nowhere(backend, own_nats_server, tmp_path)


async def test_a_tick_that_was_decided_and_not_made_is_made_of_what_the_schedule_makes_now(backend: Backend) -> None:
    """Its scheduler died before it submitted the task; then what it was to be made of was erased."""
    schedule = {"schedule_id": "nightly", "cron": "* * * * *", "task_name": "resize", "overlap": "skip"}
    assert (await backend.post("/schedules", {**schedule, "task_kwargs": {"width": 1, "name": SECRET}}))[0] == 201
    task_id = await triggered(backend)
    known = await read_schedule(backend.log, "nightly", fresh=True)
    assert known.next_at is not None
    now = known.next_at + timedelta(seconds=1)

    async def clock() -> datetime:
        return now

    class Dies(Submitter):
        async def submit(self, *_: Any, **__: Any) -> Any:
            raise ConnectionResetError

    dying = TickMaker(backend.log, Dies(backend.log, source="s"), source="s", now=clock)
    with pytest.raises(ConnectionResetError):
        await dying.tick(tick_hint("nightly"))
    await change_schedule(backend, task_kwargs={"width": 2, "name": "harmless"})
    assert (await backend.post(f"/tasks/{task_id}/erase"))[0] == 200

    ticks = TickMaker(backend.log, Submitter(backend.log, source="s"), source="s", now=clock)
    sweep = ScheduleSweep(backend.log, ticks, now=clock)
    follower = Follower(backend.broker, [sweep])
    following = asyncio.create_task(follower.run())
    await follower.until_caught_up()
    now += timedelta(days=1)
    assert await sweep.sweep() >= 1
    await end(following)
    (decided,) = (await read_schedule(backend.log, "nightly", fresh=True)).last_task_ids
    _, task = await backend.get(f"/tasks/{decided}?min_version=1")
    assert task["task_kwargs"] == {"width": 2, "name": "harmless"}


async def test_a_schedule_of_an_earlier_build_is_refused(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its events carries the arguments."""
    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "summary", Schedule.whole)
        task_id = await scheduled(backend)
    await delete_schedule(backend)
    before = await backend.last_position()
    status, answer = await backend.post(f"/tasks/{task_id}/erase")
    assert (status, answer["code"]) == (409, "ILLEGAL_TRANSITION")
    assert "earlier build" in answer["detail"]
    assert await backend.last_position() == before


@pytest.mark.parametrize("giver", ["workflow", "schedule"])
async def test_a_scheduler_completes_what_a_killed_server_left_with_the_giver(
    site: Site, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, giver: str
) -> None:
    backend = site.backend
    if giver == "workflow":
        workflow = await run_secretly(site)
        of, task_ids = ("workflows", str(workflow["workflow_id"])), [task_of(workflow, node) for node in ("a", "b")]
    else:
        of, task_ids = ("schedules", "nightly"), [await scheduled(backend)]
        await delete_schedule(backend)

    async def dies(*_: Any) -> None:
        raise ConnectionResetError

    first = await first_position(backend.log, of[1], of[0])
    replace_dispose(monkeypatch, dies)
    assert (await backend.post(f"/tasks/{task_ids[0]}/erase"))[0] == 500
    replace_dispose(monkeypatch, dispose)

    async def gone() -> bool:
        return not await stands(backend.broker, first)

    async with disposing(backend, monkeypatch):
        await eventually(gone, what="the scheduler overwrites what was left")
    assert bytes_hold(own_nats_server.store_dir), "the tasks themselves are not erased yet"
    for task_id in task_ids:
        await erased(site, task_id)
    assert bytes_hold(own_nats_server.store_dir) == []
