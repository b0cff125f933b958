"""What others write into a worker's history is obeyed once, however often it is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventq.events.ending import end
from eventq.events.envelope import Event
from eventq.events.errors import LogUnavailable
from eventq.events.handle import handle_any
from eventq.events.subjects import EVENTS
from eventq.events.worker import (
    WORKERS,
    ChangeCapacity,
    DrainWorker,
    LoseWorker,
    PauseWorker,
    ResumeWorker,
    Worker,
    WorkerCommand,
    WorkerStatus,
)
from eventq.events.worker_events import WorkerRegistered
from eventq.workers import membership
from eventq.workers.membership import Membership
from tests.chaos.site import Control, Site
from tests.support.nats import NatsServer
from tests.support.poll import eventually

US = "worker-1"
REGISTRATION = WorkerRegistered(hostname="host", pid=1, pool="cpu", queues=[], capacity=4, devices=["cpu"], tasks=[])
ACTIVE, PAUSED, DRAINING = WorkerStatus.ACTIVE, WorkerStatus.PAUSED, WorkerStatus.DRAINING


@pytest.fixture
async def control(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Control]:
    async with await Control.open(Site(own_nats_server, tmp_path)) as control:
        yield control


class Obedient:
    """A worker that writes down what it was told, and reads all of its history twice."""

    def __init__(self, control: Control) -> None:
        self.told: list[WorkerStatus] = []
        self.lost = 0
        self.control = control
        self.membership = Membership(
            control.log, US, registration=lambda: REGISTRATION, on_change=self._obey, on_lost=self._give_up
        )
        self._following: list[asyncio.Task[None]] = []

    def _obey(self, state: Worker) -> None:
        self.told.append(state.status)

    def _give_up(self) -> None:
        self.lost += 1

    async def begin(self, *unheard: WorkerCommand, readings: int = 2) -> None:
        """Register, and follow the history once ``unheard`` stands there as well."""
        facts = await self.control.broker.stream_facts(EVENTS)
        assert facts is not None
        await self.membership.register()
        for command in unheard:
            await handle_any(self.control.log, WORKERS, US, command, source="test")
        self._following = [asyncio.create_task(self.membership.follow(facts.last)) for _ in range(readings)]

    async def hear(self, command: WorkerCommand) -> None:
        """Write the command, and wait until it was obeyed once."""
        before = len(self.told)
        await handle_any(self.control.log, WORKERS, US, command, source="test")
        await eventually(lambda: len(self.told) > before, what=f"{command} is obeyed")

    async def stop(self) -> None:
        await end(*self._following)


@pytest.fixture
async def newcomer(control: Control) -> AsyncIterator[Obedient]:
    """One that has not begun."""
    worker = Obedient(control)
    yield worker
    await worker.stop()


@pytest.fixture
async def worker(newcomer: Obedient) -> Obedient:
    await newcomer.begin()
    return newcomer


async def test_a_command_that_is_read_twice_is_obeyed_once(worker: Obedient) -> None:
    for command in (PauseWorker("ada"), ResumeWorker("ada"), PauseWorker("ada")):
        await worker.hear(command)
    assert worker.told == [PAUSED, ACTIVE, PAUSED]


async def test_a_worker_that_reads_twice_that_it_is_lost_comes_back_once(worker: Obedient) -> None:
    await worker.hear(LoseWorker(worker.membership.state.version, "disconnected", ()))
    await worker.hear(PauseWorker("ada"))
    assert (worker.told, worker.lost) == ([ACTIVE, PAUSED], 1)


@pytest.mark.parametrize(
    ("told", "status", "capacity"),
    [
        ((PauseWorker("ada"), ChangeCapacity(1, "ada")), PAUSED, 1),
        ((ChangeCapacity(9, "ada"), DrainWorker("ada")), DRAINING, 9),
        ((PauseWorker("ada"), ResumeWorker("ada")), ACTIVE, 4),
    ],
)
async def test_what_it_was_told_before_it_was_called_lost_is_obeyed_though_it_heard_nothing_of_it(
    newcomer: Obedient, told: tuple[WorkerCommand, ...], status: WorkerStatus, capacity: int
) -> None:
    await newcomer.begin(*told, LoseWorker(1 + len(told), "presence_lapsed", ()))
    await eventually(lambda: newcomer.told, what="it is back")
    assert (newcomer.told, newcomer.lost) == ([status], 1)
    state = newcomer.membership.state
    assert (state.status, state.capacity) == (status, capacity)


@pytest.mark.parametrize("command", [PauseWorker("ada"), DrainWorker("ada")])
async def test_what_it_obeyed_before_it_was_called_lost_it_obeys_again(worker: Obedient, command: WorkerCommand) -> None:
    await worker.hear(command)
    await worker.hear(LoseWorker(worker.membership.state.version, "disconnected", ()))
    assert len(set(worker.told)) == 1
    assert worker.membership.state.version == 4, "it registered, and had nothing more to say"


async def test_a_registration_whose_answer_was_lost_is_found_stored_and_not_made_twice(
    newcomer: Obedient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await newcomer.begin(readings=1)
    append, registrations = newcomer.control.log.append, 0

    async def unanswered(event: Event) -> int | None:
        nonlocal registrations
        position = await append(event)
        if event.type == "registered":
            registrations += 1
            raise LogUnavailable("no answer")
        return position

    monkeypatch.setattr(newcomer.control.log, "append", unanswered)
    monkeypatch.setattr(membership, "RETRY_S", 0.01)
    await newcomer.hear(LoseWorker(newcomer.membership.state.version, "disconnected", ()))
    assert (newcomer.told, newcomer.lost, registrations) == ([ACTIVE], 1, 1)
