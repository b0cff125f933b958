"""Workers that speak only HTTP: they lease, report and obey, and the fence holds for them as for every worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from eventq.events.commands import CancelTask, ExpireLease, PauseTask
from eventq.events.ending import end
from eventq.events.handle import handle, handle_any, read_state, read_task
from eventq.events.presence import heartbeat_of
from eventq.events.subjects import EVENTS, Route, work_consumer
from eventq.events.task import Status, Task
from eventq.events.worker import WORKERS, ChangeCapacity, DrainWorker, LoseWorker, PauseWorker, ResumeWorker, WorkerStatus
from eventq.services import http_leases, worker_watch
from eventq.services.api import Api
from eventq.services.api_worker_leases import stop_waiting
from eventq.services.follower import Follower
from eventq.services.worker_watch import WorkerWatch
from eventq.workers.puller import Puller
from tests.chaos.site import Site
from tests.services.backend import Backend
from tests.support.nats import NatsServer
from tests.support.poll import eventually

DECLARED = [{"name": "far", "parameters": ["x"], "max_retries": 1}]


class Remote:
    """A worker at the other end of HTTP."""

    def __init__(self, backend: Backend, worker_id: str) -> None:
        self.backend = backend
        self.id = worker_id

    @classmethod
    async def register(cls, backend: Backend, capacity: int = 2, **body: Any) -> Remote:
        wanted = {"pool": "far", "tasks": DECLARED, **body}
        params = {"hostname": "h", "capacity": str(capacity)}
        status, answer = await backend.post("/workers", wanted, params=params)
        assert status == 201, answer
        return cls(backend, answer["worker_id"])

    async def lease(self, most: int = 1, wait_seconds: float = 0.0) -> list[dict[str, Any]]:
        status, answer = await self.backend.post(f"/workers/{self.id}/lease", {"max": most, "wait_seconds": wait_seconds})
        assert status == 200, answer
        return list(answer["tasks"])

    async def lease_one(self) -> dict[str, Any]:
        (task,) = await self.lease(1, 10.0)
        return task

    async def report(self, what: str, task: dict[str, Any], **more: Any) -> tuple[int, Any]:
        body = {"attempt": task["attempt"], **more}
        return await self.backend.post(f"/workers/{self.id}/tasks/{task['task_id']}/{what}", body)

    async def heartbeat(self, *tasks: dict[str, Any]) -> dict[str, Any]:
        running = [{"task_id": task["task_id"], "attempt": task["attempt"]} for task in tasks]
        status, answer = await self.backend.post(f"/workers/{self.id}/heartbeat", {"running": running})
        assert status == 200, answer
        return dict(answer)


@pytest.fixture
async def remote(backend: Backend) -> Remote:
    return await Remote.register(backend)


async def submit(backend: Backend, **body: Any) -> str:
    return str((await backend.submit(task_name="far", task_kwargs={}, task_args=[1], **body))["task_id"])


async def task_of(backend: Backend, task_id: str) -> Task:
    return await read_task(backend.log, task_id, fresh=True)


async def outstanding(backend: Backend) -> int:
    info = await backend.broker.js.consumer_info(EVENTS, work_consumer(Route("far", "default", 5)))
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def test_a_task_is_leased_reported_and_completed(backend: Backend, remote: Remote) -> None:
    task_id = await submit(backend, timeout_seconds=60)
    task = await remote.lease_one()
    assert {name: task[name] for name in ("task_id", "attempt", "task_name", "args", "kwargs", "timeout_s")} == {
        "task_id": task_id, "attempt": 1, "task_name": "far", "args": [1], "kwargs": {}, "timeout_s": 60.0,
    }  # fmt: skip
    assert (await remote.report("progress", task, done=1, total=2, message="half"))[0] == 200
    status, answer = await remote.report("complete", task, result={"answer": 42})
    assert (status, answer["status"]) == (200, "COMPLETED")
    _, seen = await backend.get(f"/tasks/{task_id}")
    assert (seen["result"], seen["worker_id"]) == ({"answer": 42}, remote.id)
    assert await eventually(lambda: no_work_left(backend))


async def no_work_left(backend: Backend) -> bool:
    return await outstanding(backend) == 0


async def test_a_lease_waits_for_work(backend: Backend, remote: Remote) -> None:
    leasing = asyncio.create_task(remote.lease(1, 20.0))
    status, _ = await backend.get(f"/workers/{remote.id}/status")
    assert status == 200
    task_id = await submit(backend)
    assert [task["task_id"] for task in await leasing] == [task_id]


async def test_it_gets_no_more_than_it_has_room_for(backend: Backend, remote: Remote) -> None:
    for _ in range(4):
        await submit(backend)
    tasks = await remote.lease(10, 5.0)
    while len(tasks) < 2:
        tasks += await remote.lease(10, 5.0)
    assert len(tasks) == 2
    assert await remote.lease(10) == []
    await remote.report("complete", tasks[0])
    assert len(await remote.lease(10, 5.0)) == 1


async def test_two_requests_at_once_get_no_more_than_there_is_room_for(backend: Backend, remote: Remote) -> None:
    for _ in range(6):
        await submit(backend)
    got = await asyncio.gather(*(remote.lease(2, 1.0) for _ in range(3)))
    assert sum(map(len, got)) == 2


@pytest.mark.parametrize("command", [PauseWorker("test"), DrainWorker("test")])
async def test_paused_or_draining_it_gets_nothing(backend: Backend, remote: Remote, command: Any) -> None:
    task_id = await submit(backend)
    await handle_any(backend.log, WORKERS, remote.id, command, source="test")
    assert await remote.lease(1) == []
    assert (await task_of(backend, task_id)).status is Status.PENDING


async def test_one_who_waits_while_it_is_paused_gets_nothing(backend: Backend, remote: Remote) -> None:
    leasing = asyncio.create_task(remote.lease(1, 2.0))
    await handle_any(backend.log, WORKERS, remote.id, PauseWorker("test"), source="test")
    task_id = await submit(backend)
    assert await leasing == []
    other = await Remote.register(backend)
    assert (await other.lease_one())["task_id"] == task_id


def looking(monkeypatch: pytest.MonkeyPatch, name: str) -> asyncio.Event:
    """Set once a lease request has been answered by that function."""
    looked, look = asyncio.Event(), getattr(http_leases, name)

    async def noted(*given: Any) -> Any:
        found = await look(*given)
        looked.set()
        return found

    monkeypatch.setattr(http_leases, name, noted)
    return looked


async def test_one_who_is_full_waits_for_room(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = await Remote.register(backend, capacity=1)
    for _ in range(2):
        await submit(backend)
    task = await remote.lease_one()
    looked = looking(monkeypatch, "held_by")
    leasing = asyncio.create_task(remote.lease(1, 20.0))
    await looked.wait()
    async with asyncio.timeout(10):
        assert await remote.lease(1) == [], "who does not want to wait is not held up by who does"
    await remote.report("complete", task)
    assert len(await leasing) == 1


async def test_one_who_is_paused_waits_until_it_is_resumed(
    backend: Backend, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await submit(backend)
    await handle_any(backend.log, WORKERS, remote.id, PauseWorker("test"), source="test")
    looked = looking(monkeypatch, "http_worker")
    leasing = asyncio.create_task(remote.lease(1, 20.0))
    await looked.wait()
    await handle_any(backend.log, WORKERS, remote.id, ResumeWorker("test"), source="test")
    assert [task["task_id"] for task in await leasing] == [task_id]


async def test_one_who_waits_for_the_end_of_a_pause_in_vain_is_answered_in_time(backend: Backend, remote: Remote) -> None:
    await handle_any(backend.log, WORKERS, remote.id, PauseWorker("test"), source="test")
    began = time.monotonic()
    assert await remote.lease(1, 1.2) == []
    assert 1.2 <= time.monotonic() - began < 10


async def test_one_who_waits_while_it_is_drained_is_answered_at_once(
    backend: Backend, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    await handle_any(backend.log, WORKERS, remote.id, PauseWorker("test"), source="test")
    looked = looking(monkeypatch, "http_worker")
    leasing = asyncio.create_task(backend.post(f"/workers/{remote.id}/lease", {"wait_seconds": 30.0}))
    await looked.wait()
    await handle_any(backend.log, WORKERS, remote.id, DrainWorker("test"), source="test")
    async with asyncio.timeout(10):
        _, answer = await leasing
    assert (answer["status"], answer["tasks"]) == ("DRAINING", [])


async def test_what_came_for_one_whose_capacity_was_lowered_meanwhile_is_handed_back(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_leases, "GATHER_S", 1.0)
    remote, other = await Remote.register(backend, capacity=5), await Remote.register(backend, capacity=4)
    looked = looking(monkeypatch, "held_by")
    leasing = asyncio.create_task(remote.lease(5, 15.0))
    await looked.wait()
    await handle_any(backend.log, WORKERS, remote.id, ChangeCapacity(1, "test"), source="test")
    ids = [await submit(backend) for _ in range(5)]
    leased = await leasing
    assert len(leased) == 1
    while len(leased) < 5:
        leased += await other.lease(4, 10.0)
    assert sorted(task["task_id"] for task in leased) == sorted(ids)


async def test_what_came_for_one_who_was_called_lost_meanwhile_is_handed_back(
    backend: Backend, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulling = asyncio.Event()

    class Noted(Puller):
        async def run(self) -> None:
            pulling.set()
            await super().run()

    monkeypatch.setattr(http_leases, "Puller", Noted)
    other = await Remote.register(backend)
    waiting = asyncio.create_task(remote.backend.post(f"/workers/{remote.id}/lease", {"wait_seconds": 20.0}))
    await pulling.wait()
    worker = await read_state(backend.log, WORKERS, remote.id, fresh=True)
    await handle_any(backend.log, WORKERS, remote.id, LoseWorker(worker.version, "presence_lapsed", ()), source="t")
    task_id = await submit(backend)
    assert (await waiting)[0] == 409
    (task,) = await other.lease(1, 3.0)  # long before the broker would deliver it again by itself
    assert task["task_id"] == task_id


async def test_a_server_that_stops_answers_who_waits_and_takes_nothing_more(backend: Backend, remote: Remote) -> None:
    leasing = asyncio.create_task(remote.lease(1, 30.0))
    _, seen = await backend.get(f"/workers/{remote.id}/status")
    assert seen["status"] == "ACTIVE"
    await stop_waiting(backend.client.app)
    async with asyncio.timeout(10):
        assert await leasing == []
    task_id = await submit(backend)
    assert await remote.lease(1) == []
    assert (await task_of(backend, task_id)).status is Status.PENDING


async def test_an_error_is_retried_and_the_last_one_is_final(backend: Backend, remote: Remote) -> None:
    task_id = await submit(backend)
    error = {"type": "ValueError", "message": "no", "traceback": "far away"}
    status, answer = await remote.report("fail", await remote.lease_one(), error=error, retry_after_seconds=60)
    assert (status, answer["status"]) == (200, "RETRYING")
    due_at = (await task_of(backend, task_id)).due_at
    assert due_at is not None
    assert 50 < (due_at - datetime.now(UTC)).total_seconds() <= 60

    other = await submit(backend)
    task = await remote.lease_one()
    assert task["task_id"] == other
    status, answer = await remote.report("fail", task, error=error, retryable=False)
    assert (status, answer["status"]) == (200, "FAILED")
    _, seen = await backend.get(f"/tasks/{other}")
    assert (seen["reason"], seen["error"]) == ("not_retryable", error)


@pytest.mark.parametrize(
    ("policy", "status", "wait_s"),
    [
        ({"never": ["ValueError"]}, "FAILED", None),
        ({"only": ["KeyError"]}, "FAILED", None),
        ({"only": ["ValueError"], "after_s": {"ValueError": 60}}, "RETRYING", 60),
    ],
)
async def test_the_policy_says_which_errors_of_an_http_worker_are_retried(
    backend: Backend, remote: Remote, policy: dict[str, Any], status: str, wait_s: float | None
) -> None:
    task_id = await submit(backend, retry=policy)
    _, answer = await remote.report("fail", await remote.lease_one(), error={"type": "ValueError", "message": "no"})
    assert answer["status"] == status
    task = await task_of(backend, task_id)
    assert (task.due_at is None) is (wait_s is None)
    if task.due_at is not None and wait_s is not None:
        assert wait_s - 10 < (task.due_at - datetime.now(UTC)).total_seconds() <= wait_s


async def test_a_released_task_goes_back_and_costs_nothing(backend: Backend, remote: Remote) -> None:
    task_id = await submit(backend)
    await remote.report("release", await remote.lease_one())
    again = await remote.lease_one()
    assert (again["task_id"], again["attempt"]) == (task_id, 2)
    after = await task_of(backend, task_id)
    assert (after.failures, after.losses) == (0, 0)


async def test_heartbeats_tell_what_to_cancel_to_pause_and_what_is_not_its_own_any_more(backend: Backend) -> None:
    remote = await Remote.register(backend, capacity=4)
    ids = [await submit(backend) for _ in range(4)]
    held: dict[str, dict[str, Any]] = {}
    while len(held) < 4:
        held |= {task["task_id"]: task for task in await remote.lease(4, 5.0)}
    await handle(backend.log, ids[0], CancelTask("ada"), source="test")
    await handle(backend.log, ids[1], PauseTask("eve"), source="test")
    await handle(backend.log, ids[2], ExpireLease(1), source="test")
    answer = await remote.heartbeat(*held.values())
    assert [one["task_id"] for one in answer["cancel"]] == [ids[0]]
    assert [one["task_id"] for one in answer["pause"]] == [ids[1]]
    assert [one["task_id"] for one in answer["revoked"]] == [ids[2]]
    assert (await remote.report("cancelled", held[ids[0]]))[1]["status"] == "CANCELLED"
    assert (await remote.report("release", held[ids[1]]))[1]["status"] == "PAUSED"
    assert (await remote.report("cancelled", held[ids[3]]))[0] == 409, "nobody asked for it"
    heartbeat = await heartbeat_of(backend.broker, remote.id)
    assert heartbeat is not None
    assert sorted(heartbeat.running) == sorted([ids[0], ids[1], ids[3]])


REPORTS: list[tuple[str, dict[str, Any]]] = [
    ("progress", {"done": 1}),
    ("complete", {"result": 1}),
    ("fail", {"error": {"type": "E"}}),
    ("release", {}),
    ("cancelled", {}),
]


@pytest.mark.parametrize(("what", "more"), REPORTS)
async def test_an_attempt_that_was_taken_away_is_refused_and_changes_nothing(
    backend: Backend, remote: Remote, what: str, more: dict[str, Any]
) -> None:
    """The fence. Its negative control follows: the same report of the attempt that is current is taken."""
    task_id = await submit(backend)
    old = await remote.lease_one()
    await handle(backend.log, task_id, ExpireLease(1), source="test")
    new = await remote.lease_one()
    await handle(backend.log, task_id, CancelTask("ada"), source="test")
    before = await task_of(backend, task_id)
    status, refused = await remote.report(what, old, **more)
    assert (status, refused["code"]) == (409, "STALE_ATTEMPT")
    assert await task_of(backend, task_id) == before
    assert (await remote.report(what, new, **more))[0] == 200


@pytest.mark.parametrize(("what", "more"), REPORTS)
async def test_another_workers_attempt_is_refused_even_with_the_right_number(
    backend: Backend, remote: Remote, what: str, more: dict[str, Any]
) -> None:
    task_id = await submit(backend)
    task = await remote.lease_one()
    await handle(backend.log, task_id, CancelTask("ada"), source="test")
    other = await Remote.register(backend)
    before = await task_of(backend, task_id)
    status, refused = await other.report(what, task, **more)
    assert (status, refused["code"]) == (409, "STALE_ATTEMPT")
    assert await task_of(backend, task_id) == before
    assert [one["task_id"] for one in (await other.heartbeat(task))["revoked"]] == [task_id]


async def test_without_the_fence_another_workers_report_would_be_taken(
    backend: Backend, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the tests above: it is the fence that refuses, nothing else."""

    async def no_fence(api: Api, worker_id: str, task_id: str, attempt: int) -> Task:
        return await read_task(api.log, task_id, fresh=True)

    monkeypatch.setattr(http_leases, "held_attempt", no_fence)
    task_id = await submit(backend)
    task = await remote.lease_one()
    other = await Remote.register(backend)
    assert (await other.report("complete", task))[0] == 200
    assert (await task_of(backend, task_id)).status is Status.COMPLETED


