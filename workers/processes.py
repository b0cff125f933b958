"""Child processes for task code that may block, compute, crash or have to be killed.

A child runs one function at a time and stays for the next. It is started when first needed (some 0.4 s), and replaced
after it died or had to be killed. Each leads a process group of its own and has a :mod:`eventq.workers.keeper` above it, which
ends when nothing is left of the child and of all that its functions started: the process that is waited for here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from eventq.events.data import ErrorInfo
from eventq.events.errors import EventqError, InvalidInput
from eventq.events.report import LogLine, Progress
from eventq.workers.config import Isolation
from eventq.workers.context import Beat, Report, SpawnRequest
from eventq.workers.devices import CPU, Device
from eventq.workers.frames import BadFrame, FrameError, pack, read_frame
from eventq.workers.outcome import Outcome, Raised, Returned, Stopped, StopReason
from eventq.workers.process_main import isolation_to
from eventq.workers.process_tree import signal_below, stands_still

log = structlog.get_logger("eventq.processes")

START_TIMEOUT_S = 60.0
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""What reading a frame of the wrong form raises."""

OnReport = Callable[[Report], None]
OnSpawn = Callable[[SpawnRequest], Awaitable[str]]

FREEZE_S = 2.0
"""How long a child may take to stand still once it was told to."""


class ChildBroken(EventqError):
    """A child process could not load the task modules."""

    code = "CHILD_BROKEN"


