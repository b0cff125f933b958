"""Processes started in order, kept running, stopped in the reverse order.

What ends is started again after a pause that doubles, unless it said before (`child.announce_finished`) and by its exit code
that its work is done: a worker that was drained stays away. A process that never became ready at the *first* start is a
mistake to be shown, not to be repeated: then everything stops. Stopping begins with whoever was started last, which
depends on the others. The second signal kills. If this process itself is killed, its children die with it (`child`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from eventq.events.errors import EventqError, Unavailable
from eventq.services import child

READY_S = 60.0
STOP_S = 10.0
"""What a process without a grace period of its own gets between SIGTERM and SIGKILL."""

LOG_TAIL_LINES = 15
LOG_MAX_BYTES = 10 * 1024**2
Report = Callable[[str], None]


class ProcessNotReady(Unavailable):
    """A process ended, or said nothing, before it was ready. The sentence has its last words."""

    code = "PROCESS_NOT_READY"


class Unit(Protocol):
    """What can be supervised: a process of ours or the broker."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def finished(self) -> bool:
        """Whether it ended because its work is done."""
        ...

    async def start(self) -> None:
        """Return once it is ready; raise an `EventqError`, with nothing left running, when it will not be."""
        ...

    async def wait(self) -> int:
        """Wait for its end; the exit code."""
        ...

    async def stop(self) -> None:
        """Ask it to stop, wait a bounded time, then kill it."""
        ...

    def kill(self) -> None:
        """SIGKILL, without waiting."""
        ...


class ManagedProcess:
    """One command. It is ready when it says so (`child.announce_ready`), or at once with `ready="started"`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        log_file: Path | None = None,
        ready: Literal["announced", "started"] = "announced",
        ready_s: float = READY_S,
        stop_s: float = STOP_S,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._log_file = log_file
        self._ready: Literal["announced", "started"] = ready
        self._ready_s = ready_s
        self._stop_s = stop_s
        self._process: asyncio.subprocess.Process | None = None
        self._said = _Said(asyncio.Event(), asyncio.Event())
        self._listening = ExitStack()

    @property
    def finished(self) -> bool:
        """Whether it ended with code 0 and had said that its work is done."""
        return self._process is not None and self._process.returncode == 0 and self._said.finished.is_set()

    @property
    def pid(self) -> int | None:
        """The process id; None before the first start."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the command and wait until it is ready. Raises `ProcessNotReady`."""
        try:
            async with asyncio.timeout(self._ready_s):
                await self._launch()
        except TimeoutError:
            self.kill()
            raise ProcessNotReady(f"{self.name} was not ready within {self._ready_s:g} s{self._last_words()}") from None
        except BaseException:
            self.kill()
            raise

    async def wait(self) -> int:
        """Wait until the process ends; its exit code, negative for a signal."""
        assert self._process is not None, "not started"
        code = await self._process.wait()
        self._listening.close()
        return code

    async def stop(self) -> None:
        """SIGTERM; after the patience given, SIGKILL to it and all it started."""
        if self._process is not None:
            await child.end(self._process, signal.SIGTERM, self._stop_s)

    def kill(self) -> None:
        """SIGKILL to it and all it started."""
        if self._process is not None and self._process.returncode is None:
            child.kill_group(self._process.pid)

    async def _launch(self) -> None:
        self._listening.close()
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="eventq-"))
            said = self._said = _Said(asyncio.Event(), asyncio.Event())
            address = f"{folder}/notify"  # a short path: socket names end at 108 characters
            listener, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Listener(said), local_addr=address, family=socket.AF_UNIX
            )
            stack.callback(listener.close)
            with _open_log(self._log_file) if self._log_file else nullcontext() as output:
                self._process = await child.spawn(
                    self._command, env={**self._environment, child.NOTIFY_SOCKET: address}, output=output
                )
            if self._ready == "announced":
                await self._wait_ready(self._process, said.ready)
            self._listening = stack.pop_all()  # until it ends: it may say that its work is done

    async def _wait_ready(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(ready.wait()), asyncio.ensure_future(process.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not ready.is_set():
            code = await process.wait()
            raise ProcessNotReady(
                f"{self.name} {child.describe_exit(code)} before it was ready{self._last_words()}", exit_code=code
            )

    def _last_words(self) -> str:
        if self._log_file is None:
            return ""
        lines = self._log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"; the end of {self._log_file}:", *lines])


@dataclass(frozen=True, slots=True)
class _Said:
    """What a process has said of itself."""

    ready: asyncio.Event
    finished: asyncio.Event


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, said: _Said) -> None:
        self._said = said

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data == child.FINISHED:
            self._said.finished.set()
        elif child.READY in data.split(b"\n"):
            self._said.ready.set()


