"""Child processes: one function at a time, replaced when they end, and gone when they are told to be."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from eventq.events.report import Progress
from eventq.workers.config import Isolation
from eventq.workers.context import Report, SpawnRequest
from eventq.workers.devices import CPU
from eventq.workers.frames import pack, read_frame
from eventq.workers.keeper import GIVE_UP_S
from eventq.workers.outcome import Outcome, Raised, Returned, Stopped
from eventq.workers.process_tree import descendants
from eventq.workers.processes import Child, ChildBroken, ChildPool, OnReport
from tests.chaos.checker import read_witness
from tests.chaos.site import TASKS
from tests.support.poll import eventually
from tests.support.processes import alive, dead, parent, stands_still


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


async def test_each_process_of_a_function_gets_sigterm_once(pool: ChildPool, tmp_path: Path) -> None:
    child = await pool.take()
    gate = tmp_path / "gate"
    running = asyncio.create_task(run(child, "chaos.count_sigterm", str(gate)))
    await pid_when_entered()
    assert not await child.terminate(patience_s=0)
    gate.touch()
    assert await running == Returned(b"[1,1,1]")
    pool.give_back(child)


async def test_a_child_that_stands_still_is_killed_with_all_that_it_started(pool: ChildPool) -> None:
    child = await pool.take()
    running = asyncio.create_task(run(child, "chaos.grandchild"))
    grandchild = await pid_when_entered()
    assert await child.freeze()
    await eventually(lambda: stands_still(grandchild), what="what the function started stands still, too")
    await child.kill()
    assert dead(grandchild)
    assert isinstance(await running, Raised)
    pool.give_back(child)


ENDS = {
    3: "exited with code 3",
    -signal.SIGTERM: "ended by SIGTERM",
    -signal.SIGKILL: "ended by SIGKILL",
    -signal.SIGSEGV: "ended by SIGSEGV",
    -(signal.SIGRTMIN + 1): f"ended by signal {signal.SIGRTMIN + 1}",
}


@pytest.mark.parametrize("how", ENDS)
async def test_what_a_child_died_of_is_told_truly_whatever_its_keeper_is_sent_afterwards(pool: ChildPool, how: int) -> None:
    child = await pool.take()
    pid = await pid_of(child)
    above = parent(pid)

    def press() -> None:
        while alive(pid):
            pass
        with suppress(ProcessLookupError):
            while alive(above):
                os.kill(above, signal.SIGTERM)

    pressing = threading.Thread(target=press)
    pressing.start()
    outcome = await run(child, "chaos.end_as", how)
    pressing.join()
    assert isinstance(outcome, Raised)
    assert ENDS[how] in outcome.error.message
    pool.give_back(child)


async def test_what_a_child_died_of_is_told_truly_whenever_it_is_killed(pool: ChildPool) -> None:
    child = await pool.take()
    os.kill(await pid_of(child), signal.SIGUSR1)
    while child.alive:
        killing = asyncio.create_task(child.kill())
        await asyncio.sleep(0)
        killing.cancel()
        await asyncio.wait((killing,))
    outcome = await run(child, "chaos.pid")
    assert isinstance(outcome, Raised)
    assert "ended by SIGUSR1" in outcome.error.message
    pool.give_back(child)


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_child_dies_with_its_keeper(pool: ChildPool, frozen: bool) -> None:
    child = await pool.take()
    running = asyncio.create_task(run(child, "chaos.deaf_plain"))
    pid = await pid_when_entered()
    assert not frozen or await child.freeze()
    os.kill(parent(pid), signal.SIGKILL)
    outcome = await running
    assert isinstance(outcome, Raised)
    assert "ended by SIGKILL" in outcome.error.message
    await eventually(lambda: dead(pid), what="the child is dead")
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


async def test_a_child_that_answers_while_it_is_being_killed_is_not_given_to_the_next(
    pool: ChildPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = await pool.take()
    await pid_of(child)
    killing: list[asyncio.Task[None]] = []

    async def read_and_kill(reader: asyncio.StreamReader) -> dict[str, Any]:
        message = await read_frame(reader)
        killing.append(asyncio.create_task(child.kill()))
        await asyncio.sleep(0)
        return message

    monkeypatch.setattr("eventq.workers.processes.read_frame", read_and_kill)
    assert isinstance(await run(child, "chaos.pid"), Returned)
    assert child.alive
    assert not child.fit
    await asyncio.gather(*killing)


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


# Keepers without a worker. A keeper does something when Python tells its audit hooks of a step; or its child, when that begins.

ACT = """
import os, signal, sys

