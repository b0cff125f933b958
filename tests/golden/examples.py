"""One event of every type, with fixed ids and times: what `make.py` writes and the tests expect to read back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from eventq.events.catalogue import TYPE_OF
from eventq.events.data import BlobRef, ErrorInfo, EventData
from eventq.events.envelope import Event, Trace
from eventq.events.retry import RetryPolicy
from eventq.events.subjects import Route
from eventq.events.task import ABSENT, evolve, makes_ready, summary
from eventq.events.task_events import (
    Cancelled,
    CancelRequested,
    Completed,
    Failed,
    Queued,
    Retrying,
    Started,
    Submitted,
    TimedOut,
)
from eventq.events.worker import NO_WORKER, evolve_worker, worker_summary
from eventq.events.worker_events import TaskDeclaration, WorkerRegistered, WorkerStopped

START = datetime(2026, 11, 21, 3, 0, 0, 123456, tzinfo=UTC)
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ERROR = ErrorInfo(type="ValueError", message="column 'preis' is no number: 'zwölf €'", traceback="tasks.py, line 7")
BLOB = BlobRef(
    key="sha256/9f/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    size_bytes=70_000,
    media_type="application/json",
)


def event_id(number: int) -> str:
    return f"019aa45f-0000-7000-8000-{number:012d}"


def submitted(**changes: object) -> Submitted:
    values: dict[str, object] = {
        "task_name": "csv_processing",
        "args": ["data/käufe.csv", 3, None],
        "kwargs": {"delimiter": ";", "options": {"header": True, "rows": [1, 2.5]}},
        "pool": "cpu",
        "queue": "reports",
        "priority": 7,
        "max_retries": 3,
        "timeout_s": 60.0,
        "requested_by": "ada",
    }
    return Submitted.model_validate({**values, **changes})


STARTED = Started(worker_id="worker-1", hostname="host-a", device="cuda:0")
DECLARATION = TaskDeclaration(
    name="csv_processing",
    pool="cpu",
    queue="reports",
    priority=7,
    max_retries=3,
    timeout_s=None,
    retry=RetryPolicy(initial_s=2.0),
    parameters=["source"],
    arguments={"type": "object", "properties": {"source": {"type": "string"}}, "required": ["source"]},
    doc="Statistics of a CSV file.",
)

TASK_LIVES: dict[str, list[EventData]] = {
    "completed": [
        submitted(scheduled_at=START + timedelta(hours=1)),
        Queued(reason="due"),
        STARTED,
        Completed(result={"rows": 3, "mean": 1.5, "name": "Zoë"}, duration_s=0.25),
    ],
    "failed": [
        submitted(args=[], kwargs={}, input=BLOB),
        STARTED,
        Retrying(error=ERROR, reason="error", due_at=START + timedelta(seconds=9)),
        Queued(reason="retry_due"),
        STARTED,
        Queued(reason="worker_lost", worker_id="worker-1"),
        STARTED,
        Failed(error=ERROR, reason="not_retryable"),
    ],
    "timed_out": [
        submitted(max_retries=0, original_task_id="t-failed", origin="replay"),
        STARTED,
        TimedOut(reason="execution_timeout", after_s=60.0),
    ],
    "cancelled": [
        submitted(),
        STARTED,
        CancelRequested(requested_by="ada", reason="no longer needed"),
        Cancelled(requested_by="ada", reason="no longer needed", confirmed_by="worker-1"),
    ],
    "completed-by-reference": [submitted(), STARTED, Completed(output=BLOB, duration_s=12.0)],
}

WORKER_LIFE: list[EventData] = [
    WorkerRegistered(
        hostname="host-a",
        pid=4711,
        pool="cpu",
        queues=["default", "reports"],
        capacity=4,
        devices=["cpu"],
        tasks=[DECLARATION],
    ),
    WorkerStopped(reason="SIGTERM"),
]


def task_life(name: str) -> list[Event]:
    """The whole history of one of `TASK_LIVES`, a second between the events."""
    task, events = ABSENT, list[Event]()
    for number, data in enumerate(TASK_LIVES[name], 1):
        at = START + timedelta(seconds=number)
        before, task = task, evolve(task, event_id(number), at, data)
        kind = TYPE_OF[type(data)]
        events.append(
            Event(
                id=event_id(number),
                source="worker.worker-1" if task.attempt else "api",
                aggregate="tasks",
                aggregate_id=f"t-{name}",
                type=kind.name,
                schema=kind.schema,
                time=at,
                version=task.version,
                previous=before.event_id,
                attempt=task.attempt,
                trace=Trace(event_id(900), event_id(901), TRACEPARENT) if number == 1 else Trace(before.event_id),
                state=summary(task),
                data=data,
                route=Route(task.pool, task.queue, task.priority) if makes_ready(data, at) else None,
            )
        )
    return events


def worker_life() -> list[Event]:
    """The whole history of a worker."""
    worker, events = NO_WORKER, list[Event]()
    for number, data in enumerate(WORKER_LIFE, 1):
        before, worker = worker, evolve_worker(worker, event_id(number), data)
        kind = TYPE_OF[type(data)]
        events.append(
            Event(
                id=event_id(number),
                source="worker.worker-1",
                aggregate="workers",
                aggregate_id="worker-1",
                type=kind.name,
                schema=kind.schema,
                time=START + timedelta(seconds=number),
                version=worker.version,
                previous=before.event_id,
                attempt=0,
                trace=Trace(),
                state=worker_summary(worker),
                data=data,
            )
        )
    return events


def lives() -> dict[str, list[Event]]:
    """Every history that is kept, by name."""
    return {**{f"task-{name}": task_life(name) for name in TASK_LIVES}, "worker": worker_life()}
