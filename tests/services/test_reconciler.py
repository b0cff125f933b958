"""What the reconciler finds: consumers, timers and workers that are gone, with the real broker and real workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from eventq.events.commands import CancelTask, ConfirmPause, HoldTask, PauseTask, StartAttempt
from eventq.events.ending import end
from eventq.events.envelope import encode, next_event
from eventq.events.handle import handle
from eventq.events.ids import new_id
from eventq.events.presence import Heartbeat, beat, leave, present
from eventq.events.subjects import EVENTS, TIMERS, Route, work_consumer, work_filter
from eventq.events.task import ABSENT, TASKS, Status, Task
from eventq.events.task_events import Cancelled, Paused, Queued, Submitted, TimedOut
from eventq.services import reconciler as module
from eventq.services.follower import Follower
from eventq.services.reconciler import Reconciler
from eventq.workers.lease_keeper import IN_PROGRESS
from tests.chaos.site import LEASE_S, ROUTE, Control, Site
from tests.support.nats import NatsServer
from tests.support.poll import eventually


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps follow closely, and a hint counts as lost soon."""
    monkeypatch.setattr(module, "SWEEP_S", 0.2)
    monkeypatch.setattr(module, "GRACE_S", 0.5)


@pytest.fixture
def site(own_nats_server: NatsServer, tmp_path: Path) -> Iterator[Site]:
    site = Site(own_nats_server, tmp_path)
    yield site
    site.close()


@pytest.fixture
async def control(site: Site) -> AsyncIterator[Control]:
    async with await Control.open(site) as control:
        yield control


@asynccontextmanager
async def running(control: Control) -> AsyncGenerator[Reconciler]:
    """A reconciler at work, shown the log by a follower of its own."""
    reconciler = Reconciler(control.log, lease_s=LEASE_S)
    follower = Follower(control.broker, [reconciler])
    tasks = [asyncio.create_task(follower.run()), asyncio.create_task(reconciler.run(follower))]
    try:
        yield reconciler
    finally:
        for task in tasks:
            assert not task.done(), task.exception()
            task.cancel()


def reasons(control: Control, task_id: str) -> list[str]:
    """Why the task was made ready, each time."""
    return [event.data.reason for event in control.events(task_id) if isinstance(event.data, Queued)]


async def delete_consumer(control: Control, route: Route = ROUTE) -> None:
    """What a hand at the ``nats`` command can do."""
    assert await control.broker.js.delete_consumer(EVENTS, work_consumer(route))


async def test_work_whose_consumer_was_deleted_is_made_ready_again(site: Site, control: Control) -> None:
    task_ids = [await control.submit("chaos.quick") for _ in range(5)]
    await delete_consumer(control)
    async with running(control) as one, running(control) as other:
        await site.workers(1)
        await control.until_ended(*task_ids)
        assert one.repaired + other.repaired >= len(task_ids)
    assert all(reasons(control, task_id) == ["reconciled"] for task_id in task_ids)
    await control.check()


async def test_work_is_not_taken_from_a_living_worker_when_its_consumer_is_deleted(site: Site, control: Control) -> None:
    await site.workers(1)
    running_task = await control.submit("chaos.gate", str(site.gate()))
    await control.until_entered(running_task)
    await delete_consumer(control)
    async with running(control):
        lost = [await control.submit("chaos.quick") for _ in range(3)]  # nobody knows yet that the consumer is gone
        await control.until_ended(*lost)
        assert control.status(running_task) is Status.RUNNING
    site.gate().touch()
    await control.until_ended(running_task)
    assert control.types(running_task) == ["submitted", "started", "completed"]
    assert all(reasons(control, task_id) == ["reconciled"] for task_id in lost)
    await control.check()