class Child:
    """One child process and its channel."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, device: Device
    ) -> None:
        self.device = device
        self._keeper = process
        self._pid: int | None = None
        """Its own; ``None`` before it has loaded the tasks."""
        self._reader = reader
        self._writer = writer
        self._job = 0
        self._fit = True
        self._doomed = False
        """It is being killed, whatever it still says."""
        self._answering: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Lock()
        """Who terminates it has his time before it is killed."""

    @classmethod
    async def start(cls, isolation: Isolation, device: Device) -> Child:
        """Start a child and wait until it has loaded the task modules. Raises :class:`ChildBroken` if it cannot."""
        ours, theirs = socket.socketpair()
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            theirs.close()
            ours.close()
            raise
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "eventq.workers.keeper", str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **device.environment},
            )
        except BaseException:
            writer.close()
            raise
        finally:
            theirs.close()
        child = cls(process, reader, writer, device)
        try:
            await child._set_up(isolation)
        except BaseException:
            await child.kill()
            raise
        return child

    async def _set_up(self, isolation: Isolation) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._send({"isolation": isolation_to(isolation), "path": sys.path})
                first = await read_frame(self._reader)
            if first["kind"] == "ready":
                self._pid = int(first["pid"])
                return
            error = ErrorInfo(**first["error"])
        except (OSError, TimeoutError, *_MALFORMED) as problem:
            raise ChildBroken(f"a child process did not start: {problem!r}") from problem
        raise ChildBroken(f"a child process cannot load the tasks: {error.message}", error=error.model_dump())

    @property
    def alive(self) -> bool:
        """Whether anything is left of it."""
        return self._keeper.returncode is None

    @property
    def fit(self) -> bool:
        """Whether it may run another function: it lives, and the last one left nothing behind that could meddle."""
        return self.alive and self._fit and not self._doomed

    async def run(self, job: dict[str, Any], on_report: OnReport, on_spawn: OnSpawn) -> Outcome:
        """Run one function to its end; progress and log lines go to ``on_report`` as they come, tasks that it wants to spawn
        to ``on_spawn``.

        A child that leaves anything running, or says what does not belong to this job, is killed afterwards.
        """
        self._job += 1
        self._fit = False
        try:
            await self._send({"kind": "run", "number": self._job, "device": self.device.name, **job})
            while True:
                message = await read_frame(self._reader)
                said = _parsed(message, self._job)
                if isinstance(said, Progress | LogLine | Beat):
                    on_report(said)
                elif isinstance(said, SpawnRequest):
                    self._answer(self._job, message["call"], said, on_spawn)
                elif said is not None:
                    self._fit = message.get("clean") is True
                    return said
        except BadFrame as error:
            await self.kill()
            return Raised(ErrorInfo(type="ProcessDied", message=f"the process that ran it was ended: {error}"))
        except OSError:
            return Raised(ErrorInfo(type="ProcessDied", message=await self._obituary()))
        finally:
            if not self._fit:
                await self.kill()

    async def ask(self) -> None:
        """Ask the running function to stop: its context raises at the next ``check``."""
        with suppress(FrameError, OSError):
            await self._send({"kind": "stop", "number": self._job})

    def _answer(self, job: int, call: object, request: SpawnRequest, on_spawn: OnSpawn) -> None:
        """Have the child be told what became of what it wants to spawn; it waits for that, and reads on meanwhile."""

        async def answer() -> None:
            message: dict[str, Any] = {"kind": "spawned", "number": job, "call": call}
            try:
                message["task_id"] = await on_spawn(request)
            except EventqError as error:
                message |= {"error": error.detail, "field": error.field if isinstance(error, InvalidInput) else None}
            except Exception as error:  # whatever it is: the child waits for an answer
                log.exception("child.spawn_crashed", task_name=request.task_name)
                message |= {"error": f"spawn: {error!r}"[:500], "field": "spawn"}
            with suppress(FrameError, OSError):
                await self._send(message)

        answering = asyncio.create_task(answer())
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    async def freeze(self) -> bool:
        """SIGSTOP to all of its processes; whether it stands still."""
        job = self._job
        self._signal(signal.SIGSTOP)
        deadline = asyncio.get_running_loop().time() + FREEZE_S
        while self._pid is not None and self.alive and self._job == job and asyncio.get_running_loop().time() < deadline:
            if stands_still(self._pid):
                self._signal(signal.SIGSTOP)  # also what it started in that very moment
                return True
            await asyncio.sleep(0.005)
        return False

    def thaw(self) -> None:
        """SIGCONT to all of its processes."""
        self._signal(signal.SIGCONT)

    async def terminate(self, patience_s: float) -> bool:
        """SIGTERM to all of its processes; whether all have ended within ``patience_s``. :meth:`kill` waits for that."""
        async with self._ending:
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(patience_s):
                    await self._keeper.wait()
            except TimeoutError:
                return False
            return True

    async def kill(self) -> None:
        """SIGKILL to all of its processes, also to what left its group or outlived it: the keeper does it."""
        self._doomed = True
        async with self._ending:
            if self.alive:
                with suppress(ProcessLookupError):
                    # Not by its ``terminate()``: that would look first whether it has ended, and take the news from ``wait()``.
                    os.kill(self._keeper.pid, signal.SIGTERM)
            await self._keeper.wait()
        self._writer.close()

    def _signal(self, number: signal.Signals) -> None:
        if self.alive and self._pid is not None:
            signal_below(self._keeper.pid, self._pid, number)

    async def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(pack(message))
        await self._writer.drain()

    async def _obituary(self) -> str:
        await self.kill()
        code = self._keeper.returncode or 0
        if code < 0:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
            return f"the process that ran it was ended by {name}{hint}"
        return f"the process that ran it exited with code {code} before it had a result"


def _parsed(message: dict[str, Any], job: int) -> Outcome | Report | SpawnRequest | None:
    """What a frame says about ``job``; ``None`` for a late report of an earlier one. Raises :class:`BadFrame`."""
    try:
        said, number = _content(message), message["number"]
    except _MALFORMED as error:
        raise BadFrame(f"it sent what is no answer: {error!r}"[:500]) from error
    if number == job:
        return said
    if isinstance(said, Progress | LogLine | Beat) and isinstance(number, int) and number < job:
        return None
    raise BadFrame(f"it answered for job {number!r} instead of {job}"[:500])


def _content(message: dict[str, Any]) -> Outcome | Report | SpawnRequest:
    match message["kind"]:
        case "returned":
            return Returned(message["result"].encode())
        case "raised":
            return Raised(
                ErrorInfo(**message["error"]),
                retryable=bool(message["retryable"]),
                names=tuple(map(str, message["names"])),
                retry_after_s=None if message["retry_after_s"] is None else float(message["retry_after_s"]),
            )
        case "stopped":
            return Stopped(StopReason.CANCELLED)
        case "progress":
            return Progress(**message["report"])
        case "log":
            return LogLine(**message["report"])
        case "beat":
            return Beat()
        case "spawn":
            return SpawnRequest(**message["request"])
        case kind:
            raise ValueError(f"unknown kind {kind!r}")


class ChildPool:
    """Up to one child for each entry of ``devices``; a device's child is replaced when it ended."""

    def __init__(self, isolation: Isolation, devices: Sequence[Device]) -> None:
        self._isolation = isolation
        self._free: list[Device | Child] = list(devices)
        self._size = len(devices)
        self._surplus = 0
        self._ending: set[asyncio.Task[None]] = set()

    def resize(self, size: int) -> None:
        """Have places for ``size`` children on the CPU from now on. Of fewer, those that run something go when it is done."""
        self._surplus += self._size - size
        self._size = size
        while self._surplus < 0:
            self._surplus += 1
            self._free.append(CPU)
        self._shed()

    def _shed(self) -> None:
        """Give up free places while there are too many, empty ones first."""
        self._free.sort(key=lambda place: not isinstance(place, Child))
        while self._surplus > 0 and self._free:
            self._surplus -= 1
            place = self._free.pop()
            if isinstance(place, Child):
                ending = asyncio.create_task(place.kill())
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    async def take(self) -> Child:
        """A child that runs nothing. There are as many as the worker has slots, so one is always to be had."""
        # Prefer one that is running already: an empty place costs a start.
        self._free.sort(key=lambda place: isinstance(place, Child))
        place = self._free.pop()
        if isinstance(place, Child):
            if place.fit:
                return place
            place = place.device
        try:
            return await Child.start(self._isolation, place)
        except BaseException:
            self._free.append(place)
            raise

    def give_back(self, child: Child) -> None:
        """The child is free again; a dead or unfit one leaves its device's place empty."""
        self._free.append(child if child.fit else child.device)
        if self._surplus > 0:
            self._shed()

    async def close(self) -> None:
        """End all children that run nothing."""
        children = [place for place in self._free if isinstance(place, Child)]
        self._free.clear()
        await asyncio.gather(*(child.kill() for child in children), *self._ending)
