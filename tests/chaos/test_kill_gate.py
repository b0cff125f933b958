"""Schedulers that are killed at each step of an admission, and queues paused under real workers."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta

import pytest

from eventq.events.errors import Unavailable
from eventq.events.handle import handle_any
from eventq.events.queue import QUEUES, ConfigureQueue, PauseQueue, ResumeQueue
from eventq.events.queue_events import QueueAdmitted, QueueLimits
from eventq.events.subjects import EVENTS, work_consumer
from eventq.events.task import Status
from eventq.services.gate import OWED_PATIENCE_S
from tests.chaos.checker import violations
from tests.chaos.site import ROUTE, Control, Site
from tests.chaos.test_kill_api import client_of
from tests.services.gates import history_of, most_holders
from tests.support.poll import eventually


async def limit(control: Control, **limits: object) -> None:
    command = ConfigureQueue(QueueLimits.model_validate(limits), "test")
    await handle_any(control.log, QUEUES, ROUTE.queue, command, source="test")


@pytest.mark.parametrize("step", ["gate.before_admitted", "gate.after_admitted", "gate.after_queued"])
async def test_a_gate_killed_while_it_admits_loses_no_task_and_no_slot(site: Site, control: Control, step: str) -> None:
    await limit(control, max_running=3)
    doomed = site.start("scheduler", failpoints=f"{step}=kill@2")
    await site.workers(1)
    await site.ready(doomed)
    task_ids = [await control.submit("chaos.quick", gated=True) for _ in range(20)]
    assert doomed.wait() == -signal.SIGKILL
    schedulers = [site.start("scheduler") for _ in range(2)]
    await site.ready(*schedulers)
    await control.until_ended(*task_ids)
    assert {control.status(task_id) for task_id in task_ids} == {Status.COMPLETED}
    assert all(control.types(task_id) == ["submitted", "queued", "started", "completed"] for task_id in task_ids)
    history = await history_of(control.broker)
    assert most_holders(history, ROUTE.queue) <= 3
    admitted = [task.task_id for event in history if isinstance(event.data, QueueAdmitted) for task in event.data.tasks]
    assert sorted(admitted) == sorted(task_ids), "each was admitted once"
    await control.check()


async def test_the_checker_finds_gates_that_complete_only_what_they_admitted_themselves(site: Site, control: Control) -> None:
    """The negative control."""
    bug = "leave_admitted_tasks_to_their_gate"
    await limit(control, max_running=3)
    doomed = await site.started("scheduler", bug=bug, failpoints="gate.after_admitted=kill")
    lost = await control.submit("chaos.quick", gated=True)
    assert doomed.wait() == -signal.SIGKILL
    await asyncio.gather(site.workers(1), site.started("scheduler", bug=bug))
    patient_until = datetime.now(UTC) + timedelta(seconds=2 * OWED_PATIENCE_S)
    while (await control.run("chaos.quick", gated=True)).time < patient_until:
        continue  # each of them makes the gate look at its queue again
    assert violations(await control.history()) == [f"task {lost}: never came to its end: ['submitted']"]


async def test_a_worker_gets_nothing_of_a_paused_queue_and_all_of_it_once_resumed(site: Site, control: Control) -> None:
    await site.started("scheduler")
    await site.workers(1)
    running = await control.submit("chaos.gate", str(site.gate()))
    await control.until_entered(running)
    await handle_any(control.log, QUEUES, ROUTE.queue, PauseQueue("ada"), source="test")

    async def paused() -> bool:
        return bool((await control.broker.js.consumer_info(EVENTS, work_consumer(ROUTE))).paused)

    await eventually(paused, what="the gate pauses the consumer")
    waiting = [await control.submit("chaos.quick") for _ in range(5)]
    site.gate().touch()
    await control.until_ended(running)
    assert [control.types(task_id) for task_id in waiting] == [["submitted"]] * 5, "its slots are free, and nothing comes"
    await handle_any(control.log, QUEUES, ROUTE.queue, ResumeQueue("ada"), source="test")
    await control.until_ended(*waiting)
    assert control.status(running) is Status.COMPLETED
    await control.check()


async def test_a_pause_whose_api_was_killed_before_its_effect_is_brought_about_by_the_gate(
    site: Site, control: Control
) -> None:
    await control.log.routes.ensure(ROUTE)
    doomed = await site.started("api", failpoints="queue.after_append=kill")
    async with await client_of(doomed) as client:
        with pytest.raises(Unavailable):
            await client.queues.pause(ROUTE.queue)
    assert doomed.wait() == -signal.SIGKILL
    info = await control.broker.js.consumer_info(EVENTS, work_consumer(ROUTE))
    assert not info.paused
    await site.started("scheduler")

    async def paused() -> bool:
        return bool((await control.broker.js.consumer_info(EVENTS, work_consumer(ROUTE))).paused)

    await eventually(paused, what="the gate pauses the consumer")