async def test_a_task_that_its_worker_says_it_holds_is_left_alone_however_long(
    site: Site, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.workers(1)
    task_id = await control.submit("chaos.gate", str(site.gate()))
    await control.until_entered(task_id)

    async def claimed() -> bool:
        return any(task_id in heartbeat.running for heartbeat in (await present(control.broker)).values())

    await eventually(claimed, timeout=30, what="the worker says that it holds the task")
    await delete_consumer(control)
    monkeypatch.setattr(module, "GRACE_S", 0.0)
    monkeypatch.setattr(module, "LEASES_MISSED", 0)
    async with running(control) as reconciler:
        newer = await control.submit("chaos.quick")
        await control.until_ended(newer)  # a sweep found this one, and saw the other
        assert reconciler.repaired == 1
    site.gate().touch()
    await control.until_ended(task_id)
    assert control.types(task_id) == ["submitted", "started", "completed"]


async def test_a_consumer_made_anew_by_hand_does_not_take_work_from_a_living_worker(site: Site, control: Control) -> None:
    """Such a consumer delivers the whole stream again: finished items are dropped, running ones left to their holder."""
    await site.workers(2, concurrency=2)
    finished = await control.submit("chaos.quick")
    await control.until_ended(finished)
    held = [await control.submit("chaos.gate", str(site.gate())) for _ in range(2)]
    for task_id in held:
        await control.until_entered(task_id)
    await delete_consumer(control)
    name = work_consumer(ROUTE)
    config = ConsumerConfig(
        durable_name=name,
        filter_subject=work_filter(ROUTE),
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        ack_wait=LEASE_S,
        max_deliver=-1,
    )
    await control.broker.js.add_consumer(EVENTS, config)

    renewed = asyncio.Semaphore(0)

    async def count(message: Msg) -> None:
        if message.data == IN_PROGRESS:
            renewed.release()

    await control.broker.nc.subscribe(f"$JS.ACK.{EVENTS}.{name}.>", cb=count)
    async with asyncio.timeout(60):
        for _ in range(18):  # three leases and more, of two items, each renewed three times a lease
            await renewed.acquire()
    site.gate().touch()
    await control.until_ended(*held)
    assert [control.types(task_id) for task_id in held] == [["submitted", "started", "completed"]] * 2
    await control.until_nothing_outstanding()
    await control.check()


async def test_an_event_published_past_eventq_to_a_queue_without_consumer_is_found(site: Site, control: Control) -> None:
    route = Route("cpu", "orphans", 7)
    await site.workers(1, queues="default,orphans")
    task_id = new_id()
    submitted = Submitted(task_name="chaos.quick", pool="cpu", queue="orphans", priority=7, max_retries=0)
    event, _ = next_event(TASKS, task_id, ABSENT, submitted, source="test", at=datetime.now(UTC))
    assert event.route == route
    await control.broker.js.publish(event.subject, encode(event))
    async with running(control):
        await control.until_ended(task_id)
    assert reasons(control, task_id) == ["reconciled"]
    await control.check()


async def test_timers_that_were_purged_are_made_up_for(site: Site, control: Control) -> None:
    at = datetime.now(UTC) + timedelta(seconds=0.3)
    task_ids = [await control.submit("chaos.quick", scheduled_at=at) for _ in range(3)]
    await control.broker.js.purge_stream(TIMERS)
    async with running(control):
        await control.until(lambda: all(reasons(control, task_id) for task_id in task_ids), "all become ready")
    assert all(reasons(control, task_id) == ["due"] for task_id in task_ids)
    assert all(control.events(task_id)[-1].time >= at for task_id in task_ids)


async def test_a_retry_whose_timer_was_purged_is_made_up_for(site: Site, control: Control) -> None:
    await site.workers(1)
    task_id = await control.submit("chaos.fail", 2, max_retries=1)
    await control.until(lambda: control.status(task_id) is Status.RETRYING, "the first attempt fails")
    await control.broker.js.purge_stream(TIMERS)
    async with running(control):
        await control.until_ended(task_id)
    assert reasons(control, task_id) == ["retry_due"]
    await control.check()


async def test_an_attempt_whose_worker_and_consumer_are_both_gone_is_ended(
    site: Site, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease would have told, but the consumer that kept it is no more: presence is what is left."""
    monkeypatch.setattr(module, "OUTAGE_GRACE_S", 0.0)
    (doomed,) = await site.workers(1)
    task_id = await control.submit("chaos.gate", str(site.gate()))
    await control.until_entered(task_id)
    doomed.kill()
    await delete_consumer(control)
    for worker_id in await present(control.broker):
        await leave(control.broker, worker_id)  # what its lapse after 15 s does
    await site.workers(1)
    async with running(control):
        await control.until_ended(task_id)
    # The reconciler thought that the consumer was there; its next sweep saw that it was not.
    assert reasons(control, task_id) == ["worker_lost", "reconciled"]
    await control.check()


async def test_a_reconciler_that_starts_late_knows_how_long_a_task_has_waited(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 2.0)
    task_id = await control.submit("chaos.quick")
    await delete_consumer(control)
    stored_at = control.tasks[task_id][0].stored_at if control.tasks else datetime.now(UTC)
    await eventually(lambda: datetime.now(UTC) - stored_at > timedelta(seconds=2), what="the task is old")
    async with running(control):
        await control.until(lambda: reasons(control, task_id), "the task is made ready again", timeout_s=30)


async def test_a_task_that_only_a_newer_program_can_read_is_left_to_it(control: Control) -> None:
    """Its event changes the task's state in a way that is not known here; those beside it are set going all the same."""
    at = datetime.now(UTC) + timedelta(seconds=0.3)
    submitted = Submitted(task_name="chaos.quick", pool="cpu", queue="default", priority=5, max_retries=0, scheduled_at=at)
    event, _ = next_event(TASKS, new_id(), ABSENT, submitted, source="test", at=datetime.now(UTC))
    newer = event._replace(state=event.state | {"colour": "red"})
    await control.broker.js.publish(newer.subject, encode(newer))
    task_id = await control.submit("chaos.quick", scheduled_at=at)
    await control.broker.js.purge_stream(TIMERS)
    async with running(control) as reconciler:
        await control.until(lambda: reasons(control, task_id), "the other becomes ready")
        assert reconciler.repaired == 1


async def test_waiting_work_is_left_where_it_is(site: Site, control: Control) -> None:
    """Nobody serves the queue yet, the item waits in its consumer: nothing is lost and nothing to be done."""
    task_ids = [await control.submit("chaos.quick") for _ in range(3)]
    async with running(control) as reconciler:
        marker = await control.submit("chaos.quick", queue="marker")
        await delete_consumer(control, Route("cpu", "marker", 5))
        await control.until(lambda: reasons(control, marker), "a sweep has found what is lost")
        assert reconciler.repaired == 1
    assert all(control.types(task_id) == ["submitted"] for task_id in task_ids)


async def test_a_task_that_nobody_started_in_time_is_timed_out_although_its_timer_was_purged(control: Control) -> None:
    ready = await control.submit("chaos.quick", queue_timeout_s=0.2)
    held = await control.submit("chaos.quick", queue_timeout_s=0.2)
    await handle(control.log, held, HoldTask(1), source="gate")
    await control.broker.js.purge_stream(TIMERS)
    async with running(control) as one, running(control) as other:
        await control.until_ended(ready, held)
        assert one.repaired + other.repaired >= 2
    for task_id in (ready, held):
        ended = control.events(task_id)[-1]
        assert ended.data == TimedOut(reason="queue_timeout", after_s=0.2)
        assert ended.time >= control.events(task_id)[0].time + timedelta(seconds=0.2)


async def test_held_tasks_and_paused_tasks_are_left_alone(control: Control) -> None:
    """Held: their work is the gate's. Paused: they wait for their client, also when their time is over."""
    held = await control.submit("chaos.quick", gated=True)
    paused = await control.submit("chaos.quick")
    overdue = await control.submit("chaos.quick", scheduled_at=datetime.now(UTC) + timedelta(seconds=0.1), queue_timeout_s=0.1)
    for task_id in (paused, overdue):
        await handle(control.log, task_id, PauseTask("ada"), source="api")
    await control.broker.js.purge_stream(TIMERS)
    async with running(control) as reconciler:
        marker = await control.submit("chaos.quick", queue="marker")
        await delete_consumer(control)
        await delete_consumer(control, Route("cpu", "marker", 5))
        await control.until(lambda: reasons(control, marker), "a sweep has found what is lost")
        assert reconciler.repaired == 1
    assert control.types(held) == ["submitted"]
    assert control.types(paused) == control.types(overdue) == ["submitted", "paused"]


async def frozen(control: Control, worker_id: str) -> str:
    """A task whose attempt stands still in the hands of this worker."""
    task_id = await control.submit("chaos.quick")
    source = f"worker.{worker_id}"
    await handle(control.log, task_id, StartAttempt(worker_id, "host", "cpu"), source=source)
    await handle(control.log, task_id, PauseTask("ada", "machine needed"), source="api")
    await handle(control.log, task_id, ConfirmPause(1, frozen=True), source=source)
    return task_id


@pytest.fixture
def quick_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent worker is taken to be gone at once, also when the broker has just been reached."""
    monkeypatch.setattr(module, "LEASES_MISSED", 0)
    monkeypatch.setattr(module, "OUTAGE_GRACE_S", 0.0)


@pytest.mark.usefixtures("quick_to_judge")
async def test_a_frozen_attempt_of_a_silent_worker_is_ended_and_the_task_stays_paused(control: Control) -> None:
    lost, stopping = await frozen(control, "gone"), await frozen(control, "gone")
    await handle(control.log, stopping, CancelTask("ada"), source="api")
    async with running(control):
        await control.until(lambda: not control.task(lost).in_hand, "the frozen attempt is ended")
        await control.until_ended(stopping)
    assert control.events(lost)[-1].data == Paused(requested_by="ada", reason="machine needed", lost=True, confirmed_by="gone")
    assert (control.status(lost), control.task(lost).losses) == (Status.PAUSED, 1)
    assert control.events(stopping)[-1].data == Cancelled(requested_by="ada", confirmed_by="gone")


@pytest.mark.usefixtures("quick_to_judge")
async def test_a_frozen_attempt_that_its_worker_claims_is_left_alone(control: Control) -> None:
    kept, lost = await frozen(control, "here"), await frozen(control, "gone")
    await beat(control.broker, Heartbeat("here", "host", "cpu", 1, [kept], datetime.now(UTC)))
    async with running(control):
        await control.until(lambda: not control.task(lost).in_hand, "a sweep has looked at both")
    assert control.task(kept).frozen


async def running_at(control: Control, worker_id: str) -> str:
    """A task in the hands of this worker, which no heartbeat tells of yet."""
    task_id = await control.submit("chaos.quick")
    await handle(control.log, task_id, StartAttempt(worker_id, "host", "cpu"), source=f"worker.{worker_id}")
    return task_id


async def swept(control: Control) -> None:
    """Return once a sweep has looked at all that there was before."""
    queue = f"marker-{new_id()}"
    marker = await control.submit("chaos.quick", queue=queue)
    await delete_consumer(control, Route("cpu", queue, 5))
    await control.until(lambda: reasons(control, marker), "a sweep has found what is lost")


async def test_workers_have_time_to_say_that_they_live_when_a_reconciler_begins(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker was away for longer than heartbeats last, and the scheduler is back before the workers."""
    monkeypatch.setattr(module, "LEASES_MISSED", 0)
    task_id = await running_at(control, "comes-back")
    async with running(control):
        await swept(control)
        assert control.status(task_id) is Status.RUNNING


@pytest.fixture
def an_hour_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """This host's clock; and a reconciler judges as soon as it begins."""
    monkeypatch.setattr(module, "OUTAGE_GRACE_S", 0.0)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 3600)


@pytest.mark.usefixtures("an_hour_ahead")
async def test_work_is_not_taken_from_a_worker_because_this_clock_is_ahead(control: Control) -> None:
    """A task that has just been started stands in no heartbeat yet."""
    async with running(control):
        task_id = await running_at(control, "busy")
        await swept(control)
        assert control.status(task_id) is Status.RUNNING


@pytest.mark.usefixtures("an_hour_ahead")
async def test_a_reconciler_that_goes_by_its_own_clock_takes_work_from_a_worker(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""

    async def own_clock() -> datetime:
        return datetime.fromtimestamp(time.time(), UTC)

    monkeypatch.setattr(control.broker, "time", own_clock)
    async with running(control):
        task_id = await running_at(control, "busy")
        await control.until(lambda: "worker_lost" in reasons(control, task_id), "its attempt is ended")


async def test_what_is_overdue_is_so_by_the_brokers_clock(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1.0)  # later than its event is written
    scheduled = await control.submit("chaos.quick", scheduled_at=soon)
    waiting = await control.submit("chaos.quick", queue_timeout_s=0.1)
    await control.broker.js.purge_stream(TIMERS)
    behind_s = 3600.0
    asked = 0
    right = control.broker.time

    async def behind() -> datetime:
        nonlocal asked
        asked += 1
        return await right() - timedelta(seconds=behind_s)

    monkeypatch.setattr(control.broker, "time", behind)
    async with running(control) as reconciler:
        await eventually(lambda: asked > 10, what="it has looked for long enough")
        assert reconciler.repaired == 0
        behind_s = 0.0
        await control.until_ended(waiting)
        await control.until(lambda: reasons(control, scheduled), "the scheduled task becomes ready")


async def test_others_get_a_turn_while_many_tasks_are_looked_at(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    turn, seen, honest = 0, list[int](), module._readable  # pyright: ignore[reportPrivateUsage]

    async def take_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def noted(state: dict[str, Any]) -> Task | None:
        seen.append(turn)
        return honest(state)

    monkeypatch.setattr(module, "AT_ONCE", 2)
    monkeypatch.setattr(module, "GRACE_S", -1.0)
    monkeypatch.setattr(module, "_readable", noted)
    for _ in range(6):
        await control.submit("chaos.quick")
    others = asyncio.create_task(take_turns())
    async with running(control):
        await eventually(lambda: len(seen) >= 6, what="a sweep")
    await end(others)
    assert len(set(seen[:6])) == 3
