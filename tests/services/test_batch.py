"""Many tasks in one request, over the real log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import orjson
import pytest

from eventq.events.envelope import NO_TRACE
from eventq.events.errors import Unavailable
from eventq.events.handle import handle_any
from eventq.events.queue import QUEUES, ConfigureQueue
from eventq.events.queue_events import QueueLimits
from eventq.events.task_events import Submitted
from eventq.events.worker_events import TaskDeclaration
from eventq.services import batch as module
from eventq.services import preparation, submission
from eventq.services.api import Api
from eventq.services.api_tasks import submission_of
from eventq.services.batch import GROUP_MAX, Batch
from eventq.services.http_limits import MIB
from eventq.services.preparation import Submission
from tests.services.backend import Backend

LINES = {"Content-Type": "application/x-ndjson"}


def task(width: int = 10, **more: Any) -> dict[str, Any]:
    return {"task_name": "resize", "task_kwargs": {"width": width}, **more}


async def batch(backend: Backend, tasks: list[Any], **headers: str) -> list[Any]:
    body = b"".join(orjson.dumps(each) + b"\n" for each in tasks)
    async with backend.client.post("/api/v1/tasks/batch", data=body, headers={**LINES, **headers}) as answer:
        assert answer.status == 200, await answer.text()
        return [orjson.loads(line) for line in (await answer.read()).splitlines()]


async def test_each_task_is_accepted_or_refused_by_itself_and_in_order(backend: Backend) -> None:
    *lines, last = await batch(backend, [task(1), task(0), {"task_name": "nobody"}, [], task(2)])
    assert last == {"accepted": 2, "refused": 3}
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line.get("error", {}).get("field") for line in lines] == [None, "/task_kwargs/width", "task_name", "body", None]
    _, read = await backend.get(f"/tasks/{lines[4]['task_id']}")
    assert read["task_kwargs"] == {"width": 2}


async def test_ten_thousand_tasks_are_accepted_and_one_more_is_not(backend: Backend) -> None:
    *lines, last = await batch(backend, [task()] * 10_001)
    assert last == {"accepted": 10_000, "refused": 0}
    assert lines[-1]["error"]["limit"] == 10_000
    assert len({line["task_id"] for line in lines[:-1]}) == 10_000
    assert await backend.last_position() >= 10_000


async def test_a_line_of_one_mebibyte_is_taken_and_one_byte_more_is_not(backend: Backend) -> None:
    longest = orjson.dumps(task()).ljust(MIB)
    async with backend.client.post("/api/v1/tasks/batch", data=BytesIO(longest + b"\n"), headers=LINES) as answer:
        assert (answer.status, orjson.loads((await answer.read()).splitlines()[-1])["accepted"]) == (200, 1)
    async with backend.client.post("/api/v1/tasks/batch", data=BytesIO(longest + b" \n"), headers=LINES) as answer:
        assert (answer.status, (await answer.json())["limit"]) == (413, MIB)


async def test_options_and_queues_hold_in_a_batch_as_they_do_alone(backend: Backend) -> None:
    limited = ConfigureQueue(QueueLimits(max_running=1), "ada")
    await handle_any(backend.log, QUEUES, "narrow", limited, source="test")
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    wanted = [
        task(1, queue_name="narrow"),
        task(2, scheduled_at=later),
        task(3, unique_key="k"),
        task(4, priority=9, tags=["a"], metadata={"b": "c"}),
        task(5, unique_key="k"),
    ]
    *lines, _ = await batch(backend, wanted)
    read = [(await backend.get(f"/tasks/{line['task_id']}"))[1] for line in lines]
    assert [line["status"] for line in lines] == ["PENDING", "SCHEDULED", "PENDING", "PENDING", "PENDING"]
    assert [each["task_kwargs"]["width"] for each in read[:2]] == [1, 2]
    assert [line.get("duplicate", False) for line in lines].count(True) == 1
    assert lines[2]["task_id"] == lines[4]["task_id"]
    assert (read[3]["priority"], read[3]["tags"], read[3]["metadata"]) == (9, ["a"], {"b": "c"})
    held = await backend.log.last("tasks", lines[0]["task_id"], fresh=True)
    assert held is not None
    assert held.event.route is None


async def test_an_error_that_nobody_expected_costs_one_task(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = preparation._prepare  # pyright: ignore[reportPrivateUsage]

    async def fails(api: Api, wanted: Submission, *rest: Any) -> Submitted:
        if wanted.kwargs["width"] == 7:
            raise RuntimeError("a bug")
        return await prepare(api, wanted, *rest)

    monkeypatch.setattr(preparation, "_prepare", fails)
    *lines, last = await batch(backend, [task(width) for width in range(1, 20)])
    assert last == {"accepted": 18, "refused": 1}
    assert lines[6]["error"]["code"] == "INTERNAL_ERROR"


async def test_what_strikes_a_whole_group_is_answered_of_each_of_its_tasks(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, turns = submission.submit_all, 0

    async def fails(*arguments: Any) -> Any:
        nonlocal turns
        turns += 1
        if turns == 2:
            raise Unavailable("the event log is damaged and takes no tasks")
        return await store(*arguments)

    monkeypatch.setattr(module, "submit_all", fails)
    *lines, last = await batch(backend, [task()] * (3 * GROUP_MAX))
    assert last == {"accepted": 2 * GROUP_MAX, "refused": GROUP_MAX}
    assert [line["index"] for line in lines] == list(range(3 * GROUP_MAX))
    struck = [line["index"] for line in lines if "error" in line]
    assert struck == list(range(GROUP_MAX, 2 * GROUP_MAX))


async def test_the_log_keeps_the_order_of_the_groups(backend: Backend) -> None:
    """Also where the first of them has more to do: timers to set, arguments to store."""
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    wanted = [task(scheduled_at=later)] * 8 + [task()] * (2 * GROUP_MAX)
    *lines, _ = await batch(backend, wanted)
    some = [lines[0], lines[GROUP_MAX - 1], *lines[GROUP_MAX::100]]
    stored = [await backend.log.at("tasks", line["task_id"], 1) for line in some]
    positions = [each.position for each in stored if each is not None]
    assert max(positions[:2]) < min(positions[2:])


async def test_what_is_accepted_counts_though_nobody_hears_of_it(backend: Backend) -> None:
    async def groups() -> AsyncIterator[list[Any]]:
        for _ in range(2):
            yield [task()] * 20

    async def gone(_: list[dict[str, Any]]) -> None:
        raise ConnectionResetError

    counted = Batch(backend.api, submission_of, requested_by="ada", trace=NO_TRACE, idempotency_key=None)
    before = await backend.last_position()
    with pytest.raises(ConnectionResetError):
        await counted.run(groups(), gone)
    assert counted.accepted == counted.queues["default"] == await backend.last_position() - before


async def test_an_unknown_name_is_asked_for_once_a_group(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = preparation.declaration_of

    async def counted(api: Api, name: str) -> TaskDeclaration:
        asked.append(name)
        return await ask(api, name)

    monkeypatch.setattr(preparation, "declaration_of", counted)
    *_, last = await batch(backend, [{"task_name": "nobody"}, task()] * 100)
    assert last == {"accepted": 100, "refused": 100}
    assert sorted(asked) == ["nobody", "resize"]


async def test_one_object_tells_of_what_came_before_the_body_broke(backend: Backend) -> None:
    body = b"".join(orjson.dumps(task()) + b"\n" for _ in range(10_001))
    headers = {**LINES, "Accept": "application/json"}
    async with backend.client.post("/api/v1/tasks/batch", data=body, headers=headers) as answer:
        found = await answer.json()
    assert (answer.status, found["accepted"], len(found["tasks"])) == (200, 10_000, 10_000)
    assert found["error"]["limit"] == 10_000


async def test_large_arguments_are_stored_beside_the_log(backend: Backend) -> None:
    text = "x" * 100_000
    *lines, last = await batch(backend, [task(1), {"task_name": "echo", "task_kwargs": {"message": text}}, task(2)])
    assert last["accepted"] == 3, lines
    stored = await backend.log.at("tasks", lines[1]["task_id"], 1)
    assert stored is not None
    assert isinstance(stored.event.data, Submitted)
    assert stored.event.data.input is not None


async def test_whoever_leaves_in_the_middle_leaves_what_was_answered(backend: Backend) -> None:
    """Three groups are sent, the first answers are read, the connection is cut."""
    body = b"".join(orjson.dumps(task(1)) + b"\n" for _ in range(700))
    async with backend.client.post("/api/v1/tasks/batch", data=body, headers=LINES) as answer:
        first = [orjson.loads(await answer.content.readline()) for _ in range(50)]
        answer.close()
    for line in first:
        assert (await backend.get(f"/tasks/{line['task_id']}"))[0] == 200
    assert (await batch(backend, [task(2)]))[-1] == {"accepted": 1, "refused": 0}


async def test_an_array_is_a_batch_as_well_and_may_be_answered_as_one_object(backend: Backend) -> None:
    status, answer = await backend.post("/tasks/batch", [task(1), task(0)], headers={"Accept": "application/json"})
    assert (status, answer["accepted"], answer["refused"]) == (200, 1, 1)
    assert [each["index"] for each in answer["tasks"]] == [0, 1]
    status, answer = await backend.post("/tasks/batch", task())
    assert (status, answer["field"]) == (400, "body")
    status, answer = await backend.post("/tasks/batch", [task()] * 10_001)
    assert (status, answer["limit"], answer["found"]) == (400, 10_000, 10_001)


async def test_a_batch_sent_again_under_its_key_makes_nothing_new(backend: Backend) -> None:
    first = await batch(backend, [task(1), task(2)], **{"Idempotency-Key": "k"})
    before = await backend.last_position()
    assert await batch(backend, [task(1), task(2)], **{"Idempotency-Key": "k"}) == first
    *lines, last = await batch(backend, [task(1), task(3)], **{"Idempotency-Key": "k"})
    assert (last, lines[1]["error"]["code"]) == ({"accepted": 1, "refused": 1}, "IDEMPOTENCY_KEY_REUSED")
    assert await backend.last_position() == before


async def test_what_was_sent_is_answered_before_the_rest_comes(backend: Backend) -> None:
    rest = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield orjson.dumps(task(1)) + b"\n"
        await rest.wait()
        yield orjson.dumps(task(2))

    async with backend.client.post("/api/v1/tasks/batch", data=body(), headers=LINES) as answer:
        async with asyncio.timeout(5):
            first = orjson.loads(await answer.content.readline())
        rest.set()
        others = [orjson.loads(line) for line in (await answer.read()).splitlines()]
    assert first["index"] == 0
    assert [line.get("index") for line in others] == [1, None]


async def test_a_body_that_stands_still_is_said_to_and_what_came_stays(backend: Backend) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield orjson.dumps(task(1)) + b"\n"
        await asyncio.Event().wait()

    async with backend.client.post("/api/v1/tasks/batch", data=body(), headers=LINES) as answer:
        lines = [orjson.loads(line) for line in (await answer.read()).splitlines()]
    assert lines[1]["error"]["code"] == "REQUEST_TIMEOUT"
    assert lines[2] == {"accepted": 1, "refused": 0}
