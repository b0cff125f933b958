"""The child process that runs task functions, one at a time: started by :mod:`eventq.workers.keeper`, never by hand.

It has no connection to the broker and no right to any: it gets arguments over a socket and answers progress,
log lines and one outcome. The worker may kill it at any moment, which is what makes a plain function
cancellable.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Set
from dataclasses import asdict
from ipaddress import ip_network
from itertools import count
from pathlib import Path
from typing import Any

from eventq.events.blobs import BlobStore
from eventq.events.errors import InvalidInput, Unavailable
from eventq.events.report import Progress
from eventq.workers.config import Isolation
from eventq.workers.context import Beat, Context, Report, SpawnRequest, TaskCancelled, TaskPaused
from eventq.workers.frames import FrameError, pack, receive_frame
from eventq.workers.inputs import Inputs
from eventq.workers.outcome import StopReason, raised
from eventq.workers.process_tree import adopt_orphans, die_with_parent
from eventq.workers.registry import load_modules
from eventq.workers.result import encode_result


class _Channel:
    """The way to the worker. It belongs to the process that was given it; one that task code forked must not use it.

    ``stopped`` is the number of the newest job that was asked to stop: a request that comes late never hits the next job.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._socket = channel
        self._owner = os.getpid()
        self._sending = threading.Lock()
        self.stopped = 0
        self._calls = count(1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        channel.set_inheritable(False)
        os.register_at_fork(after_in_child=channel.close)

    @property
    def forked(self) -> bool:
        """Whether this process is a copy of the one that was given the channel."""
        return os.getpid() != self._owner

    def send(self, number: int, message: dict[str, Any]) -> None:
        """Send one frame about job ``number`` (0: about the process itself). A copy of the process ends here."""
        if self.forked:
            os._exit(0)
        frame = pack({"number": number, **message})
        with self._sending:
            self._socket.sendall(frame)

    def ask_to_spawn(self, number: int, request: SpawnRequest) -> str:
        """Have the worker store a task, and wait until it has. Raises what it was refused for."""
        call = next(self._calls)
        answers = self._answers[call] = queue.SimpleQueue()
        try:
            self.send(number, {"kind": "spawn", "call": call, "request": asdict(request)})
            answer = answers.get()
        finally:
            del self._answers[call]
        if "task_id" in answer:
            return str(answer["task_id"])
        if answer["field"] is not None:
            raise InvalidInput(str(answer["field"]), str(answer["error"]).removeprefix(f"{answer['field']}: "))
        raise Unavailable(str(answer["error"]))

    def take_answer(self, message: dict[str, Any]) -> None:
        """Hand an answer to whoever waits for it."""
        if (answers := self._answers.get(message["call"])) is not None:
            answers.put(message)


class _Host:
    """The context's host inside the child, for one job: everything becomes a frame to the worker.

    A process that task code forked has no say: its reports are dropped, and it ends where it would report an outcome.
    """

    def __init__(self, channel: _Channel, number: int) -> None:
        self._channel = channel
        self._number = number

    def report(self, report: Report) -> None:
        if self._channel.forked:
            return
        if isinstance(report, Beat):
            self._channel.send(self._number, {"kind": "beat"})
            return
        kind = "progress" if isinstance(report, Progress) else "log"
        self._channel.send(self._number, {"kind": kind, "report": asdict(report)})

    def stop_reason(self) -> StopReason | None:
        return StopReason.CANCELLED if self._channel.stopped == self._number else None

    def spawn(self, request: SpawnRequest) -> str:
        if self._channel.forked:
            raise InvalidInput("spawn", "cannot be called in a process that the task forked")
        return self._channel.ask_to_spawn(self._number, request)

    async def spawn_async(self, request: SpawnRequest) -> str:
        return await asyncio.to_thread(self.spawn, request)


def isolation_to(isolation: Isolation) -> dict[str, Any]:
    """As JSON values, for the first frame to a child."""
    return {
        "modules": list(isolation.modules),
        "blob_url": isolation.blob_url,
        "input_dirs": [str(path) for path in isolation.input_dirs],
        "fetch_allow": [str(network) for network in isolation.fetch_allow],
    }


def isolation_from(raw: dict[str, Any]) -> Isolation:
    """The inverse of :func:`isolation_to`."""
    return Isolation(
        modules=tuple(raw["modules"]),
        blob_url=raw["blob_url"],
        input_dirs=tuple(Path(path) for path in raw["input_dirs"]),
        fetch_allow=tuple(ip_network(network) for network in raw["fetch_allow"]),
    )


class _Runner:
    """Runs jobs one after another with what was loaded once."""

    def __init__(self, channel: _Channel, isolation: Isolation) -> None:
        self._channel = channel
        self._registry = load_modules(isolation.modules)
        self._blobs = BlobStore.open(isolation.blob_url)
        self._inputs = Inputs(self._blobs, isolation.input_dirs, isolation.fetch_allow)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one function to its end, whatever it does, and say how it ended."""
        context = Context(
            _Host(self._channel, job["number"]),
            task_id=job["task_id"],
            attempt=job["attempt"],
            worker_id=job["worker_id"],
            device=job["device"],
            blobs=self._blobs,
            inputs=self._inputs,
        )
        try:
            value = self._registry.get(job["task_name"]).call(context, job["args"], job["kwargs"])
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
            return {"kind": "returned", "result": encode_result(value).decode()}
        except (TaskCancelled, TaskPaused):
            return {"kind": "stopped"}
        except BaseException as error:  # task code may raise anything, SystemExit included: all of it is an outcome
            outcome = raised(error)
            return {
                "kind": "raised",
                "error": outcome.error.model_dump(),
                "retryable": outcome.retryable,
                "names": outcome.names,
                "retry_after_s": outcome.retry_after_s,
            }


def _threads() -> frozenset[int]:
    """Threads that run Python code, also those that the ``threading`` module does not know; a library's own are not meant."""
    return frozenset(sys._current_frames())  # pyright: ignore[reportPrivateUsage]  # documented, whatever its name says


def _left_behind(threads: Set[int]) -> bool:
    """Whether a job left something running that could meddle with the next: threads of Python's beyond ``threads``, or
    processes. Those that have ended are reaped."""
    if _threads() - threads:
        return True
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _listen(channel: socket.socket, way: _Channel, jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Take jobs and stop requests until the worker is gone; then nobody wants the outcome any more."""
    try:
        while True:
            message = receive_frame(channel)
            if message["kind"] == "stop":
                way.stopped = message["number"]
            elif message["kind"] == "spawned":
                way.take_answer(message)
            else:
                jobs.put(message)
    except (FrameError, OSError):
        os._exit(0)


def main() -> None:
    """``python -P -m eventq.workers.process_main FD PARENT``"""
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = receive_frame(channel)
    sys.path[:] = setup["path"]
    way = _Channel(channel)
    try:
        runner = _Runner(way, isolation_from(setup["isolation"]))
    except BaseException as error:
        way.send(0, {"kind": "broken", "error": raised(error).error.model_dump()})
        raise
    way.send(0, {"kind": "ready", "pid": os.getpid()})
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, way, jobs), daemon=True, name="listen").start()
    threads = _threads()
    while True:
        job = jobs.get()
        outcome = runner.run(job)
        way.send(job["number"], outcome if way.forked else {**outcome, "clean": not _left_behind(threads)})


if __name__ == "__main__":
    main()
