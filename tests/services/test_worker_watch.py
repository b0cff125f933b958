"""Workers that are gone: found by what the broker says and by what they no longer say, with real processes killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eventq.events.attempt_end import end_attempt
from eventq.events.broker import Broker
from eventq.events.commands import StartAttempt
from eventq.events.ending import end
from eventq.events.handle import handle, handle_any, read_state
from eventq.events.ids import new_id
from eventq.events.presence import Heartbeat, beat, heartbeat_of, leave, present
from eventq.events.report import Progress
from eventq.events.reporting import publish_report
from eventq.events.retry import RetryPolicy
from eventq.events.routes import Routes
from eventq.events.subjects import EVENTS
from eventq.events.task import Status
from eventq.events.task_events import Cancelled, Failed, Queued, TimedOut
from eventq.events.worker import (
    WORKERS,
    ChangeCapacity,
    DrainWorker,
    LoseWorker,
    PauseWorker,
    RegisterWorker,
    ResumeWorker,
    Worker,
    WorkerCommand,
    WorkerStatus,
)
from eventq.events.worker_events import WorkerRegistered
from eventq.services import worker_watch as module
from eventq.services.embedded import EmbeddedBroker
from eventq.services.follower import Follower
from eventq.services.worker_watch import SOURCE, WorkerWatch
from tests.chaos.process import Process
from tests.chaos.site import ROUTE, Control, Site
from tests.support.nats import NatsServer
from tests.support.poll import eventually
from tests.support.proxy import Proxy

LONG_S = 600.0
"""A lease that no test waits for: what ends an attempt is the watch."""


@pytest.fixture
def site(own_nats_server: NatsServer, tmp_path: Path) -> Iterator[Site]:
    site = Site(own_nats_server, tmp_path)
    yield site
    site.close()


@pytest.fixture
async def control(site: Site) -> AsyncIterator[Control]:
    async with await Control.open(site) as control:
        yield control


@pytest.fixture
async def watched_site(tmp_path: Path) -> AsyncIterator[Site]:
    """A site on the broker of `eventq up`, with a scheduler that hears the broker's own events."""
    async with EmbeddedBroker(tmp_path / "data") as broker:
        site = Site(_Server(broker), tmp_path)
        try:
            await site.started("scheduler", nats_system_url=broker.system_url)
            yield site
        finally:
            site.close()


