"""The Workers API as documented, and its refusals."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from eventq.events.commands import StartAttempt
from eventq.events.handle import begin_all, handle, handle_any
from eventq.events.ids import new_id
from eventq.events.presence import Heartbeat, beat
from eventq.events.worker import WORKERS, LoseWorker, RegisterWorker
from eventq.events.worker_events import WorkerRegistered
from tests.services.backend import WORKER_ID, Backend


async def patch(backend: Backend, path: str, body: Any = None) -> tuple[int, Any]:
    async with backend.client.patch(f"/api/v1{path}", json=body) as answer:
        return answer.status, await answer.json()


async def register(backend: Backend, body: Any = None, **query: Any) -> dict[str, Any]:
    params = {"hostname": "compute-1", "capacity": "5", **query}
    status, answer = await backend.post("/workers", body, params=params)
    assert status == 201, answer
    return dict(answer)


async def test_a_worker_registers_as_documented(backend: Backend) -> None:
    answer = await register(backend)
    documented = {name: answer[name] for name in ("hostname", "status", "capacity", "current_load")}
    assert documented == {"hostname": "compute-1", "status": "ACTIVE", "capacity": 5, "current_load": 0}
    status, seen = await backend.get(f"/workers/{answer['worker_id']}/status")
    assert status == 200
    assert (seen["current_load"], seen["current_tasks"], seen["is_draining"], seen["kind"]) == (0, 0, False, "http")
    assert seen["last_heartbeat"].endswith("Z")


async def test_what_it_declares_can_be_submitted_and_is_checked(backend: Backend) -> None:
    arguments = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
    await register(backend, {"pool": "far", "tasks": [{"name": "far.away", "arguments": arguments, "parameters": ["x"]}]})
    assert (await backend.post("/tasks", {"task_name": "far.away", "task_kwargs": {"x": 1}}))[0] == 201
    status, refused = await backend.post("/tasks", {"task_name": "far.away", "task_kwargs": {"x": "one"}})
    assert (status, refused["field"]) == (400, "/task_kwargs/x")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:1/schema"},
        {"type": 7},
        {"properties": {"a": {"$ref": "#"}}},
        {"properties": {"a": {"pattern": "("}}},
        {"properties": {"a": {"pattern": "^(?=(a+)+b)"}}},
        {"patternProperties": {"^(a+)+$": {}}},
    ],
)
async def test_a_declaration_that_no_submission_could_be_checked_against_is_refused(backend: Backend, schema: Any) -> None:
    position = await backend.last_position()
    body = {"tasks": [{"name": "odd", "arguments": schema}]}
    status, refused = await backend.post("/workers", body, params={"hostname": "h"})
    assert (status, refused["field"]) == (400, "/tasks/0/arguments")
    assert await backend.last_position() == position


async def test_a_task_that_is_declared_twice_is_refused_by_name(backend: Backend) -> None:
    position = await backend.last_position()
    body = {"pool": "far", "tasks": [{"name": "one"}, {"name": "two"}, {"name": "one", "parameters": ["x"]}]}
    status, refused = await backend.post("/workers", body, params={"hostname": "h"})
    assert (status, refused["field"], refused["found"]) == (400, "/tasks/2/name", "one")
    assert await backend.last_position() == position


async def test_a_task_that_living_workers_run_is_not_taken_into_another_pool(backend: Backend) -> None:
    """Given ``echo``, which a process of the pool cpu runs, when a worker over HTTP declares it for the pool far, then it is
    refused while that pool has living workers: all that is submitted would wait for the newcomer, and for ever without him."""
    body = {"pool": "far", "tasks": [{"name": "echo"}]}
    status, refused = await backend.post("/workers", body, params={"hostname": "h"})
    assert (status, refused["field"], refused["found"]) == (409, "/tasks/0/name", "echo")
    same_pool = await backend.post("/workers", {**body, "pool": "cpu"}, params={"hostname": "h"})
    assert same_pool[0] == 201
    for worker_id in (WORKER_ID, same_pool[1]["worker_id"]):
        await handle_any(backend.log, WORKERS, worker_id, LoseWorker(1, "presence_lapsed", ()), source="test")
    await backend.api.freshness.wait_for_position(await backend.last_position(), 10)
    assert (await backend.post("/workers", body, params={"hostname": "h"}))[0] == 201


async def test_commands_answer_as_documented_and_are_seen_at_once(backend: Backend) -> None:
    worker_id = (await register(backend))["worker_id"]

    async def listed() -> dict[str, Any]:
        _, page = await backend.get("/workers", params={"pool": "cpu"})
        return next(worker for worker in page["workers"] if worker["worker_id"] == worker_id)

    status, answer = await patch(backend, f"/workers/{worker_id}/pause")
    assert (status, answer["worker_id"], answer["status"]) == (200, worker_id, "paused")
    assert (await listed())["status"] == "PAUSED"
    status, answer = await patch(backend, f"/workers/{worker_id}/resume")
    assert (status, answer["status"]) == (200, "resumed")
    assert (await listed())["status"] == "ACTIVE"
    status, answer = await patch(backend, f"/workers/{worker_id}/capacity", {"capacity": 10})
    assert (status, answer["worker_id"], answer["capacity"]) == (200, worker_id, 10)
    assert (await listed())["capacity"] == 10
    status, answer = await backend.post(f"/workers/{worker_id}/drain")
    assert (status, answer["status"]) == (200, "draining")
    _, seen = await backend.get(f"/workers/{worker_id}/status")
    assert (seen["status"], seen["is_draining"]) == ("DRAINING", True)


async def test_a_draining_worker_is_neither_paused_nor_resumed_nor_resized(backend: Backend) -> None:
    worker_id = (await register(backend))["worker_id"]
    await backend.post(f"/workers/{worker_id}/drain")
    for path, body in (("pause", None), ("resume", None), ("capacity", {"capacity": 2})):
        status, refused = await patch(backend, f"/workers/{worker_id}/{path}", body)
        assert (status, refused["code"]) == (409, "ILLEGAL_TRANSITION")
    assert (await backend.post(f"/workers/{worker_id}/drain"))[0] == 200, "it is fulfilled already"


async def test_an_unknown_worker_is_not_found(backend: Backend) -> None:
    for status, answer in (
        await backend.get("/workers/nobody/status"),
        await patch(backend, "/workers/nobody/pause"),
        await patch(backend, "/workers/nobody/capacity", {"capacity": 1}),
        await backend.post("/workers/nobody/drain"),
        await backend.post("/workers/nobody/lease"),
        await backend.post("/workers/nobody/heartbeat", {}),
    ):
        assert (status, answer["code"]) == (404, "WORKER_NOT_FOUND")


@pytest.mark.parametrize("capacity", [0, 10_001])
async def test_a_capacity_out_of_bounds_is_refused_by_name(backend: Backend, capacity: int) -> None:
    status, refused = await patch(backend, f"/workers/{WORKER_ID}/capacity", {"capacity": capacity})
    assert (status, refused["field"], refused["limit"]) == (400, "/capacity", 10_000 if capacity else 1)
    status, refused = await backend.post("/workers", params={"hostname": "h", "capacity": str(capacity)})
    assert (status, refused["field"]) == (400, "capacity")


async def test_the_list_is_filtered_by_status_and_paged(backend: Backend) -> None:
    ids = [(await register(backend))["worker_id"] for _ in range(3)]
    await patch(backend, f"/workers/{ids[1]}/pause")
    _, paused = await backend.get("/workers", params={"status": "PAUSED"})
    assert [worker["worker_id"] for worker in paused["workers"]] == [ids[1]]
    _, page = await backend.get("/workers", params={"limit": "2", "offset": "1"})
    assert page["total"] == 4
    assert [worker["worker_id"] for worker in page["workers"]] == [ids[1], ids[0]]


async def crowd(backend: Backend, count: int) -> None:
    """So many workers of the pool far register."""
    data = WorkerRegistered(hostname="h", pid=0, pool="far", queues=[], capacity=1, devices=[], tasks=[], kind="http")
    for start in range(0, count, 200):
        ids = [new_id() for _ in range(min(200, count - start))]
        begun = await begin_all(backend.log, WORKERS, {each: RegisterWorker(data) for each in ids}, source="test")
        assert not [error for error in begun.values() if isinstance(error, BaseException)]
    await backend.api.freshness.wait_for_position(await backend.last_position(), 10)


async def test_a_living_worker_is_seen_however_many_registered_after_it(backend: Backend) -> None:
    """In the list, by what guards the names of its tasks, and by what says why a task waits."""
    await crowd(backend, 1_001)
    _, page = await backend.get("/workers", params={"status": "ACTIVE", "pool": "cpu"})
    assert (page["total"], [worker["worker_id"] for worker in page["workers"]]) == (1, [WORKER_ID])
    _, page = await backend.get("/workers", params={"offset": "1000"})
    assert (page["total"], page["workers"][-1]["worker_id"]) == (1_002, WORKER_ID)
    body = {"pool": "evil", "tasks": [{"name": "resize"}]}
    status, refused = await backend.post("/workers", body, params={"hostname": "h"})
    assert (status, refused["field"]) == (409, "/tasks/0/name")
    task_id = (await backend.submit())["task_id"]
    await beat(backend.broker, Heartbeat(WORKER_ID, "host", "cpu", 1, [], datetime.now(UTC)))
    await backend.api.freshness.wait_for_position(await backend.last_position(), 10)
    _, found = await backend.get(f"/tasks/{task_id}/explain")
    assert [reason["code"] for reason in found["reasons"]] == ["about_to_start"]


async def test_the_status_tells_what_a_worker_runs(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await handle(backend.log, task_id, StartAttempt(WORKER_ID, "host", "cpu"), source="test")
    await backend.api.freshness.wait_for_position(await backend.last_position(), 5)
    _, seen = await backend.get(f"/workers/{WORKER_ID}/status")
    assert (seen["current_load"], seen["running"], seen["last_heartbeat"]) == (1, [task_id], None)


async def test_a_lost_worker_registers_again_under_its_id_and_no_process_is_taken_over(backend: Backend) -> None:
    worker_id = (await register(backend))["worker_id"]
    assert (await backend.post("/workers", {"worker_id": worker_id}, params={"hostname": "h"}))[0] == 409, "it lives"
    await handle_any(backend.log, WORKERS, worker_id, LoseWorker(1, "presence_lapsed", ()), source="test")
    assert (await register(backend, {"worker_id": worker_id}))["worker_id"] == worker_id
    await handle_any(backend.log, WORKERS, WORKER_ID, LoseWorker(1, "presence_lapsed", ()), source="test")
    assert (await backend.post("/workers", {"worker_id": WORKER_ID}, params={"hostname": "h"}))[0] == 409
