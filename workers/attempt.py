"""One attempt, from the delivered work item to the acknowledged outcome, as a list of steps.

Everything is at least once; one order makes it safe. *Claim*: the next version after the ready event is written as
``started``; only whoever wrote it enters user code. *Report*: the outcome is written as the version after that. *Then*
acknowledge. A crash before the claim leaves the work item to others; between claim and report the lease lapses, and who
is given the item next ends this attempt in the log before anything runs again; between report and acknowledgement the
item comes again and whoever gets it finds the outcome. A report that comes too late meets a version that exists.

Others steer an attempt by events of its task, which its worker reads in the order of the log and hands to
:meth:`Attempt.steer` one after the other:

| the attempt             | pause_requested              | resumed | cancel_requested        |
|-------------------------|------------------------------|---------|-------------------------|
| has not begun           | ends as soon as it would     | nothing | ends as soon as it would|
| runs on the loop        | is stopped at its next await | nothing | is stopped              |
| runs in a child         | stands still, then says so   | nothing | is stopped              |
| stands still in a child | nothing                      | goes on | goes on, and is stopped |
| is being stopped        | nothing                      | nothing | nothing                 |

The log may be ahead of what was read. A pause that was withdrawn meanwhile is refused, and the attempt goes on, or, where it
has ended for it, goes back to run again. One that was followed by a cancellation ends cancelled. A function that returns in
the moment in which it is told to stand still has returned: its result counts.

One that stands still when its worker leaves, or when it was taken away, is killed as it stands: nobody has resumed it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

from eventq.events.attempt_end import end_attempt
from eventq.events.blob_keys import output_key
from eventq.events.blobs import BlobStore
from eventq.events.commands import (
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ConfirmPause,
    ExpireLease,
    FailAttempt,
    InterruptAttempt,
    StartAttempt,
    TimeOutAttempt,
    TimeoutReason,
)
from eventq.events.data import BlobRef
from eventq.events.envelope import Event, Trace, next_event
from eventq.events.errors import (
    Conflict,
    EventqError,
    IllegalTransition,
    PayloadTooLarge,
    TaskNotFound,
    Unavailable,
    VersionConflict,
)
from eventq.events.failpoints import failpoint
from eventq.events.handle import Handled, handle, read_task
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES
from eventq.events.log import EventLog
from eventq.events.presence import present
from eventq.events.retry import RetryPolicy, retry_in_s
from eventq.events.specification import submission_in, submission_of
from eventq.events.task import TASKS, Status, Task, decide, from_summary, timeout_error
from eventq.events.task_events import Submitted
from eventq.workers.acks import Acks
from eventq.workers.alone import on_last_chance
from eventq.workers.context import SpawnRequest
from eventq.workers.execution import Execution, LoopHost
from eventq.workers.outcome import Outcome, Raised, Returned, Stopped, StopReason, describe_error, raised
from eventq.workers.processes import ChildPool
from eventq.workers.puller import Delivery
from eventq.workers.registry import Registry, TaskFunction
from eventq.workers.reports import Reports
from eventq.workers.retries import Retries
from eventq.workers.spawning import Spawner

log = structlog.get_logger("eventq.attempt")

HOSTNAME = socket.gethostname()
REPORT_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses between tries to store an outcome while the broker is away; after the last one the lease is left to lapse."""


@dataclass(slots=True)
class Counts:
    """What this worker did since it started, for its metrics and log."""

    started: int = 0
    completed: int = 0
    failed: int = 0
    stopped: int = 0
    stale_results_rejected: int = 0
    leases_expired: int = 0


@dataclass(slots=True)
class Workshop:
    """What the attempts of one worker share."""

    worker_id: str
    log: EventLog
    registry: Registry
    blobs: BlobStore
    acks: Acks
    spawner: Spawner
    loop_host: LoopHost
    children: ChildPool
    device_label: str
    isolate_async: bool
    """Run async functions in the child process too: on a device there is one process that owns it."""
    lease_s: float
    stop_s: float
    counts: Counts = field(default_factory=Counts)
    retries: Retries = field(default_factory=Retries)
    leaving: bool = False
    """The worker is about to end: no attempt stands still in it any more, a pause ends it instead."""

    @property
    def source(self) -> str:
        """How this worker signs its events."""
        return f"worker.{self.worker_id}"


