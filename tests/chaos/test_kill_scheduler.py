"""Schedulers that are killed while they make tasks ready, or give up those that nobody starts."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from eventq.events.subjects import TIMERS, due_subject
from eventq.events.task import Status
from eventq.events.task_events import TimedOut
from eventq.events.timers import START_BY, Hint
from eventq.services.task_timers import TOGETHER_MAX
from tests.chaos.checker import violations
from tests.chaos.site import Control, Site
from tests.support.poll import eventually


@pytest.mark.parametrize("step", ["promote.before_append", "promote.after_append"])
async def test_a_scheduler_killed_while_it_promotes_loses_and_doubles_nothing(site: Site, control: Control, step: str) -> None:
    doomed = site.start("scheduler", failpoints=f"{step}=kill@4")
    await site.workers(1)
    await site.ready(doomed)
    due: dict[str, datetime] = {}
    for number in range(8):
        at = datetime.now(UTC) + timedelta(milliseconds=200 + 50 * number)
        due[await control.submit("chaos.quick", scheduled_at=at)] = at
    retried = [await control.submit("chaos.fail", 3, max_retries=2) for _ in range(4)]
    assert doomed.wait() == -signal.SIGKILL
    await site.started("scheduler")
    await control.until_ended(*due, *retried)
    assert {control.status(task_id) for task_id in [*due, *retried]} == {Status.COMPLETED}
    for task_id, at in due.items():
        assert control.types(task_id) == ["submitted", "queued", "started", "completed"]
        assert control.events(task_id)[1].time >= at
    for task_id in retried:
        assert control.types(task_id) == ["submitted", *["started", "retrying", "queued"] * 2, "started", "completed"]
    await control.check()


@pytest.mark.parametrize("step", ["promote.before_group", "promote.after_group"])
async def test_a_scheduler_killed_while_it_promotes_many_together_loses_and_doubles_nothing(
    site: Site, control: Control, step: str
) -> None:
    doomed = site.start("scheduler", failpoints=f"{step}=kill@2")
    await site.workers(1)
    await site.ready(doomed)
    at = datetime.now(UTC) + timedelta(seconds=5)
    task_ids = await asyncio.gather(*(control.submit("chaos.quick", scheduled_at=at) for _ in range(TOGETHER_MAX + 50)))
    assert doomed.wait() == -signal.SIGKILL
    await site.started("scheduler")
    await control.until_ended(*task_ids)
    for task_id in task_ids:
        assert control.types(task_id) == ["submitted", "queued", "started", "completed"]
        assert control.tasks[task_id][1].stored_at >= at - timedelta(milliseconds=1)
    await control.check()


async def test_two_schedulers_beside_each_other_do_what_one_does(site: Site, control: Control) -> None:
    schedulers = [site.start("scheduler") for _ in range(2)]
    await site.workers(1)
    await site.ready(*schedulers)
    at = datetime.now(UTC) + timedelta(seconds=0.3)
    task_ids = [await control.submit("chaos.quick", scheduled_at=at) for _ in range(20)]
    await control.until_ended(*task_ids)
    assert all(control.types(task_id) == ["submitted", "queued", "started", "completed"] for task_id in task_ids)
    assert [scheduler.stop() for scheduler in schedulers] == [0, 0]
    await control.check()


@pytest.mark.parametrize(
    ("step", "left"), [("expire.before_append", ["submitted"]), ("expire.after_append", ["submitted", "timed_out"])]
)
async def test_a_scheduler_killed_while_it_gives_a_task_up_gives_it_up_once(
    site: Site, control: Control, step: str, left: list[str]
) -> None:
    doomed = await site.started("scheduler", failpoints=f"{step}=kill")
    task_id = await control.submit("chaos.quick", queue_timeout_s=0.3)
    assert doomed.wait() == -signal.SIGKILL
    await control.until(lambda: control.types(task_id) == left, f"the log holds {left}")
    await site.started("scheduler")
    await control.until_ended(task_id)
    await fire_again(control, Hint("tasks", task_id, START_BY, 1))
    assert [event.data for event in control.events(task_id)[1:]] == [TimedOut(reason="queue_timeout", after_s=0.3)]
    await control.check()


async def fire_again(control: Control, hint: Hint) -> None:
    """Deliver a hint that a dead scheduler had in hand, sooner than the broker does it; return once it is spent."""
    before = await timers_left(control)
    await control.broker.js.publish(due_subject(hint.tokens), orjson.dumps(hint))
    await eventually(lambda: spent(control, before), timeout=60, what="the hint is spent")


async def timers_left(control: Control) -> int:
    """How many timers, pending or fired, the broker still has."""
    facts = await control.broker.stream_facts(TIMERS)
    assert facts is not None
    return facts.messages


async def spent(control: Control, before: int) -> bool:
    return await timers_left(control) <= before


async def test_a_scheduler_killed_having_promoted_late_has_set_the_timer_of_the_wait(site: Site, control: Control) -> None:
    """Nobody was there when the task became due, so the timer that came with the submission fires while it is not ready."""
    task_id = await control.submit("chaos.quick", scheduled_at=datetime.now(UTC) + timedelta(seconds=1.0), queue_timeout_s=2.0)
    await eventually(lambda: both_fired(control), timeout=60, what="its time and its wait are over")
    doomed = await site.started("scheduler", failpoints="promote.after_append=kill")
    assert doomed.wait() == -signal.SIGKILL
    await control.until(lambda: control.types(task_id) == ["submitted", "queued"], "it was promoted")
    await site.started("scheduler")
    await control.until_ended(task_id)
    queued, ended = control.events(task_id)[1:]
    assert ended.data == TimedOut(reason="queue_timeout", after_s=2.0)
    assert ended.time >= queued.time + timedelta(seconds=2)
    assert ended.source == "scheduler", "by its timer; the reconciler does it seconds later"
    await control.check()


async def both_fired(control: Control) -> bool:
    """Whether the timers of its time and of its wait have become hints."""
    fired = await control.broker.js.stream_info(TIMERS, subjects_filter="due.>")
    return sum((fired.state.subjects or {}).values()) == 2


# Negative control: the same trial, with a bug planted, must be found out.


@pytest.mark.parametrize(
    ("step", "wait_s"), [("promote.before_append", 0.3), ("expire.before_append", None)], ids=["promote", "expire"]
)
async def test_the_checker_finds_hints_acknowledged_before_their_events_were_stored(
    site: Site, control: Control, step: str, wait_s: float | None
) -> None:
    bug = "acknowledge_hints_first"
    doomed = await site.started("scheduler", bug=bug, failpoints=f"{step}=kill")
    lost = await submit_for_nobody(control, wait_s)
    assert doomed.wait() == -signal.SIGKILL
    await site.started("scheduler", bug=bug)
    await control.until_ended(await submit_for_nobody(control, wait_s))
    await eventually(lambda: spent(control, before=0), timeout=60, what="no timer is left that could wake it")
    assert violations(await control.history()) == [f"task {lost}: never came to its end: ['submitted']"]


async def submit_for_nobody(control: Control, wait_s: float | None) -> str:
    """A task that is given up, once it is due, since there is no worker."""
    at = None if wait_s is None else datetime.now(UTC) + timedelta(seconds=wait_s)
    return await control.submit("chaos.quick", scheduled_at=at, queue_timeout_s=0.2)
