"""Waiting to be alone, and tasks that run alone in a real worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from eventq.events.commands import PauseTask
from eventq.events.handle import handle, handle_any
from eventq.events.limits import LOSSES_MAX
from eventq.events.task import Status
from eventq.events.worker import WORKERS, ChangeCapacity, DrainWorker
from eventq.workers import alone
from eventq.workers.alone import until_alone
from tests.chaos.process import Process
from tests.chaos.site import Control, Site
from tests.workers.conftest import STOP_S
from tests.workers.lost import lose_workers


async def never() -> bool:
    return False


async def passed(gate: asyncio.Event) -> None:
    await gate.wait()


async def test_what_ends_is_waited_for_and_what_begins_meanwhile_too() -> None:
    gates = [asyncio.Event() for _ in range(2)]
    running = [asyncio.create_task(passed(gate)) for gate in gates]
    beside = [running[0]]
    waiting = asyncio.create_task(until_alone(lambda: [task for task in beside if not task.done()], never))
    beside.append(running[1])
    gates[0].set()
    await running[0]
    assert not waiting.done()
    gates[1].set()
    await waiting


@pytest.mark.parametrize("patience_s", [0.0, 3600.0])
async def test_nothing_is_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch, patience_s: float) -> None:
    monkeypatch.setattr(alone, "PATIENCE_S", patience_s)
    looked = 0

    async def given_up() -> bool:
        nonlocal looked
        looked += 1
        return looked > 1

    monkeypatch.setattr(alone, "LOOK_S", 0.01)
    endless = asyncio.create_task(passed(asyncio.Event()))
    await until_alone(lambda: [endless], given_up)
    assert looked == (2 if patience_s else 0)
    endless.cancel()


@dataclass
class Scene:
    """In one worker a task runs, gated, and ``lone``, on its last chance, waits to run alone."""

    site: Site
    control: Control
    queue: str
    running: str = ""
    lone: str = ""

    async def begin(self, lone: str, *args: object, running: str = "chaos.gate") -> Process:
        self.running = await self.control.submit(running, str(self.gate), queue=self.queue)
        self.lone = await self.control.submit(lone, *args, queue=self.queue)
        await lose_workers(self.control, self.lone, LOSSES_MAX - 1)
        worker = await self.start_worker()
        await self.control.until_entered(self.running)
        return worker

    @property
    def gate(self) -> Path:
        return self.site.gate(self.queue)

    async def start_worker(self) -> Process:
        return await self.site.started("worker", queues=self.queue, concurrency=4, stop_s=STOP_S)

    async def until_work_is_taken(self) -> None:
        await self.control.until_ended(await self.control.submit("chaos.quick", queue=self.queue))


async def test_a_task_on_its_last_chance_waits_for_what_runs_and_nothing_runs_beside_it(site: Site, control: Control) -> None:
    """Or what ran beside it would be condemned for what it does, or the other way round."""
    scene = Scene(site, control, "alone")
    await scene.begin("chaos.work", 0.05)
    others = [await control.submit("chaos.work", 0.02, queue="alone") for _ in range(10)]
    scene.gate.touch()
    await control.until_ended(scene.running, scene.lone, *others)
    inside: set[str] = set()
    most = 0
    for visit in site.visits():
        if visit.task_id in {scene.running, scene.lone, *others}:
            (inside.add if visit.step == "enter" else inside.discard)(visit.task_id)
            assert inside == {scene.lone} or scene.lone not in inside
            most = max(most, len(inside))
    assert most > 1, "the others run side by side"


async def test_what_stands_still_is_not_waited_for(site: Site, control: Control) -> None:
    scene = Scene(site, control, "frozen-beside")
    await scene.begin("chaos.quick", running="chaos.gate_plain")
    await handle(control.log, scene.running, PauseTask("ada"), source="test")
    await control.until_ended(scene.lone)
    assert control.task(scene.running).frozen


async def test_one_that_has_no_place_beside_what_stands_still_is_handed_back(site: Site, control: Control) -> None:
    scene = Scene(site, control, "no-place")
    await scene.begin("chaos.plain", running="chaos.gate_plain")
    worker_id = await control.worker_of(scene.running)
    await handle_any(control.log, WORKERS, worker_id, ChangeCapacity(1, "ada"), source="test")
    await handle(control.log, scene.running, PauseTask("ada"), source="test")
    await scene.start_worker()
    await control.until_ended(scene.lone)
    assert control.types(scene.lone)[-1] == "completed"


async def test_one_that_its_worker_does_not_know_holds_nobody_up(site: Site, control: Control) -> None:
    scene = Scene(site, control, "unknown-alone")
    await scene.begin("nobody.knows.it")
    await scene.until_work_is_taken()
    assert control.types(scene.running)[-1] == "started"


async def test_one_that_is_cancelled_while_it_waits_holds_nobody_up(site: Site, control: Control) -> None:
    scene = Scene(site, control, "cancelled-alone")
    await scene.begin("chaos.quick")
    await control.cancel(scene.lone)
    await scene.until_work_is_taken()
    assert control.types(scene.lone)[-1] == "cancelled"
    assert control.types(scene.running)[-1] == "started"


async def test_a_worker_that_is_drained_hands_back_what_waits_to_run_alone(site: Site, control: Control) -> None:
    scene = Scene(site, control, "drained-alone")
    await scene.begin("chaos.quick")
    worker_id = await control.worker_of(scene.running)
    await handle_any(control.log, WORKERS, worker_id, DrainWorker("ada"), source="test")
    await scene.start_worker()
    await control.until_ended(scene.lone)
    assert control.types(scene.running)[-1] == "started"


async def test_a_pause_of_what_runs_alone_ends_its_attempt(site: Site, control: Control) -> None:
    """It would keep its worker from everything for as long as it stood still."""
    scene = Scene(site, control, "paused-alone")
    await scene.begin("chaos.cooperative_plain")
    scene.gate.touch()
    await control.until_entered(scene.lone, attempt=LOSSES_MAX)
    await handle(control.log, scene.lone, PauseTask("ada"), source="test")
    await scene.until_work_is_taken()
    task = control.task(scene.lone)
    assert (task.status, task.frozen) == (Status.PAUSED, False)
    await control.cancel(scene.lone)
