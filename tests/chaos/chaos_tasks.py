"""Tasks for the tests that break things. Each writes a line to the witness file when its code is entered and left.

The witness is told apart from the log on purpose: the log says what was recorded, the witness what was run.
"""

# Task code of other people sleeps and polls; these do on purpose.
# ruff: noqa: ASYNC110, ASYNC251

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from eventq.events.errors import InvalidInput
from eventq.events.retry import RetryPolicy
from eventq.workers.context import Context
from eventq.workers.outcome import DoNotRetry, RetryAfter
from eventq.workers.registry import task

POLL_S = 0.01
AT_ONCE = RetryPolicy(initial_s=0.05, factor=1, jitter=0)


def witness(context: Context, step: str, process: int | None = None) -> None:
    """One line, one write: lines of several processes do not mix."""
    line = {"task_id": context.task_id, "attempt": context.attempt, "step": step, "pid": process or os.getpid()}
    handle = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, json.dumps(line).encode() + b"\n")
    finally:
        os.close(handle)


@contextmanager
def witnessed(context: Context) -> Generator[None]:
    """Within the block the user's code runs. Left without ``exit`` where it was ended from outside."""
    witness(context, "enter")
    yield
    witness(context, "exit")


def opened(gate: str) -> bool:
    """Whether the test has opened the gate: it made the file."""
    return Path(gate).exists()


def done(context: Context) -> dict[str, Any]:
    return {"attempt": context.attempt}


# Tasks that behave


@task(name="chaos.quick", retry=AT_ONCE)
async def quick(context: Context) -> dict[str, Any]:
    with witnessed(context):
        await asyncio.sleep(0)
    return done(context)


@task(name="chaos.plain", retry=AT_ONCE)
def plain(context: Context) -> dict[str, Any]:
    with witnessed(context):
        pass
    return done(context)


@task(name="chaos.work", retry=AT_ONCE)
async def work(context: Context, seconds: float) -> dict[str, Any]:
    with witnessed(context):
        await asyncio.sleep(seconds)
    return done(context)


@task(name="chaos.work_plain", retry=AT_ONCE)
def work_plain(context: Context, seconds: float) -> dict[str, Any]:
    with witnessed(context):
        time.sleep(seconds)
    return done(context)


@task(name="chaos.gate", retry=AT_ONCE)
async def gate(context: Context, path: str) -> dict[str, Any]:
    """The first attempt waits until the test opens the gate; later ones pass."""
    with witnessed(context):
        while context.attempt == 1 and not opened(path):
            await asyncio.sleep(POLL_S)
    return done(context)


@task(name="chaos.gates", retry=AT_ONCE)
async def gates(context: Context, path: str) -> dict[str, Any]:
    """Each attempt waits at a gate of its own: the path with the attempt's number."""
    with witnessed(context):
        while not opened(f"{path}{context.attempt}"):
            await asyncio.sleep(POLL_S)
    return done(context)


@task(name="chaos.gate_plain", retry=AT_ONCE)
def gate_plain(context: Context, path: str) -> dict[str, Any]:
    """As ``chaos.gate``, in a child process, and deaf to requests to stop."""
    with witnessed(context):
        while context.attempt == 1 and not opened(path):
            time.sleep(POLL_S)
    return done(context)


@task(name="chaos.block_loop", retry=AT_ONCE)
async def block_loop(context: Context, path: str, then_wait: bool = False) -> dict[str, Any]:
    """Blocks the worker's event loop itself until the gate opens: what one must not do, and people do. The first attempt may
    wait for ever afterwards."""
    with witnessed(context):
        while not opened(path):
            time.sleep(POLL_S)
        if then_wait and context.attempt == 1:
            await asyncio.sleep(3600)
    return done(context)


@task(name="chaos.beat")
async def beat(context: Context, path: str) -> dict[str, Any]:
    """Gives signs of life until the gate opens."""
    with witnessed(context):
        while not opened(path):
            context.heartbeat()
            await asyncio.sleep(POLL_S)
    return done(context)


