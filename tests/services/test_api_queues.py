"""Queues over HTTP: their depth, limits, pauses, and who holds what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventq.events.commands import AdmitTask
from eventq.events.handle import handle_any, read_state
from eventq.events.queue import QUEUES, AdmitTasks
from eventq.events.queue_events import Admission
from eventq.events.subjects import EVENTS, Route, work_consumer
from tests.services.backend import WORKER_ID, Backend

ROUTE = Route("cpu", "default", 5)


async def put(backend: Backend, name: str, body: Any) -> tuple[int, Any]:
    async with backend.client.put(f"/api/v1/queues/{name}", json=body) as answer:
        return answer.status, await answer.json()


async def paused(backend: Backend) -> bool:
    return bool((await backend.broker.js.consumer_info(EVENTS, work_consumer(ROUTE))).paused)


async def admit(backend: Backend, *task_ids: str, queue: str = "default") -> None:
    """What the gate does."""
    state = await read_state(backend.log, QUEUES, queue, fresh=True)
    tasks = tuple(Admission(task_id=task_id, version=1) for task_id in task_ids)
    await handle_any(backend.log, QUEUES, queue, AdmitTasks(state.version, tasks), source="gate")
    for task_id in task_ids:
        await backend.command(task_id, AdmitTask(1))
    await backend.api.freshness.wait_for_position(await backend.last_position(), 10)


async def test_a_queue_exists_as_soon_as_a_task_names_it(backend: Backend) -> None:
    assert (await backend.get("/queues/novel"))[0] == 404
    await backend.submit(queue_name="novel")
    await backend.submit(queue_name="novel", scheduled_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    status, queue = await backend.get("/queues/novel")
    assert status == 200
    assert queue["depth"] == {"PENDING": 1, "SCHEDULED": 1}
    assert queue["oldest_age_seconds"] >= 0
    assert queue["pools"][0]["pool"] == "cpu"
    assert queue["pools"][0]["priorities"] == [5]
    assert queue["version"] == 0
    listed = (await backend.get("/queues"))[1]
    assert [one["queue_name"] for one in listed["queues"]] == ["novel"]
    assert listed["total"] == 1


async def test_queues_are_listed_by_name_in_pages(backend: Backend) -> None:
    for name in ("c", "a", "b"):
        await backend.submit(queue_name=name)
    pages = [(await backend.get(f"/queues?limit=2&offset={offset}"))[1] for offset in (0, 2, 4)]
    assert [[one["queue_name"] for one in page["queues"]] for page in pages] == [["a", "b"], ["c"], []]
    assert all((page["total"], page["limit"]) == (3, 2) for page in pages)
    status, refusal = await backend.get("/queues?limit=501")
    assert (status, refusal["field"], refusal["limit"]) == (400, "limit", 500)


async def test_rates_tell_what_was_started_completed_and_failed_lately(backend: Backend) -> None:
    done, failed, running = [(await backend.submit())["task_id"] for _ in range(3)]
    await backend.complete(done)
    await backend.fail(failed)
    await backend.begin(running)
    await backend.api.freshness.wait_for_position(await backend.last_position(), 10)
    _, queue = await backend.get("/queues/default")
    assert queue["rates"]["last_minute"] == queue["rates"]["last_5_minutes"] == {"started": 3, "completed": 1, "failed": 1}
    assert [holder["task_id"] for holder in queue["slots"]["holders"]] == [running]
    assert queue["slots"]["holders"][0]["worker_id"] == WORKER_ID


async def test_limits_are_set_as_a_whole_and_read_back(backend: Backend) -> None:
    limits = {
        "max_running": 3,
        "max_running_per_key": 1,
        "rate": {"limit": 10, "per_seconds": 2.5, "burst": 4},
        "rate_per_key": None,
        "fair": True,
    }
    status, answer = await put(backend, "default", {"limits": limits})
    assert status == 200, answer
    assert answer["limits"] == limits
    assert answer["version"] == 1
    assert answer["configured_by"]
    _, read = await backend.get("/queues/default")
    assert read["limits"] == limits
    _, answer = await put(backend, "default", {"limits": {"max_running": 5}})
    assert answer["limits"] == {
        "max_running": 5,
        "max_running_per_key": None,
        "rate": None,
        "rate_per_key": None,
        "fair": False,
    }
    assert (await put(backend, "default", {"limits": {"max_running": 5}}))[1]["version"] == 2, "the same again changes nothing"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "/limits"),
        ({"limits": {"max_running": 0}}, "/limits/max_running"),
        ({"limits": {"max_running": "3"}}, "/limits/max_running"),
        ({"limits": {"max_runing": 3}}, "/limits/max_runing"),
        ({"limits": {"rate": {"limit": 1, "per_seconds": 0}}}, "/limits/rate/per_seconds"),
        ({"limits": {"rate": {"limit": 10_000_000}}}, "/limits/rate/limit"),
    ],
)
async def test_limits_that_mean_nothing_are_refused_by_name(backend: Backend, body: Any, field: str) -> None:
    before = await backend.last_position()
    status, answer = await put(backend, "default", body)
    assert (status, answer["code"], answer["field"]) == (400, "INVALID_INPUT", field)
    assert await backend.last_position() == before


async def test_tasks_submitted_after_limits_were_set_wait_at_the_gate(backend: Backend) -> None:
    await put(backend, "default", {"limits": {"max_running": 1}})
    first, second = [(await backend.submit())["task_id"] for _ in range(2)]
    _, queue = await backend.get("/queues/default")
    assert queue["depth"] == {"PENDING": 2}
    assert queue["held"] == 2
    assert queue["slots"] == {"used": 0, "maximum": 1, "holders": []}
    await admit(backend, first)
    _, queue = await backend.get("/queues/default")
    assert (queue["held"], queue["slots"]["used"]) == (1, 1)
    assert queue["slots"]["holders"][0]["task_id"] == first
    assert queue["slots"]["holders"][0]["worker_id"] is None
    assert second != first


async def test_a_pause_takes_effect_at_once_and_says_who_and_why(backend: Backend) -> None:
    await backend.submit()
    status, answer = await backend.post("/queues/default/pause", {"reason": "maintenance"})
    assert status == 200
    assert (answer["paused"], answer["paused_reason"], answer["paused_by"]) == (True, "maintenance", "127.0.0.1")
    assert answer["paused_at"] is not None
    assert await paused(backend)
    assert (await backend.post("/queues/default/pause"))[1]["version"] == 1, "it is paused already"
    status, answer = await backend.post("/queues/default/resume")
    assert (status, answer["paused"], answer["paused_by"], answer["paused_at"]) == (200, False, None, None)
    assert not await paused(backend)


async def test_writes_answer_their_version_as_etag(backend: Backend) -> None:
    async with backend.client.post("/api/v1/queues/q/pause") as answer:
        assert answer.headers["ETag"] == '"1"'
    async with backend.client.get("/api/v1/queues/q") as answer:
        assert answer.headers["ETag"] == '"1"'


async def test_a_name_that_no_queue_can_have_is_refused(backend: Backend) -> None:
    assert (await backend.get("/queues/a.b"))[1]["field"] == "queue_name"
