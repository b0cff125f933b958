"""The child process that runs task functions, one at a time: started by :mod:`eventq.workers.processes`,
never by hand.

It has no connection to the broker and no right to any: it gets arguments over a socket and answers progress,
log lines and one outcome. The worker may kill it at any moment, which is what makes a plain function
cancellable.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import queue
import signal
import socket
import sys
import threading
from dataclasses import asdict
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from eventq.events.blobs import BlobStore
from eventq.events.report import LogLine, Progress
from eventq.workers.config import Isolation
from eventq.workers.context import Context, TaskCancelled
from eventq.workers.frames import FrameError, pack, receive_frame
from eventq.workers.inputs import Inputs
from eventq.workers.outcome import raised
from eventq.workers.registry import load_modules
from eventq.workers.result import encode_result

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the worker ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class _Host:
    """The context's host inside the child: everything becomes a frame to the worker.

    ``stopped`` is the number of the newest job that was asked to stop: a request that comes late never hits the next job.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self.job = 0
        self.stopped = 0

    def report(self, report: Progress | LogLine) -> None:
        kind = "progress" if isinstance(report, Progress) else "log"
        self.send({"kind": kind, "report": asdict(report)})

    def cancelled(self) -> bool:
        return self.stopped == self.job

    def send(self, message: dict[str, Any]) -> None:
        frame = pack(message)
        with self._sending:
            self._channel.sendall(frame)


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

    def __init__(self, host: _Host, isolation: Isolation) -> None:
        self._host = host
        self._registry = load_modules(isolation.modules)
        self._blobs = BlobStore.open(isolation.blob_url)
        self._inputs = Inputs(self._blobs, isolation.input_dirs, isolation.fetch_allow)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one function to its end, whatever it does, and say how it ended."""
        self._host.job = job["number"]
        context = Context(
            self._host,
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
        except TaskCancelled:
            return {"kind": "stopped"}
        except BaseException as error:  # task code may raise anything, SystemExit included: all of it is an outcome
            outcome = raised(error)
            return {"kind": "raised", "error": outcome.error.model_dump(), "retryable": outcome.retryable}


def _listen(channel: socket.socket, host: _Host, jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Take jobs and stop requests until the worker is gone; then nobody wants the outcome any more."""
    try:
        while True:
            message = receive_frame(channel)
            if message["kind"] == "stop":
                host.stopped = message["number"]
            else:
                jobs.put(message)
    except (FrameError, OSError):
        os._exit(0)


def main() -> None:
    """``python -P -m eventq.workers.process_main FD PARENT``"""
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = receive_frame(channel)
    sys.path[:] = setup["path"]
    host = _Host(channel)
    try:
        runner = _Runner(host, isolation_from(setup["isolation"]))
    except BaseException as error:
        host.send({"kind": "broken", "error": raised(error).error.model_dump()})
        raise
    host.send({"kind": "ready"})
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, host, jobs), daemon=True, name="listen").start()
    while True:
        host.send(runner.run(jobs.get()))


if __name__ == "__main__":
    main()