class _Server(NatsServer):
    """An embedded broker as the processes of a site are told of it."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        super().__init__(broker.data_dir)
        self.url, self.monitor_url = broker.url, broker.monitor_url


@asynccontextmanager
async def watching(control: Control) -> AsyncGenerator[WorkerWatch]:
    """A watch without the broker's own events: presence has to do."""
    watch = WorkerWatch(control.log)
    follower = Follower(control.broker, [watch])
    tasks = [asyncio.create_task(follower.run()), asyncio.create_task(watch.run(follower))]
    try:
        yield watch
    finally:
        for task in tasks:
            assert not task.done(), task.exception()
            task.cancel()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats are looked at all the time, and believed at once."""
    monkeypatch.setattr(module, "PRESENCE_LOOK_S", 0.05)
    monkeypatch.setattr(module, "PRESENCE_TTL_S", 0.0)
    monkeypatch.setattr(module, "OUTAGE_GRACE_S", 0.0)


def queued_reasons(control: Control, task_id: str) -> list[str]:
    return [event.data.reason for event in control.events(task_id) if isinstance(event.data, Queued)]


async def worker_state(control: Control, worker_id: str) -> Worker:
    return await read_state(control.log, WORKERS, worker_id, fresh=True)


async def until_status(control: Control, worker_id: str, status: WorkerStatus) -> None:
    async def reached() -> bool:
        return (await worker_state(control, worker_id)).status is status

    await eventually(reached, timeout=30, what=f"{worker_id} is {status}")


async def register(control: Control, **changes: object) -> str:
    """A worker that exists only in the log."""
    data = WorkerRegistered(hostname="h", pid=1, pool="cpu", queues=[], capacity=4, devices=["cpu"], tasks=[])
    worker_id = f"cpu-{new_id()}"
    command = RegisterWorker(data.model_copy(update=changes))
    await handle_any(control.log, WORKERS, worker_id, command, source="test")
    return worker_id


async def say_alive(control: Control, worker_id: str, *running: str) -> None:
    await beat(control.broker, Heartbeat(worker_id, "h", "cpu", 4, list(running), datetime.now(UTC)))


async def start(control: Control, worker_id: str, **options: Any) -> str:
    task_id = await control.submit("chaos.quick", **options)
    await handle(control.log, task_id, StartAttempt(worker_id, "h", "cpu"), source="test")
    return task_id


async def test_a_killed_workers_task_runs_elsewhere_long_before_its_lease_is_over(watched_site: Site) -> None:
    async with await Control.open(watched_site) as control:
        await Routes(control.broker, lease_s=LONG_S).create(ROUTE)
        doomed = await watched_site.started("worker", concurrency=1)
        task_id = await control.submit("chaos.gate", str(watched_site.gate()))
        await control.until_entered(task_id)
        await watched_site.started("worker", concurrency=1)
        doomed_id = await control.worker_of(task_id)
        doomed.kill()
        await control.until_entered(task_id, attempt=2)
        watched_site.gate().touch()
        await control.until_ended(task_id)
        assert queued_reasons(control, task_id) == ["worker_lost"]
        lost = await worker_state(control, doomed_id)
        assert (lost.status, lost.end_reason) == (WorkerStatus.LOST, "disconnected")
        await control.check()


async def test_a_task_that_kills_three_workers_is_poison_and_names_them(watched_site: Site) -> None:
    async with await Control.open(watched_site) as control:
        await Routes(control.broker, lease_s=LONG_S).create(ROUTE)
        task_id = await control.submit("chaos.cooperative")
        workers: list[str] = []
        for attempt in (1, 2, 3):
            doomed = await watched_site.started("worker", concurrency=1)
            await control.until_entered(task_id, attempt)
            workers.append(await control.worker_of(task_id, attempt))
            doomed.kill()
        end = (await control.ended(task_id)).data
        assert isinstance(end, Failed)
        assert end.reason == "poison"
        assert [(one.attempt, one.worker_id) for one in end.evidence] == list(enumerate(workers, 1))
        assert len(set(workers)) == 3


async def test_a_worker_whose_connections_break_and_come_back_keeps_its_task(watched_site: Site) -> None:
    async with await Control.open(watched_site) as control, Proxy(watched_site.server.port) as proxy:
        worker = await watched_site.started("worker", concurrency=1, nats_url=proxy.url)
        task_id = await control.submit("chaos.gate", str(watched_site.gate()))
        await control.until_entered(task_id)
        connections = proxy.connections
        proxy.reset()
        await eventually(lambda: worker.logged("broker.disconnected"), timeout=30)
        await eventually(lambda: proxy.connections == connections, timeout=30)
        other = await watched_site.started("worker", concurrency=1)
        doomed = await control.submit("chaos.cooperative")
        await control.until_entered(doomed)
        other.kill()
        await until_status(control, await control.worker_of(doomed), WorkerStatus.LOST)  # so both have been judged
        watched_site.gate().touch()
        await control.until_ended(task_id)
        assert control.types(task_id) == ["submitted", "started", "completed"]
        assert (await worker_state(control, await control.worker_of(task_id))).version == 1


async def test_a_worker_that_stops_in_good_order_is_not_called_lost(watched_site: Site) -> None:
    async with await Control.open(watched_site) as control:
        worker = await watched_site.started("worker", concurrency=1)
        task_id = await control.submit("chaos.quick")
        await control.until_ended(task_id)
        worker_id = await control.worker_of(task_id)
        assert await asyncio.to_thread(_stopped, worker) == 0
        other = await watched_site.started("worker", concurrency=1)
        again = await control.submit("chaos.gate", str(watched_site.gate()))
        await control.until_entered(again)
        other.kill()
        other_id = await control.worker_of(again)
        await until_status(control, other_id, WorkerStatus.LOST)  # so the watch has judged the first one as well
        assert (await worker_state(control, worker_id)).status is WorkerStatus.STOPPED


def _stopped(process: Process) -> int:
    return process.stop()


@pytest.mark.usefixtures("impatient")
async def test_a_worker_whose_heartbeats_lapsed_is_lost_and_its_tasks_go_on(control: Control) -> None:
    """Also one that is found so at a cold start: there is no sign of it but the log."""
    silent, alive = await register(control), await register(control)
    held = [await start(control, silent), await start(control, alive)]
    await say_alive(control, alive, held[1])
    async with watching(control) as one, watching(control) as other:
        await until_status(control, silent, WorkerStatus.LOST)
        await control.until(lambda: queued_reasons(control, held[0]) == ["worker_lost"], "the task is ready again")
        assert (await worker_state(control, silent)).end_reason == "presence_lapsed"
        assert (await worker_state(control, alive)).status is WorkerStatus.ACTIVE
        assert control.status(held[1]) is Status.RUNNING
        assert one.lost + other.lost == 1


async def test_while_the_broker_has_just_come_back_nobody_is_judged(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the one above: the same silence, too early."""
    monkeypatch.setattr(module, "PRESENCE_LOOK_S", 0.05)
    monkeypatch.setattr(module, "PRESENCE_TTL_S", 0.0)
    silent = await register(control)
    task_id = await start(control, silent)
    async with watching(control):
        http = await register(control, kind="http")
        overdue = await start(control, http, timeout_s=0.001)
        await control.until(lambda: control.status(overdue) is Status.TIMED_OUT, "the watch has looked")
    assert (await worker_state(control, silent)).status is WorkerStatus.ACTIVE
    assert control.status(task_id) is Status.RUNNING