class Attempt:
    """One work item in this worker's hands. ``execution`` is set while user code runs and can be stopped through it."""

    def __init__(self, delivery: Delivery, workshop: Workshop) -> None:
        self.delivery = delivery
        self.task_id = delivery.event.aggregate_id
        self.task: Task = from_summary(delivery.event.state)
        self.execution: Execution | None = None
        self._stop_early: StopReason | None = None
        self._steering = asyncio.Lock()
        self._seen_version = delivery.event.version
        """Up to which version signals are answered: older ones were meant for earlier attempts."""
        self._submitted: Submitted | None = None
        self._to_keep: tuple[Event, bytes] | None = None
        """The event with the submission, and its payload, where it was at hand: kept if the task will be tried again."""
        self._shop = workshop
        self._trace = Trace(delivery.event.id, delivery.event.trace.correlation_id, delivery.event.trace.traceparent)

    async def run(self) -> None:
        """Claim, run, report, acknowledge. Never raises: what goes wrong is in the log, or is left to the lease."""
        try:
            if (function := await self._resolve()) is None or not await self._claim():
                return
            started = time.monotonic()
            outcome = await self._execute(function)
            if self.execution is not None:
                started += self.execution.stood_still_s
            try:
                await self._report(outcome, function, time.monotonic() - started)
            except (TypeError, ValueError, RecursionError, PayloadTooLarge) as error:
                # The log cannot hold this outcome, at no attempt: the task has failed, and says why.
                failed = Raised(describe_error(error), retryable=False)
                await self._report(failed, function, time.monotonic() - started)
        except EventqError as error:
            # Without an answer from the log nothing may be concluded: the lease lapses and somebody reads what is true.
            log.warning("attempt.left_to_lease", task_id=self.task_id, code=error.code, error=error.detail)
        except Exception:
            log.exception("attempt.crashed", task_id=self.task_id)

    def stop(self, reason: StopReason) -> None:
        """Have user code end soon. Before it began, the attempt ends as soon as it would begin."""
        if self.execution is not None:
            self.execution.stop(reason)
        elif self._stop_early is None:
            self._stop_early = reason

    async def steer(self, signal: str, version: int) -> None:
        """An event of its task, of that version, asks for something; see the table above. Signals are dealt with one after the
        other; those that are older than what the log was last seen to say are answered by that."""
        async with self._steering:
            if version <= self._seen_version:
                return
            match signal:
                case "cancel_requested":
                    self.stop(StopReason.CANCELLED)
                case "pause_requested":
                    await self._pause()
                case "resumed":
                    self._thaw()
                case _:
                    raise AssertionError(f"nobody asked to be told of {signal!r}")

    @property
    def frozen(self) -> bool:
        """Whether it stands still: it will not end by itself."""
        return self.execution is not None and self.execution.frozen

    @property
    def stopped_early(self) -> bool:
        """Whether it is to end before it has begun."""
        return self.execution is None and self._stop_early is not None

    @property
    def on_last_chance(self) -> bool:
        """Whether it is to run alone."""
        return on_last_chance(self.task)

    async def is_next(self) -> bool:
        """Whether nothing has come after the event that made it ready, as far as the log answers."""
        try:
            return (await read_task(self._shop.log, self.task_id)).version <= self.delivery.event.version
        except EventqError:
            return True

    async def _pause(self) -> None:
        execution = self.execution
        if execution is None or not execution.in_child or self._shop.leaving or self.on_last_chance:
            self.stop(StopReason.PAUSED)
        elif await execution.freeze():
            failpoint("attempt.frozen")
            await self._say_frozen()

    async def _say_frozen(self) -> None:
        """Have the log say that the attempt stands still, or do what the log says instead."""
        while self.frozen:
            try:
                task = await self._confirm_frozen()
            except Unavailable as error:
                log.warning("attempt.pause_waits", task_id=self.task_id, code=error.code, error=error.detail)
                await asyncio.sleep(REPORT_PAUSES_S[0])
                continue
            if not self.is_current(task):
                self.stop(StopReason.LEASE_LOST)
                return
            if task.cancel_requested_by is not None:
                self.stop(StopReason.CANCELLED)
            elif not task.frozen and task.pause_requested_by is not None:
                continue  # withdrawn, and asked for again before we looked
            elif not task.frozen:
                self._thaw()  # withdrawn
            self._seen_version = task.version
            return

    async def _confirm_frozen(self) -> Task:
        """The task once it knows that its attempt stands still, or as it is where the rules refuse to write that: because the
        pause was withdrawn, or because it was written already and only the answer got lost."""
        shop, command = self._shop, ConfirmPause(self.task.attempt, frozen=True)
        try:
            return (await handle(shop.log, self.task_id, command, source=shop.source, trace=self._trace)).state
        except (Conflict, TaskNotFound):
            return await read_task(shop.log, self.task_id, fresh=True)

    def _thaw(self) -> None:
        if self.execution is not None:
            self.execution.thaw()

    def is_current(self, task: Task) -> bool:
        """Whether ``task``, as just read, is still in this attempt's hands (or was not claimed yet)."""
        return self.execution is None or (task.in_hand and task.attempt == self.task.attempt)

    # Claim

    async def _resolve(self) -> TaskFunction | None:
        """The function to run; a task that only other workers of the pool know goes back for them."""
        if self.task.task_name in self._shop.registry:
            return self._shop.registry.get(self.task.task_name)
        log.warning("attempt.unknown_task", task_id=self.task_id, task_name=self.task.task_name)
        await self._shop.acks.nak(self.delivery.lease, self._shop.lease_s)
        return None

    async def _claim(self) -> bool:
        """Write the version after the ready event. The only read is the one after a lost race."""
        shop = self._shop
        command = StartAttempt(shop.worker_id, HOSTNAME, shop.device_label)
        event, after = next_event(
            TASKS,
            self.task_id,
            self.task,
            decide(command, self.task)[0],
            source=shop.source,
            at=datetime.now(UTC),
            trace=self._trace,
        )
        failpoint("attempt.before_start")
        try:
            await shop.log.append(event)
        except VersionConflict:
            await self._find_out()
            return False
        failpoint("attempt.after_start")
        self.task = after
        shop.counts.started += 1
        return True

    async def _find_out(self) -> None:
        """The work item is not for us to start: is it spent, or did whoever started it disappear?"""
        shop = self._shop
        task = await read_task(shop.log, self.task_id, fresh=True)
        if task.finished or task.ready != self.delivery.event.version:
            await shop.acks.ack(self.delivery.lease)
        elif task.worker_id == shop.worker_id:
            await self._take_over(task)
        elif self.delivery.count == 1 or await self._holder_lives(task):
            # Not lapsed for his silence: the consumer was made anew, or the broker was away. He finishes, or it comes again.
            await shop.acks.nak(self.delivery.lease, shop.lease_s)
        else:
            await self._take_over(task)

    async def _holder_lives(self, task: Task) -> bool:
        """Whether the attempt's worker says that he runs it, not longer ago than a lease lasts (by the hosts' clocks; where
        those differ by more, his lease decides alone). While the broker has just come back nobody is judged."""
        shop = self._shop
        if time.monotonic() - shop.log.broker.reconnected_at < shop.lease_s:
            return True
        holder = (await present(shop.log.broker)).get(task.worker_id or "")
        if holder is None or self.task_id not in holder.running:
            return False
        return abs((datetime.now(UTC) - holder.at).total_seconds()) < shop.lease_s

    async def _take_over(self, task: Task) -> None:
        """The item came again, so its holder let the lease lapse. End his attempt; the item is then ready anew."""
        shop = self._shop
        ours = task.worker_id == shop.worker_id
        command: Command = InterruptAttempt(task.attempt) if ours else ExpireLease(task.attempt)
        try:
            await handle(shop.log, self.task_id, command, source=shop.source, trace=self._trace, task=task)
            shop.counts.leases_expired += 1
        except Conflict:
            pass  # the holder reported after all, or another has taken over: either way the item is spent
        await shop.acks.ack(self.delivery.lease)

    # Run

    async def _execute(self, function: TaskFunction) -> Outcome:
        shop = self._shop
        reports = Reports(shop.log.broker, self.task_id, self.task.attempt, shop.source)
        self.execution = Execution(
            function,
            task_id=self.task_id,
            attempt=self.task.attempt,
            worker_id=shop.worker_id,
            timeout_s=self.task.timeout_s,
            heartbeat_timeout_s=self.task.heartbeat_timeout_s,
            stop_s=shop.stop_s,
            on_report=reports.add,
            on_spawn=self._spawn,
        )
        if self._stop_early is not None:
            self.execution.stop(self._stop_early)
        on_loop = function.is_async and not shop.isolate_async
        try:
            args, kwargs = await self._arguments()
            return await self.execution.run(args, kwargs, shop.loop_host if on_loop else shop.children)
        except Unavailable:
            raise  # says nothing about the task: left to the lease
        except Exception as error:  # whatever it is, it is this attempt's end: left unsaid, it would run again for ever
            return raised(error)
        finally:
            await reports.close()

    async def _arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the submission that holds."""
        data = self._submitted = await self._specification()
        if data.input is None:
            return data.args, data.kwargs
        payload = orjson.loads(await self._shop.blobs.get_async(data.input))
        return payload["args"], payload["kwargs"]

    async def _specification(self) -> Submitted:
        """The submission that holds: in the ready event itself at first; later kept by this worker, or read back."""
        event = self.delivery.event
        if event.version == self.task.spec:
            self._to_keep = (event, self.delivery.payload)
        elif (kept := self._shop.retries.take(self.task_id, self.task.spec)) is not None:
            self._to_keep = kept
            event = kept[0]
        else:
            return await submission_of(self._shop.log, self.task_id, self.task)
        return submission_in(event)

    async def _spawn(self, request: SpawnRequest) -> str:
        return await self._shop.spawner.spawn(self.task_id, self.task, request, self._trace)

    # Report

    async def _report(self, outcome: Outcome, function: TaskFunction, duration_s: float) -> None:
        """Store what came of the attempt, then acknowledge. Refused where the attempt is no longer the current one."""
        shop = self._shop
        if isinstance(outcome, Stopped) and outcome.reason is StopReason.LEASE_LOST:
            return
        command = await self._command(outcome, function, duration_s)
        failpoint("attempt.before_outcome")
        try:
            handled = await self._persist(command)
        except (Conflict, TaskNotFound) as error:
            if isinstance(command, ConfirmPause) and isinstance(error, IllegalTransition):
                # The pause was withdrawn after the attempt had ended for it: it runs again.
                await self._report(Stopped(StopReason.INTERRUPTED), function, duration_s)
                return
            shop.counts.stale_results_rejected += 1
            log.warning("attempt.stale_result_rejected", task_id=self.task_id, attempt=self.task.attempt, error=error.detail)
            return
        failpoint("attempt.after_outcome")
        self._count(handled.state.status)
        if handled.state.status is Status.RETRYING and self._to_keep is not None:
            shop.retries.keep(*self._to_keep)
        self._tell(handled.state, duration_s)
        await shop.acks.ack(self.delivery.lease)
        failpoint("attempt.after_ack")

    async def _persist(self, command: Command) -> Handled[Task]:
        """Try for a while where the broker is away: work that is done should not be done again for a restart's sake."""
        for pause_s in REPORT_PAUSES_S:
            try:
                return await self._end(command)
            except Unavailable as error:
                log.warning("attempt.outcome_waits", task_id=self.task_id, code=error.code, error=error.detail)
                await asyncio.sleep(pause_s)
            # The unanswered append may have landed after all.
            if (stored := await self._outcome_in_log()) is not None:
                return stored
        return await self._end(command)

    async def _outcome_in_log(self) -> Handled[Task] | None:
        try:
            stored = await self._shop.log.last("tasks", self.task_id, fresh=True)
        except Unavailable:
            return None
        if stored is None or stored.event.source != self._shop.source or stored.event.version <= self.task.version:
            return None
        task = from_summary(stored.event.state)
        return None if task.in_hand else Handled(task, stored.event, stored.position)  # else only that it stands still

    async def _end(self, command: Command) -> Handled[Task]:
        shop = self._shop
        return await end_attempt(shop.log, self.task_id, command, source=shop.source, task=self.task, trace=self._trace)

    async def _command(self, outcome: Outcome, function: TaskFunction, duration_s: float) -> Command:
        attempt, now = self.task.attempt, datetime.now(UTC)
        match outcome:
            case Returned():
                return await self._completion(outcome, function, duration_s)
            case Raised():
                return FailAttempt(attempt, outcome.error, self._retry_after(outcome, function), now)
            case Stopped(StopReason.TIMED_OUT, steps):
                return self._timed_out("execution_timeout", duration_s, function, now, steps)
            case Stopped(StopReason.SILENT, steps):
                return self._timed_out("heartbeat_timeout", self.task.heartbeat_timeout_s or 0.0, function, now, steps)
            case Stopped(StopReason.CANCELLED, steps):
                return ConfirmCancel(attempt, steps)
            case Stopped(StopReason.PAUSED):
                return ConfirmPause(attempt, frozen=False)
            case Stopped():
                return InterruptAttempt(attempt)

    async def _completion(self, outcome: Returned, function: TaskFunction, duration_s: float) -> Command:
        """Large results go to the blob store first, under a name that no other attempt writes. Where that stays away the
        attempt has failed: to leave it to the lease would be to do the work again and again, without end."""
        attempt = self.task.attempt
        if len(outcome.result) <= INLINE_PAYLOAD_MAX_BYTES:
            return CompleteAttempt(attempt, orjson.loads(outcome.result), None, round(duration_s, 6))
        for pause_s in (*REPORT_PAUSES_S, None):
            try:
                return CompleteAttempt(attempt, None, await self._store(outcome.result), round(duration_s, 6))
            except Unavailable as error:
                if pause_s is None:
                    failed = raised(error)
                    return FailAttempt(attempt, failed.error, self._retry_after(failed, function), datetime.now(UTC))
                log.warning("attempt.result_waits", task_id=self.task_id, code=error.code, error=error.detail)
                await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    async def _store(self, result: bytes) -> BlobRef:
        key = output_key(self.task_id, self.task.attempt, "result.json")
        return await self._shop.blobs.put_async(result, key=key, media_type="application/json")

    def _policy(self, function: TaskFunction) -> RetryPolicy:
        own = None if self._submitted is None else self._submitted.retry
        return own or function.declaration.retry

    def _timed_out(
        self, reason: TimeoutReason, after_s: float, function: TaskFunction, now: datetime, steps: tuple[str, ...]
    ) -> TimeOutAttempt:
        after_s = round(after_s, 3)
        retry_s = self._retry_in_s(function, timeout_error(reason, after_s).type)
        return TimeOutAttempt(self.task.attempt, after_s, retry_s, now, reason, steps)

    def _retry_after(self, outcome: Raised, function: TaskFunction) -> float | None:
        if not outcome.retryable:
            return None
        names = outcome.names or (outcome.error.type,)  # a process that died has no class, but a name
        return self._retry_in_s(function, *names, asked_s=outcome.retry_after_s)

    def _retry_in_s(self, function: TaskFunction, *errors: str, asked_s: float | None = None) -> float | None:
        policy, failures = self._policy(function), self.task.failures + 1
        return retry_in_s(policy, failures, random.random(), errors=errors, asked_s=asked_s)

    def _tell(self, task: Task, duration_s: float) -> None:
        """One line for each attempt; of those that went well only where somebody wants to read them all."""
        tell = log.debug if task.status is Status.COMPLETED else log.info
        tell(
            "attempt.ended",
            task_id=self.task_id,
            task_name=task.task_name,
            request_id=self._trace.correlation_id,
            attempt=self.task.attempt,
            status=str(task.status),
            reason=task.reason,
            duration_s=round(duration_s, 6),
        )

    def _count(self, status: Status) -> None:
        counts = self._shop.counts
        if status is Status.COMPLETED:
            counts.completed += 1
        elif status in {Status.FAILED, Status.TIMED_OUT, Status.RETRYING}:
            counts.failed += 1
        else:
            counts.stopped += 1
