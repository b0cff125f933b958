"""Idempotency keys and unique tasks: races of two processes, deaths between the steps, and what a claim is for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eventq.events.envelope import NO_TRACE
from eventq.events.ids import new_id
from eventq.services import submission
from eventq.services.idempotency import KeyReused, keyed_id, record_of
from eventq.services.preparation import Submission
from eventq.services.submission import Accepted, repeat, submit
from tests.services.backend import Backend
from tests.support.nats import NatsServer

BODY = {"task_name": "resize", "task_kwargs": {"width": 10}}


def keyed(width: int = 10) -> Submission:
    """As each of several processes makes it of the same request."""
    record = record_of("k", {"width": width})
    return Submission("resize", [], {"width": width}, idempotency=record, task_id=keyed_id("k", "tasks"))


async def test_the_same_request_under_a_key_is_answered_the_same(backend: Backend) -> None:
    headers = {"Idempotency-Key": '"k"'}
    first = await backend.post("/tasks", BODY, headers=headers)
    await backend.complete(first[1]["task_id"])
    assert await backend.post("/tasks", BODY, headers={"Idempotency-Key": "k"}) == first
    status, answer = await backend.post("/tasks", {**BODY, "priority": 1}, headers=headers)
    assert (status, answer["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_a_refused_request_does_not_burn_its_key(backend: Backend) -> None:
    headers = {"Idempotency-Key": "k"}
    status, _ = await backend.post("/tasks", {**BODY, "task_kwargs": {"width": 0}}, headers=headers)
    assert status == 400
    assert (await backend.post("/tasks", BODY, headers=headers))[0] == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "é"])
async def test_what_is_no_key_is_refused(backend: Backend, key: str) -> None:
    status, answer = await backend.post("/tasks", BODY, headers={"Idempotency-Key": key})
    assert (status, answer["field"]) == (400, "Idempotency-Key")


async def test_processes_that_submit_under_one_key_at_once_make_one_task(backend: Backend) -> None:
    accepted = await asyncio.gather(*(submit(backend.api, keyed(), NO_TRACE) for _ in range(20)))
    assert len({(each.task_id, each.created_at) for each in accepted}) == 1
    with pytest.raises(KeyReused):
        await submit(backend.api, keyed(11), NO_TRACE)


async def test_unique_tasks_submitted_at_once_are_one_until_it_has_finished(backend: Backend) -> None:
    answers = await asyncio.gather(*(backend.post("/tasks", {**BODY, "unique": True}) for _ in range(5)))
    assert sorted(status for status, _ in answers) == [200, 200, 200, 200, 201]
    (task_id,) = {answer["task_id"] for _, answer in answers}
    await backend.complete(task_id)
    status, answer = await backend.post("/tasks", {**BODY, "unique": True})
    assert (status, answer["duplicate"]) == (201, False)
    assert answer["task_id"] != task_id


async def test_arguments_are_the_same_in_whatever_order_they_are_named(backend: Backend) -> None:
    nested = [{"task_kwargs": {"width": 10, "name": "n"}}, {"task_kwargs": {"name": "n", "width": 10}}]
    echoed = [{"task_kwargs": {"message": {"a": 1, "b": 2}}}, {"task_kwargs": {"message": {"b": 2, "a": 1}}}]
    for name, pair in (("resize", nested), ("echo", echoed)):
        answers = [await backend.post("/tasks", {"task_name": name, "unique": True, **body}) for body in pair]
        assert [status for status, _ in answers] == [201, 200]


async def test_without_the_claim_there_would_be_several(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    async def claims_nothing(*_: Any, **__: Any) -> None:
        return None

    monkeypatch.setattr(submission, "handle_any", claims_nothing)
    answers = await asyncio.gather(*(backend.post("/tasks", {**BODY, "unique": True}) for _ in range(5)))
    assert len({answer["task_id"] for _, answer in answers}) > 1


async def test_a_claim_whose_submitter_died_is_fulfilled_by_the_next(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Iterator[str] = iter([dead := new_id(), new_id(), new_id()])

    def dies(name: str) -> None:
        if name == "submit.after_claim":
            raise RuntimeError("killed")

    monkeypatch.setattr(submission, "new_id", lambda: next(made))
    monkeypatch.setattr(submission, "failpoint", dies)
    wanted = Submission("resize", [], {"width": 10}, unique_key="k")
    with pytest.raises(RuntimeError, match="killed"):
        await submit(backend.api, wanted, NO_TRACE)
    accepted = await submit(backend.api, wanted, NO_TRACE)
    assert (accepted.task_id, accepted.duplicate) == (dead, False)
    assert (await submit(backend.api, wanted, NO_TRACE)).duplicate


UNIQUE = {**BODY, "unique": True}
KEY = {"Idempotency-Key": "k"}


def keyed_unique(key: str = "k") -> Submission:
    """As each of several processes makes it of the same request."""
    record = record_of(key, {"width": 10, "unique": True})
    return Submission("resize", [], {"width": 10}, unique=True, idempotency=record, task_id=keyed_id(key, "tasks"))


async def test_a_unique_task_under_a_key_is_answered_the_same_after_it_has_finished(backend: Backend) -> None:
    first = await backend.post("/tasks", UNIQUE, headers=KEY)
    assert first[0] == 201
    await backend.complete(first[1]["task_id"])
    assert await backend.post("/tasks", UNIQUE, headers=KEY) == first
    status, answer = await backend.post("/tasks", UNIQUE)
    assert status == 201
    assert answer["task_id"] != first[1]["task_id"]


async def test_a_key_that_was_answered_with_another_task_stays_with_it(backend: Backend) -> None:
    _, held = await backend.post("/tasks", UNIQUE)
    first = await backend.post("/tasks", UNIQUE, headers=KEY)
    assert (first[0], first[1]["task_id"], first[1]["duplicate"]) == (200, held["task_id"], True)
    await backend.complete(held["task_id"])
    assert await backend.post("/tasks", UNIQUE, headers=KEY) == first
    for other in ({**UNIQUE, "priority": 1}, BODY):
        status, answer = await backend.post("/tasks", other, headers=KEY)
        assert (status, answer["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_unique_tasks_under_keys_submitted_at_once_are_one(backend: Backend) -> None:
    keys = ["a", "b"] * 5
    accepted = await asyncio.gather(*(submit(backend.api, keyed_unique(key), NO_TRACE) for key in keys))
    (task_id,) = {each.task_id for each in accepted}
    made = {key for key, each in zip(keys, accepted, strict=True) if not each.duplicate}
    assert len(made) == 1
    await backend.complete(task_id)
    again = await asyncio.gather(*(submit(backend.api, keyed_unique(key), NO_TRACE) for key in keys))
    assert {each.task_id for each in again} == {task_id}
    assert {key for key, each in zip(keys, again, strict=True) if not each.duplicate} == made


@pytest.mark.parametrize("point", ["submit.after_claim", "submit.after_answer", "submit.before_append", "submit.after_append"])
async def test_a_unique_task_under_a_key_is_made_once_though_its_submitter_died(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    def dies(name: str) -> None:
        if name == point:
            raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        for module in ("services.submission", "events.submitter"):
            patched.setattr(f"eventq.{module}.failpoint", dies)
        with pytest.raises(RuntimeError, match="killed"):
            await submit(backend.api, keyed_unique(), NO_TRACE)
    accepted = await submit(backend.api, keyed_unique(), NO_TRACE)
    await backend.complete(accepted.task_id)
    assert (await submit(backend.api, keyed_unique(), NO_TRACE)).task_id == accepted.task_id
    _, page = await backend.get("/tasks", params={"min_position": await backend.last_position()})
    assert page["total"] == 1


async def failed_unique(backend: Backend, **body: Any) -> str:
    task_id: str = (await backend.submit(**{"unique": True, **body}))["task_id"]
    await backend.fail(task_id)
    return task_id


@pytest.mark.parametrize("how", ["tasks/{}/retry", "tasks/{}/replay", "dead-letters/{}/redrive"])
async def test_a_repetition_of_a_unique_task_is_unique(backend: Backend, how: str) -> None:
    failed = await failed_unique(backend)
    status, again = await backend.post("/" + how.format(failed))
    assert status == 201
    status, answer = await backend.post("/tasks", {**BODY, "unique": True})
    assert (status, answer["task_id"]) == (200, again["task_id"])
    status, answer = await backend.post(f"/tasks/{failed}/replay")
    assert (status, answer["code"], answer["task_id"]) == (409, "CONFLICT", again["task_id"])
    await backend.complete(again["task_id"])
    assert (await backend.post(f"/tasks/{failed}/replay"))[0] == 201


async def test_repeating_a_unique_task_under_a_key_makes_one(backend: Backend) -> None:
    failed = await failed_unique(backend)
    first = await backend.post(f"/tasks/{failed}/retry", headers=KEY)
    assert first[0] == 201
    assert await backend.post(f"/tasks/{failed}/retry", headers=KEY) == first
    await backend.complete(first[1]["task_id"])
    assert await backend.post(f"/tasks/{failed}/retry", headers=KEY) == first


@dataclass
class Gap:
    """Between a claim of a unique key and what is stored under it: once, something else happens there."""

    happens: Callable[[], Awaitable[Any]]
    answers: list[Any] = field(default_factory=list[Any])

    def open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = submission.store

        async def late(*args: Any) -> Accepted:
            monkeypatch.setattr(submission, "store", store)
            self.answers.append(await self.happens())
            return await store(*args)

        monkeypatch.setattr(submission, "store", late)


async def test_a_dead_letter_is_redriven_itself_or_refused(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another of the same unique key is redriven in the same moment."""
    one, two = [await failed_unique(backend, unique=False, unique_key="k", task_kwargs={"width": width}) for width in (10, 11)]
    gap = Gap(lambda: backend.post(f"/dead-letters/{two}/redrive"))
    gap.open(monkeypatch)
    status, answer = await backend.post(f"/dead-letters/{one}/redrive")
    ((other, redriven),) = gap.answers
    assert (status, answer["code"], other, redriven["original_task_id"]) == (409, "CONFLICT", 201, two)
    assert (await backend.post(f"/dead-letters/{two}/redrive"))[1]["task_id"] == redriven["task_id"]
    await backend.complete(redriven["task_id"])
    status, answer = await backend.post(f"/dead-letters/{one}/redrive")
    assert (status, answer["original_task_id"]) == (201, one)
    _, read = await backend.get(f"/tasks/{answer['task_id']}")
    assert (read["original_task_id"], read["task_kwargs"]) == (one, {"width": 10})