@pytest.mark.usefixtures("impatient")
async def test_a_new_worker_has_time_to_say_that_it_lives_also_where_this_clock_is_ahead(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRESENCE_TTL_S", 600.0)

    def an_hour_ahead(_: object) -> datetime:
        return datetime.now(UTC) + timedelta(hours=1)

    ahead = SimpleNamespace(now=an_hour_ahead, fromtimestamp=datetime.fromtimestamp)
    monkeypatch.setattr(module, "datetime", ahead)
    worker_id = await register(control)
    looks = 0

    async def look(broker: Broker) -> dict[str, Heartbeat]:
        nonlocal looks
        looks += 1
        return await present(broker)

    def looked(least: int) -> bool:
        return looks >= least

    monkeypatch.setattr(module, "present", look)
    async with watching(control) as watch:
        for least in (1, 2, 3):
            watch.wake.set()
            await eventually(partial(looked, least), what="it has looked")
        assert (await worker_state(control, worker_id)).status is WorkerStatus.ACTIVE
        monkeypatch.setattr(module, "PRESENCE_TTL_S", 0.0)
        await until_status(control, worker_id, WorkerStatus.LOST)


async def test_what_a_lost_worker_holds_is_ended_by_who_folds_the_log_next(control: Control) -> None:
    """Whoever called it lost died before he ended its attempts."""
    worker_id = await register(control)
    task_id = await start(control, worker_id)
    await handle_any(control.log, WORKERS, worker_id, LoseWorker(1, "disconnected", (task_id,)), source="test")
    async with watching(control):
        await control.until(lambda: queued_reasons(control, task_id) == ["worker_lost"], "the task is ready again")


async def test_a_scheduler_that_dies_having_called_a_worker_lost_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path / "data") as broker:
        site = Site(_Server(broker), tmp_path)
        try:
            url = broker.system_url
            dies = await site.started("scheduler", nats_system_url=url, failpoints="watch.after_lost=kill")
            async with await Control.open(site) as control:
                await Routes(control.broker, lease_s=LONG_S).create(ROUTE)
                doomed = await site.started("worker", concurrency=1)
                task_id = await control.submit("chaos.gate", str(site.gate()))
                await control.until_entered(task_id)
                doomed.kill()
                assert await asyncio.to_thread(dies.wait) == -9
                assert control.types(task_id) == ["submitted", "started"]
                await site.started("scheduler", nats_system_url=url)
                await control.until(lambda: queued_reasons(control, task_id) == ["worker_lost"], "the task is ready again")
                assert control.events(task_id)[-1].source == SOURCE, "or else the reconciler has found it, seconds later"
        finally:
            site.close()