@task(name="chaos.echo_size")
def echo_size(context: Context, text: str, times: int = 1) -> dict[str, Any]:
    """Answers more or less the text it got."""
    return {"text": text * times}


@task(name="chaos.report_progress")
async def report_progress(context: Context, updates: int, pause_s: float) -> None:
    for number in range(updates):
        context.progress(number + 1, updates, "rows")
        await asyncio.sleep(pause_s)


@task(name="chaos.report_progress_plain")
def report_progress_plain(context: Context, updates: int, pause_s: float) -> None:
    for number in range(updates):
        context.progress(number + 1, updates, "rows")
        time.sleep(pause_s)


# Tasks that fail


@task(name="chaos.fail", max_retries=2, retry=AT_ONCE)
async def fail(context: Context, until: int = 1_000) -> dict[str, Any]:
    """Fails in every attempt before ``until``."""
    with witnessed(context):
        if context.attempt < until:
            raise RuntimeError(f"attempt {context.attempt} fails")
    return done(context)


@task(name="chaos.refuse", max_retries=5, retry=AT_ONCE)
async def refuse(context: Context) -> None:
    raise InvalidInput("text", "is not what this task can work with")


class Unspeakable(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@task(name="chaos.unspeakable")
def unspeakable() -> None:
    raise Unspeakable


@task(name="chaos.unspeakable_async")
async def unspeakable_async() -> None:
    raise Unspeakable


@task(name="chaos.system_exit")
async def system_exit() -> None:
    sys.exit(3)


@task(name="chaos.system_exit_plain")
def system_exit_plain() -> None:
    sys.exit(3)


@task(name="chaos.cancels_itself")
async def cancels_itself() -> None:
    """Code that is cancelled by other code of its own: nobody asked the task to stop."""
    raise asyncio.CancelledError


@task(name="chaos.exit_hard")
def exit_hard() -> None:
    os._exit(7)


@task(name="chaos.segfault")
def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@task(name="chaos.end_as")
def end_as(how: int) -> None:
    """Ends its process: with that exit code, or by that signal where it is negative."""
    if how >= 0:
        os._exit(how)
    os.kill(os.getpid(), -how)


@task(name="chaos.nan")
async def nan() -> float:
    return float("nan")


@task(name="chaos.no_json")
def no_json() -> object:
    return object()


@task(name="chaos.huge")
def huge() -> str:
    return "x" * (17 * 1024 * 1024)


@task(name="chaos.quotes")
def quotes() -> str:
    """As large as a result may be, and twice as large again inside a frame of JSON."""
    return '"' * (8 * 1024 * 1024 - 8)


@task(name="chaos.deep")
def deep() -> list[Any]:
    """Deeper than any reader of JSON will go."""
    sys.setrecursionlimit(50_000)
    value: list[Any] = []
    for _ in range(3_000):
        value = [value]
    return value


@task(name="chaos.big_number")
async def big_number() -> int:
    return 2**70


@task(name="chaos.chatter")
def chatter(context: Context) -> dict[str, Any]:
    """Writes 10 MB to standard output."""
    line = "x" * 1023
    for _ in range(10 * 1024):
        print(line)
    return done(context)


@task(name="chaos.close_files")
def close_files() -> None:
    """Closes every file of its process, the worker's channel too."""
    os.closerange(3, 1_024)


@task(name="chaos.kill_worker")
async def kill_worker() -> NoReturn:
    """Takes its worker with it."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


@task(name="chaos.deeper_than_events")
def deeper_than_events() -> list[Any]:
    """Its encoder takes it, but not with an event around it."""
    value: list[Any] = []
    for _ in range(252):
        value = [value]
    return value


@task(name="chaos.unprintable_plain")
def unprintable_plain(context: Context) -> dict[str, Any]:
    """Says what no JSON can carry."""
    say_the_unprintable(context)
    return done(context)


@task(name="chaos.unprintable")
async def unprintable(context: Context) -> dict[str, Any]:
    say_the_unprintable(context)
    return done(context)


def say_the_unprintable(context: Context) -> None:
    context.progress(1, unit="\ud800", message="\udfff\0")
    odd: dict[str, Any] = {"number": 2**70, "vast": 2**20_000, "\ud800": "\ud800"}
    context.log("\ud800", "info", **odd)


class Exiting(Exception):
    """An exception that ends the program when it is printed."""

    def __str__(self) -> str:
        raise SystemExit(4)


@task(name="chaos.exits_when_printed")
def exits_when_printed() -> None:
    raise Exiting


@task(name="chaos.exits_when_printed_async")
async def exits_when_printed_async() -> None:
    raise Exiting


# Tasks that leave something behind


@task(name="chaos.fork")
def fork(context: Context) -> int:
    """Returns twice, in two processes; both report first."""
    started = os.fork()
    context.progress(1, unit="original" if started else "copy")
    if started:
        os.waitpid(started, 0)
    return started


@task(name="chaos.leave_thread")
def leave_thread(context: Context) -> int:
    """Its thread goes on to report for as long as the process lives."""

    def go_on() -> None:
        while True:
            context.progress(1, unit="stray")
            time.sleep(POLL_S)

    threading.Thread(target=go_on, daemon=True).start()
    return os.getpid()


@task(name="chaos.leave_process")
def leave_process(context: Context, session: bool, orphan: bool) -> int:
    """Its process stays: in a session of its own, or below a parent that has ended."""
    code = "import threading; threading.Event().wait()"
    if orphan:
        code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {code!r}], stdout=2).pid)"
        found = subprocess.run([sys.executable, "-c", code], start_new_session=session, stdout=subprocess.PIPE, check=True)
        witness(context, "enter", int(found.stdout))
    else:
        witness(context, "enter", subprocess.Popen([sys.executable, "-c", code], start_new_session=session).pid)
    return os.getpid()


@task(name="chaos.interject")
def interject(hexed: str) -> str:
    """Puts bytes of its own on the way to the worker."""
    os.write(int(sys.argv[1]), bytes.fromhex(hexed))
    return "own"


# Tasks that are asked to stop


@task(name="chaos.cooperative")
async def cooperative(context: Context) -> None:
    witness(context, "enter")
    while True:
        context.check()
        await asyncio.sleep(POLL_S)


@task(name="chaos.cooperative_plain")
def cooperative_plain(context: Context) -> None:
    witness(context, "enter")
    while True:
        context.check()
        time.sleep(POLL_S)


@task(name="chaos.deaf")
async def deaf(context: Context) -> None:
    """Swallows its cancellation."""
    witness(context, "enter")
    while True:
        try:
            await asyncio.sleep(POLL_S)
        except asyncio.CancelledError:
            continue


@task(name="chaos.deaf_plain", retry=AT_ONCE)
def deaf_plain(context: Context) -> None:
    """Looks at nothing and ignores SIGTERM: only SIGKILL ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    witness(context, "enter")
    threading.Event().wait()


@task(name="chaos.device", pool="gpu")
def device(context: Context) -> dict[str, Any]:
    import torch

    return {"device": context.device, "sum": float(torch.ones(3, device=context.device).sum())}


@task(name="chaos.refuses_here", queue="elsewhere")
async def refuses_here() -> None:
    """A task of a queue that nobody serves unless a test says so."""


@task(name="chaos.tidy_plain")
def tidy_plain(context: Context) -> dict[str, Any]:
    """Deaf to requests, but returns in good order at SIGTERM."""
    ended = threading.Event()

    def end(*_: object) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    with witnessed(context):
        while not ended.is_set():
            time.sleep(POLL_S)
    return done(context)


@task(name="chaos.grandchild")
def grandchild(context: Context) -> None:
    """Starts a process, in a session of its own, that ignores SIGTERM, and waits for it; the witness has that one's pid."""
    deaf = "import signal, threading; signal.signal(15, signal.SIG_IGN); print(flush=True); threading.Event().wait()"
    started = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
    assert started.stdout is not None
    started.stdout.readline()
    witness(context, "enter", started.pid)
    started.wait()


@task(name="chaos.count_sigterm")
def count_sigterm(context: Context, path: str) -> list[int]:
    """How often SIGTERM came until the gate opened: to its process, to one that it started, and to one in another session."""
    count = 0

    def heard(*_: object) -> None:
        nonlocal count
        count += 1

    code = """
import signal, sys
count = 0
def heard(*_):
    global count
    count += 1
signal.signal(signal.SIGTERM, heard)
print(flush=True)
sys.stdin.read()
print(count)
"""
    signal.signal(signal.SIGTERM, heard)
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=session) for session in (False, True)]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    witness(context, "enter")
    while not opened(path):
        time.sleep(POLL_S)
    return [count, *(int(process.communicate()[0]) for process in started)]


