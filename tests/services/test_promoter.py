"""Fired timers of tasks, with the real broker's: early, late, doubled, replaced and nonsensical hints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventq.events.commands import FailAttempt, HoldTask, PauseTask, PromoteTask, ResumeTask, StartAttempt
from eventq.events.data import ErrorInfo
from eventq.events.ending import end
from eventq.events.errors import Conflict, LogUnavailable
from eventq.events.handle import handle, read_task
from eventq.events.ids import new_id
from eventq.events.subjects import TIMER_CONSUMER, TIMERS, due_subject, timer_subject
from eventq.events.task import Status, Task
from eventq.events.task_events import Queued, TimedOut
from eventq.events.timers import DUE, START_BY, Hint, set_timer
from eventq.services import promoter as module
from eventq.services import task_timers
from eventq.services.due_tasks import DueTasks
from eventq.services.follower import Follower
from eventq.services.promoter import Promoter
from eventq.services.task_timers import TaskTimers
from tests.chaos.site import Control, Site
from tests.support.nats import NatsServer
from tests.support.poll import eventually

SOON = timedelta(seconds=0.4)
LATER = timedelta(hours=1)
FAILURE = FailAttempt(1, ErrorInfo(type="ValueError", message="no"), 0.0, datetime.now(UTC))
"""To be retried at once."""


@pytest.fixture
async def control(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Control]:
    async with await Control.open(Site(own_nats_server, tmp_path)) as control:
        yield control


@asynccontextmanager
async def running(control: Control, timers: TaskTimers | None = None) -> AsyncGenerator[TaskTimers]:
    """A promoter at work that answers timers of tasks."""
    timers = timers or TaskTimers(control.log, source="scheduler")
    answers = {("tasks", DUE): timers.promote, ("tasks", START_BY): timers.expire_wait}
    task = asyncio.create_task(Promoter(control.broker, answers).run())
    try:
        yield timers
    finally:
        assert not task.done(), task.exception()
        task.cancel()


@asynccontextmanager
async def together(control: Control, ahead: timedelta = timedelta()) -> AsyncGenerator[TaskTimers]:
    """The same, shown the log like a scheduler: it knows what is due. ``ahead``: how wrong its clock is."""
    due_tasks = DueTasks()
    follower = Follower(control.broker, [due_tasks])
    following = asyncio.create_task(follower.run())
    try:
        await follower.until_caught_up()
        timers = TaskTimers(control.log, source="scheduler", due=due_tasks.take, now=lambda: now() + ahead)
        async with running(control, timers):
            yield timers
    finally:
        await end(following)


def now() -> datetime:
    return datetime.now(UTC)


def promoted(control: Control, task_id: str) -> bool:
    return control.status(task_id) is Status.PENDING


async def hints_left(control: Control) -> int:
    """How many timers, pending or fired, the broker still has."""
    facts = await control.broker.stream_facts(TIMERS)
    assert facts is not None
    return facts.messages


async def until_spent(control: Control) -> None:
    """Return once every hint was answered for good."""

    async def spent() -> bool:
        return await hints_left(control) == 0

    await eventually(spent, timeout=30, what="all hints are spent")


def due(task_id: str, version: int = 1) -> Hint:
    return Hint("tasks", task_id, DUE, version)


def start_by(task_id: str, version: int = 1) -> Hint:
    return Hint("tasks", task_id, START_BY, version)


async def fire(control: Control, hint: Hint) -> None:
    """What the broker publishes when a timer fires."""
    await control.broker.js.publish(due_subject(hint.tokens), orjson.dumps(hint))


async def test_a_scheduled_task_becomes_ready_at_its_time_and_never_before(control: Control) -> None:
    began = now()
    waiting = {
        await control.submit("chaos.quick", scheduled_at=at): at
        for at in (began + SOON + timedelta(microseconds=77_777 * number) for number in range(8))
    }
    async with running(control) as timers:
        await control.until(lambda: all(promoted(control, task_id) for task_id in waiting), "all become ready")
        await until_spent(control)
        assert timers.promoted == len(waiting)
    for task_id, at in waiting.items():
        event = control.events(task_id)[-1]
        assert event.time >= at
        assert isinstance(event.data, Queued)
        assert event.data.reason == "due"
        assert control.tasks[task_id][-1].stored_at >= at - timedelta(milliseconds=1)  # the broker's own clock
        assert control.types(task_id) == ["submitted", "queued"]


async def test_a_timer_that_fires_before_its_event_is_stored_is_not_forgotten(control: Control) -> None:
    task_id = new_id()
    await set_timer(control.log.timers, due(task_id), now())
    async with running(control):
        await eventually(lambda: _delivered_again(control), timeout=30, what="the early hint comes again")
        await control.submit_as(task_id, "chaos.quick", scheduled_at=now() + SOON)
        await control.until(lambda: promoted(control, task_id), "the task becomes ready")
        await until_spent(control)


async def _acknowledged(control: Control) -> bool:
    info = await control.broker.js.consumer_info(TIMERS, TIMER_CONSUMER)
    return bool(info.ack_floor and info.ack_floor.consumer_seq == 1)


async def _delivered_again(control: Control) -> bool:
    info = await control.broker.js.consumer_info(TIMERS, TIMER_CONSUMER)
    return bool(info.delivered and info.delivered.consumer_seq >= 2)


async def test_a_timer_set_again_replaces_the_one_before(control: Control) -> None:
    task_id = await control.submit("chaos.quick", scheduled_at=now() + SOON)
    await set_timer(control.log.timers, due(task_id), now() + LATER)
    await set_timer(control.log.timers, due(task_id), now() + SOON)
    assert await hints_left(control) == 1
    async with running(control):
        await control.until(lambda: promoted(control, task_id), "the task becomes ready")
        await until_spent(control)


async def test_a_hint_that_comes_too_early_sets_the_timer_right(control: Control) -> None:
    at = now() + timedelta(seconds=1.5)
    task_id = await control.submit("chaos.quick", scheduled_at=at)
    await control.broker.js.purge_stream(TIMERS, subject=timer_subject(due(task_id).tokens))
    async with running(control):
        await fire(control, due(task_id))
        await control.until(lambda: promoted(control, task_id), "the task becomes ready")
    assert control.events(task_id)[-1].time >= at


async def test_doubled_hints_promote_once_even_with_two_promoters(control: Control) -> None:
    task_ids = [await control.submit("chaos.quick", scheduled_at=now() + SOON) for _ in range(5)]
    async with running(control) as one, running(control) as other:
        await control.until(lambda: all(promoted(control, task_id) for task_id in task_ids), "all become ready")
        for task_id in task_ids * 3:
            await fire(control, due(task_id))
        await until_spent(control)
        assert one.promoted + other.promoted == len(task_ids)
    assert all(control.types(task_id) == ["submitted", "queued"] for task_id in task_ids)


async def test_doubled_hints_retry_once_even_with_two_promoters(control: Control) -> None:
    task_ids = [await control.submit("chaos.quick", max_retries=1) for _ in range(5)]
    for task_id in task_ids:
        await handle(control.log, task_id, StartAttempt("w1", "host", "cpu"), source="worker.w1")
        await handle(control.log, task_id, FAILURE, source="worker.w1")
        for _ in range(4):
            await fire(control, due(task_id, 3))
    async with running(control) as one, running(control) as other:
        await until_spent(control)
        assert one.promoted + other.promoted == len(task_ids)
    await control.until(lambda: all(promoted(control, task_id) for task_id in task_ids), "all are ready")
    assert all(control.types(task_id) == ["submitted", "started", "retrying", "queued"] for task_id in task_ids)


async def test_a_cancelled_task_stays_cancelled_when_its_time_comes(control: Control) -> None:
    task_id = await control.submit("chaos.quick", scheduled_at=now() + SOON)
    await control.cancel(task_id)
    async with running(control):
        await until_spent(control)
    assert control.types(task_id) == ["submitted", "cancelled"]


async def test_a_hint_about_a_version_long_gone_changes_nothing(control: Control) -> None:
    task_id = await control.submit("chaos.quick", scheduled_at=now() + LATER)
    await control.broker.js.purge_stream(TIMERS)
    await handle(control.log, task_id, PromoteTask(1, now() + 2 * LATER), source="test")
    async with running(control) as timers:
        await fire(control, due(task_id))
        await until_spent(control)
        assert timers.promoted == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"kind": "tasks", "id": 7, "what": "due", "version": "x"}',
        b'{"kind": "tasks", "id": "a.>", "what": "due", "version": 1}',
        b'{"kind": "tasks", "id": "t1", "what": "tea", "version": 1}',
        b'{"kind": "planets", "id": "t1", "what": "due", "version": 1}',
        b'{"task_id": "t1", "version": 1}',
    ],
)
async def test_a_hint_that_is_none_is_dropped(control: Control, body: bytes) -> None:
    """Anybody who may publish to ``due.>`` may publish nonsense; it must not stop the promoter for ever."""
    await control.broker.js.publish("due.nonsense.1", body)
    task_id = await control.submit("chaos.quick", scheduled_at=now() + SOON)
    async with running(control):
        await control.until(lambda: promoted(control, task_id), "the task becomes ready")
        await until_spent(control)


async def test_timers_outlive_a_crash_of_the_broker(control: Control, own_nats_server: NatsServer) -> None:
    before = await control.submit("chaos.quick", scheduled_at=now() + SOON)
    async with running(control):
        await asyncio.to_thread(own_nats_server.restart, crash=True)
        await control.until(lambda: promoted(control, before), "the task becomes ready")
        after = await control.submit("chaos.quick", scheduled_at=now() + SOON)
        await control.until(lambda: promoted(control, after), "the next one, too")


# Time-outs in the queue


async def test_a_task_that_nobody_starts_times_out_at_its_time_and_never_before(control: Control) -> None:
    task_ids = [await control.submit("chaos.quick", queue_timeout_s=0.3) for _ in range(5)]
    async with running(control):
        await control.until_ended(*task_ids)
        await until_spent(control)
    for task_id in task_ids:
        submitted, ended = control.events(task_id)
        assert ended.data == TimedOut(reason="queue_timeout", after_s=0.3)
        assert ended.time >= submitted.time + timedelta(seconds=0.3)
        assert ended.source == "scheduler"


async def test_a_scheduled_task_s_wait_begins_when_it_is_due(control: Control) -> None:
    task_id = await control.submit("chaos.quick", scheduled_at=now() + SOON, queue_timeout_s=0.3)
    async with running(control):
        await control.until_ended(task_id)
        await until_spent(control)
    assert control.types(task_id) == ["submitted", "queued", "timed_out"]
    _, queued, ended = control.events(task_id)
    assert ended.time >= queued.time + timedelta(seconds=0.3)


async def test_the_wait_s_timer_is_set_right_when_a_late_promotion_shifts_it(control: Control) -> None:
    """No promoter ran while the task became due: when one comes, the first timer of the wait fires too early."""
    task_id = await control.submit("chaos.quick", scheduled_at=now() + SOON, queue_timeout_s=0.5)
    await eventually(
        lambda: now() >= control.events(task_id)[0].time + SOON + timedelta(seconds=0.6) if control.tasks else False
    )
    async with running(control):
        await control.until_ended(task_id)
        await until_spent(control)
    _, queued, ended = control.events(task_id)
    assert ended.time >= queued.time + timedelta(seconds=0.5)


async def test_a_held_task_times_out_too(control: Control) -> None:
    task_id = await control.submit("chaos.quick", queue_timeout_s=0.5)
    await handle(control.log, task_id, HoldTask(1), source="gate")
    async with running(control):
        await control.until_ended(task_id)
    assert control.types(task_id) == ["submitted", "queued", "timed_out"]


async def test_a_started_task_does_not_time_out_in_its_queue(control: Control) -> None:
    task_id = await control.submit("chaos.quick", queue_timeout_s=0.3)
    await handle(control.log, task_id, StartAttempt("w1", "host", "cpu"), source="worker.w1")
    async with running(control):
        await until_spent(control)
    assert control.types(task_id) == ["submitted", "started"]


async def test_a_hint_about_a_wait_that_is_not_over_sets_the_timer_right(control: Control) -> None:
    task_id = await control.submit("chaos.quick", queue_timeout_s=1.0)
    await control.broker.js.purge_stream(TIMERS)
    async with running(control):
        await fire(control, start_by(task_id))
        await control.until_ended(task_id)
    submitted, ended = control.events(task_id)
    assert ended.time >= submitted.time + timedelta(seconds=1)


async def test_doubled_hints_about_a_wait_end_it_once_even_with_two_promoters(control: Control) -> None:
    task_ids = [await control.submit("chaos.quick", queue_timeout_s=0.001) for _ in range(5)]
    for task_id in task_ids * 3:
        await fire(control, start_by(task_id))
    async with running(control), running(control):
        await control.until_ended(*task_ids)
        for task_id in task_ids:
            await fire(control, start_by(task_id))
        await until_spent(control)
    assert all(control.types(task_id) == ["submitted", "timed_out"] for task_id in task_ids)


@pytest.mark.parametrize("paused", [False, True])
async def test_a_hint_about_a_wait_that_has_not_begun_comes_again(control: Control, paused: bool) -> None:
    """The task is about to be resumed, or to get a limit to its wait: the timer is there before the event is."""
    task_id = await control.submit("chaos.quick")
    if paused:
        await handle(control.log, task_id, PauseTask("ada"), source="api")
    timers, version = TaskTimers(control.log, source="scheduler"), 3 if paused else 2
    assert not await timers.expire_wait(start_by(task_id, version))
    assert await timers.expire_wait(start_by(task_id, version - 1)), "of no wait that is to come"


async def test_a_hint_about_a_wait_that_is_refused_in_the_instant_before_it_begins_is_not_forgotten(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await control.submit("chaos.quick", queue_timeout_s=0.1)
    await handle(control.log, task_id, PauseTask("ada"), source="api")

    async def overtaken(*arguments: Any, **options: Any) -> Any:
        try:
            return await handle(*arguments, **options)
        except Conflict:
            await handle(control.log, task_id, ResumeTask("ada", now()), source="api")
            raise

    monkeypatch.setattr(task_timers, "handle", overtaken)
    await control.broker.js.purge_stream(TIMERS)
    assert await TaskTimers(control.log, source="scheduler").expire_wait(start_by(task_id, 3))
    monkeypatch.undo()
    async with running(control):
        await control.until_ended(task_id)
    assert control.types(task_id) == ["submitted", "paused", "queued", "timed_out"]


async def test_the_hint_of_a_task_that_is_never_made_is_given_up(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its submitter died between the timer and the event."""
    monkeypatch.setattr(module, "EARLY_DELAY_MAX_S", 0.01)
    await set_timer(control.log.timers, due(new_id()), now())
    await set_timer(control.log.timers, start_by(new_id()), now())
    async with running(control):
        await until_spent(control)
    assert control.tasks == {}