async def test_a_dead_letter_whose_place_was_taken_by_what_is_erased_now_is_redriven(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = [await failed_unique(backend, unique=False, unique_key="k", task_kwargs={"width": width}) for width in (10, 11)]
    gap = Gap(lambda: backend.post(f"/dead-letters/{two}/redrive"))
    gap.open(monkeypatch)
    assert (await backend.post(f"/dead-letters/{one}/redrive"))[0] == 409
    ((_, redriven),) = gap.answers
    await backend.complete(redriven["task_id"])
    assert (await backend.post(f"/tasks/{redriven['task_id']}/erase"))[0] == 200
    status, answer = await backend.post(f"/dead-letters/{two}/redrive")
    assert (status, answer["code"]) == (409, "TASK_ERASED")
    status, answer = await backend.post(f"/dead-letters/{one}/redrive")
    assert (status, answer["original_task_id"]) == (201, one)


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("point", ["submit.after_claim", "submit.after_answer"])
async def test_a_retry_under_a_key_is_done_once_whoever_takes_the_place_that_it_claimed(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, point: str, dies: bool
) -> None:
    failed = await failed_unique(backend)
    gap = Gap(lambda: backend.post("/tasks", UNIQUE))
    if dies:

        def killed(name: str) -> None:
            if name == point:
                raise RuntimeError("killed")

        with monkeypatch.context() as patched:
            patched.setattr(submission, "failpoint", killed)
            assert (await backend.post(f"/tasks/{failed}/retry", headers=KEY))[0] == 500
        other = await gap.happens()
    else:
        gap.open(monkeypatch)
        assert (await backend.post(f"/tasks/{failed}/retry", headers=KEY))[0] == 409
        (other,) = gap.answers
    assert (other[0], other[1]["original_task_id"]) == (201, None)
    status, answer = await backend.post(f"/tasks/{failed}/retry", headers=KEY)
    assert (status, answer["code"], answer["task_id"]) == (409, "CONFLICT", other[1]["task_id"])
    await backend.complete(other[1]["task_id"])
    first = await backend.post(f"/tasks/{failed}/retry", headers=KEY)
    assert first[0] == 201
    assert await backend.post(f"/tasks/{failed}/retry", headers=KEY) == first
    await backend.complete(first[1]["task_id"])
    assert await backend.post(f"/tasks/{failed}/retry", headers=KEY) == first


async def test_a_retry_whose_place_was_claimed_before_is_done_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a submission that is slow: its claim is fulfilled by the retry."""
    failed = await failed_unique(backend)
    gap = Gap(lambda: backend.post(f"/tasks/{failed}/retry", headers=KEY))
    gap.open(monkeypatch)
    status, slow = await backend.post("/tasks", UNIQUE)
    (first,) = gap.answers
    assert (first[0], status, slow["task_id"], slow["duplicate"]) == (201, 200, first[1]["task_id"], True)
    assert await backend.post(f"/tasks/{failed}/retry", headers=KEY) == first
    await backend.complete(first[1]["task_id"])
    assert await backend.post(f"/tasks/{failed}/retry", headers=KEY) == first


async def test_one_retry_under_a_key_comes_of_many_requests_at_once(backend: Backend) -> None:
    failed = await failed_unique(backend)
    key, record = keyed_id("k", "tasks"), record_of("k", ["retry", failed])

    async def retry() -> Accepted:
        return await repeat(backend.api, failed, "retry", "ada", NO_TRACE, key=key, idempotency=record)

    accepted = await asyncio.gather(*(retry() for _ in range(10)))
    assert len({each.task_id for each in accepted}) == 1


@pytest.mark.parametrize(
    ("unique", "change", "field"),
    [
        ({"unique": True}, {"task_kwargs": {"width": 11}}, "/task_kwargs"),
        ({"unique": True}, {"task_name": "echo", "task_kwargs": {"message": 1}}, "/task_name"),
        ({"unique_key": "k"}, {"task_name": "echo", "task_kwargs": {"message": 1}}, "/task_name"),
        ({"unique_key": "k"}, {"task_kwargs": {"width": 11}}, None),
        ({"unique": True}, {"priority": 9}, None),
    ],
)
async def test_what_a_task_is_unique_by_does_not_change(
    backend: Backend, unique: dict[str, Any], change: dict[str, Any], field: str | None
) -> None:
    task_id = (await backend.submit(**unique))["task_id"]
    async with backend.client.patch(f"/api/v1/tasks/{task_id}", json=change) as answer:
        found = await answer.json()
        assert answer.status == (200 if field is None else 409)
        assert found.get("field") == field
    assert (await backend.post("/tasks", {**BODY, **unique}))[1]["task_id"] == task_id


async def test_an_answer_waits_for_the_outcome_or_says_that_there_is_none_yet(backend: Backend) -> None:
    status, answer = await backend.post("/tasks", BODY, headers={"Prefer": "wait=0"})
    assert (status, answer["status"]) == (202, "PENDING")
    headers = {"Idempotency-Key": "k", "Prefer": "wait=20"}
    waiting = asyncio.create_task(backend.post("/tasks", BODY, headers=headers))
    task_id = keyed_id("k", "tasks")
    async with asyncio.timeout(10):
        while await backend.log.last("tasks", task_id, fresh=True) is None:
            await asyncio.wait([waiting], timeout=0.01)
    await backend.complete(task_id, {"rows": 3})
    status, answer = await waiting
    assert (status, answer["status"], answer["result"]) == (201, "COMPLETED", {"rows": 3})
    status, answer = await backend.post("/tasks", BODY, headers={"Prefer": 'respond-async, Wait = "61"'})
    assert (status, answer["limit"], answer["found"]) == (400, 60, 61)


async def test_what_another_process_wrote_long_ago_holds_up_no_reads(own_nats_server: NatsServer, tmp_path: Path) -> None:
    """Given a unique task and limits that were stored by an API that is gone, when the same is asked of the next one, which
    writes nothing, then reads go on: no event will ever tell it of those versions again."""
    unique, limits = {**BODY, "unique": True}, {"limits": {"max_running": 3}}

    async def ask(backend: Backend) -> list[int]:
        submitted = (await backend.post("/tasks", unique))[0]
        async with backend.client.put("/api/v1/queues/default", json=limits) as configured:
            return [submitted, configured.status, (await backend.get("/tasks"))[0]]

    before = await Backend.start(own_nats_server.url, tmp_path)
    await before.register_worker()
    assert await ask(before) == [201, 200, 200]
    await before.close()
    after = await Backend.start(own_nats_server.url, tmp_path)
    try:
        assert await ask(after) == [200, 200, 200]
    finally:
        await after.close()