@pytest.mark.usefixtures("impatient")
async def test_a_living_worker_that_is_called_lost_registers_again_and_its_old_attempts_are_fenced(
    site: Site, control: Control
) -> None:
    await site.workers(1, concurrency=2)
    task_id = await control.submit("chaos.gate", str(site.gate()))
    await control.until_entered(task_id)
    worker_id = await control.worker_of(task_id)
    await leave(control.broker, worker_id)
    async with watching(control):
        await control.until(lambda: control.task(task_id).attempt == 2, "another attempt is made")
        site.gate().touch()
        await control.until_ended(task_id)
    # The watch ends what a lost worker ran; a worker that lives to read that it was called lost may be there first.
    assert set(queued_reasons(control, task_id)) in ({"worker_lost"}, {"interrupted"}, {"worker_lost", "interrupted"})
    assert (await worker_state(control, worker_id)).status is WorkerStatus.ACTIVE
    await control.check()


async def told_while_it_stands_still(site: Site, control: Control, *commands: WorkerCommand) -> tuple[Process, str]:
    """A worker process that stood still while it was told so, until it was called lost, and that now goes on; its id."""
    (process,) = await site.workers(1, concurrency=2)
    (worker_id,) = await present(control.broker)
    process.pause()
    for command in commands:
        await handle_any(control.log, WORKERS, worker_id, command, source="test")
    await leave(control.broker, worker_id)  # its presence lapses by itself, only later
    async with watching(control):
        await until_status(control, worker_id, WorkerStatus.LOST)
    process.resume()
    return process, worker_id


@pytest.mark.usefixtures("impatient")
async def test_a_pause_and_a_capacity_told_to_one_that_stands_still_hold_when_it_goes_on(site: Site, control: Control) -> None:
    commands = PauseWorker("test"), ChangeCapacity(1, "test")
    _, worker_id = await told_while_it_stands_still(site, control, *commands)

    async def obeys() -> bool:
        heartbeat = await heartbeat_of(control.broker, worker_id)
        return heartbeat is not None and (heartbeat.status, heartbeat.capacity) == ("PAUSED", 1)

    await eventually(obeys, timeout=30, what="it is paused, of that capacity")
    state = await worker_state(control, worker_id)
    assert (state.status, state.capacity) == (WorkerStatus.PAUSED, 1)
    await handle_any(control.log, WORKERS, worker_id, ResumeWorker("test"), source="test")
    held = [await control.submit("chaos.gate", str(site.gate())) for _ in range(2)]
    await control.until(lambda: [control.status(each) for each in held].count(Status.RUNNING) == 1, "one of two runs")
    site.gate().touch()
    await control.until_ended(*held)
    await control.check()


@pytest.mark.usefixtures("impatient")
async def test_a_drain_told_to_one_that_stands_still_holds_when_it_goes_on(site: Site, control: Control) -> None:
    process, worker_id = await told_while_it_stands_still(site, control, DrainWorker("test"))
    assert await asyncio.to_thread(process.wait) == 0
    state = await worker_state(control, worker_id)
    assert (state.status, state.end_reason) == (WorkerStatus.STOPPED, "drained")