async def test_a_hint_that_is_refused_in_the_instant_before_its_event_comes_again(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt was still running when its retry was asked for, and had failed when we looked why that was refused."""
    task_id = await control.submit("chaos.quick", max_retries=1)
    await handle(control.log, task_id, StartAttempt("w1", "host", "cpu"), source="worker.w1")

    async def overtaken(*arguments: Any, **options: Any) -> Any:
        try:
            return await handle(*arguments, **options)
        except Conflict:
            await handle(control.log, task_id, FAILURE, source="worker.w1")
            raise

    monkeypatch.setattr(task_timers, "handle", overtaken)
    timers = TaskTimers(control.log, source="scheduler")
    assert not await timers.promote(due(task_id, 3))
    assert await timers.promote(due(task_id, 3))
    await control.until(lambda: promoted(control, task_id), "the task is ready")
    assert control.types(task_id) == ["submitted", "started", "retrying", "queued"]


async def test_a_paused_task_stays_paused_when_its_time_comes(control: Control) -> None:
    scheduled = await control.submit("chaos.quick", scheduled_at=now() + SOON, queue_timeout_s=0.1)
    ready = await control.submit("chaos.quick", queue_timeout_s=0.3)
    for task_id in (scheduled, ready):
        await handle(control.log, task_id, PauseTask("ada"), source="api")
    async with running(control):
        await until_spent(control)
        assert [control.types(task_id) for task_id in (scheduled, ready)] == [["submitted", "paused"]] * 2
        await handle(control.log, scheduled, ResumeTask("ada", now()), source="api")
        await control.until(lambda: promoted(control, scheduled), "the task is ready")


async def test_a_task_that_is_known_is_promoted_without_a_read(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = await control.submit("chaos.quick", scheduled_at=now() + SOON)
    known = await read_task(control.log, task_id)

    async def unasked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the log was read")

    monkeypatch.setattr(task_timers, "read_task", unasked)
    timers = TaskTimers(control.log, source="scheduler", known={task_id: known}.get)
    assert await timers.promote(replace(due(task_id), fired_at=now() + LATER))
    await control.until(lambda: promoted(control, task_id), "the task is ready")


@pytest.mark.parametrize("known_of", ["the hint's version", "an older one"])
async def test_what_is_known_of_a_task_may_be_old(control: Control, known_of: str) -> None:
    """It was paused since, or has got further than this process was shown."""
    task_id = await control.submit("chaos.quick", scheduled_at=now() + LATER)
    known = await read_task(control.log, task_id)
    timers = TaskTimers(control.log, source="scheduler", known={task_id: known}.get)
    if known_of == "the hint's version":
        await handle(control.log, task_id, PauseTask("ada"), source="api")
        assert await timers.promote(replace(due(task_id), fired_at=now() + 2 * LATER))
        assert (await read_task(control.log, task_id)).status is Status.PAUSED
    else:
        await handle(control.log, task_id, PauseTask("ada"), source="api")
        await handle(control.log, task_id, ResumeTask("ada", now()), source="api")
        assert await timers.promote(replace(due(task_id, 3), fired_at=now() + 2 * LATER))
        assert (await read_task(control.log, task_id)).status is Status.PENDING


# Many at once


MANY = 40
LEAD = timedelta(seconds=3)
"""So long before they are due all of them are submitted."""


async def submitted_together(control: Control, at: datetime, **options: Any) -> list[str]:
    task_ids = await asyncio.gather(*(control.submit("chaos.quick", scheduled_at=at, **options) for _ in range(MANY)))
    assert now() < at, "they are not scheduled, but ready"
    return task_ids


async def fire_alone(control: Control, hint: Hint, at: datetime) -> None:
    """One hint comes once it is ``at``, and no timer beside it fires."""
    await control.broker.js.purge_stream(TIMERS)
    await eventually(lambda: now() > at + SOON / 10, what="they are due")
    await fire(control, hint)


async def test_one_hint_promotes_all_that_are_due_by_then_and_no_others(control: Control) -> None:
    at = now() + LEAD
    task_ids = await submitted_together(control, at)
    paused, cancelled = task_ids[0], task_ids[1]
    await handle(control.log, paused, PauseTask("ada"), source="api")
    await control.cancel(cancelled)
    later = await control.submit("chaos.quick", scheduled_at=at + LATER)
    async with together(control) as timers:
        await fire_alone(control, due(task_ids[-1]), at)
        await control.until(lambda: all(promoted(control, task_id) for task_id in task_ids[2:]), "all become ready")
        await until_spent(control)
        assert timers.promoted == MANY - 2
    assert {control.status(task_id) for task_id in (paused, cancelled, later)} == {
        Status.PAUSED,
        Status.CANCELLED,
        Status.SCHEDULED,
    }
    for task_id in task_ids[2:]:
        assert control.types(task_id) == ["submitted", "queued"]
        assert control.tasks[task_id][-1].stored_at >= at - timedelta(milliseconds=1)


async def test_a_host_whose_clock_is_ahead_promotes_nothing_before_its_time(control: Control) -> None:
    """A hint tells the broker's time, and that is what counts for others."""
    task_ids = await submitted_together(control, now() + LATER)
    first = await control.submit("chaos.quick", scheduled_at=now() + SOON)
    async with together(control, ahead=2 * LATER) as timers:
        await control.until(lambda: promoted(control, first), "the one that is due")
        await eventually(lambda: _acknowledged(control), timeout=30, what="its hint is spent")
        assert timers._promoting is None  # pyright: ignore[reportPrivateUsage]
    assert {control.status(task_id) for task_id in task_ids} == {Status.SCHEDULED}


@pytest.mark.parametrize("ahead", [timedelta(0), -2 * LATER])
async def test_the_waits_of_many_that_are_promoted_together_are_timed(control: Control, ahead: timedelta) -> None:
    at = now() + LEAD
    task_ids = await submitted_together(control, at, queue_timeout_s=0.5)
    async with together(control, ahead=ahead):
        await fire_alone(control, due(task_ids[0]), at)
        await control.until_ended(*task_ids)
        await until_spent(control)
    for task_id in task_ids:
        _, queued, ended = control.events(task_id)
        assert (queued.type, ended.data) == ("queued", TimedOut(reason="queue_timeout", after_s=0.5))
        assert ended.source == "scheduler"


async def test_the_hints_of_many_that_were_promoted_together_read_nothing(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = now() + LEAD
    task_ids = await submitted_together(control, at)

    async def unasked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the log was read")

    monkeypatch.setattr(task_timers, "read_task", unasked)
    monkeypatch.setattr(task_timers, "handle", unasked)
    async with together(control) as timers:
        await control.until(lambda: all(promoted(control, task_id) for task_id in task_ids), "all become ready")
        await until_spent(control)
        assert timers.promoted == MANY


@pytest.mark.parametrize("error", [LogUnavailable("no answer"), Conflict("too early"), TypeError("one of them is odd")])
async def test_a_group_that_comes_to_nothing_is_left_to_its_hints(
    control: Control, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    at = now() + LEAD
    task_ids = await submitted_together(control, at)
    groups: list[int] = []
    monkeypatch.setattr(task_timers, "HINTS_FOLLOW_S", 0.1)

    async def failing(log: Any, kind: Any, commands: dict[str, Any], **_: Any) -> Any:
        groups.append(len(commands))
        raise error

    monkeypatch.setattr(task_timers, "handle_all", failing)
    async with together(control) as timers:
        await control.until(lambda: all(promoted(control, task_id) for task_id in task_ids), "all become ready")
        await until_spent(control)
        assert timers.promoted == MANY
        await eventually(lambda: not timers._together, what="it is forgotten")  # pyright: ignore[reportPrivateUsage]
    assert groups == [MANY]


async def test_what_a_group_was_too_late_for_is_left_to_its_hints(control: Control) -> None:
    """What was known of half of the tasks is old: they are retried by now, or paused."""
    at = now() + LEAD
    task_ids = await submitted_together(control, at)
    async with together(control) as timers:
        known = {task_id: await read_task(control.log, task_id) for task_id in task_ids}
        for task_id in task_ids[::2]:
            await handle(control.log, task_id, PauseTask("ada"), source="api")

        def once(until: datetime, least: int, most: int) -> dict[str, Task]:
            return known if until >= at and least <= MANY <= most and not timers._together else {}  # pyright: ignore[reportPrivateUsage]

        timers._due = once  # pyright: ignore[reportPrivateUsage]
        await control.until(lambda: all(promoted(control, task_id) for task_id in task_ids[1::2]), "the others are ready")
        await until_spent(control)
    assert {control.status(task_id) for task_id in task_ids[::2]} == {Status.PAUSED}


async def test_two_that_promote_the_same_together_promote_each_once(control: Control) -> None:
    at = now() + LEAD
    task_ids = await submitted_together(control, at)
    async with together(control) as one, together(control) as other:
        await control.until(lambda: all(promoted(control, task_id) for task_id in task_ids), "all become ready")
        await until_spent(control)
        assert one.promoted + other.promoted == MANY
    assert all(control.types(task_id) == ["submitted", "queued"] for task_id in task_ids)


async def test_few_are_left_each_to_its_own_hint(control: Control) -> None:
    at = now() + SOON
    task_ids = [await control.submit("chaos.quick", scheduled_at=at) for _ in range(task_timers.TOGETHER_MIN - 1)]
    async with together(control) as timers:
        await control.until(lambda: all(promoted(control, task_id) for task_id in task_ids), "all become ready")
        assert timers._promoting is None  # pyright: ignore[reportPrivateUsage]
