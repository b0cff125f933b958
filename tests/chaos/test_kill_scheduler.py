"""Schedulers that are killed while they make tasks ready."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta

import pytest

from eventq.events.task import Status
from tests.chaos.site import Control, Site


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
