"""Clean-up and erasure over a real broker, a real projection and a real blob store: what must be gone is gone, in the bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from nats.js.errors import NotFoundError

from eventq.events.blob_keys import output_key
from eventq.events.broker import StreamFacts
from eventq.events.commands import CompleteAttempt
from eventq.events.ending import end
from eventq.events.errors import BlobNotFound, LogUnavailable
from eventq.events.handle import read_task
from eventq.events.report import Log, LogLine, Progress
from eventq.events.reporting import publish_report
from eventq.events.subjects import EVENTS, PROGRESS
from eventq.projections.projector import Projector
from eventq.projections.rebuild import Replayer, rebuild_after_erasures, verify
from eventq.projections.store import COMPARED, ProjectionDamaged, Rebuild
from eventq.services import erase as erasure
from eventq.services.disposal import Disposal
from eventq.services.erase import Asked, Tables, erase
from eventq.services.follower import Follower
from eventq.services.overwriting import Erasure, dispose
from eventq.services.reading import fresh_task
from eventq.services.schedules import read_schedule
from tests.services.backend import Backend
from tests.services.secrets import SECRET, bytes_hold, disposing, first_position, replace_dispose, stands
from tests.support.nats import NatsServer
from tests.support.poll import eventually


async def secret_task(backend: Backend) -> str:
    """A completed task that carries the secret wherever a task can carry something."""
    task = await backend.submit(
        task_kwargs={"width": 1, "name": SECRET}, tags=[SECRET], metadata={"whose": SECRET}, queue_name="private"
    )
    task_id: str = task["task_id"]
    await backend.begin(task_id)
    await publish_report(backend.broker, task_id, 1, "worker.w1", Progress(done=1, message=SECRET))
    await publish_report(backend.broker, task_id, 1, "worker.w1", Log([LogLine(SECRET)]))
    key = output_key(task_id, 1, "out.txt")
    await backend.api.blobs.put_async(SECRET.encode(), key=key)
    await backend.command(task_id, CompleteAttempt(1, {"answer": SECRET}, None, 0.1))
    await backend.get(f"/tasks/{task_id}?min_version=3")
    return task_id


async def test_a_cleaned_task_has_lost_its_result_and_files_and_is_listed_on_request_only(backend: Backend) -> None:
    task_id = await secret_task(backend)
    async with backend.client.delete(f"/api/v1/tasks/{task_id}") as answer:
        assert answer.status == 200
        assert (await answer.json())["status"] == "COMPLETED"
    _, task = await backend.get(f"/tasks/{task_id}")
    assert (task["cleaned"], task["result"], task["progress"]) == (True, None, None)
    assert task["task_kwargs"]["name"] == SECRET, "what was asked for stays"
    with pytest.raises(BlobNotFound):
        await backend.api.blobs.get_async(output_key(task_id, 1, "out.txt"))
    with pytest.raises(NotFoundError):
        await backend.broker.js.get_last_msg(PROGRESS, f"progress.{task_id}")
    _, page = await backend.get("/tasks")
    assert task_id not in [each["task_id"] for each in page["tasks"]]
    _, page = await backend.get("/tasks?cleaned=true")
    assert [each["task_id"] for each in page["tasks"]] == [task_id]
    assert (await verify(backend.projector.store, backend.broker)).equal


async def test_cleaning_up_again_is_nothing_and_an_unfinished_task_is_refused(backend: Backend) -> None:
    task_id = await secret_task(backend)
    for _ in range(2):
        async with backend.client.delete(f"/api/v1/tasks/{task_id}") as answer:
            assert (await answer.json())["version"] == 4
    running = (await backend.submit())["task_id"]
    async with backend.client.delete(f"/api/v1/tasks/{running}") as answer:
        assert answer.status == 409
    async with backend.client.delete("/api/v1/tasks/nobody") as answer:
        assert answer.status == 404


async def test_an_erased_task_leaves_no_byte_of_what_it_carried(
    backend: Backend, own_nats_server: NatsServer, tmp_path: Path
) -> None:
    task_id, other = await secret_task(backend), (await backend.submit())["task_id"]
    broker_files, tables, blobs = own_nats_server.store_dir, tmp_path / "projection", tmp_path / "blobs"
    assert bytes_hold(broker_files), "else this test shows nothing"
    assert bytes_hold(blobs)
    forgetting = asyncio.create_task(rebuild_after_erasures(backend.projector, quiet_s=0))
    status, answer = await backend.post(f"/tasks/{task_id}/erase", {"reason": "asked to"})
    assert (status, answer["status"]) == (200, "COMPLETED")
    _, task = await backend.get(f"/tasks/{task_id}")
    assert (task["erased"], task["task_kwargs"], task["tags"], task["metadata"], task["result"]) == (True, {}, [], {}, None)
    _, story = await backend.get(f"/tasks/{task_id}/timeline")
    assert [event["event_type"] for event in story["events"]] == ["submitted", "started", "completed", "erased"]
    assert SECRET not in str(story["events"][:3])
    assert bytes_hold(broker_files) == []
    assert bytes_hold(blobs) == []

    async def forgotten() -> bool:
        return not bytes_hold(tables)

    await eventually(forgotten, what="the file of the projection is made anew")
    await end(forgetting)
    assert (await verify(backend.projector.store, backend.broker)).equal
    _, unharmed = await backend.get(f"/tasks/{other}")
    assert unharmed["task_kwargs"] == {"width": 10}
    own_nats_server.restart()
    assert bytes_hold(broker_files) == []


async def test_a_file_that_was_set_aside_as_damaged_keeps_nothing_of_what_is_erased(backend: Backend, tmp_path: Path) -> None:
    task_id, projector, tables = await secret_task(backend), backend.projector, tmp_path / "projection"
    projector.store.damage = ProjectionDamaged("for this test")
    await eventually(lambda: projector.started_over == 1, what="the file is set aside")
    assert any(path.name.startswith("damaged-") for path in bytes_hold(tables))
    forgetting = asyncio.create_task(rebuild_after_erasures(projector, quiet_s=0))
    await backend.post(f"/tasks/{task_id}/erase")
    await backend.get(f"/tasks/{task_id}")
    await eventually(lambda: not projector.store.erasure_noted, what="the file is made anew")
    assert bytes_hold(tables) == []
    await end(forgetting)


async def test_a_process_that_ended_before_it_made_its_file_anew_does_so_later(backend: Backend) -> None:
    task_id, store = await secret_task(backend), backend.projector.store
    await backend.post(f"/tasks/{task_id}/erase")
    await backend.get(f"/tasks/{task_id}")
    assert Projector(store, backend.broker).erased.is_set(), "as the next process would begin"
    forgetting = asyncio.create_task(rebuild_after_erasures(backend.projector, quiet_s=0))
    await eventually(lambda: not store.erasure_noted, what="the file is made anew")
    await end(forgetting)
    assert not Projector(store, backend.broker).erased.is_set()


async def test_a_file_is_made_anew_although_the_broker_did_not_answer_at_first(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id, store, stream_facts = await secret_task(backend), backend.projector.store, backend.broker.stream_facts

    async def silent(stream: str) -> StreamFacts | None:
        monkeypatch.setattr(backend.broker, "stream_facts", stream_facts)
        raise TimeoutError

    await backend.post(f"/tasks/{task_id}/erase")
    await backend.get(f"/tasks/{task_id}")
    monkeypatch.setattr(backend.broker, "stream_facts", silent)
    forgetting = asyncio.create_task(rebuild_after_erasures(backend.projector, quiet_s=0))
    await eventually(lambda: forgetting.done() or not store.erasure_noted, what="the file is made anew")
    assert not forgetting.done()
    await end(forgetting)


async def test_an_erasure_that_the_broker_refuses_is_not_called_done(backend: Backend, own_nats_server: NatsServer) -> None:
    task_id = await secret_task(backend)
    config = (await backend.broker.request(f"$JS.API.STREAM.INFO.{EVENTS}", {}))["config"]
    await backend.broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", config | {"deny_delete": True})
    for _ in range(2):
        status, answer = await backend.post(f"/tasks/{task_id}/erase")
        assert (status, answer["code"]) == (503, "LOG_UNAVAILABLE")
    assert bytes_hold(own_nats_server.store_dir)


async def test_what_was_erased_cannot_be_had_from_the_past_nor_run_again(backend: Backend) -> None:
    task_id = await secret_task(backend)
    _, before = await backend.get(f"/tasks/{task_id}")
    await backend.post(f"/tasks/{task_id}/erase")
    _, past = await backend.get(f"/tasks/{task_id}?as_of={before['as_of']}")
    assert SECRET not in str(past)
    for verb in ("replay",):
        status, answer = await backend.post(f"/tasks/{task_id}/{verb}")
        assert (status, answer["code"]) == (409, "TASK_ERASED")


async def arguments_are_there(backend: Backend, task_id: str) -> bool:
    """Of a task with large ones."""
    row = await fresh_task(backend.api, task_id)
    assert row.input is not None
    try:
        return bool(await backend.api.blobs.get_async(row.input))
    except BlobNotFound:
        return False


async def test_arguments_that_others_were_given_too_stay_until_the_last_is_erased(backend: Backend, tmp_path: Path) -> None:
    large = {"width": 1, "name": SECRET * 4_000}
    task_id = (await backend.submit(task_kwargs=large))["task_id"]
    await backend.fail(task_id)
    _, retried = await backend.post(f"/tasks/{task_id}/retry")
    await backend.post(f"/tasks/{task_id}/erase")
    assert await arguments_are_there(backend, retried["task_id"])
    await backend.complete(retried["task_id"])
    await backend.post(f"/tasks/{retried['task_id']}/erase")
    assert bytes_hold(tmp_path / "blobs") == []


async def test_a_schedule_keeps_its_arguments_when_one_of_its_tasks_is_erased(backend: Backend) -> None:
    large = {"width": 1, "name": SECRET * 4_000}
    schedule = {"schedule_id": "nightly", "cron": "0 0 * * *", "task_name": "resize", "task_kwargs": large}
    assert (await backend.post("/schedules", schedule))[0] == 201
    made = await backend.submit(task_kwargs=large)
    await backend.complete(made["task_id"])
    _, answer = await backend.post(f"/tasks/{made['task_id']}/erase")
    assert answer["message"] == "Task erased"
    later = await read_schedule(backend.log, "nightly", fresh=True)
    assert later.required_spec.task.input is not None
    assert await backend.api.blobs.get_async(later.required_spec.task.input)


async def test_two_that_share_their_arguments_and_are_erased_at_once_leave_none(backend: Backend, tmp_path: Path) -> None:
    large = {"width": 1, "name": SECRET * 4_000}
    ids = [(await backend.submit(task_kwargs=large))["task_id"] for _ in range(2)]
    for task_id in ids:
        await backend.complete(task_id)
    answers = await asyncio.gather(*(backend.post(f"/tasks/{task_id}/erase") for task_id in ids))
    assert [status for status, _ in answers] == [200, 200]
    assert bytes_hold(tmp_path / "blobs") == []


async def test_erasing_what_somebody_else_erased_meanwhile_is_no_conflict(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id, honest = await secret_task(backend), erasure._history  # pyright: ignore[reportPrivateUsage]
    answers: list[tuple[int, Any]] = []

    async def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(erasure, "_history", honest)
        answers.append(await backend.post(f"/tasks/{task_id}/erase"))
        return await honest(*arguments)

    monkeypatch.setattr(erasure, "_history", overtaken)
    answers.append(await backend.post(f"/tasks/{task_id}/erase"))
    assert [(status, answer["version"]) for status, answer in answers] == [(200, 4)] * 2


async def test_erasing_again_spares_arguments_that_a_later_task_was_given(backend: Backend) -> None:
    large = {"width": 1, "name": "x" * 100_000}
    erased = await backend.submit(task_kwargs=large)
    await backend.complete(erased["task_id"])
    await backend.post(f"/tasks/{erased['task_id']}/erase")
    later = await backend.submit(task_kwargs=large)
    assert (await backend.post(f"/tasks/{erased['task_id']}/erase"))[0] == 200
    assert await arguments_are_there(backend, later["task_id"])


async def test_a_projection_of_a_log_with_erased_beginnings_is_folded_from_nothing(backend: Backend) -> None:
    """The first events of the stream itself are among the erased ones."""
    task_id = await secret_task(backend)
    await backend.post(f"/tasks/{task_id}/erase")
    status, rebuilt = await backend.post("/projection/rebuild")
    assert status == 200
    assert rebuilt["position"] == await backend.last_position()
    status, verified = await backend.post("/projection/verify")
    assert (status, verified["equal"], verified["differences"]) == (200, True, [])


async def test_a_verification_does_not_mind_what_is_erased_meanwhile(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unused(_: Sequence[str], __: str) -> Collection[str]:
        return ()

    task_id, store, loop = await secret_task(backend), backend.projector.store, asyncio.get_running_loop()
    take_digests = store.take_digests

    def then_erased(rebuild: Rebuild) -> int:
        position = take_digests(rebuild)
        erasing = erase(backend.log, backend.api.blobs, task_id, Asked("ada"), Tables(unused, backend.api.freshness.note_write))
        asyncio.run_coroutine_threadsafe(erasing, loop).result(10)
        return position

    monkeypatch.setattr(store, "take_digests", then_erased)
    verified = await verify(store, backend.broker)
    assert verified.differences == []
    assert verified.tables["events"][0] == verified.position < await backend.last_position()


async def test_a_file_that_is_made_anew_before_the_deletions_holds_nothing_of_what_was_erased(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await secret_task(backend)

    async def dies(*_: Any) -> None:
        raise ConnectionResetError

    replace_dispose(monkeypatch, dies)
    await backend.post(f"/tasks/{task_id}/erase")
    rebuild = backend.projector.store.new_rebuild()
    async with Replayer(backend.broker, rebuild) as replayer:
        await replayer.replay_to(EVENTS, await backend.last_position() - 1)  # in a long log the erasure is folded much later
        with rebuild.transaction() as transaction:
            rows = [transaction.execute(f"SELECT * FROM {table}") for table in COMPARED]
        assert SECRET not in str(rows)
        await replayer.replay_all()
    rebuild.discard()
    assert (await verify(backend.projector.store, backend.broker)).equal


async def test_a_slow_broker_does_not_make_what_was_erased_look_lost(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = await secret_task(backend)
    await backend.post(f"/tasks/{task_id}/erase")
    add_consumer = cast("Any", backend.broker.js).add_consumer

    async def slow(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(1.5)
        return await add_consumer(*args, **options)

    monkeypatch.setattr(backend.broker.js, "add_consumer", slow)
    status, answer = await backend.post("/projection/rebuild")
    assert (status, answer.get("code")) == (200, None)


async def test_a_hole_that_no_erasure_accounts_for_still_halts_the_projection(backend: Backend) -> None:
    task_id = await secret_task(backend)
    await backend.post(f"/tasks/{task_id}/erase")
    stray = await backend.submit()
    position = await backend.last_position()
    assert stray["version"] == 1
    await backend.submit()
    await backend.broker.js.delete_msg(EVENTS, position)
    status, answer = await backend.post("/projection/rebuild")
    assert (status, answer["code"]) == (500, "LOG_DAMAGED")
    assert str(position) in answer["detail"]


@pytest.mark.parametrize("clock_is_off_by_s", [0.0, -7200.0])
async def test_a_scheduler_completes_what_a_killed_server_left(
    backend: Backend, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, clock_is_off_by_s: float
) -> None:
    right_time = time.time
    monkeypatch.setattr(time, "time", lambda: right_time() + clock_is_off_by_s)
    task_id = await secret_task(backend)

    async def dies(*_: Any) -> None:
        raise ConnectionResetError

    replace_dispose(monkeypatch, dies)
    status, _ = await backend.post(f"/tasks/{task_id}/erase")
    assert status == 500
    assert bytes_hold(own_nats_server.store_dir)
    replace_dispose(monkeypatch, dispose)

    async def gone() -> bool:
        return not bytes_hold(own_nats_server.store_dir)

    async with disposing(backend, monkeypatch):
        await eventually(gone, what="the scheduler overwrites what was left")


@pytest.mark.parametrize("late_s", [0.0, 3600.0])
async def test_what_a_late_worker_stores_of_an_erased_task_is_erased_as_well(
    backend: Backend, own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, late_s: float
) -> None:
    task_id = await secret_task(backend)
    assert (await backend.post(f"/tasks/{task_id}/erase"))[0] == 200
    await backend.api.blobs.put_async(SECRET.encode(), key=output_key(task_id, 1, "late.txt"))
    await publish_report(backend.broker, task_id, 1, "worker.w1", Log([LogLine(SECRET)]))
    monkeypatch.setattr("eventq.services.disposal.PATIENCE_S", 0.0)
    monkeypatch.setattr("eventq.services.disposal.LATE_S", late_s)
    disposal = Disposal(backend.log, backend.api.blobs)
    follower = Follower(backend.broker, [disposal])
    following = asyncio.create_task(follower.run())
    await follower.until_caught_up()
    await disposal.act()
    await end(following)
    left = [bool(bytes_hold(folder)) for folder in (own_nats_server.store_dir, tmp_path / "blobs")]
    assert left == [late_s > 0] * 2


async def test_a_deletion_that_fails_does_not_hold_up_the_others(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed, other = await secret_task(backend), await secret_task(backend)
    first = {task_id: await first_position(backend.log, task_id) for task_id in (doomed, other)}
    replace_dispose(monkeypatch, left_undone)
    for task_id in (doomed, other):
        assert (await backend.post(f"/tasks/{task_id}/erase"))[0] == 200

    async def fails_for_one(log: Any, blobs: Any, of: Erasure) -> None:
        if of.id == doomed:
            raise LogUnavailable("the broker refuses this one")
        await dispose(log, blobs, of)

    replace_dispose(monkeypatch, fails_for_one)

    async def gone() -> bool:
        return not await stands(backend.broker, first[other])

    async with disposing(backend, monkeypatch):
        await eventually(gone, what="what the other carried is deleted")
    assert await stands(backend.broker, first[doomed])


async def test_an_event_that_only_a_newer_program_can_read_does_not_end_the_duty(backend: Backend) -> None:
    readable = (await backend.submit(result_ttl_seconds=0.5))["task_id"]
    await backend.complete(readable)
    over = {"status": "COMPLETED", "version": 1, "result_ttl_s": 0.0}
    unreadable = orjson.dumps({"state": over, "data": {}, "time": "2026-06-01T12:00:00Z"})
    await backend.broker.js.publish("tasks.from-the-future.1.painted", unreadable)
    disposal = Disposal(backend.log, backend.api.blobs)
    follower = Follower(backend.broker, [disposal])
    running = [asyncio.create_task(follower.run()), asyncio.create_task(disposal.run(follower))]

    async def given_up() -> bool:
        return (await read_task(backend.log, readable, fresh=True)).cleaned

    await eventually(given_up, what="the result of the other is given up")
    assert not any(task.done() for task in running)
    await end(*running)


async def left_undone(*_: Any) -> None:
    """A server that ends before it deletes anything."""


@pytest.mark.parametrize("clock_is_off_by_s", [0.0, 7200.0, -7200.0])
async def test_a_result_is_given_up_when_its_time_is_over_and_not_before(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, clock_is_off_by_s: float
) -> None:
    right_time = time.time
    monkeypatch.setattr(time, "time", lambda: right_time() + clock_is_off_by_s)
    short = (await backend.submit(result_ttl_seconds=0.2))["task_id"]
    long = (await backend.submit(result_ttl_seconds=3600))["task_id"]
    unfinished = (await backend.submit(result_ttl_seconds=0.2))["task_id"]
    for task_id in (short, long):
        await backend.complete(task_id, {"ok": True})
    disposal = Disposal(backend.log, backend.api.blobs)
    follower = Follower(backend.broker, [disposal])
    running = [asyncio.create_task(follower.run()), asyncio.create_task(disposal.run(follower))]

    async def given_up() -> bool:
        _, task = await backend.get(f"/tasks/{short}")
        return bool(task["cleaned"])

    await eventually(given_up, what="the result is given up")
    await end(*running)
    _, kept = await backend.get(f"/tasks/{long}")
    assert (kept["cleaned"], kept["result"]) == (False, {"ok": True})
    assert (await backend.get(f"/tasks/{unfinished}"))[1]["status"] == "PENDING"
    assert datetime.now(UTC) > datetime.fromisoformat(kept["completed_at"])
