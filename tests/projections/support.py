"""Histories to fold, as the log would hand them over, and the tables they come to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import nats.errors
import orjson
from nats.js.errors import APIError

from eventq.events.broker import Broker
from eventq.events.commands import (
    AdmitTask,
    CancelTask,
    CleanTask,
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ConfirmPause,
    EraseTask,
    ExpireLease,
    ExpireQueueWait,
    FailAttempt,
    HoldTask,
    InterruptAttempt,
    PauseTask,
    PromoteTask,
    RequeueTask,
    ResumeTask,
    StartAttempt,
    SubmitTask,
    TimeOutAttempt,
    UpdateTask,
)
from eventq.events.data import ErrorInfo, EventData
from eventq.events.ending import end
from eventq.events.envelope import Event, Stored, encode, next_event
from eventq.events.erasure import tombstone
from eventq.events.errors import Conflict
from eventq.events.reader import Message
from eventq.events.report import Log, Progress
from eventq.events.retry import RetryPolicy
from eventq.events.subjects import EVENTS, PROGRESS
from eventq.events.task import ABSENT, TASKS, Task, decide
from eventq.events.task_events import ErasedEvent, Submitted
from eventq.events.worker import NO_WORKER, WORKERS, Worker
from eventq.events.worker_events import TaskDeclaration, WorkerRegistered, WorkerStopped
from eventq.projections.applier import Applier, Checkpoint, Target
from eventq.projections.projector import Projector
from eventq.projections.store import COMPARED, Store
from tests.support.poll import eventually

NOW = datetime(2026, 11, 21, 3, 0, 0, 123456, tzinfo=UTC)
CREATED = datetime(2026, 11, 21, 2, 0, 0, tzinfo=UTC)
ERROR = ErrorInfo(type="ValueError", message="no such column", traceback="line 1")


def submission(**changes: Any) -> Submitted:
    """A submission of `echo` with two retries."""
    values: dict[str, Any] = {
        "task_name": "echo", "kwargs": {"text": "hällo"}, "pool": "cpu", "queue": "default", "priority": 5, "max_retries": 2,
    }  # fmt: skip
    return Submitted(**{**values, **changes})


class History:
    """Writes events as the log does: contiguous positions, each aggregate's events linked."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.tasks: dict[str, Task] = {}
        self.workers: dict[str, Worker] = {}
        self.now = NOW

    def task(self, task_id: str, *history: EventData) -> Task:
        """Append task events with these data."""
        for data in history:
            self._tick()
            event, after = next_event(TASKS, task_id, self.tasks.get(task_id, ABSENT), data, source="test", at=self.now)
            self.tasks[task_id] = after
            self.events.append(event)
        return self.tasks[task_id]

    def worker(self, worker_id: str, *history: EventData) -> None:
        """Append worker events with these data."""
        for data in history:
            self._tick()
            event, after = next_event(
                WORKERS, worker_id, self.workers.get(worker_id, NO_WORKER), data, source="test", at=self.now
            )
            self.workers[worker_id] = after
            self.events.append(event)

    def attempt(self, task_id: str, command: Command) -> bool:
        """Carry out a command if the rules allow it, as `handle` would."""
        try:
            decided = decide(command, self.tasks.get(task_id, ABSENT))
        except Conflict:
            return False
        self.task(task_id, *decided)
        return bool(decided)

    def tombstones(self, task_id: str) -> tuple[ErasedEvent, ...]:
        """What is to be left of a task's events."""
        stored = (Stored(position, event) for position, event in enumerate(self.events, 1) if event.aggregate_id == task_id)
        return tuple(left for left in map(tombstone, stored) if left is not None)

    def messages(self) -> list[Message]:
        """All events as they are read from EVENTS."""
        return to_messages(self.events)

    def _tick(self) -> None:
        self.now += timedelta(milliseconds=7)


def to_messages(events: Iterable[Event]) -> list[Message]:
    """Events as they are read from EVENTS, from position 1 on."""
    return [Message(position, event.subject, encode(event), 0, 0) for position, event in enumerate(events, 1)]


def random_history(seed: int, length: int, tasks: int = 6, *, erasures: bool = True) -> History:
    """A valid history: whatever the rules allow, in an order that a seed decides. ``erasures``: of tasks among it."""
    rng, history = random.Random(seed), History()
    while len(history.events) < length:
        task_id = f"task-{rng.randrange(tasks)}-{len(history.events) // 40}"
        if rng.random() < 0.05:
            _random_worker(history, rng)
        else:
            history.attempt(task_id, _random_command(history, task_id, rng, erasures))
    return history


