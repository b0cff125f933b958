"""Worker processes obey what is written into their history: pause, resume, capacity, drain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventq.events.handle import handle_any, read_state
from eventq.events.ids import new_id
from eventq.events.presence import Heartbeat, heartbeat_of, present
from eventq.events.task import Status
from eventq.events.worker import WORKERS, ChangeCapacity, DrainWorker, PauseWorker, ResumeWorker, Worker, WorkerStatus
from tests.chaos.process import Process
from tests.chaos.site import Control, Site
from tests.support.poll import eventually

pytestmark = pytest.mark.usefixtures("good_history")


class Steered:
    """A worker process of this test's own queue, and its history."""

    def __init__(self, control: Control, process: Process, worker_id: str, queue: str) -> None:
        self.control = control
        self.process = process
        self.id = worker_id
        self.queue = queue

    async def tell(self, command: Any) -> None:
        """Write a command, and wait until the process says that it obeys."""
        after = (await handle_any(self.control.log, WORKERS, self.id, command, source="test")).state
        await eventually(lambda: self.obeys(after), timeout=30, what=f"the worker obeys {command}")

    async def obeys(self, wanted: Worker) -> bool:
        heartbeat = await self.heartbeat()
        return heartbeat is not None and (heartbeat.status, heartbeat.capacity) == (wanted.status, wanted.capacity)

    async def heartbeat(self) -> Heartbeat | None:
        return await heartbeat_of(self.control.broker, self.id)

    async def state(self) -> Worker:
        return await read_state(self.control.log, WORKERS, self.id, fresh=True)

    async def submit(self, task_name: str, *args: object) -> str:
        return await self.control.submit(task_name, *args, queue=self.queue)


@pytest.fixture
async def worker(site: Site, control: Control) -> AsyncIterator[Steered]:
    queue = f"q{new_id()}"
    before = set(await present(control.broker))
    process = await site.started("worker", queues=queue, concurrency=2, grace_s=0, stop_s=None)

    async def appeared() -> str | None:
        return next(iter(set(await present(control.broker)) - before), None)

    yield Steered(control, process, await eventually(appeared, timeout=30), queue)
    process.kill()


async def test_a_paused_worker_takes_nothing_new_and_goes_on_with_what_it_has(
    site: Site, control: Control, worker: Steered
) -> None:
    gate = site.gate(worker.queue)
    running = await worker.submit("chaos.gate", str(gate))
    await control.until_entered(running)
    await worker.tell(PauseWorker("test"))
    waiting = await worker.submit("chaos.quick")
    gate.touch()
    await control.until_ended(running)
    assert control.status(waiting) is Status.PENDING
    await worker.tell(ResumeWorker("test"))
    await control.until_ended(waiting)


@pytest.mark.parametrize("task_name", ["chaos.gate", "chaos.gate_plain"])
async def test_capacity_grows_and_shrinks_without_stopping_anything(
    site: Site, control: Control, worker: Steered, task_name: str
) -> None:
    gate = site.gate(worker.queue)
    await worker.tell(ChangeCapacity(4, "test"))
    running = [await worker.submit(task_name, str(gate)) for _ in range(4)]
    for task_id in running:
        await control.until_entered(task_id)
    await worker.tell(ChangeCapacity(1, "test"))
    more = [await worker.submit(task_name, str(gate)) for _ in range(3)]
    await control.until(
        lambda: [control.status(task_id) for task_id in (*running, *more)] == [Status.RUNNING] * 4 + [Status.PENDING] * 3,
        "four tasks run and three wait",
    )
    gate.touch()
    await control.until_ended(*running, *more)
    assert all(control.types(task_id) == ["submitted", "started", "completed"] for task_id in (*running, *more))
    assert _most_at_once(control, more) == 1
    if task_name == "chaos.gate_plain":
        await eventually(lambda: len(worker.process.children()) == 1, timeout=30, what="surplus children are ended")


def _most_at_once(control: Control, task_ids: list[str]) -> int:
    """How many of these tasks ran at the same time at most, by the order of the log."""
    stored = [one for task_id in task_ids for one in control.tasks[task_id] if one.event.type in ("started", "completed")]
    running = most = 0
    for one in sorted(stored, key=lambda one: one.position):
        running += 1 if one.event.type == "started" else -1
        most = max(most, running)
    return most


async def test_a_drained_worker_finishes_what_it_has_however_long_the_grace_and_exits_in_good_order(
    site: Site, control: Control, worker: Steered
) -> None:
    gate = site.gate(worker.queue)
    running = await worker.submit("chaos.gate", str(gate))
    await control.until_entered(running)
    await worker.tell(DrainWorker("test"))
    waiting = await worker.submit("chaos.quick")
    assert worker.process.running
    gate.touch()
    assert worker.process.wait() == 0
    await control.until_ended(running)
    assert control.types(running) == ["submitted", "started", "completed"]
    assert control.status(waiting) is Status.PENDING
    state = await worker.state()
    assert (state.status, state.end_reason) == (WorkerStatus.STOPPED, "drained")
    assert await worker.heartbeat() is None


async def test_a_draining_worker_that_is_asked_to_stop_hands_back_what_it_has(
    site: Site, control: Control, worker: Steered
) -> None:
    running = await worker.submit("chaos.gate", str(site.gate(worker.queue)))
    await control.until_entered(running)
    await worker.tell(DrainWorker("test"))
    assert worker.process.stop() == 0
    await control.until(lambda: "queued" in control.types(running), "the task is handed back")
    assert control.task(running).reason == "interrupted"


async def test_what_was_written_while_a_worker_could_not_hear_is_obeyed_when_it_can(
    site: Site, control: Control, worker: Steered
) -> None:
    worker.process.pause()
    paused = (await handle_any(control.log, WORKERS, worker.id, PauseWorker("test"), source="test")).state
    worker.process.resume()
    await eventually(lambda: worker.obeys(paused), timeout=30)