async def test_a_report_whose_answer_was_lost_may_be_repeated_and_another_may_not(backend: Backend, remote: Remote) -> None:
    await submit(backend)
    task = await remote.lease_one()
    first = await remote.report("complete", task, result=1)
    position = await backend.last_position()
    assert await remote.report("complete", task, result=1) == first
    status, refused = await remote.report("fail", task, error={"type": "E"})
    assert (status, refused["code"]) == (409, "STALE_ATTEMPT")
    assert await backend.last_position() == position


async def test_one_who_ignores_a_cancel_has_the_attempt_taken_away(
    backend: Backend, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_watch, "PRESENCE_LOOK_S", 0.05)
    monkeypatch.setattr(worker_watch, "OUTAGE_GRACE_S", 0.0)
    monkeypatch.setattr(worker_watch, "CANCEL_GRACE_S", -worker_watch.OVERTIME_S)
    task_id = await submit(backend)
    task = await remote.lease_one()
    await remote.heartbeat(task)
    await handle(backend.log, task_id, CancelTask("ada"), source="test")
    assert [one["task_id"] for one in (await remote.heartbeat(task))["cancel"]] == [task_id]
    watch = WorkerWatch(backend.log)
    follower = Follower(backend.broker, [watch])
    watching = [asyncio.create_task(follower.run()), asyncio.create_task(watch.run(follower))]

    async def over() -> bool:
        return (await task_of(backend, task_id)).finished

    await eventually(over, timeout=30)
    await end(*watching)
    answer = await remote.heartbeat(task)
    assert (answer["status"], [one["task_id"] for one in answer["revoked"]]) == ("ACTIVE", [task_id])
    for what, more in REPORTS:
        status, refused = await remote.report(what, task, **more)
        assert (status, refused["code"]) == (409, "STALE_ATTEMPT")
    assert (await task_of(backend, task_id)).status is Status.CANCELLED