@task(name="chaos.pid")
def pid() -> int:
    return os.getpid()


# Tasks that pause, fall silent, or make others


@task(name="chaos.tick")
def tick(context: Context, path: str, gate: str) -> dict[str, Any]:
    """Adds a byte to the file again and again, and so does a process that it starts, in a session of its own, until the gate
    is open."""
    script = f"import time\nwhile True:\n open({path + '.child'!r}, 'ab').write(b'.')\n time.sleep({POLL_S})"
    started = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    Path(path + ".pid").write_text(str(started.pid))
    try:
        with witnessed(context):
            while not opened(gate):
                with Path(path).open("ab") as file:
                    file.write(b".")
                time.sleep(POLL_S)
    finally:
        started.kill()
        started.wait()
    return done(context)


@task(name="chaos.silent", heartbeat_timeout_s=0.3, retry=AT_ONCE)
async def silent(context: Context) -> dict[str, Any]:
    """Says nothing at its first attempt, and signs of life at the next."""
    for _ in range(60):
        if context.attempt > 1:
            context.heartbeat()
        await asyncio.sleep(POLL_S)
    if context.attempt == 1:
        await asyncio.sleep(3600)
    return done(context)


@task(name="chaos.silent_plain", heartbeat_timeout_s=0.3, retry=AT_ONCE)
def silent_plain(context: Context) -> dict[str, Any]:
    for _ in range(60):
        if context.attempt > 1:
            context.heartbeat()
        time.sleep(POLL_S)
    while context.attempt == 1:
        time.sleep(POLL_S)
    return done(context)