async def test_an_attempt_that_an_http_worker_never_lists_is_ended_without_a_loss(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRESENCE_LOOK_S", 0.05)
    monkeypatch.setattr(module, "UNCLAIMED_S", 0.0)
    worker_id = await register(control, kind="http")
    listed, unlisted = await start(control, worker_id), await start(control, worker_id)
    await say_alive(control, worker_id, listed)
    async with watching(control):
        await control.until(lambda: queued_reasons(control, unlisted) == ["interrupted"], "it is ready again")
    assert control.task(unlisted).losses == 0
    assert control.status(listed) is Status.RUNNING


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (RetryPolicy(after_s={"ExecutionTimeout": 60}), Status.RETRYING),
        (RetryPolicy(never=("ExecutionTimeout",)), Status.TIMED_OUT),
        (RetryPolicy(only=("ValueError",)), Status.TIMED_OUT),
    ],
)
async def test_the_policy_says_whether_an_overdue_attempt_is_retried(
    control: Control, monkeypatch: pytest.MonkeyPatch, policy: RetryPolicy, status: Status
) -> None:
    monkeypatch.setattr(module, "PRESENCE_LOOK_S", 0.05)
    worker_id = await register(control, kind="http")
    overdue = await start(control, worker_id, timeout_s=0.001, max_retries=3, retry=policy)
    async with watching(control):
        await control.until(lambda: control.status(overdue) in {Status.RETRYING, Status.TIMED_OUT}, "the watch has looked")
    assert control.status(overdue) is status


