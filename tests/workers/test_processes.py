"""Child processes: one function at a time, replaced when they end, and gone when they are told to be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventq.events.report import Progress
from eventq.workers.config import Isolation
from eventq.workers.context import Report, SpawnRequest
from eventq.workers.devices import CPU
from eventq.workers.frames import pack
from eventq.workers.outcome import Outcome, Raised, Returned, Stopped
from eventq.workers.processes import Child, ChildBroken, ChildPool, OnReport
from tests.chaos.checker import read_witness
from tests.chaos.site import TASKS
from tests.support.poll import eventually
from tests.support.processes import alive, dead


@pytest.fixture
def isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Isolation:
    monkeypatch.setenv("WITNESS", str(tmp_path / "witness"))
    return Isolation(modules=(str(TASKS),), blob_url=(tmp_path / "blobs").as_uri())


@pytest.fixture
async def pool(isolation: Isolation) -> AsyncIterator[ChildPool]:
    pool = ChildPool(isolation, [CPU, CPU])
    yield pool
    await pool.close()


async def run(child: Child, task_name: str, *args: Any, on_report: OnReport = lambda _: None) -> Outcome:
    job: dict[str, Any] = {"task_name": task_name, "task_id": "t", "attempt": 1, "worker_id": "w", "args": args, "kwargs": {}}

    async def refuse(_: SpawnRequest) -> str:
        raise AssertionError("nothing is spawned")

    return await child.run(job, on_report, refuse)


async def pid_of(child: Child) -> int:
    outcome = await run(child, "chaos.pid")
    assert isinstance(outcome, Returned)
    return int(outcome.result)


async def test_a_child_stays_for_the_next_function(pool: ChildPool) -> None:
    child = await pool.take()
    first = await pid_of(child)
    pool.give_back(child)
    again = await pool.take()
    assert await pid_of(again) == first
    pool.give_back(again)


async def test_there_are_as_many_children_as_places(pool: ChildPool) -> None:
    children = [await pool.take(), await pool.take()]
    pids = {await pid_of(child) for child in children}
    assert len(pids) == 2
    for child in children:
        pool.give_back(child)
    await pool.close()
    assert all(map(dead, pids))


@pytest.mark.parametrize("task_name", ["chaos.exit_hard", "chaos.segfault", "chaos.close_files"])
async def test_a_child_that_died_is_replaced(pool: ChildPool, task_name: str) -> None:
    child = await pool.take()
    outcome = await run(child, task_name)
    assert isinstance(outcome, Raised)
    assert outcome.error.type == "ProcessDied"
    assert outcome.retryable
    pool.give_back(child)
    replaced = await pool.take()
    assert alive(await pid_of(replaced))
    pool.give_back(replaced)


async def test_a_child_that_died_while_it_was_idle_is_replaced(pool: ChildPool) -> None:
    child = await pool.take()
    pool.give_back(child)
    await child.kill()
    replaced = await pool.take()
    assert alive(await pid_of(replaced))
    pool.give_back(replaced)


async def test_a_request_to_stop_that_comes_late_does_not_hit_the_next_function(pool: ChildPool) -> None:
    child = await pool.take()
    await pid_of(child)
    await child.ask()  # nothing runs any more
    running = asyncio.create_task(run(child, "chaos.cooperative_plain"))
    await pid_when_entered()
    assert not running.done()
    await child.ask()
    assert isinstance(await running, Stopped)
    pool.give_back(child)


async def pid_when_entered() -> int:
    """The pid that the first function to be entered witnessed."""
    witness = Path(os.environ["WITNESS"])
    visits = await eventually(lambda: list(read_witness(witness)), timeout=60, what="a function is entered")
    return visits[0].pid


async def test_a_child_has_ended_when_all_that_its_function_started_has_too(pool: ChildPool) -> None:
    child = await pool.take()
    running = asyncio.create_task(run(child, "chaos.grandchild"))
    grandchild = await pid_when_entered()
    assert alive(grandchild)
    assert not await child.terminate(patience_s=0.3), "what the function started ignores it, though the function does not"
    await child.kill()
    assert dead(grandchild)
    assert isinstance(await running, Raised)
    assert await child.terminate(patience_s=0), "nothing is left"
    pool.give_back(child)


async def test_a_child_that_is_being_terminated_has_its_time_before_it_is_killed(pool: ChildPool) -> None:
    child = await pool.take()
    running = asyncio.create_task(run(child, "chaos.grandchild"))
    grandchild = await pid_when_entered()
    terminated = asyncio.create_task(child.terminate(patience_s=0.3))
    await asyncio.wait((running, terminated), return_when=asyncio.FIRST_COMPLETED)
    assert terminated.done(), "the function's end alone does not end its time"
    assert not await terminated
    await running
    assert dead(grandchild)
    pool.give_back(child)


async def test_a_function_that_forks_ends_once_and_the_next_result_is_the_next_functions(pool: ChildPool) -> None:
    child = await pool.take()
    said: list[Report] = []
    outcome = await run(child, "chaos.fork", on_report=said.append)
    assert isinstance(outcome, Returned)
    assert int(outcome.result) > 0
    assert [report.unit for report in said if isinstance(report, Progress)] == ["original"]
    assert await run(child, "chaos.echo_size", "next") == Returned(b'{"text":"next"}')
    pool.give_back(child)


async def test_a_child_with_a_thread_left_over_is_replaced(pool: ChildPool) -> None:
    child = await pool.take()
    outcome = await run(child, "chaos.leave_thread")
    assert isinstance(outcome, Returned)
    assert dead(int(outcome.result))
    pool.give_back(child)
    replaced = await pool.take()
    assert replaced is not child
    pool.give_back(replaced)


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("orphan", [False, True])
async def test_a_child_with_a_process_left_over_is_replaced_and_the_process_killed(
    pool: ChildPool, session: bool, orphan: bool
) -> None:
    child = await pool.take()
    outcome = await run(child, "chaos.leave_process", session, orphan)
    assert isinstance(outcome, Returned)
    assert not child.fit
    left = await pid_when_entered()
    await eventually(lambda: dead(left), timeout=60, what="what the function left is dead")
    assert dead(int(outcome.result))
    pool.give_back(child)


FOREIGN = [
    pack({"kind": "returned", "number": 2, "result": "1", "clean": True}),
    pack({"kind": "returned", "number": 0, "result": "1", "clean": True}),
    pack({"kind": "returned", "result": "1", "clean": True}),
    pack({"kind": "returned", "number": 1}),
    pack({"kind": "returned", "number": 1, "result": 5}),
    pack({"kind": "raised", "number": 1, "error": {}, "retryable": True}),
    pack({"kind": "progress", "number": 1, "report": 7}),
    pack({"kind": "progress", "number": 2, "report": {"done": 1}}),
    pack({"kind": "ready", "number": 1}),
    pack({}),
    b"\0\0\0\2[]",
    b"\0\0\0\2{{",
    b"\xff\xff\xff\xff",
]


@pytest.mark.parametrize("frame", FOREIGN)
async def test_a_child_that_says_what_belongs_to_no_job_is_killed(pool: ChildPool, frame: bytes) -> None:
    child = await pool.take()
    outcome = await run(child, "chaos.interject", frame.hex())
    assert isinstance(outcome, Raised)
    assert outcome.error.type == "ProcessDied"
    assert outcome.retryable
    assert not child.alive
    pool.give_back(child)


async def test_reports_of_an_earlier_job_are_dropped(pool: ChildPool) -> None:
    child = await pool.take()
    said: list[Report] = []
    late = pack({"kind": "progress", "number": 0, "report": {"done": 1}})
    assert await run(child, "chaos.interject", late.hex(), on_report=said.append) == Returned(b'"own"')
    assert said == []
    pool.give_back(child)


async def test_a_child_whose_function_was_abandoned_is_not_given_to_the_next(pool: ChildPool) -> None:
    child = await pool.take()
    running = asyncio.create_task(run(child, "chaos.cooperative_plain"))
    await pid_when_entered()
    running.cancel()
    await asyncio.wait((running,))
    assert not child.alive
    pool.give_back(child)


async def test_tasks_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    module = tmp_path / "broken_tasks.py"
    module.write_text("import nothing_of_that_name\n")
    with pytest.raises(ChildBroken, match="nothing_of_that_name"):
        await Child.start(Isolation(modules=(str(module),), blob_url=(tmp_path / "blobs").as_uri()), CPU)


async def test_a_place_is_free_again_when_no_child_could_be_started(tmp_path: Path) -> None:
    module = tmp_path / "later_tasks.py"
    module.write_text("raise RuntimeError('not yet')\n")
    pool = ChildPool(Isolation(modules=(str(module),), blob_url=(tmp_path / "blobs").as_uri()), [CPU])
    for _ in range(2):
        with pytest.raises(ChildBroken, match="not yet"):
            await pool.take()
    module.write_text("")
    child = await pool.take()
    assert child.alive
    pool.give_back(child)
    await pool.close()