class OddError(ValueError):
    """An error of somebody's own."""


@task(name="chaos.raise_odd")
async def raise_odd(context: Context) -> dict[str, Any]:
    if context.attempt == 1:
        raise OddError("odd")
    return done(context)


@task(name="chaos.raise_odd_plain")
def raise_odd_plain(context: Context) -> dict[str, Any]:
    if context.attempt == 1:
        raise OddError("odd")
    return done(context)


@task(name="chaos.asks_for_time", retry=RetryPolicy(initial_s=3600))
def asks_for_time(context: Context) -> dict[str, Any]:
    if context.attempt == 1:
        raise RetryAfter(0.01, "busy")
    return done(context)


@task(name="chaos.gives_up", retry=AT_ONCE)
async def gives_up() -> None:
    raise DoNotRetry("hopeless")


@task(name="chaos.parent", retry=AT_ONCE, max_retries=1)
def parent(context: Context, children: int, fail_first: bool = False) -> list[str]:
    """Spawns children by order, and one by key; may fail afterwards and do it all again."""
    found = [context.spawn("chaos.quick") for _ in range(children)]
    found.append(context.spawn("chaos.quick", key="last", priority=9))
    if fail_first and context.attempt == 1:
        raise ValueError("once more")
    return found


@task(name="chaos.parent_async")
async def parent_async(context: Context, children: int) -> list[str]:
    return [await context.spawn_async("chaos.plain") for _ in range(children)]


@task(name="chaos.wrong_parent")
def wrong_parent(context: Context, task_name: str) -> str:
    return context.spawn(task_name, [1, 2, 3])


@task(name="chaos.parent_on_loop")
async def parent_on_loop(context: Context) -> str:
    return context.spawn("chaos.quick")
