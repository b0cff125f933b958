"""Child processes for task code that may block, compute, crash or have to be killed.

A child runs one function at a time and stays for the next. It is started when first needed (some 0.4 s), and replaced
after it died or had to be killed. Each is the leader of its own process group, so that killing it also ends what the task
started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from eventq.events.catalogue import ErrorInfo
from eventq.events.errors import EventqError
from eventq.events.report import LogLine, Progress
from eventq.workers.config import Isolation
from eventq.workers.devices import Device
from eventq.workers.frames import FrameError, pack, read_frame
from eventq.workers.outcome import Outcome, Raised, Returned, Stopped, StopReason
from eventq.workers.process_main import isolation_to

START_TIMEOUT_S = 60.0

OnReport = Callable[[Progress | LogLine], None]


class ChildBroken(EventqError):
    """A child process could not load the task modules."""

    code = "CHILD_BROKEN"


class Child:
    """One child process and its channel."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, device: Device
    ) -> None:
        self.device = device
        self._process = process
        self._reader = reader
        self._writer = writer
        self._job = 0

    @classmethod
    async def start(cls, isolation: Isolation, device: Device) -> Child:
        """Start a child and wait until it has loaded the task modules. Raises :class:`ChildBroken` if it cannot."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "eventq.workers.process_main", str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **device.environment},
            )
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, reader, writer, device)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await child._send({"isolation": isolation_to(isolation), "path": sys.path})
                first = await read_frame(reader)
        except (FrameError, TimeoutError) as error:
            await child.kill()
            raise ChildBroken(f"a child process did not start: {error!r}") from error
        if first["kind"] != "ready":
            await child.kill()
            raise ChildBroken(f"a child process cannot load the tasks: {first['error']['message']}", error=first["error"])
        return child

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    async def run(self, job: dict[str, Any], on_report: OnReport) -> Outcome:
        """Run one function to its end; progress and log lines go to ``on_report`` as they come."""
        self._job += 1
        try:
            await self._send({"kind": "run", "number": self._job, "device": self.device.name, **job})
            while True:
                message = await read_frame(self._reader)
                match message["kind"]:
                    case "returned":
                        return Returned(message["result"].encode())
                    case "raised":
                        return Raised(ErrorInfo(**message["error"]), retryable=message["retryable"])
                    case "stopped":
                        return Stopped(StopReason.CANCELLED)
                    case "progress":
                        on_report(Progress(**message["report"]))
                    case _:
                        on_report(LogLine(**message["report"]))
        except (FrameError, OSError):
            return Raised(ErrorInfo(type="ProcessDied", message=await self._obituary()))

    async def ask(self) -> None:
        """Ask the running function to stop: its context raises at the next ``check``."""
        with suppress(FrameError, OSError):
            await self._send({"kind": "stop", "number": self._job})

    async def end(self, patience_s: float) -> None:
        """SIGTERM to the whole group, and SIGKILL after ``patience_s``."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience_s):
                await self._process.wait()
        except TimeoutError:
            pass
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to the whole group, also to what outlived the child itself."""
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self._writer.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(pack(message))
        await self._writer.drain()

    async def _obituary(self) -> str:
        await self.kill()
        code = self._process.returncode or 0
        if code < 0:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return f"the process that ran it was ended by {signal.Signals(-code).name}{hint}"
        return f"the process that ran it exited with code {code} before it had a result"


class ChildPool:
    """Up to one child for each entry of ``devices``; a device's child is replaced when it ended."""

    def __init__(self, isolation: Isolation, devices: Sequence[Device]) -> None:
        self._isolation = isolation
        self._free: list[Device | Child] = list(devices)

    async def take(self) -> Child:
        """A child that runs nothing. There are as many as the worker has slots, so one is always to be had."""
        # Prefer one that is running already: an empty place costs a start.
        self._free.sort(key=lambda place: isinstance(place, Child))
        place = self._free.pop()
        if isinstance(place, Child):
            if place.alive:
                return place
            place = place.device
        try:
            return await Child.start(self._isolation, place)
        except BaseException:
            self._free.append(place)
            raise

    def give_back(self, child: Child) -> None:
        """The child is free again; a dead one leaves its device's place empty."""
        self._free.append(child if child.alive else child.device)

    async def close(self) -> None:
        """End all children that run nothing."""
        children = [place for place in self._free if isinstance(place, Child)]
        self._free.clear()
        await asyncio.gather(*(child.kill() for child in children))
