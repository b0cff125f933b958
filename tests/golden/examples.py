"""Events of every type and every schema, with fixed ids and times: what `make.py` writes and the tests expect to read back.

A new kind of history, or a new type of event, gets a life of its own here.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson

from eventq.events.aggregate import Aggregate, S
from eventq.events.catalogue import TYPE_OF
from eventq.events.claim import CLAIMS
from eventq.events.claim_events import Answered, Claimed
from eventq.events.data import BlobRef, ErrorInfo, EventData
from eventq.events.envelope import Event, Trace
from eventq.events.queue import QUEUES
from eventq.events.queue_events import (
    Admission,
    QueueAdmitted,
    QueueConfigured,
    QueueLimits,
    QueuePaused,
    QueueResumed,
    Rate,
)
from eventq.events.retry import RetryPolicy
from eventq.events.schedule import SCHEDULES
from eventq.events.schedule_events import (
    ScheduleCreated,
    ScheduleDeleted,
    ScheduleErased,
    SchedulePaused,
    ScheduleResumed,
    ScheduleSpec,
    ScheduleTicked,
    ScheduleTriggered,
    ScheduleUpdated,
)
from eventq.events.task import TASKS
from eventq.events.task_events import (
    Cancelled,
    CancelRequested,
    Cleaned,
    Completed,
    Erased,
    ErasedEvent,
    Failed,
    Gone,
    Idempotency,
    LostAttempt,
    Paused,
    PauseRequested,
    Queued,
    Resumed,
    Retrying,
    Started,
    Submitted,
    TimedOut,
    Updated,
)
from eventq.events.worker import WORKERS
from eventq.events.worker_events import (
    CapacityChanged,
    TaskDeclaration,
    WorkerDraining,
    WorkerLost,
    WorkerPaused,
    WorkerRegistered,
    WorkerResumed,
    WorkerStopped,
)
from eventq.events.workflow import WORKFLOWS
from eventq.events.workflow_events import (
    Condition,
    Definition,
    Node,
    NodeApproved,
    NodeEnd,
    NodeRejected,
    NodeSkip,
    WorkflowAdvanced,
    WorkflowCancelled,
    WorkflowCancelRequested,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowErased,
    WorkflowExpired,
    WorkflowFailed,
    WorkflowRetried,
    WorkflowSignalled,
    WorkflowTimedOut,
)

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
LOST = Queued(reason="worker_lost", worker_id="worker-1")
FROZEN = Paused(requested_by="ada", reason="machine needed", frozen=True, confirmed_by="worker-1")
ALL_OPTIONS = submitted(
    queue_timeout_s=30.0,
    heartbeat_timeout_s=5.0,
    result_ttl_s=86_400.0,
    retry=RetryPolicy(initial_s=2.0, factor=3.0, max_s=60.0, jitter=0.5),
    scheduled_at=START + timedelta(hours=1),
    key="tenant-7",
    gated=True,
    tags=["nightly", "käufe"],
    metadata={"owner": "ada", "ticket": "4711"},
    unique_key="csv_processing:4f2a",
    idempotency=Idempotency(key_sha256="ab" * 32, request_sha256="cd" * 32),
    original_task_id="t-failed",
    origin="retry",
    parent_task_id="t-completed",
    workflow_id="wf-1",
    node="extract",
    schedule_id="nightly",
)
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
REGISTERED = WorkerRegistered(
    hostname="host-a",
    pid=4711,
    pool="cpu",
    queues=["default", "reports"],
    capacity=4,
    devices=["cpu"],
    tasks=[DECLARATION],
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
        LOST,
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
    "all-options": [
        ALL_OPTIONS,
        Updated(
            submission=ALL_OPTIONS.model_copy(update={"priority": 9, "args": ["data/april.csv"], "scheduled_at": None}),
            changed=["args", "priority", "scheduled_at"],
            requested_by="bob",
        ),
        Queued(reason="admitted"),
        Queued(reason="limited", held=True),
        Queued(reason="admitted"),
        STARTED,
        Cancelled(requested_by="ada", confirmed_by="worker-1", steps=["asked", "SIGTERM", "SIGKILL"]),
        Cleaned(requested_by="scheduler", reason="result_ttl"),
        Erased(
            requested_by="ada",
            reason="asked by the customer",
            events=[
                ErasedEvent(position=12, subject="tasks.t-all-options.1.submitted", event={"type": "submitted", "version": 1})
            ],
            blobs=[BLOB.key],
        ),
    ],
    "paused": [
        submitted(scheduled_at=START + timedelta(hours=1)),
        Paused(requested_by="ada", reason="not today"),
        Resumed(requested_by="bob"),
        Queued(reason="due"),
        STARTED,
        PauseRequested(requested_by="ada", reason="machine needed"),
        FROZEN,
        Resumed(requested_by="ada"),
        PauseRequested(requested_by="ada"),
        Paused(requested_by="ada", lost=True, confirmed_by="worker-1"),
        Queued(reason="resumed"),
        STARTED,
        PauseRequested(requested_by="ada"),
        Retrying(
            error=ErrorInfo(type="HeartbeatTimeout", message="stopped: it had said nothing for 5 s"),
            reason="heartbeat_timeout",
            due_at=START + timedelta(hours=2),
            steps=["asked", "SIGTERM"],
        ),
        Cancelled(requested_by="ada", reason="no longer needed"),
    ],
    "queue-timeout": [
        submitted(queue_timeout_s=30.0),
        Queued(reason="reconciled"),
        TimedOut(reason="queue_timeout", after_s=30.0),
    ],
    "heartbeat-timeout": [
        submitted(max_retries=0, heartbeat_timeout_s=5.0),
        STARTED,
        TimedOut(reason="heartbeat_timeout", after_s=5.0, steps=["asked", "SIGTERM", "SIGKILL"]),
    ],
    "poison": [
        submitted(),
        *[STARTED, LOST] * 2,
        STARTED,
        Failed(
            error=ErrorInfo(type="WorkerLost", message="3 workers were lost while running this task"),
            reason="poison",
            evidence=[LostAttempt(attempt=attempt, worker_id="worker-1") for attempt in (1, 2, 3)],
        ),
    ],
}

WORKER_LIVES: dict[str, list[EventData]] = {
    "worker": [REGISTERED, WorkerStopped(reason="SIGTERM")],
    "worker-controlled": [
        REGISTERED.model_copy(update={"kind": "http", "pid": 0}),
        WorkerPaused(requested_by="ada"),
        WorkerResumed(requested_by="ada"),
        CapacityChanged(capacity=8, requested_by="bob"),
        WorkerLost(evidence="presence_lapsed", running=["t-poison"]),
        REGISTERED,
        WorkerDraining(requested_by="ada"),
        WorkerStopped(reason="drained"),
    ],
    "worker-returned": [
        REGISTERED,
        WorkerPaused(requested_by="ada"),
        CapacityChanged(capacity=8, requested_by="bob"),
        WorkerLost(evidence="presence_lapsed", running=[]),
        REGISTERED,
    ],
}

QUEUE_LIVES: dict[str, list[EventData]] = {
    "queue": [
        QueueConfigured(
            limits=QueueLimits(
                max_running=10,
                max_running_per_key=2,
                rate=Rate(limit=100, per_s=60.0, burst=10),
                rate_per_key=Rate(limit=5),
                fair=True,
            ),
            requested_by="ada",
        ),
        QueueAdmitted(tasks=[Admission(task_id="t-all-options", version=2, key="tenant-7")]),
        QueuePaused(requested_by="ada", reason="maintenance"),
        QueueResumed(requested_by="ada"),
    ],
}


def life(kind: Aggregate[S], aggregate_id: str, history: list[EventData]) -> list[Event]:
    """The whole of a history, a second between the events."""
    state, events = kind.absent, list[Event]()
    for number, data in enumerate(history, 1):
        at = START + timedelta(seconds=number)
        before, state = state, kind.evolve(state, event_id(number), at, data)
        known = TYPE_OF[type(data)]
        traced = kind.name == "tasks"
        events.append(
            Event(
                id=event_id(number),
                source="worker.worker-1" if kind.attempt(state) or kind.name == "workers" else "api",
                aggregate=kind.name,
                aggregate_id=aggregate_id,
                type=known.name,
                schema=known.schema,
                time=at,
                version=state.version,
                previous=before.event_id,
                attempt=kind.attempt(state),
                trace=_trace(number, before.event_id) if traced else Trace(),
                state=kind.summary(state),
                data=data,
                route=kind.route(state),
            )
        )
    return events


def _trace(number: int, before: str | None) -> Trace:
    return Trace(event_id(900), event_id(901), TRACEPARENT) if number == 1 else Trace(before)


SPEC = ScheduleSpec(
    cron="30 2 * * MON-FRI",
    time_zone="Europe/Berlin",
    task=submitted(key="ada", tags=["nightly"]),
    catch_up="all",
    starts_at=START,
    ends_at=START + timedelta(days=90),
)

STEP = Submitted(task_name="echo", kwargs={"value": {"$from": "a"}}, pool="cpu", queue="default", priority=5, max_retries=0)
WORKFLOW = WorkflowCreated(
    name="order",
    nodes=5,
    definition=Definition(
        nodes=[
            Node(name="a", task=STEP.model_copy(update={"kwargs": {}}), compensate=STEP),
            Node(name="ok", kind="approval", depends_on=["a"], timeout_s=60.0),
            Node(name="paid", kind="signal", signal="paid", depends_on=["a"], on_failure="continue"),
            Node(
                name="b",
                task=STEP,
                depends_on=["a", "ok"],
                when=[Condition(node="a", path="/n", op="greater", value=3)],
                run_if="any_succeeded",
                on_failure="compensate",
            ),
            Node(name="c", task=STEP, depends_on=["a"], run_if="always"),
        ]
    ),
    timeout_s=3600.0,
    deadline_at=START + timedelta(hours=1),
    tags=["nightly"],
    metadata={"team": "data"},
    idempotency=Idempotency(key_sha256="1" * 64, request_sha256="2" * 64),
    requested_by="ada",
)
BY_REFERENCE = WorkflowCreated(
    name="large", nodes=1000, stored=BlobRef(key="sha256/ab/ab", sha256="ab" * 32, size_bytes=70_000), requested_by="ada"
)
BARE = WorkflowCreated(name="order", nodes=1, definition=Definition(nodes=[Node(name="ok", kind="approval")]))
BARE_SCHEDULE = ScheduleCreated(
    spec=SPEC.model_copy(update={"task": submitted(args=[], kwargs={})}), next_at=START, requested_by="ada"
)


def _left(owner: str, created: EventData) -> ErasedEvent:
    """What is left of a first event."""
    event = {"type": "created", "version": 1, "schema": 1, "data": orjson.loads(orjson.dumps(created.wire()))}
    return ErasedEvent(position=12, subject=f"{owner}.1.created", event=event)


WORKFLOW_LIVES: dict[str, list[EventData]] = {
    "workflow-failed": [
        WORKFLOW,
        WorkflowAdvanced(released=["a"]),
        WorkflowAdvanced(
            finished=[NodeEnd(node="a", outcome="COMPLETED", children=["t-child"])],
            waiting=["ok", "paid"],
            approvals=["ok"],
            released=["c"],
        ),
        NodeApproved(node="ok", by="bob", comment="fine"),
        WorkflowSignalled(name="paid", payload={"sum": 3}, requested_by="cleo"),
        WorkflowAdvanced(
            finished=[
                NodeEnd(node="ok", outcome="COMPLETED", waited=True),
                NodeEnd(node="paid", outcome="COMPLETED", waited=True),
                NodeEnd(node="c", outcome="FAILED", reason="task t-child, which it spawned, did not complete"),
            ],
            skipped=[NodeSkip(node="b", reason="failed", detail="the result of a has nothing at '/n'")],
            ending="FAILED",
            because="b",
            compensate=True,
        ),
        WorkflowAdvanced(compensating=["a"]),
        WorkflowAdvanced(compensated=[NodeEnd(node="a", outcome="COMPLETED")]),
        WorkflowFailed(node="b", uncompensated=["c"]),
        WorkflowRetried(run=2, requested_by="ada", deadline_at=START + timedelta(hours=2)),
        WorkflowExpired(deadline_at=START + timedelta(hours=2)),
        WorkflowTimedOut(),
    ],
    "workflow-cancelled": [
        WORKFLOW,
        WorkflowAdvanced(waiting=["ok"], approvals=["ok"]),
        NodeRejected(node="ok", by="bob", comment="no"),
        WorkflowCancelRequested(requested_by="ada", reason="enough"),
        WorkflowCancelled(),
    ],
    "workflow-completed": [
        BY_REFERENCE,
        WorkflowAdvanced(skipped=[NodeSkip(node="b", reason="condition"), NodeSkip(node="c", reason="dependencies")]),
        WorkflowCompleted(),
    ],
    "workflow-erased": [
        WORKFLOW,
        WorkflowCancelRequested(requested_by="ada"),
        WorkflowCancelled(),
        WorkflowErased(requested_by="ada", reason="asked to", events=[_left("workflows.wf-1", BARE)], blobs=[BLOB.key]),
    ],
}

SCHEDULE_LIVES: dict[str, list[EventData]] = {
    "schedule": [
        ScheduleCreated(spec=SPEC, next_at=START + timedelta(minutes=1), requested_by="ada"),
        ScheduleTicked(
            nominal=START + timedelta(minutes=1),
            task_ids=["7b0c4f7e-9d0a-5b0e-8c1c-52d1a4b75f0c"],
            dropped=2,
            why="missed",
            next_at=START + timedelta(days=1),
        ),
        SchedulePaused(requested_by="ada", reason="holidays"),
        ScheduleTriggered(task_id="t-triggered", requested_by="bob"),
        ScheduleResumed(next_at=START + timedelta(days=1), requested_by="ada"),
        ScheduleUpdated(
            spec=SPEC.model_copy(update={"catch_up": "latest", "overlap": "skip", "ends_at": None}),
            next_at=START + timedelta(days=2),
            requested_by="ada",
        ),
        ScheduleTicked(nominal=START + timedelta(days=2), dropped=1, why="overlap"),
        ScheduleDeleted(requested_by="ada"),
    ],
    "schedule-erased": [
        ScheduleCreated(spec=SPEC, next_at=START + timedelta(minutes=1), requested_by="ada"),
        ScheduleDeleted(requested_by="ada"),
        ScheduleErased(requested_by="ada", events=[_left("schedules.nightly", BARE_SCHEDULE)], blobs=[BLOB.key]),
    ],
}


def lives() -> dict[str, list[Event]]:
    """Every history that is kept, by name."""
    return {
        **{f"task-{name}": life(TASKS, f"t-{name}", history) for name, history in TASK_LIVES.items()},
        **{name: life(WORKERS, name.replace("worker", "worker-1", 1), history) for name, history in WORKER_LIVES.items()},
        "claim": life(CLAIMS, "unique-5f3a", [Claimed(task_id="t-1"), Claimed(task_id="t-2")]),
        "claim-of-request": life(
            CLAIMS,
            "keyed-5f3a",
            [Answered(task_id="t-1", idempotency=Idempotency(key_sha256="3" * 64, request_sha256="4" * 64))],
        ),
        **{name: life(QUEUES, "reports", history) for name, history in QUEUE_LIVES.items()},
        **{name: life(WORKFLOWS, "wf-1", history) for name, history in WORKFLOW_LIVES.items()},
        **{name: life(SCHEDULES, "nightly", history) for name, history in SCHEDULE_LIVES.items()},
        **{f"gone-of-{kind}": [_gone(kind)] for kind in ("tasks", "schedules", "workflows")},
    }


def _gone(kind: str) -> Event:
    """What holds the place of an erased event."""
    return Event(
        id=event_id(9),
        source="api",
        aggregate=kind,
        aggregate_id="erased-1",
        type="gone",
        schema=1,
        time=START,
        version=1,
        previous=None,
        attempt=0,
        trace=Trace(),
        state={},
        data=Gone(position=12, newest=4),
    )
