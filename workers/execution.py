"""Run one attempt's function to its end, on the worker's loop or in a child process, and be able to stop it.

Stopping escalates. An async function is cancelled; a plain one is asked through its context, then SIGTERM, then SIGKILL,
``stop_s`` apart. What a function does after it was asked is still respected if it ends by itself in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from eventq.events.blobs import BlobStore
from eventq.events.data import ErrorInfo
from eventq.events.ending import end
from eventq.events.report import LogLine, Progress
from eventq.workers.context import Context, TaskCancelled
from eventq.workers.inputs import Inputs
from eventq.workers.outcome import Outcome, Raised, Returned, Stopped, StopReason, raised
from eventq.workers.processes import Child, ChildPool, OnReport
from eventq.workers.registry import TaskFunction
from eventq.workers.result import encode_result

log = structlog.get_logger("eventq.execution")


class Execution:
    """One attempt in the act. :meth:`run` once; :meth:`stop` at any time, from the same loop; the first reason counts."""

    def __init__(
        self,
        function: TaskFunction,
        *,
        task_id: str,
        attempt: int,
        worker_id: str,
        timeout_s: float | None,
        stop_s: float,
        on_report: OnReport,
    ) -> None:
        self._function = function
        self._task_id = task_id
        self._attempt = attempt
        self._worker_id = worker_id
        self._timeout_s = timeout_s
        self._stop_s = stop_s
        self._on_report = on_report
        self._stopping = asyncio.Event()
        self._wake: Callable[[], None] | None = None
        self.stop_reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        """Have the function end soon. Idempotent: later reasons change nothing."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self._stopping.set()
            if self._wake is not None:
                self._wake()

    async def run(self, args: list[Any], kwargs: dict[str, Any], host: LoopHost | ChildPool) -> Outcome:
        """Run the function where it belongs; answers only when it has ended (or an async one was given up)."""
        if isinstance(host, ChildPool):
            outcome = await self._run_in_child(args, kwargs, host)
        elif self._timeout_s is None:
            outcome = await self._run_on_loop(args, kwargs, host)
        else:
            timer = asyncio.get_running_loop().call_later(self._timeout_s, self.stop, StopReason.TIMED_OUT)
            outcome = await self._run_on_loop(args, kwargs, host)
            timer.cancel()
        if self.stop_reason is not None and not isinstance(outcome, Returned):
            return Stopped(self.stop_reason)
        if isinstance(outcome, Stopped):
            return Raised(ErrorInfo(type="TaskCancelled", message="the function cancelled itself: nobody had asked it to stop"))
        return outcome

    # On the loop

    async def _run_on_loop(self, args: list[Any], kwargs: dict[str, Any], host: LoopHost) -> Outcome:
        context = Context(
            _LoopContextHost(self, self._on_report),
            task_id=self._task_id,
            attempt=self._attempt,
            worker_id=self._worker_id,
            device="cpu",
            blobs=host.blobs,
            inputs=host.inputs,
        )
        running = asyncio.create_task(self._call(context, args, kwargs))
        await self._until_stopped_or(running)
        if not running.done():
            running.cancel()
            await asyncio.wait((running,), timeout=self._stop_s)
        if not running.done():
            # A coroutine cannot be killed. Its slot is freed and its outcome recorded; it runs on as a ghost.
            log.error("execution.coroutine_ignores_cancel", task_id=self._task_id, task_name=self._function.name)
            host.ghosts.add(running)
            running.add_done_callback(host.ghosts.discard)
            return Raised(ErrorInfo(type="Unstoppable", message="the coroutine ignores its cancellation"))
        return Stopped(StopReason.CANCELLED) if running.cancelled() else running.result()

    async def _until_stopped_or(self, running: asyncio.Task[Any]) -> None:
        """As ``asyncio.wait`` for either, without a task of its own that waits for the stop."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(_: object = None) -> None:
            if not over.done():
                over.set_result(None)

        self._wake = wake
        running.add_done_callback(wake)
        if self.stop_reason is not None:
            wake()
        await over

    async def _call(self, context: Context, args: list[Any], kwargs: dict[str, Any]) -> Outcome:
        try:
            return Returned(encode_result(await self._function.call(context, args, kwargs)))
        except TaskCancelled:
            return Stopped(StopReason.CANCELLED)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # task code may raise anything, SystemExit included: all of it is an outcome
            return raised(error)

    # In a child process

    async def _run_in_child(self, args: list[Any], kwargs: dict[str, Any], pool: ChildPool) -> Outcome:
        try:
            child = await self._take(pool)
        except (OSError, MemoryError) as error:  # no process, no memory, no file to be had: later there may be
            return raised(error)
        if child is None:
            return Stopped(StopReason.CANCELLED)
        timer = None
        if self._timeout_s is not None:
            timer = asyncio.get_running_loop().call_later(self._timeout_s, self.stop, StopReason.TIMED_OUT)
        stopper = asyncio.create_task(self._stop_child(child))
        try:
            job = {
                "task_name": self._function.name,
                "task_id": self._task_id,
                "attempt": self._attempt,
                "worker_id": self._worker_id,
                "args": args,
                "kwargs": kwargs,
            }
            return await child.run(job, self._on_report)
        finally:
            if timer is not None:
                timer.cancel()
            stopper.cancel()
            with suppress(asyncio.CancelledError):
                await stopper
            pool.give_back(child)

    async def _take(self, pool: ChildPool) -> Child | None:
        """A child to run in, which may take a while to start; ``None`` where the attempt was stopped before it had one."""
        taking = asyncio.create_task(pool.take())
        try:
            await self._until_stopped_or(taking)
        finally:
            await end(taking)
        if taking.cancelled():
            return None
        child = taking.result()
        if self.stop_reason is None:
            return child
        pool.give_back(child)
        return None

    async def _stop_child(self, child: Child) -> None:
        await self._stopping.wait()
        self._on_step("asked to stop")
        await child.ask()
        await asyncio.sleep(self._stop_s)
        self._on_step("SIGTERM")
        try:
            await child.end(self._stop_s)
        finally:
            await child.kill()  # also where the function has returned after all: the signal may hit the next one

    def _on_step(self, step: str) -> None:
        self._on_report(LogLine(f"{step}: {self.stop_reason}", "warning"))


class LoopHost:
    """What async functions of this worker share. ``ghosts``: those that ignored their cancellation and run on; only the
    end of the process ends them."""

    def __init__(self, blobs: BlobStore, inputs: Inputs) -> None:
        self.blobs = blobs
        self.inputs = inputs
        self.ghosts: set[asyncio.Task[Outcome]] = set()


class _LoopContextHost:
    """The context's host on the worker's own loop."""

    def __init__(self, execution: Execution, on_report: OnReport) -> None:
        self._execution = execution
        self._on_report = on_report

    def report(self, report: Progress | LogLine) -> None:
        self._on_report(report)

    def cancelled(self) -> bool:
        return self._execution.stop_reason is not None
