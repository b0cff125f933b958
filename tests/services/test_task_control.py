"""Pause, resume and update over HTTP; the test plays the worker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventq.events.commands import ConfirmPause
from eventq.events.envelope import Event
from eventq.events.subjects import timer_subject
from eventq.events.task_events import Updated
from eventq.events.timers import DUE, SCHEDULE, Hint, set_timer
from tests.services.backend import Backend
from tests.support.poll import eventually


async def patch(backend: Backend, task_id: str, body: Any, **headers: str) -> tuple[int, Any]:
    async with backend.client.patch(f"/api/v1/tasks/{task_id}", json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_waiting_task_is_paused_and_resumed_at_once(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    status, answer = await backend.post(f"/tasks/{task_id}/pause", {"reason": "wait"})
    assert (status, answer["status"], answer["version"]) == (200, "PAUSED", 2)
    status, answer = await backend.post(f"/tasks/{task_id}/resume")
    assert (status, answer["status"], answer["version"]) == (200, "PENDING", 3)
    _, read = await backend.get(f"/tasks/{task_id}")
    assert (read["status"], read["pause_requested"]) == ("PENDING", False)


async def test_pausing_a_running_task_is_202_until_its_worker_confirms(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.begin(task_id)
    status, answer = await backend.post(f"/tasks/{task_id}/pause")
    assert (status, answer["status"]) == (202, "RUNNING")
    _, read = await backend.get(f"/tasks/{task_id}")
    assert read["pause_requested"] is True
    await backend.command(task_id, ConfirmPause(1, frozen=True))
    status, answer = await backend.post(f"/tasks/{task_id}/resume")
    assert (status, answer["status"]) == (200, "RUNNING")


async def test_a_finished_task_is_neither_paused_nor_resumed_nor_updated(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.complete(task_id)
    for path in ("pause", "resume"):
        status, answer = await backend.post(f"/tasks/{task_id}/{path}")
        assert (status, answer["code"], answer["status"]) == (409, "ILLEGAL_TRANSITION", "COMPLETED")
    status, answer = await patch(backend, task_id, {"priority": 1})
    assert (status, answer["code"]) == (409, "ILLEGAL_TRANSITION")


async def test_a_scheduled_task_that_was_paused_waits_for_its_time_again(backend: Backend) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    task_id = (await backend.submit(scheduled_at=at.isoformat()))["task_id"]
    await backend.post(f"/tasks/{task_id}/pause")
    _, answer = await backend.post(f"/tasks/{task_id}/resume")
    assert (answer["status"], answer["version"]) == ("SCHEDULED", 3)
    timers = await backend.broker.js.stream_info("TIMERS", subjects_filter=f"sched.tasks.{task_id}.due.3")
    assert timers.state.subjects, "nobody would wake it: its old timer is of another version"


async def test_an_update_changes_what_it_names_and_says_so(backend: Backend) -> None:
    task_id = (await backend.submit(tags=["a"]))["task_id"]
    body = {"priority": 9, "task_kwargs": {"width": 20}, "queue_name": "other", "tags": ["b"], "key": "ada"}
    status, answer = await patch(backend, task_id, body, **{"If-Match": '"1"'})
    assert (status, answer["status"], answer["version"]) == (200, "PENDING", 2)
    _, read = await backend.get(f"/tasks/{task_id}")
    assert (read["priority"], read["task_kwargs"], read["queue_name"]) == (9, {"width": 20}, "other")
    assert (read["tags"], read["key"], read["max_retries"]) == (["b"], "ada", 2)
    stored = await backend.log.last("tasks", task_id, fresh=True)
    assert stored is not None
    assert isinstance(stored.event.data, Updated)
    assert set(stored.event.data.changed) == {"priority", "kwargs", "queue", "tags", "key"}
    assert stored.event.route is not None
    assert (stored.event.route.queue, stored.event.route.priority) == ("other", 9)


async def test_an_update_of_a_stale_version_is_refused_with_412(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await patch(backend, task_id, {"priority": 9})
    status, answer = await patch(backend, task_id, {"priority": 1}, **{"If-Match": '"1"'})
    assert (status, answer["code"], answer["found"]) == (412, "PRECONDITION_FAILED", 2)


async def test_an_update_that_changes_nothing_writes_nothing(backend: Backend) -> None:
    task_id = (await backend.submit(priority=3))["task_id"]
    status, answer = await patch(backend, task_id, {"priority": 3})
    assert (status, answer["version"]) == (200, 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"task_kwargs": {"width": 0}}, "/task_kwargs/width"),
        ({"task_name": "echo"}, "/task_kwargs/width"),
        ({"task_name": "nobody"}, "task_name"),
        ({"priority": 11}, "/priority"),
        ({"status": "PENDING"}, "/status"),
    ],
)
async def test_an_update_is_checked_as_a_submission_is(backend: Backend, body: Any, field: str) -> None:
    task_id = (await backend.submit())["task_id"]
    before = await backend.last_position()
    status, answer = await patch(backend, task_id, body)
    assert (status, answer["field"]) == (400, field)
    assert await backend.last_position() == before


async def test_a_task_can_be_put_off_and_become_another(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    at = datetime.now(UTC) + timedelta(hours=1)
    body = {"task_name": "echo", "task_kwargs": {"message": "hi"}, "scheduled_at": at.isoformat()}
    status, answer = await patch(backend, task_id, body)
    assert (status, answer["status"]) == (200, "SCHEDULED")
    _, read = await backend.get(f"/tasks/{task_id}")
    assert (read["task_name"], read["task_kwargs"]) == ("echo", {"message": "hi"})


async def test_two_updates_at_once_are_both_made(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    answers = await asyncio.gather(patch(backend, task_id, {"priority": 9}), patch(backend, task_id, {"key": "ada"}))
    assert [status for status, _ in answers] == [200, 200]

    async def both() -> bool:
        _, read = await backend.get(f"/tasks/{task_id}")
        return (read["priority"], read["key"], read["version"]) == (9, "ada", 3)

    await eventually(both)


async def test_a_change_that_lost_leaves_the_timer_of_the_one_that_won(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon, late = (datetime.now(UTC) + timedelta(hours=hours) for hours in (1, 1_000))
    task_id = (await backend.submit(scheduled_at=(soon + timedelta(hours=1)).isoformat()))["task_id"]
    append = backend.log.append

    async def after_another(event: Event) -> int | None:
        monkeypatch.setattr(backend.log, "append", append)
        assert (await patch(backend, task_id, {"scheduled_at": soon.isoformat()}))[0] == 200
        await set_timer(backend.log.timers, Hint("tasks", task_id, DUE, event.version), late)  # the loser's comes last
        return await append(event)

    monkeypatch.setattr(backend.log, "append", after_another)
    status, _ = await patch(backend, task_id, {"scheduled_at": late.isoformat()}, **{"If-Match": '"1"'})
    assert status == 412
    timer = await backend.broker.js.get_last_msg("TIMERS", timer_subject(Hint("tasks", task_id, DUE, 2).tokens))
    assert (timer.headers or {})[SCHEDULE].startswith(f"@at {soon:%Y-%m-%dT%H:%M}")
