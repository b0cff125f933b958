"""Run one attempt's function to its end, on the worker's loop or in a child process, and be able to stop it or have it stand
still.

Stopping escalates. An async function is cancelled; a plain one is asked through its context, then SIGTERM, then SIGKILL,
``stop_s`` apart. What a function does after it was asked is still respected if it ends by itself in time.

Standing still is for child processes: SIGSTOP, and SIGCONT to go on. What limits an attempt's time does not run meanwhile.
One that stands still goes on to be cancelled, and is asked as any other. When it is handed back or taken away it is killed as
it stands: its task is paused, or another's, and nobody has resumed it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog

from eventq.events.blobs import BlobStore
from eventq.events.data import ErrorInfo
from eventq.events.ending import end
from eventq.events.errors import InvalidInput
from eventq.events.report import LogLine, Progress
from eventq.workers.context import Beat, Context, Report, SpawnRequest, TaskCancelled, TaskPaused
from eventq.workers.countdown import Countdown
from eventq.workers.inputs import Inputs
from eventq.workers.outcome import Outcome, Raised, Returned, Stopped, StopReason, raised
from eventq.workers.processes import Child, ChildPool
from eventq.workers.registry import TaskFunction
from eventq.workers.result import encode_result

log = structlog.get_logger("eventq.execution")

OnReport = Callable[[Progress | LogLine], None]
OnSpawn = Callable[[SpawnRequest], Awaitable[str]]

_GIVEN_AWAY = frozenset({StopReason.PAUSED, StopReason.INTERRUPTED, StopReason.LEASE_LOST})
"""For these an attempt that stands still is not let go on, not even to end by itself."""

LISTEN_S = 0.1
"""For how long an attempt whose heartbeat is overdue is listened to before it is stopped."""


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
        heartbeat_timeout_s: float | None,
        stop_s: float,
        on_report: OnReport,
        on_spawn: OnSpawn,
    ) -> None:
        self._function = function
        self._task_id = task_id
        self._attempt = attempt
        self._worker_id = worker_id
        self._stop_s = stop_s
        self._on_report = on_report
        self.on_spawn = on_spawn
        self._time = Countdown(timeout_s, lambda: self.stop(StopReason.TIMED_OUT))
        self._silence = Countdown(heartbeat_timeout_s, self._on_silence)
        self._heard = 0
        self._still_since = 0.0
        self.stood_still_s = 0.0
        self._stopping = asyncio.Event()
        self._wake: Callable[[], None] | None = None
        self._child: Child | None = None
        self._steps: list[str] = []
        self.frozen = False
        self.stop_reason: StopReason | None = None

    def stop(self, reason: StopReason) -> None:
        """Have the function end soon. Idempotent: later reasons change nothing. One that stands still goes on for it, or is
        killed as it stands."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self.thaw()
            self._stopping.set()
            if self._wake is not None:
                self._wake()

    @property
    def in_child(self) -> bool:
        """Whether the function runs in a process of its own, which can stand still."""
        return self._child is not None

    async def freeze(self) -> bool:
        """Have the function stand still. Whether it does: not where it has no process of its own, or is being stopped."""
        if self._child is None or self.stop_reason is not None:
            return False
        if self.frozen:
            return True
        child = self._child
        self.frozen = True
        self._still_since = time.monotonic()
        self._time.pause()
        self._silence.pause()
        stands_still = await child.freeze()
        if self._child is not child or self.stop_reason in _GIVEN_AWAY:
            return False  # it has ended, and the child may run something else by now; or it is killed as it stands
        if stands_still and self.frozen:
            return True
        child.thaw()  # it was stopped while it was being told, or would not stand still
        self.thaw()
        return False

    def thaw(self) -> None:
        """Have it go on. Nothing where it does not stand still, or is killed as it stands."""
        if self.frozen and self._child is not None and self.stop_reason not in _GIVEN_AWAY:
            self._go_on(self._child)
            self._time.start()
            self._silence.start()

    def _go_on(self, child: Child) -> None:
        self.frozen = False
        self.stood_still_s += time.monotonic() - self._still_since
        child.thaw()

    def report(self, report: Report) -> None:
        """Take what the function says of itself: a sign of life in any case."""
        self._heard += 1
        self._silence.restart()
        if not isinstance(report, Beat):
            self._on_report(report)

    async def run(self, args: list[Any], kwargs: dict[str, Any], host: LoopHost | ChildPool) -> Outcome:
        """Run the function where it belongs; answers only when it has ended (or an async one was given up)."""
        try:
            if isinstance(host, ChildPool):
                outcome = await self._run_in_child(args, kwargs, host)
            else:
                outcome = await self._run_on_loop(args, kwargs, host)
        finally:
            self._time.pause()
            self._silence.pause()
        if self.stop_reason is not None and not self._is_its_own(outcome):
            return Stopped(self.stop_reason, tuple(self._steps))
        if isinstance(outcome, Stopped):
            return Raised(ErrorInfo(type="TaskCancelled", message="the function cancelled itself: nobody had asked it to stop"))
        return outcome

    def _is_its_own(self, outcome: Outcome) -> bool:
        """Whether the function came to it by itself: it returned, or raised before anything was done to stop it."""
        return isinstance(outcome, Returned) or (isinstance(outcome, Raised) and not self._steps)

    def _on_silence(self) -> None:
        """What it said while others blocked the worker's loop is still to be read: listen once more before judging."""
        asyncio.get_running_loop().call_later(LISTEN_S, self._judge_silence, self._heard)

    def _judge_silence(self, heard: int) -> None:
        if self._heard == heard and not self.frozen:
            self.stop(StopReason.SILENT)

    def _begin(self) -> None:
        """From here on the attempt's time counts."""
        self._time.start()
        self._silence.start()

    # On the loop

    async def _run_on_loop(self, args: list[Any], kwargs: dict[str, Any], host: LoopHost) -> Outcome:
        context = Context(
            _LoopContextHost(self),
            task_id=self._task_id,
            attempt=self._attempt,
            worker_id=self._worker_id,
            device="cpu",
            blobs=host.blobs,
            inputs=host.inputs,
        )
        self._begin()
        running = asyncio.create_task(self._call(context, args, kwargs))
        await self._until_stopped_or(running)
        if not running.done():
            self._steps.append("asked")
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
        except (TaskCancelled, TaskPaused):
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
        self._child = child
        self._begin()
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
            return await child.run(job, self.report, self.on_spawn)
        finally:
            if self.frozen:  # it has ended all the same: what is left of its process may run the next
                self._go_on(child)
            self._child = None
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
        stands_still = self.frozen
        if not stands_still:
            self._on_step("asked", "asked to stop")
            await child.ask()
            await asyncio.sleep(self._stop_s)
            self._on_step("SIGTERM", "SIGTERM")
        try:
            if stands_still or not await child.terminate(self._stop_s):
                self._on_step("SIGKILL", "SIGKILL")
        finally:
            await child.kill()  # also where the function has returned after all: the signal may hit the next one

    def _on_step(self, step: str, told: str) -> None:
        self._steps.append(step)
        self._on_report(LogLine(f"{told}: {self.stop_reason}", "warning"))


class LoopHost:
    """What async functions of this worker share. ``ghosts``: those that ignored their cancellation and run on; only the
    end of the process ends them."""

    def __init__(self, blobs: BlobStore, inputs: Inputs) -> None:
        self.blobs = blobs
        self.inputs = inputs
        self.ghosts: set[asyncio.Task[Outcome]] = set()


class _LoopContextHost:
    """The context's host on the worker's own loop."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def report(self, report: Report) -> None:
        self._execution.report(report)

    def stop_reason(self) -> StopReason | None:
        return self._execution.stop_reason

    def spawn(self, request: SpawnRequest) -> str:
        raise InvalidInput("spawn", "would block the worker's loop: await ctx.spawn_async(...) in an async function")

    async def spawn_async(self, request: SpawnRequest) -> str:
        return await self._execution.on_spawn(request)