def _open_log(file: Path) -> IO[bytes]:
    """Append to the file; one that has grown large is kept as `.1` and begun anew."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.stat().st_size > LOG_MAX_BYTES:
        file.replace(file.with_suffix(file.suffix + ".1"))
    return file.open("ab")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pause before a start after a crash: `first_s`, doubled to `max_s`, `first_s` again after `forget_s` of running."""

    first_s: float = 1.0
    max_s: float = 30.0
    forget_s: float = 60.0

    def next_s(self, last_s: float, ran_s: float) -> float:
        """The pause after a run of `ran_s` which followed a pause of `last_s` (0: the first run)."""
        return self.first_s if ran_s >= self.forget_s or not last_s else min(self.max_s, last_s * 2)


class Supervisor:
    """Starts units in stages, starts again what ends, stops the stages in reverse order.

    `report` gets one line for people about every change; `changed` is called when process ids have changed.
    """

    def __init__(self, report: Report, *, backoff: Backoff | None = None) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._report = report
        self._backoff = backoff or Backoff()
        self._stages: list[list[Unit]] = []
        self._watches: list[asyncio.Task[None]] = []
        self._stop_requested = asyncio.Event()
        self._killed = False

    def pids(self) -> dict[str, int]:
        """Process ids of the units by name."""
        return {unit.name: unit.pid for unit in self._units() if unit.pid is not None and not unit.finished}

    async def start(self, *units: Unit) -> None:
        """Start one stage: its units together, each watched from when it is ready. Raises what the first to fail raised."""
        self._stages.append(list(units))
        try:
            async with asyncio.TaskGroup() as group:
                for unit in units:
                    group.create_task(self._start_one(unit))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def run(self, body: Coroutine[Any, Any, None]) -> int:
        """Run `body`, which starts stages and may go on for ever; stop everything when it returns, or at a signal.

        Returns the exit code: 0 after an orderly stop, 130 when a second signal made it kill. An error of `body` is
        raised once everything has stopped.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.request_stop)
        try:
            await self._until_stop_requested(body)
        finally:
            try:
                await self._stop_all()
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)
        return 130 if self._killed else 0

    def request_stop(self) -> None:
        """Stop in order; asked again, kill."""
        if not self._stop_requested.is_set():
            self._report("stopping; once more (Ctrl-C) kills")
            self._stop_requested.set()
            return
        self._killed = True
        for unit in self._units():
            unit.kill()

    async def _until_stop_requested(self, body: Coroutine[Any, Any, None]) -> None:
        work = asyncio.ensure_future(body)
        stop = asyncio.ensure_future(self._stop_requested.wait())
        try:
            await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    async def _stop_all(self) -> None:
        self._stop_requested.set()
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for stage in reversed(self._stages):
            await asyncio.gather(*(self._stop_one(unit) for unit in stage))

    async def _start_one(self, unit: Unit) -> None:
        await unit.start()
        self._report(f"{unit.name}: ready (pid {unit.pid})")
        self._watches.append(asyncio.create_task(self._watch(unit), name=f"watch {unit.name}"))

    async def _stop_one(self, unit: Unit) -> None:
        if unit.pid is not None and not unit.finished:
            await unit.stop()
            self._report(f"{unit.name}: {child.describe_exit(await unit.wait())}")

    async def _watch(self, unit: Unit) -> None:
        """Start `unit` again whenever it ends, for as long as nobody asked to stop."""
        clock = asyncio.get_running_loop().time
        pause_s = 0.0
        while True:
            began = clock()
            end = child.describe_exit(await unit.wait())
            if unit.finished:
                self._report(f"{unit.name}: {end}: its work is done, it is not started again")
                self.changed()
                return
            pause_s = self._backoff.next_s(pause_s, clock() - began)
            self._report(f"{unit.name}: {end}; starting it again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            pause_s = await self._start_again(unit, pause_s)
            self._report(f"{unit.name}: ready again (pid {unit.pid})")
            self.changed()

    async def _start_again(self, unit: Unit, pause_s: float) -> float:
        """Try until it is ready; the last pause, which grew with each failure."""
        while True:
            try:
                await unit.start()
            except EventqError as error:
                pause_s = self._backoff.next_s(pause_s, 0)
                self._report(f"{unit.name}: {error.detail}\n{unit.name}: trying again in {pause_s:g} s")
                await asyncio.sleep(pause_s)
            else:
                return pause_s

    def _units(self) -> Iterable[Unit]:
        return (unit for stage in self._stages for unit in stage)