async def test_a_draining_worker_that_runs_nothing_is_done(backend: Backend, remote: Remote) -> None:
    await submit(backend)
    task = await remote.lease_one()
    await handle_any(backend.log, WORKERS, remote.id, DrainWorker("test"), source="test")
    assert (await remote.heartbeat(task))["status"] == "DRAINING"
    await remote.report("complete", task)
    assert (await remote.heartbeat())["status"] == "STOPPED"
    assert (await read_state(backend.log, WORKERS, remote.id)).end_reason == "drained"


async def test_a_lost_worker_is_told_so_and_leases_nothing_until_it_registers_again(backend: Backend, remote: Remote) -> None:
    await handle_any(backend.log, WORKERS, remote.id, LoseWorker(1, "presence_lapsed", ()), source="test")
    assert (await remote.heartbeat())["status"] == "LOST"
    status, refused = await backend.post(f"/workers/{remote.id}/lease")
    assert (status, refused["code"]) == (409, "ILLEGAL_TRANSITION")
    await Remote.register(backend, worker_id=remote.id)
    assert (await read_state(backend.log, WORKERS, remote.id)).status is WorkerStatus.ACTIVE
    await submit(backend)
    await remote.lease_one()


async def test_who_registers_under_the_id_of_a_living_worker_is_refused_and_says_nothing_in_its_place(
    backend: Backend, remote: Remote
) -> None:
    """A heartbeat that lists nothing would give what the worker holds to others."""
    await submit(backend)
    await remote.heartbeat(await remote.lease_one())
    before = await heartbeat_of(backend.broker, remote.id)
    params = {"hostname": "other", "capacity": "1"}
    status, refused = await backend.post("/workers", {"worker_id": remote.id}, params=params)
    assert (status, refused["code"]) == (409, "ILLEGAL_TRANSITION")
    assert await heartbeat_of(backend.broker, remote.id) == before


