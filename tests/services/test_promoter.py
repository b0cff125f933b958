"""The promoter with the real broker's timers: early, late, doubled, replaced and nonsensical hints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eventq.events.commands import PromoteTask
from eventq.events.handle import handle
from eventq.events.ids import new_id
from eventq.events.subjects import TIMER_CONSUMER, TIMERS, due_subject, timer_subject
from eventq.events.task import Status
from eventq.events.task_events import Queued
from eventq.events.timers import set_timer
from eventq.services.promoter import Promoter
from tests.chaos.site import Control, Site
from tests.support.nats import NatsServer
from tests.support.poll import eventually

SOON = timedelta(seconds=0.4)
LATER = timedelta(hours=1)


@pytest.fixture
async def control(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Control]:
    async with await Control.open(Site(own_nats_server, tmp_path)) as control:
        yield control


@asynccontextmanager
async def running(control: Control) -> AsyncGenerator[Promoter]:
    """A promoter at work."""
    promoter = Promoter(control.log)
    task = asyncio.create_task(promoter.run())
    try:
        yield promoter
    finally:
        assert not task.done(), task.exception()
        task.cancel()


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


async def hint(control: Control, task_id: str, version: int) -> None:
    """What the broker publishes when a timer fires."""
    body = f'{{"task_id":"{task_id}","version":{version}}}'.encode()
    await control.broker.js.publish(due_subject(task_id, version), body)


async def test_a_scheduled_task_becomes_ready_at_its_time_and_never_before(control: Control) -> None:
    began = now()
    due = {
        await control.submit("chaos.quick", scheduled_at=at): at
        for at in (began + SOON + timedelta(microseconds=77_777 * number) for number in range(8))
    }
    async with running(control) as promoter:
        await control.until(lambda: all(promoted(control, task_id) for task_id in due), "all become ready")
        await until_spent(control)
        assert promoter.promoted == len(due)
    for task_id, at in due.items():
        event = control.events(task_id)[-1]
        assert event.time >= at
        assert isinstance(event.data, Queued)
        assert event.data.reason == "due"
        assert control.tasks[task_id][-1].stored_at >= at - timedelta(milliseconds=1)  # the broker's own clock
        assert control.types(task_id) == ["submitted", "queued"]


async def test_a_timer_that_fires_before_its_event_is_stored_is_not_forgotten(control: Control) -> None:
    task_id = new_id()
    await set_timer(control.broker, task_id, 1, now())
    async with running(control):
        await eventually(lambda: _delivered_again(control), timeout=30, what="the early hint comes again")
        await control.submit_as(task_id, "chaos.quick", scheduled_at=now() + SOON)
        await control.until(lambda: promoted(control, task_id), "the task becomes ready")
        await until_spent(control)


async def _delivered_again(control: Control) -> bool:
    info = await control.broker.js.consumer_info(TIMERS, TIMER_CONSUMER)
    return bool(info.delivered and info.delivered.consumer_seq >= 2)


async def test_a_timer_set_again_replaces_the_one_before(control: Control) -> None:
    task_id = await control.submit("chaos.quick", scheduled_at=now() + SOON)
    await set_timer(control.broker, task_id, 1, now() + LATER)
    await set_timer(control.broker, task_id, 1, now() + SOON)
    assert await hints_left(control) == 1
    async with running(control):
        await control.until(lambda: promoted(control, task_id), "the task becomes ready")
        await until_spent(control)


async def test_a_hint_that_comes_too_early_sets_the_timer_right(control: Control) -> None:
    at = now() + timedelta(seconds=1.5)
    task_id = await control.submit("chaos.quick", scheduled_at=at)
    await control.broker.js.purge_stream(TIMERS, subject=timer_subject(task_id, 1))
    async with running(control):
        await hint(control, task_id, 1)
        await control.until(lambda: promoted(control, task_id), "the task becomes ready")
    assert control.events(task_id)[-1].time >= at


async def test_doubled_hints_promote_once_even_with_two_promoters(control: Control) -> None:
    task_ids = [await control.submit("chaos.quick", scheduled_at=now() + SOON) for _ in range(5)]
    async with running(control) as one, running(control) as other:
        await control.until(lambda: all(promoted(control, task_id) for task_id in task_ids), "all become ready")
        for task_id in task_ids * 3:
            await hint(control, task_id, 1)
        await until_spent(control)
        assert one.promoted + other.promoted == len(task_ids)
    assert all(control.types(task_id) == ["submitted", "queued"] for task_id in task_ids)


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
    async with running(control) as promoter:
        await hint(control, task_id, 1)
        await until_spent(control)
        assert promoter.promoted == 0


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"[]", b"{}", b'{"task_id": 7, "version": "x"}', b'{"task_id": "a.>", "version": 1}']
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
