"""The supervisor, on real processes that stand in for eventq's own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from eventq.services.run_file import RUN_FILE, Run, read_run, remove_run, started_ticks, write_run
from eventq.services.supervisor import Backoff, ProcessNotReady, Supervisor
from tests.services.stand_ins import BROKEN, FAST, FINISHES, MUTE, STUBBORN, entries, running_pid, stand_in
from tests.support.poll import eventually
from tests.support.processes import alive, dead

ROOT = Path(__file__).parents[2]
Start = Callable[[str], Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
async def start_supervisor(journal: Path) -> AsyncIterator[Start]:
    """`start_supervisor("SERVER")`: a supervisor process whose four children are ready."""
    started: list[asyncio.subprocess.Process] = []

    async def start(program: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.services.stand_ins", str(journal), program), stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        started.append(process)
        assert process.stdout is not None
        while (line := await process.stdout.readline()) != b"all ready\n":
            assert line, "the supervisor ended"
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def children(journal: Path) -> list[int]:
    return [pid for _, what, pid in entries(journal) if what == "started"]


async def test_stages_start_in_order_and_stop_in_reverse(journal: Path) -> None:
    lines: list[str] = []
    supervisor = Supervisor(lines.append)

    async def body() -> None:
        await supervisor.start(stand_in("log", journal))
        await supervisor.start(stand_in("api", journal))
        await supervisor.start(stand_in("worker", journal))

    assert await supervisor.run(body()) == 0
    assert [(name, what) for name, what, _ in entries(journal)] == [
        *[("log", "started"), ("api", "started"), ("worker", "started")],
        *[("worker", "stopped"), ("api", "stopped"), ("log", "stopped")],
    ]
    assert lines[0] == f"log: ready (pid {running_pid(journal, 'log')})"
    assert lines[-1] == "log: exited normally"


async def test_a_crashed_child_is_started_again_and_its_end_explained(journal: Path) -> None:
    lines: list[str] = []
    changes: list[dict[str, int]] = []
    supervisor = Supervisor(lines.append, backoff=FAST)

    async def body() -> None:
        await supervisor.start(stand_in("worker", journal))
        supervisor.changed = lambda: changes.append(supervisor.pids())
        first = running_pid(journal, "worker")
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: running_pid(journal, "worker") != first)
        await eventually(lambda: changes)

    await supervisor.run(body())
    assert changes == [{"worker": running_pid(journal, "worker")}]
    assert "worker: exited with code 137 (SIGKILL: killed from outside, or out of memory); starting it again in 0.01 s" in lines
    assert f"worker: ready again (pid {running_pid(journal, 'worker')})" in lines


async def test_a_child_whose_work_is_done_stays_away_and_one_that_only_said_so_does_not(journal: Path) -> None:
    lines: list[str] = []
    changes: list[dict[str, int]] = []
    supervisor = Supervisor(lines.append, backoff=FAST)

    async def body() -> None:
        supervisor.changed = lambda: changes.append(supervisor.pids())
        await supervisor.start(stand_in("done-0", journal, FINISHES))
        await eventually(lambda: changes)
        await supervisor.start(stand_in("failed-3", journal, FINISHES))
        await eventually(lambda: sum(name == "failed-3" for name, _, _ in entries(journal)) > 2)

    await supervisor.run(body())
    assert changes[0] == {}, "it is no process of ours any more"
    assert [name for name, _, _ in entries(journal)].count("done-0") == 1
    assert "done-0: exited normally: its work is done, it is not started again" in lines


async def test_a_child_that_keeps_failing_is_tried_with_growing_pauses(journal: Path) -> None:
    lines: list[str] = []
    supervisor = Supervisor(lines.append, backoff=FAST)
    unit = stand_in("worker", journal)

    async def body() -> None:
        await supervisor.start(unit)
        unit._command = [sys.executable, "-c", BROKEN]  # pyright: ignore[reportPrivateUsage]
        os.kill(running_pid(journal, "worker"), signal.SIGKILL)
        await eventually(lambda: sum("trying again in 0.05 s" in line for line in lines) >= 2)

    await supervisor.run(body())
    tried = [line.rpartition(" in ")[2] for line in lines if "again in" in line]
    assert tried[:4] == ["0.01 s", "0.02 s", "0.04 s", "0.05 s"]


def test_a_long_run_forgets_earlier_crashes() -> None:
    backoff = Backoff(first_s=1, max_s=8, forget_s=60)
    assert [backoff.next_s(last, 1) for last in (0, 1, 2, 4, 8)] == [1, 2, 4, 8, 8]
    assert backoff.next_s(8, 60) == 1


async def test_a_process_that_cannot_start_stops_the_rest_and_is_quoted(journal: Path) -> None:
    supervisor = Supervisor(print)

    async def body() -> None:
        await supervisor.start(stand_in("log", journal))
        await supervisor.start(stand_in("api", journal, BROKEN))

    with pytest.raises(ProcessNotReady) as failed:
        await supervisor.run(body())
    assert "api exited with code 2 (refused its arguments or settings) before it was ready" in failed.value.detail
    assert failed.value.detail.endswith("no such table: tasks")
    assert entries(journal)[-1][:2] == ("log", "stopped")


async def test_a_process_that_never_says_that_it_is_ready_is_killed(journal: Path) -> None:
    supervisor = Supervisor(print)
    unit = stand_in("api", journal, MUTE, ready_s=0.3)
    with pytest.raises(ProcessNotReady, match=r"api was not ready within 0.3 s"):
        await supervisor.run(supervisor.start(unit))
    assert unit.pid is not None
    assert dead(unit.pid)


async def test_one_that_ignores_the_request_is_killed_with_what_it_started(journal: Path) -> None:
    supervisor = Supervisor(print)
    await supervisor.run(supervisor.start(stand_in("worker", journal, STUBBORN, stop_s=0.2)))
    assert len(children(journal)) == 2
    for pid in children(journal):
        await eventually(partial(dead, pid))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_in_order(start_supervisor: Start, journal: Path, number: signal.Signals) -> None:
    supervisor = await start_supervisor("SERVER")
    supervisor.send_signal(number)
    assert await supervisor.wait() == 0
    stopped = [name for name, what, _ in entries(journal) if what == "stopped"]
    assert sorted(stopped[:2]) == ["worker-1", "worker-2"]
    assert stopped[2:] == ["api", "log"]


async def test_a_second_signal_kills(start_supervisor: Start, journal: Path) -> None:
    supervisor = await start_supervisor("STUBBORN")
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.stdout is not None
    assert await supervisor.stdout.readline() == b"stopping; once more (Ctrl-C) kills\n"
    supervisor.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(supervisor.wait(), 10) == 130
    for pid in children(journal):
        await eventually(partial(dead, pid))


async def test_the_terminals_interrupt_reaches_only_the_supervisor(start_supervisor: Start, journal: Path) -> None:
    supervisor = await start_supervisor("SERVER")
    assert supervisor.pid not in {os.getpgid(pid) for pid in children(journal)}


async def test_children_die_with_a_supervisor_that_was_killed(start_supervisor: Start, journal: Path) -> None:
    supervisor = await start_supervisor("SERVER")
    assert len(children(journal)) == 4
    assert all(alive(pid) for pid in children(journal))
    supervisor.kill()
    for pid in children(journal):
        await eventually(partial(dead, pid))
    assert not [name for name, what, _ in entries(journal) if what == "stopped"]


def a_run(pid: int, ticks: int) -> Run:
    return Run(pid, ticks, "http://127.0.0.1:8000", "nats://127.0.0.1:4222", "http://127.0.0.1:8222", {"api": 7})


def test_the_run_file_names_a_living_instance(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    run = a_run(os.getpid(), started_ticks(os.getpid()))
    write_run(tmp_path, run)
    assert read_run(tmp_path) == run
    assert (tmp_path / RUN_FILE).stat().st_mode & 0o777 == 0o600
    remove_run(tmp_path)
    assert read_run(tmp_path) is None


def test_the_run_file_of_a_dead_instance_is_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, a_run(os.getpid(), started_ticks(os.getpid()) + 1))  # its pid was given to somebody else
    assert read_run(tmp_path) is None
    (tmp_path / RUN_FILE).write_text('{"pid": 1')
    assert read_run(tmp_path) is None


def test_the_run_file_of_another_instance_is_kept(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        write_run(tmp_path, a_run(other.pid, started_ticks(other.pid)))
        remove_run(tmp_path)
        assert read_run(tmp_path) is not None
        other.kill()