async def test_an_http_workers_attempt_is_over_its_time_by_the_brokers_clock(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRESENCE_LOOK_S", 0.05)
    monkeypatch.setattr(module, "OVERTIME_S", 0.0)
    worker_id = await register(control, kind="http")
    task_id = await start(control, worker_id, timeout_s=0.1)
    behind_s, asked = 3600.0, 0
    right = control.broker.time

    async def behind() -> datetime:
        nonlocal asked
        asked += 1
        return await right() - timedelta(seconds=behind_s)

    def was_asked(least: int) -> bool:
        return asked >= least

    monkeypatch.setattr(control.broker, "time", behind)
    async with watching(control) as watch:
        for looks in (1, 2, 3):
            watch.wake.set()
            await eventually(partial(was_asked, looks), what="it has looked")
        assert control.status(task_id) is Status.RUNNING
        behind_s = 0.0
        assert isinstance((await control.ended(task_id)).data, TimedOut)


@pytest.mark.usefixtures("impatient")
async def test_a_cancel_that_an_http_worker_ignores_is_carried_out_without_it(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a grace time from the request on, by the broker's clock. What was not to be cancelled goes on."""
    monkeypatch.setattr(module, "OVERTIME_S", 0.0)
    worker_id = await register(control, kind="http")
    ignored, other = await start(control, worker_id), await start(control, worker_id)
    await say_alive(control, worker_id, ignored, other)
    await control.cancel(ignored)
    ahead_s, asked = module.CANCEL_GRACE_S - 10.0, 0
    right = control.broker.time

    async def time() -> datetime:
        nonlocal asked
        asked += 1
        return await right() + timedelta(seconds=ahead_s)

    def was_asked(least: int) -> bool:
        return asked >= least

    monkeypatch.setattr(control.broker, "time", time)
    async with watching(control) as watch:
        for looks in (1, 2, 3):
            watch.wake.set()
            await eventually(partial(was_asked, looks), what="it has looked")
        assert control.status(ignored) is Status.RUNNING
        ahead_s = module.CANCEL_GRACE_S
        end = await control.ended(ignored)
    assert isinstance(end.data, Cancelled)
    assert (end.data.requested_by, end.data.steps) == ("test", ["asked", "revoked"])
    assert control.status(other) is Status.RUNNING


async def test_a_cancel_that_an_http_worker_may_not_have_heard_of_waits(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch has just begun, and so may all that the worker speaks through."""
    monkeypatch.setattr(module, "PRESENCE_LOOK_S", 0.05)
    monkeypatch.setattr(module, "CANCEL_GRACE_S", -module.OVERTIME_S)
    worker_id = await register(control, kind="http")
    task_id = await start(control, worker_id)
    await control.cancel(task_id)
    async with watching(control):
        overdue = await start(control, worker_id, timeout_s=0.001)
        await control.until(lambda: control.status(overdue) is Status.TIMED_OUT, "the watch has looked")
        assert control.status(task_id) is Status.RUNNING
        monkeypatch.setattr(module, "OUTAGE_GRACE_S", 0.0)
        end = await control.ended(task_id)
    assert isinstance(end.data, Cancelled)
    assert end.data.steps == ["asked", "revoked"]


@pytest.mark.parametrize("wrong_s", [0, -3600], ids=["right clock", "slow clock"])
async def test_an_http_workers_attempt_that_says_nothing_for_too_long_is_timed_out(
    control: Control, monkeypatch: pytest.MonkeyPatch, wrong_s: int
) -> None:
    """Also where the clock is wrong of the API that the attempt speaks through."""
    monkeypatch.setattr(module, "PRESENCE_LOOK_S", 0.05)
    monkeypatch.setattr(module, "OVERTIME_S", -0.5)
    worker_id = await register(control, kind="http")
    talks = await start(control, worker_id, heartbeat_timeout_s=1.5)
    mute = await start(control, worker_id, heartbeat_timeout_s=1.5)

    async def talk() -> None:
        while True:
            await publish_report(control.broker, talks, 1, "test", Progress(1))
            await asyncio.sleep(0.1)

    def wrong_time(_: object) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=wrong_s)

    clock = SimpleNamespace(now=wrong_time, fromisoformat=datetime.fromisoformat)
    monkeypatch.setattr("eventq.events.report.datetime", clock)
    talking = asyncio.create_task(talk())
    async with watching(control):
        end = await control.ended(mute)
        assert isinstance(end.data, TimedOut)
        assert end.data.reason == "heartbeat_timeout"
        assert control.status(talks) is Status.RUNNING
        talking.cancel()
        await control.until_ended(talks)


@pytest.mark.usefixtures("impatient")
async def test_an_attempt_that_is_orphaned_while_others_are_ended_is_ended_too(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who called its worker lost died right after that, while this watch was busy."""
    one, other = await register(control), await register(control)
    tasks = {worker_id: await start(control, worker_id) for worker_id in (one, other)}
    for worker_id in tasks:
        await say_alive(control, worker_id, tasks[worker_id])
    follower: Follower

    async def slowly(log: Any, task_id: str, *given: Any, **options: Any) -> Any:
        if task_id == tasks[one]:
            await lose(control, other)
            facts = await control.broker.stream_facts(EVENTS)
            assert facts is not None
            await eventually(lambda: follower.position >= facts.last, what="the watch has been shown that the other is lost")
        return await end_attempt(log, task_id, *given, **options)

    monkeypatch.setattr(module, "end_attempt", slowly)
    watch = WorkerWatch(control.log)
    follower = Follower(control.broker, [watch])
    running = [asyncio.create_task(follower.run()), asyncio.create_task(watch.run(follower))]
    await follower.until_caught_up()
    await lose(control, one)
    await control.until(lambda: all(not control.task(each).in_hand for each in tasks.values()), "both attempts are ended")
    await end(*running)


async def lose(control: Control, worker_id: str) -> None:
    """As another watch does that dies before it ends what the worker held."""
    state = await worker_state(control, worker_id)
    await handle_any(control.log, WORKERS, worker_id, LoseWorker(state.version, "disconnected", ()), source="test")
