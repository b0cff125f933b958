"""An attempt that has no child process yet can be stopped, a child that cannot be had is a failure like any other, and what a
function comes to by itself is told from what a stop makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from eventq.events.blobs import BlobStore
from eventq.events.report import LogLine, Progress
from eventq.workers.config import Isolation
from eventq.workers.context import SpawnRequest
from eventq.workers.devices import CPU
from eventq.workers.execution import Execution, LoopHost
from eventq.workers.inputs import Inputs
from eventq.workers.outcome import Raised, Stopped, StopReason
from eventq.workers.processes import Child, ChildPool
from eventq.workers.registry import Registry, TaskFunction, load_modules
from tests.chaos.site import TASKS
from tests.support.poll import eventually


@pytest.fixture
def function() -> TaskFunction:
    return load_modules([str(TASKS)]).get("chaos.pid")


def execution(function: TaskFunction) -> Execution:
    def ignore(_: Progress | LogLine) -> None: ...

    async def refuse(_: SpawnRequest) -> str:
        raise AssertionError("nothing is spawned")

    return Execution(
        function,
        task_id="t",
        attempt=1,
        worker_id="w",
        timeout_s=None,
        heartbeat_timeout_s=None,
        stop_s=0.1,
        on_report=ignore,
        on_spawn=refuse,
    )


def starting_with(monkeypatch: pytest.MonkeyPatch, start: Callable[..., object]) -> ChildPool:
    monkeypatch.setattr(Child, "start", start)
    return ChildPool(Isolation(), [CPU])


async def test_an_attempt_whose_child_is_still_starting_stops_at_once(
    monkeypatch: pytest.MonkeyPatch, function: TaskFunction
) -> None:
    starting, given_up = asyncio.Event(), asyncio.Event()

    async def start(*_: object) -> Child:
        starting.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        raise AssertionError("unreachable")

    attempt, pool = execution(function), starting_with(monkeypatch, start)
    running = asyncio.create_task(attempt.run([], {}, pool))
    await starting.wait()
    attempt.stop(StopReason.CANCELLED)
    async with asyncio.timeout(10):
        assert await running == Stopped(StopReason.CANCELLED)
    assert given_up.is_set()


@pytest.mark.parametrize("error", [BlockingIOError(11, "no process to be had"), MemoryError()])
async def test_a_child_that_cannot_be_had_is_a_failure_that_may_be_retried(
    monkeypatch: pytest.MonkeyPatch, function: TaskFunction, error: Exception
) -> None:
    async def start(*_: object) -> Child:
        raise error

    pool = starting_with(monkeypatch, start)
    for _ in range(2):  # the place is free again
        outcome = await execution(function).run([], {}, pool)
        assert isinstance(outcome, Raised)
        assert (outcome.error.type, outcome.retryable) == (type(error).__name__, True)


async def test_an_attempt_that_is_interrupted_while_it_is_being_frozen_is_killed_without_being_thawed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WITNESS", str(tmp_path / "witness"))
    isolation = Isolation(modules=(str(TASKS),), blob_url=(tmp_path / "blobs").as_uri())
    attempt = execution(load_modules(isolation.modules).get("chaos.gate_plain"))
    freeze = Child.freeze

    async def interrupted(child: Child) -> bool:
        await freeze(child)
        attempt.stop(StopReason.INTERRUPTED)
        return False

    def thaw(_: Child) -> None:
        thawed.append(attempt.stop_reason)

    thawed: list[StopReason | None] = []
    monkeypatch.setattr(Child, "freeze", interrupted)
    monkeypatch.setattr(Child, "thaw", thaw)
    running = asyncio.create_task(attempt.run([str(tmp_path / "gate")], {}, ChildPool(isolation, [CPU])))
    await eventually(lambda: (tmp_path / "witness").exists(), timeout=60, what="the function is entered")
    assert not await attempt.freeze()
    assert thawed == []
    assert await running == Stopped(StopReason.INTERRUPTED, ("SIGKILL",))


@pytest.fixture
def loop_host(tmp_path: Path) -> LoopHost:
    blobs = BlobStore.open(tmp_path / "blobs")
    return LoopHost(blobs, Inputs(blobs, (), ()))


@pytest.mark.parametrize("reason", StopReason)
async def test_an_error_of_the_function_s_own_in_the_instant_of_a_stop_is_its_outcome(
    loop_host: LoopHost, reason: StopReason
) -> None:
    registry = Registry()

    @registry.task(name="fails")
    async def fails() -> None:
        attempt.stop(reason)  # from elsewhere, before anybody saw what follows
        raise ValueError("its own")

    attempt = execution(registry.get("fails"))
    outcome = await attempt.run([], {}, loop_host)
    assert isinstance(outcome, Raised)
    assert (outcome.error.type, outcome.error.message) == ("ValueError", "its own")


async def test_an_error_that_the_stop_led_to_is_no_failure(loop_host: LoopHost) -> None:
    registry, entered = Registry(), asyncio.Event()

    @registry.task(name="fails")
    async def fails() -> None:
        try:
            entered.set()
            await asyncio.Event().wait()
        finally:
            raise ValueError("could not clean up")

    attempt = execution(registry.get("fails"))
    running = asyncio.create_task(attempt.run([], {}, loop_host))
    await entered.wait()
    attempt.stop(StopReason.PAUSED)
    assert await running == Stopped(StopReason.PAUSED, ("asked",))
