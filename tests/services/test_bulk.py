"""One thing done with many tasks, and dead letters, over HTTP; the test plays the worker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from eventq.events.commands import CancelTask, ExpireLease, PauseTask, ResumeTask, StartAttempt
from eventq.events.envelope import Event
from tests.services.backend import Backend


async def bulk(backend: Backend, action: str, wanted: dict[str, Any], preview: dict[str, Any] | None = None) -> tuple[int, Any]:
    body: dict[str, Any] = {"action": action, "filter": wanted}
    if preview is not None:
        body["expected"] = {name: preview[name] for name in ("position", "count", "digest")}
    return await backend.post("/tasks/bulk", body)


async def submitted(backend: Backend, count: int, **body: Any) -> list[str]:
    return [(await backend.submit(**body))["task_id"] for _ in range(count)]


async def test_a_preview_counts_exactly_and_does_nothing(backend: Backend) -> None:
    ids = await submitted(backend, 3, tags=["x"])
    await submitted(backend, 1)
    await backend.complete(ids[0])
    before = await backend.last_position()
    status, preview = await bulk(backend, "cancel", {"tags": ["x"]})
    assert status == 200
    assert (preview["executed"], preview["count"], preview["excluded"]) == (False, 2, 1)
    assert preview["sample"] == sorted(ids[1:])
    assert preview["position"] == before == await backend.last_position()


async def test_what_a_preview_selected_is_cancelled(backend: Backend) -> None:
    ids = await submitted(backend, 3, tags=["x"])
    other = (await backend.submit())["task_id"]
    _, preview = await bulk(backend, "cancel", {"tags": ["x"]})
    status, done = await bulk(backend, "cancel", {"tags": ["x"]}, preview)
    assert (status, done["executed"], done["done"], done["refused"]) == (200, True, 3, 0)
    assert {task["task_id"]: task["status"] for task in done["tasks"]} == dict.fromkeys(ids, "CANCELLED")
    _, read = await backend.get(f"/tasks/{other}")
    assert read["status"] == "PENDING"


@pytest.mark.parametrize("change", ["another", "moved"])
async def test_a_selection_that_changed_is_refused_with_a_new_preview(backend: Backend, change: str) -> None:
    ids = await submitted(backend, 2, tags=["x"])
    _, preview = await bulk(backend, "cancel", {"tags": ["x"]})
    if change == "another":
        await submitted(backend, 1, tags=["x"])
    else:
        await backend.begin(ids[0])
    before = await backend.last_position()
    status, answer = await bulk(backend, "cancel", {"tags": ["x"]}, preview)
    assert (status, answer["code"]) == (409, "SELECTION_CHANGED")
    assert await backend.last_position() == before
    status, done = await bulk(backend, "cancel", {"tags": ["x"]}, answer["preview"])
    assert (status, done["done"]) == (200, 3 if change == "another" else 2)


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
async def test_a_task_that_moves_while_it_is_acted_on_is_refused_by_itself(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    moved, other = await submitted(backend, 2, tags=["x"])
    if action == "resume":
        for task_id in (moved, other):
            await backend.command(task_id, PauseTask("ada", None))
    _, preview = await bulk(backend, action, {"tags": ["x"]})
    append = backend.log.append

    async def after_another(event: Event) -> int | None:
        if event.aggregate_id != moved:
            return await append(event)
        monkeypatch.setattr(backend.log, "append", append)
        if action == "resume":
            await backend.command(moved, ResumeTask("bob", datetime.now(UTC)))
            await backend.command(moved, PauseTask("bob", "not yet"))
        else:
            await backend.begin(moved)
        return await append(event)

    monkeypatch.setattr(backend.log, "append", after_another)
    status, done = await bulk(backend, action, {"tags": ["x"]}, preview)
    assert (status, done["done"], done["refused"]) == (200, 1, 1)
    assert {task["task_id"]: task["code"] for task in done["tasks"]} == {moved: "VERSION_CONFLICT", other: None}


async def test_what_was_retried_is_not_retried_in_bulk_again(backend: Backend) -> None:
    alone, *others = await submitted(backend, 3, tags=["x"])
    for task_id in (alone, *others):
        await backend.fail(task_id)
    wanted = {"tags": ["x"], "status": ["FAILED"]}
    status, _ = await backend.post(f"/tasks/{alone}/retry", {})
    assert status == 201
    _, preview = await bulk(backend, "retry", wanted)
    assert (preview["count"], preview["sample"]) == (2, sorted(others))
    _, done = await bulk(backend, "retry", wanted, preview)
    assert (done["done"], done["refused"]) == (2, 0)
    status, again = await bulk(backend, "retry", wanted, preview)
    assert (status, again["code"], again["preview"]["count"]) == (409, "SELECTION_CHANGED", 0)
    again = done["tasks"][0]["new_task_id"]
    await backend.fail(again)
    _, preview = await bulk(backend, "retry", wanted)
    assert preview["sample"] == [again]


async def test_retrying_in_bulk_twice_at_once_runs_each_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = await submitted(backend, 2, tags=["x"])
    for task_id in ids:
        await backend.fail(task_id)
    wanted = {"tags": ["x"], "status": ["FAILED"]}
    _, preview = await bulk(backend, "retry", wanted)
    append, all_at_it = backend.log.append, asyncio.Barrier(4)

    async def together(event: Event) -> int | None:
        await all_at_it.wait()
        return await append(event)

    monkeypatch.setattr(backend.log, "append", together)
    (_, first), (_, second) = await asyncio.gather(*(bulk(backend, "retry", wanted, preview) for _ in range(2)))
    made = [task["new_task_id"] for task in first["tasks"]]
    assert made == [task["new_task_id"] for task in second["tasks"]]
    _, page = await backend.get("/tasks", params={"tag": "x"})
    assert page["total"] == 4
    assert {task["original_task_id"] for task in page["tasks"] if task["task_id"] in made} == set(ids)


async def test_tasks_are_paused_and_resumed_in_bulk(backend: Backend) -> None:
    await submitted(backend, 2, tags=["x"])
    for action, before, after in (("pause", "PENDING", "PAUSED"), ("resume", "PAUSED", "PENDING")):
        _, preview = await bulk(backend, action, {"status": [before]})
        _, done = await bulk(backend, action, {"status": [before]}, preview)
        assert [task["status"] for task in done["tasks"]] == [after, after]


async def test_finished_tasks_are_deleted_in_bulk_and_no_others(backend: Backend) -> None:
    ids = await submitted(backend, 2, tags=["x"])
    await backend.complete(ids[0], {"rows": 1})
    _, preview = await bulk(backend, "delete", {"tags": ["x"]})
    assert (preview["count"], preview["excluded"]) == (1, 1)
    _, done = await bulk(backend, "delete", {"tags": ["x"]}, preview)
    assert (done["done"], done["tasks"][0]["task_id"]) == (1, ids[0])
    _, preview = await bulk(backend, "delete", {"tags": ["x"]})
    assert preview["count"] == 0


async def test_everything_is_selected_only_where_it_is_said(backend: Backend) -> None:
    await submitted(backend, 2)
    status, answer = await bulk(backend, "cancel", {})
    assert (status, answer["field"]) == (400, "/filter")
    status, preview = await bulk(backend, "cancel", {"all": True})
    assert (status, preview["count"]) == (200, 2)


async def dead(backend: Backend, **params: Any) -> list[dict[str, Any]]:
    status, answer = await backend.get("/dead-letters", params=params)
    assert status == 200, answer
    assert answer["total"] == len(answer["dead_letters"])
    return list(answer["dead_letters"])


async def test_failed_tasks_are_dead_letters_until_they_are_redriven(backend: Backend) -> None:
    failed, cancelled, completed = await submitted(backend, 3)
    await backend.fail(failed)
    await backend.command(cancelled, CancelTask("ada"))
    await backend.complete(completed)
    await backend.api.freshness.wait_for_position(await backend.last_position(), 5)
    (letter,) = await dead(backend)
    assert (letter["task_id"], letter["reason"], letter["attempts"]) == (failed, "not_retryable", 1)
    assert letter["error"]["type"] == "ValueError"

    answers = await asyncio.gather(*(backend.post(f"/dead-letters/{failed}/redrive") for _ in range(5)))
    assert sorted(status for status, _ in answers) == [200, 200, 200, 200, 201]
    assert len({answer["task_id"] for _, answer in answers}) == 1
    assert answers[0][1]["original_task_id"] == failed
    assert await dead(backend) == []


async def test_who_was_cleaned_up_or_erased_is_no_dead_letter_any_more(backend: Backend) -> None:
    cleaned, erased, left = await submitted(backend, 3)
    for task_id in (cleaned, erased, left):
        await backend.fail(task_id)
    async with backend.client.delete(f"/api/v1/tasks/{cleaned}") as answer:
        assert answer.status == 200
    assert (await backend.post(f"/tasks/{erased}/erase"))[0] == 200
    assert [letter["task_id"] for letter in await dead(backend)] == [left]
    _, redriven = await backend.post("/dead-letters/redrive", {"filter": {"status": ["FAILED"]}})
    assert [task["task_id"] for task in redriven["tasks"]] == [left]


async def test_a_dead_letter_whose_redrive_was_erased_is_not_redriven_over_it(backend: Backend) -> None:
    failed = (await backend.submit())["task_id"]
    await backend.fail(failed)
    _, redriven = await backend.post(f"/dead-letters/{failed}/redrive")
    await backend.complete(redriven["task_id"], {"rows": 1})
    await backend.post(f"/tasks/{redriven['task_id']}/erase")
    before = await backend.last_position()
    status, answer = await backend.post(f"/dead-letters/{failed}/redrive")
    assert (status, answer["code"]) == (409, "TASK_ERASED")
    assert await backend.last_position() == before


async def test_poison_shows_the_workers_that_it_cost(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    for number in (1, 2, 3):
        await backend.command(task_id, StartAttempt(worker_id=f"w-{number}", hostname="host", device="cpu"))
        await backend.command(task_id, ExpireLease(number))
    await backend.api.freshness.wait_for_position(await backend.last_position(), 5)
    (letter,) = await dead(backend, reason="poison")
    assert [(each["attempt"], each["worker_id"]) for each in letter["evidence"]] == [(1, "w-1"), (2, "w-2"), (3, "w-3")]


async def test_many_dead_letters_are_redriven_each_or_refused(backend: Backend) -> None:
    ids = await submitted(backend, 3, tags=["x"])
    for task_id in ids[:2]:
        await backend.fail(task_id)
    status, answer = await backend.post("/dead-letters/redrive", {"task_ids": [*ids, "nobody"]})
    assert (status, answer["redriven"], answer["refused"]) == (200, 2, 2)
    assert [task["code"] for task in answer["tasks"]] == [None, None, "ILLEGAL_TRANSITION", "TASK_NOT_FOUND"]
    made = [task["new_task_id"] for task in answer["tasks"][:2]]
    for task_id in made:
        await backend.fail(task_id)
    status, answer = await backend.post("/dead-letters/redrive", {"filter": {"tags": ["x"]}})
    assert (status, answer["redriven"]) == (200, 2)
    assert {task["task_id"] for task in answer["tasks"]} == set(made)


async def test_what_was_retried_is_not_redriven_as_well(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.fail(task_id)
    _, retried = await backend.post(f"/tasks/{task_id}/retry")
    before = await backend.last_position()
    status, answer = await backend.post(f"/dead-letters/{task_id}/redrive")
    assert (status, answer["code"], answer["retried_as"]) == (409, "ILLEGAL_TRANSITION", retried["task_id"])
    _, answer = await backend.post("/dead-letters/redrive", {"task_ids": [task_id]})
    assert (answer["refused"], answer["tasks"][0]["code"]) == (1, "ILLEGAL_TRANSITION")
    assert await backend.last_position() == before


async def test_only_dead_letters_are_redriven(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    status, answer = await backend.post(f"/dead-letters/{task_id}/redrive")
    assert (status, answer["code"]) == (409, "ILLEGAL_TRANSITION")
    status, answer = await backend.post("/dead-letters/nobody/redrive")
    assert (status, answer["code"]) == (404, "TASK_NOT_FOUND")


@pytest.mark.parametrize("tag", ["a\nb", 'a"b', "a,b", "[a]", "a\\b", "\x01", "null", "ü", " a "])
async def test_a_tag_is_found_as_it_is_and_not_as_it_is_written_in_json(backend: Backend, tag: str) -> None:
    await submitted(backend, 1, tags=[tag])
    await submitted(backend, 1, tags=["anb"])
    assert (await bulk(backend, "cancel", {"tags": [tag]}))[1]["count"] == 1
    assert (await bulk(backend, "cancel", {"tags": ["anb"]}))[1]["count"] == 1