@pytest.mark.parametrize(
    ("commands", "status", "capacity"),
    [
        ((PauseWorker("test"), ChangeCapacity(7, "test")), "PAUSED", 7),
        ((ChangeCapacity(7, "test"), DrainWorker("test")), "DRAINING", 7),
    ],
)
async def test_a_lost_worker_that_registers_again_is_told_what_it_was_told_before(
    backend: Backend, remote: Remote, commands: tuple[Any, ...], status: str, capacity: int
) -> None:
    for command in (*commands, LoseWorker(3, "presence_lapsed", ())):
        await handle_any(backend.log, WORKERS, remote.id, command, source="test")
    wanted = {"pool": "far", "tasks": DECLARED, "worker_id": remote.id}
    code, answer = await backend.post("/workers", wanted, params={"hostname": "h", "capacity": "2"})
    assert (code, answer["status"], answer["capacity"]) == (201, status, capacity)
    heartbeat = await heartbeat_of(backend.broker, remote.id)
    assert heartbeat is not None
    assert (heartbeat.status, heartbeat.capacity) == (status, capacity)
    assert await remote.lease(1) == []
    told = await remote.heartbeat()
    assert (told["status"], told["capacity"]) == ("STOPPED" if status == "DRAINING" else status, capacity)


async def test_a_drained_worker_that_registers_again_starts_anew(backend: Backend, remote: Remote) -> None:
    for command in (DrainWorker("test"), LoseWorker(2, "presence_lapsed", ())):
        await handle_any(backend.log, WORKERS, remote.id, command, source="test")
    await Remote.register(backend, worker_id=remote.id)
    assert (await remote.heartbeat())["status"] == "STOPPED"
    await Remote.register(backend, capacity=3, worker_id=remote.id)
    told = await remote.heartbeat()
    assert (told["status"], told["capacity"]) == ("ACTIVE", 3)