channel, above = sys.orig_argv[-2:]

def act(step, _=()):
    if step == {step!r}:
        exec({deed!r}, globals())

if "eventq.workers.keeper" in sys.orig_argv:
    sys.addaudithook(act)
if "eventq.workers.process_main" in sys.orig_argv:
    act("child")
"""
IMPORTS, STARTS, CHILD = "ctypes.dlopen", "os.posix_spawn", "child"
END_ITSELF = "os.kill(os.getpid(), signal.SIGTERM)"
END_KEEPER = "os.kill(int(above), signal.SIGTERM); signal.pause()"


@contextmanager
def keeper(folder: Path, step: str, deed: str, *launcher: str) -> Generator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A keeper, or who starts one, and the worker's end of the channel to the child."""
    (folder / "sitecustomize.py").write_text(ACT.format(step=step, deed=deed))
    ours, theirs = socket.socketpair()
    command = (sys.executable, *(launcher or ("-P", "-m", "eventq.workers.keeper")), str(theirs.fileno()), str(os.getpid()))
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),), env=environment, start_new_session=True) as process:
        theirs.close()
        try:
            yield process, ours
        finally:
            for pid in (*descendants(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("step", "deed", "ended_by"),
    [
        (IMPORTS, END_ITSELF, signal.SIGTERM),
        (STARTS, END_ITSELF, signal.SIGKILL),
        (CHILD, END_KEEPER, signal.SIGKILL),
        (CHILD, END_ITSELF, signal.SIGTERM),
    ],
)
def test_sigterm_is_obeyed_also_while_a_child_is_being_started(
    tmp_path: Path, step: str, deed: str, ended_by: signal.Signals
) -> None:
    with keeper(tmp_path, step, deed) as (process, _):
        assert process.wait(60) == -ended_by


WORKER = """
import os, subprocess, sys
keeper = [sys.executable, "-P", "-m", "eventq.workers.keeper", sys.argv[1], str(os.getpid())]
subprocess.run(keeper, pass_fds=[int(sys.argv[1])])
"""
WORKER_DIES = """
os.kill(int(above), signal.SIGKILL)
while ") Z " not in open(f"/proc/{above}/stat").read():
    os.sched_yield()
"""


@pytest.mark.parametrize("step", [IMPORTS, STARTS])
def test_a_worker_that_dies_while_a_child_is_being_started_leaves_nothing_behind(tmp_path: Path, step: str) -> None:
    with keeper(tmp_path, step, WORKER_DIES, "-c", WORKER) as (dying, channel):
        channel.settimeout(GIVE_UP_S)
        assert channel.recv(1) == b"", "keeper and child are gone, and the ends that they had"
        assert dying.wait(60) == -signal.SIGKILL


CHILD_LEAVES = """
if os.fork():
    os.read(int(channel), 1)
    os._exit(7)
os.setsid()
os.close(int(channel))
signal.pause()
"""


def test_what_a_child_left_is_killed_also_when_the_order_comes_in_the_moment_of_its_end(tmp_path: Path) -> None:
    """A handler that is called too late, because the keeper was about to wait, shows once in some 500 times."""
    with keeper(tmp_path, CHILD, CHILD_LEAVES) as (process, channel):
        channel.send(b".")
        assert channel.recv(1) == b"", "the child has ended"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 7


OUTLIVES = """
os.kill(int(above), signal.SIGALRM)
while os.getppid() == int(above):
    os.sched_yield()
os._exit(0)
"""
CHILD_OUTLIVES = f"""
child = os.getpid()
if os.fork():
    os._exit(7)
while os.getppid() == child:
    os.sched_yield()
{OUTLIVES}
"""


@pytest.mark.parametrize(("deed", "ended_as"), [(OUTLIVES, -signal.SIGKILL), (CHILD_OUTLIVES, 7)])
def test_a_keeper_that_gives_up_what_it_cannot_kill_ends_as_its_child_did_or_will(
    tmp_path: Path, deed: str, ended_as: int
) -> None:
    with keeper(tmp_path, CHILD, deed) as (process, _):
        assert process.wait(60) == ended_as
