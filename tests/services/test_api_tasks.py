"""The native API's routes of tasks over the real log and projection; the test plays the worker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventq.events.commands import CancelTask
from eventq.events.ids import new_id
from eventq.events.report import Log, LogLine, Progress
from eventq.events.reporting import publish_report
from eventq.events.subjects import PROGRESS
from tests.services.backend import WORKER_ID, Backend
from tests.support.poll import eventually


async def test_a_submitted_task_is_stored_with_its_declared_defaults(backend: Backend) -> None:
    async with backend.client.post(
        "/api/v1/tasks?async=true",
        json={"task_name": "resize", "task_args": [10], "task_kwargs": {"name": "x"}},
        headers={"X-Request-Id": "req-7", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"},
    ) as answer:
        assert answer.status == 201
        body = await answer.json()
        assert answer.headers["ETag"] == '"1"'
        assert answer.headers["X-Request-Id"] == "req-7"
        assert answer.headers["Location"] == f"/api/v1/tasks/{body['task_id']}"
    assert body["status"] == "PENDING"
    assert (body["priority"], body["queue_name"], body["version"]) == (5, "default", 1)
    assert body["created_at"].endswith("Z")
    stored = await backend.log.last("tasks", body["task_id"], fresh=True)
    assert stored is not None
    assert stored.event.trace.causation_id == "req-7"
    assert stored.event.trace.traceparent is not None
    assert stored.event.source == "api"


async def test_a_submission_may_override_what_the_task_declares(backend: Backend) -> None:
    task = await backend.submit(priority=0, queue_name="payments", max_retries=0, timeout_seconds=1.5)
    _, read = await backend.get(f"/tasks/{task['task_id']}")
    assert (read["priority"], read["queue_name"], read["max_retries"], read["timeout_seconds"]) == (0, "payments", 0, 1.5)


async def test_a_write_is_read_at_once_with_every_field(backend: Backend) -> None:
    task = await backend.submit()
    async with backend.client.get(f"/api/v1/tasks/{task['task_id']}") as answer:
        body = await answer.json()
        assert answer.headers["ETag"] == '"1"'
        assert answer.headers["X-Eventq-As-Of"] == str(body["as_of"])
    assert body["task_kwargs"] == {"width": 10}
    assert body["worker_id"] is None
    assert body["retry_count"] == 0
    assert body["completed_at"] is None
    assert body["as_of"] >= 1
    assert body["links"]["timeline"].endswith("/timeline")


async def test_arguments_above_64_kib_go_to_the_blob_store(backend: Backend) -> None:
    task = await backend.submit(task_kwargs={"width": 1, "name": "x" * 70_000})
    _, read = await backend.get(f"/tasks/{task['task_id']}")
    assert read["task_kwargs"] is None
    assert read["input"]["size_bytes"] > 70_000
    assert b"x" * 70_000 in await backend.api.blobs.get_async(read["input"]["key"])


async def test_a_task_scheduled_ahead_waits_and_one_in_the_past_does_not(backend: Backend) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    task = await backend.submit(scheduled_at=later)
    assert task["status"] == "SCHEDULED"
    task = await backend.submit(scheduled_at="2020-01-01T00:00:00")
    assert task["status"] == "PENDING"
    assert task["scheduled_at"] == "2020-01-01T00:00:00Z"


async def test_min_version_waits_for_what_another_process_wrote(backend: Backend) -> None:
    task = await backend.submit()
    await backend.complete(task["task_id"], {"ok": True})
    status, read = await backend.get(f"/tasks/{task['task_id']}?min_version=3")
    assert (status, read["status"], read["result"], read["version"]) == (200, "COMPLETED", {"ok": True}, 3)
    assert read["worker_id"] == WORKER_ID
    assert read["started_at"] <= read["completed_at"]


async def test_min_position_waits_on_a_list(backend: Backend) -> None:
    task = await backend.submit()
    await backend.fail(task["task_id"])
    status, read = await backend.get(f"/tasks?min_position={await backend.last_position()}")
    assert (status, read["total"], read["tasks"][0]["status"]) == (200, 1, "FAILED")
    assert read["tasks"][0]["error"]["type"] == "ValueError"


async def test_a_version_that_does_not_exist_is_the_callers_mistake(backend: Backend) -> None:
    task = await backend.submit()
    status, read = await backend.get(f"/tasks/{task['task_id']}?min_version=9")
    assert (status, read["field"], read["limit"], read["found"]) == (400, "min_version", 1, 9)
    status, read = await backend.get(f"/tasks/{new_id()}?min_version=9")
    assert (status, read["code"]) == (404, "TASK_NOT_FOUND")


async def test_a_position_that_is_not_reached_in_time_is_lagging(backend: Backend) -> None:
    async with backend.client.get("/api/v1/tasks?min_position=999999999") as answer:
        body = await answer.json()
        assert (answer.status, body["code"]) == (503, "LAGGING")
        assert answer.headers["Retry-After"] == "1"


async def test_the_past_of_a_task_can_be_read(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    before = await backend.last_position()
    between = datetime.now(UTC)
    await backend.complete(task_id, 1)
    for moment in (str(before), between.isoformat().replace("+00:00", "Z")):
        status, read = await backend.get(f"/tasks/{task_id}", params={"as_of": moment})
        assert (status, read["status"], read["version"], read["result"]) == (200, "PENDING", 1, None)
    status, now = await backend.get(f"/tasks/{task_id}", params={"as_of": str(await backend.last_position())})
    _, latest = await backend.get(f"/tasks/{task_id}?min_version=3")
    assert {**now, "as_of": 0} == {**latest, "as_of": 0}
    status, _ = await backend.get(f"/tasks/{task_id}", params={"as_of": "1"})
    assert status == 404
    for moment in ("999999999", "2999-01-01T00:00:00Z"):
        status, read = await backend.get(f"/tasks/{task_id}", params={"as_of": moment})
        assert (status, read["field"]) == (400, "as_of")


async def test_tasks_are_listed_filtered_sorted_and_paged(backend: Backend) -> None:
    low = (await backend.submit(priority=1))["task_id"]
    high = (await backend.submit(priority=9, queue_name="payments"))["task_id"]
    echo = (await backend.submit(task_name="echo", task_kwargs={}))["task_id"]
    await backend.complete(echo)
    position = await backend.last_position()

    async def ids(query: str) -> list[str]:
        status, page = await backend.get(f"/tasks?min_position={position}&{query}")
        assert status == 200, page
        return [task["task_id"] for task in page["tasks"]]

    assert await ids("sort_order=asc") == [low, high, echo]
    assert await ids("sort_by=priority&sort_order=desc") == [high, echo, low]
    assert await ids("status=COMPLETED") == [echo]
    assert set(await ids("status=COMPLETED&status=PENDING")) == {low, high, echo}
    assert await ids("queue_name=payments") == [high]
    assert await ids("priority=1") == [low]
    assert await ids("task_name=echo") == [echo]
    assert await ids("sort_order=asc&limit=1&offset=1") == [high]
    _, page = await backend.get(f"/tasks?min_position={position}&limit=2")
    assert (page["total"], page["limit"], page["offset"], len(page["tasks"])) == (3, 2, 0, 2)


async def test_a_waiting_task_is_cancelled_at_once_and_only_once(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    status, answer = await backend.post(f"/tasks/{task_id}/cancel", {"reason": "not needed"})
    assert (status, answer["status"]) == (200, "CANCELLED")
    assert answer["message"] == "Task cancelled successfully"
    _, read = await backend.get(f"/tasks/{task_id}")
    assert (read["status"], read["reason"]) == ("CANCELLED", "not needed")
    status, answer = await backend.post(f"/tasks/{task_id}/cancel", {})
    assert (status, answer["code"]) == (409, "ILLEGAL_TRANSITION")


async def test_a_running_task_is_cancelled_once_its_worker_stopped_it(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.begin(task_id)

    async def stop_when_asked() -> None:
        async def asked() -> bool:
            stored = await backend.log.last("tasks", task_id, fresh=True)
            return stored is not None and stored.event.type == "cancel_requested"

        await eventually(asked)
        await backend.confirm_cancel(task_id)

    worker = asyncio.create_task(stop_when_asked())
    async with backend.client.post(f"/api/v1/tasks/{task_id}/cancel") as answer:
        body = await answer.json()
    await worker
    assert (answer.status, body["status"]) == (200, "CANCELLED")


async def test_a_cancel_that_takes_longer_is_answered_202(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.begin(task_id)
    status, answer = await backend.post(f"/tasks/{task_id}/cancel")
    assert (status, answer["status"], answer["version"]) == (202, "RUNNING", 3)
    status, again = await backend.post(f"/tasks/{task_id}/cancel")
    assert (status, again["version"]) == (202, 3)
    _, read = await backend.get(f"/tasks/{task_id}")
    assert read["cancel_requested"] is True


@pytest.mark.parametrize(("verb", "completed_status"), [("retry", 409), ("replay", 201)])
async def test_finished_tasks_are_done_again_as_new_ones(backend: Backend, verb: str, completed_status: int) -> None:
    failed = (await backend.submit(priority=9, queue_name="payments"))["task_id"]
    status, refused = await backend.post(f"/tasks/{failed}/{verb}")
    assert (status, refused["code"]) == (409, "ILLEGAL_TRANSITION")
    await backend.fail(failed)
    status, again = await backend.post(f"/tasks/{failed}/{verb}")
    assert (status, again["status"], again["original_task_id"]) == (201, "PENDING", failed)
    _, read = await backend.get(f"/tasks/{again['task_id']}")
    assert (read["origin"], read["priority"], read["queue_name"], read["task_kwargs"]) == (verb, 9, "payments", {"width": 10})
    completed = (await backend.submit())["task_id"]
    await backend.complete(completed)
    assert (await backend.post(f"/tasks/{completed}/{verb}"))[0] == completed_status


async def test_a_timeline_tells_events_progress_and_logs(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.begin(task_id)
    source = f"worker.{WORKER_ID}"
    await publish_report(backend.broker, task_id, 1, source, Progress(done=3, total=10, unit="rows"))
    await publish_report(backend.broker, task_id, 1, source, Log([LogLine(message="reading", fields={"file": "a"})]))
    facts = await backend.broker.stream_facts(PROGRESS)
    assert facts is not None
    await eventually(lambda: backend.api.freshness.progress_position >= facts.last)
    status, story = await backend.get(f"/tasks/{task_id}/timeline?min_version=2")
    assert (status, story["status"], story["duration_seconds"]) == (200, "RUNNING", None)
    assert [(event["version"], event["event_type"]) for event in story["events"]] == [(1, "submitted"), (2, "started")]
    assert story["events"][1]["details"]["worker_id"] == WORKER_ID
    assert (story["progress"]["done"], story["progress"]["total"], story["progress"]["unit"]) == (3, 10, "rows")
    assert [(line["message"], line["fields"]) for line in story["logs"]] == [("reading", {"file": "a"})]


async def test_two_tasks_are_compared(backend: Backend) -> None:
    one = (await backend.submit(task_kwargs={"width": 1}))["task_id"]
    two = (await backend.submit(task_kwargs={"width": 2}))["task_id"]
    await backend.complete(one, "same")
    await backend.complete(two, "same")
    status, found = await backend.get(f"/tasks/{one}/compare/{two}?min_position={await backend.last_position()}")
    assert status == 200
    assert (found["same_function"], found["same_args"], found["same_priority"], found["same_result"]) == (
        True,
        False,
        True,
        True,
    )
    assert found["timing"]["task1_duration"] >= 0


async def test_a_cancel_by_another_replica_is_seen(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.command(task_id, CancelTask(requested_by="elsewhere"))
    status, read = await backend.get(f"/tasks/{task_id}?min_version=2")
    assert (status, read["status"]) == (200, "CANCELLED")


@pytest.mark.parametrize("path", ["", "/timeline", "/compare/{other}"])
async def test_a_task_that_does_not_exist_is_404(backend: Backend, path: str) -> None:
    status, answer = await backend.get(f"/tasks/{new_id()}{path.format(other=new_id())}")
    assert (status, answer["code"], answer["detail"]) == (404, "TASK_NOT_FOUND", "Task not found")


@pytest.mark.parametrize("verb", ["cancel", "retry", "replay"])
async def test_nothing_is_done_to_a_task_that_does_not_exist(backend: Backend, verb: str) -> None:
    before = await backend.last_position()
    status, answer = await backend.post(f"/tasks/{new_id()}/{verb}")
    assert (status, answer["code"]) == (404, "TASK_NOT_FOUND")
    assert await backend.last_position() == before


async def test_many_writes_at_once_are_each_read_back(backend: Backend) -> None:
    async def write_and_read(width: int) -> Any:
        task = await backend.submit(task_kwargs={"width": width})
        return (await backend.get(f"/tasks/{task['task_id']}"))[1]["task_kwargs"]["width"]

    assert await asyncio.gather(*map(write_and_read, range(1, 41))) == list(range(1, 41))