async def test_large_results_go_to_the_blob_store(backend: Backend, remote: Remote) -> None:
    task_id = await submit(backend)
    await remote.report("complete", await remote.lease_one(), result="x" * 100_000)
    _, seen = await backend.get(f"/tasks/{task_id}")
    assert (seen["result"], seen["output"]["size_bytes"]) == (None, 100_002)


async def test_a_process_is_no_worker_over_http(backend: Backend) -> None:
    status, refused = await backend.post("/workers/worker-1/lease")
    assert (status, refused["code"]) == (409, "CONFLICT")


@pytest.fixture
def site(own_nats_server: NatsServer, tmp_path: Path) -> Iterator[Site]:
    site = Site(own_nats_server, tmp_path / "site")
    site.folder.mkdir()
    yield site
    site.close()


@pytest.mark.parametrize("step", ["lease.before_start", "lease.after_start"])
async def test_an_api_that_dies_while_it_leases_loses_nothing(
    backend: Backend, remote: Remote, site: Site, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the claim the item comes again; after it no heartbeat lists the attempt, so the watch hands it back."""
    monkeypatch.setattr(worker_watch, "PRESENCE_LOOK_S", 0.05)
    monkeypatch.setattr(worker_watch, "UNCLAIMED_S", 0.0)
    task_id = await submit(backend)
    doomed = await site.started("api", failpoints=f"{step}=kill", accept_lazy_sync=True)
    (ready,) = await eventually(lambda: doomed.logged("api.ready"))
    async with aiohttp.ClientSession(str(ready["url"])) as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"/api/v1/workers/{remote.id}/lease", json={"max": 1, "wait_seconds": 10})
    assert await asyncio.to_thread(doomed.wait) == -9
    assert (await task_of(backend, task_id)).attempt == (step == "lease.after_start")
    await remote.heartbeat()
    watch = WorkerWatch(backend.log)
    follower = Follower(backend.broker, [watch])
    tasks = [asyncio.create_task(follower.run()), asyncio.create_task(watch.run(follower))]

    async def again() -> dict[str, Any] | None:
        return next(iter(await remote.lease(1, 2.0)), None)

    async def pending() -> bool:
        return (await task_of(backend, task_id)).status is Status.PENDING

    await eventually(pending, timeout=30)
    for task in tasks:
        task.cancel()
    leased = await eventually(again, timeout=40)
    assert leased["task_id"] == task_id
    assert (await task_of(backend, task_id)).losses == 0
    assert (await remote.report("complete", leased))[1]["status"] == "COMPLETED"