def _random_command(history: History, task_id: str, rng: random.Random, erasures: bool) -> Command:
    task, now = history.tasks.get(task_id, ABSENT), history.now
    later = now + timedelta(seconds=rng.choice([-60, 60]))
    wanted = submission(
        scheduled_at=rng.choice([None, None, later]),
        priority=rng.randrange(10),
        gated=rng.random() < 0.2,
        queue_timeout_s=rng.choice([None, 30.0]),
        tags=rng.choice([[], ["a", "b"]]),
        metadata=rng.choice([{}, {"secret": "m"}]),
    )
    if task is ABSENT:
        return SubmitTask(wanted, now)
    if task.finished and erasures and rng.random() < 0.5:
        return EraseTask("ada", None, history.tombstones(task_id))
    if task.finished:
        return CleanTask("ada", "requested")
    attempt = task.attempt
    makers: Sequence[Callable[[], Command]] = (
        lambda: StartAttempt(f"worker-{rng.randrange(3)}", "host", "cpu"),
        lambda: StartAttempt("worker-9", "host", "cuda:0"),
        lambda: CompleteAttempt(attempt, {"rows": rng.randrange(100)}, None, rng.random()),
        lambda: FailAttempt(attempt, ERROR, rng.choice([None, 1.0]), now),
        lambda: TimeOutAttempt(attempt, 2.5, rng.choice([None, 1.0]), now),
        lambda: InterruptAttempt(attempt),
        lambda: ExpireLease(attempt),
        lambda: PromoteTask(task.version, now + timedelta(days=1)),
        lambda: RequeueTask(task.version),
        lambda: CancelTask("ada", rng.choice([None, "no longer needed"])),
        lambda: ConfirmCancel(attempt),
        lambda: PauseTask("ada", rng.choice([None, "lunch"])),
        lambda: ConfirmPause(attempt, frozen=rng.random() < 0.5),
        lambda: ResumeTask("ada", now),
        lambda: UpdateTask(wanted, ("priority",), "ada", now),
        lambda: HoldTask(task.version),
        lambda: AdmitTask(task.version),
        lambda: ExpireQueueWait(now + timedelta(minutes=1)),
    )
    return rng.choice(makers)()


def _random_worker(history: History, rng: random.Random) -> None:
    worker_id = f"worker-{rng.randrange(4)}"
    history.worker(worker_id, rng.choice([registered(pid=rng.randrange(1, 99)), WorkerStopped(reason="asked to")]))


def registered(pid: int = 1, name: str = "echo") -> WorkerRegistered:
    """A registration that declares one task."""
    declared = TaskDeclaration(
        name=name, pool="cpu", queue="default", priority=5, max_retries=3, timeout_s=None, retry=RetryPolicy(),
        parameters=["text"], arguments={"type": "object"}, doc=f"pid {pid}",
    )  # fmt: skip
    return WorkerRegistered(
        hostname="host", pid=pid, pool="cpu", queues=["default"], capacity=2, devices=["cpu"], tasks=[declared]
    )


def new_applier(target: Target) -> Applier:
    """An applier of an empty store, at the beginning of both streams."""
    applier = Applier(target)
    for stream in (EVENTS, PROGRESS):
        applier.begin(stream, Checkpoint(0, None, CREATED))
    return applier


def tables(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table that derives from EVENTS, in an order of their own."""
    with store.read() as snapshot:
        return {table: snapshot.rows(f"SELECT * FROM {table} ORDER BY ALL") for table in COMPARED}


async def publish(broker: Broker, events: Iterable[Event]) -> None:
    """Store events as they are, checked by nobody: also such as no writer would write."""
    for event in events:
        await broker.js.publish(event.subject, encode(event))


async def publish_anew(url: str, events: Iterable[Event]) -> None:
    """As :func:`publish`, over a connection of its own, once the broker that was just started serves the log again."""

    async def ready() -> bool:
        try:
            return await writer.stream_facts(EVENTS) is not None
        except (nats.errors.Error, APIError, TimeoutError):
            return False

    async with await Broker.connect(url, name="writer") as writer:
        await eventually(ready)
        await publish(writer, events)


def report_message(position: int, task_id: str, attempt: int, data: Progress | Log) -> Message:
    """A line as it is read from PROGRESS."""
    payload = {
        "id": f"line-{position}", "source": "worker.w1", "type": "progress" if isinstance(data, Progress) else "log",
        "subject": f"tasks.{task_id}", "time": NOW, "schema": 1, "attempt": attempt, "data": asdict(data),
    }  # fmt: skip
    return Message(position, f"progress.{task_id}", orjson.dumps(payload), 0, 0)


@asynccontextmanager
async def running(projector: Projector) -> AsyncGenerator[Projector]:
    """The projector, running; an error that ended it is raised at the end."""
    task = asyncio.create_task(projector.run())
    try:
        yield projector
    finally:
        await end(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
