"""Leases for workers that speak only HTTP: tasks go out, reports come in, under the fence that holds for every worker.

A task is leased by claiming it: ``started`` is appended as the version after the ready event, then the broker's work item is
acknowledged. From then on the worker's presence is the lease, renewed by its heartbeats, and the worker watch ends attempts
of workers that are lost. Every report is checked against the log: the attempt must be the current one *and* this worker's.

| what happens                                           | then                                                               |
|--------------------------------------------------------|--------------------------------------------------------------------|
| the client goes away while it waits                    | what was delivered meanwhile is handed back at once                |
| the API dies before the claim                          | the broker delivers the item to somebody else after its lease      |
| the outcome of the claim is unknown                    | not answered; if it did land: as in the next line                  |
| the API dies, or the client, before the answer arrives | no heartbeat lists the attempt: the watch interrupts it            |
| ... and the worker sends no heartbeat at all           | it is lost: the watch ends its attempts, which counts as a loss    |
| the API dies between claim and acknowledgement         | the item comes again; whoever gets it finds it claimed or spent    |
| the worker is paused, drained or lost while it waits   | looked at again before the claim: handed back                      |
| its capacity is lowered while it waits                 | what is beyond it is handed back                                   |
| a report comes twice (its answer was lost)             | the second is answered as the first where it is the last event     |
| a report comes after the attempt was taken away        | refused, ``STALE_ATTEMPT``: nothing changes                        |
| another worker reports an attempt that is not his      | refused, ``STALE_ATTEMPT``, even with the right attempt number     |
| an attempt takes too long, or is silent for too long   | the watch writes the time-out: a later report is refused           |
| an attempt goes on although its cancel was asked for   | after a grace time the watch ends it: a later report is refused    |
| the broker is away                                     | 503: the worker tries again, and the fence makes that safe         |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from weakref import WeakValueDictionary

import orjson
import structlog

from eventq.events.attempt_end import end_attempt
from eventq.events.blob_keys import output_key
from eventq.events.commands import (
    Command,
    CompleteAttempt,
    ConfirmCancel,
    FailAttempt,
    InterruptAttempt,
    StartAttempt,
)
from eventq.events.data import BlobRef, ErrorInfo
from eventq.events.ending import end
from eventq.events.envelope import NO_TRACE, Event, Trace, next_event
from eventq.events.errors import (
    Conflict,
    EventqError,
    IllegalTransition,
    LogUnavailable,
    StaleAttempt,
    TaskNotFound,
    VersionConflict,
)
from eventq.events.failpoints import failpoint
from eventq.events.handle import read_task
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES
from eventq.events.specification import submission_of
from eventq.events.subjects import EVENTS
from eventq.events.task import TASKS, Task, decide, from_summary
from eventq.events.task_events import Submitted
from eventq.events.worker import LIVING, Worker, WorkerStatus
from eventq.services.api import Api
from eventq.services.api_workers import held_by, http_worker
from eventq.services.attempt_ends import draw_retry_s
from eventq.services.worker_models import LeasedTask
from eventq.workers.puller import Delivery, Puller

log = structlog.get_logger("eventq.http_leases")

LOOK_S = 0.5
"""For so long the broker is asked even by whom does not want to wait, and so often it is looked whether the client is there,
and whether a worker that is full or paused may take something again."""

GATHER_S = 0.02
"""After the first task, others of the same round are waited for."""

CLAIMED_DELAY_S = 10.0
"""An item that came although somebody has claimed it comes again after so long: by then it is spent, or ready anew."""

DEVICE = "http"
ACK, NAK = b"+ACK", b"-NAK"

_ENDED_BY: dict[type[Command], frozenset[str]] = {
    CompleteAttempt: frozenset({"completed"}),
    FailAttempt: frozenset({"failed", "retrying", "cancelled"}),
    InterruptAttempt: frozenset({"queued", "paused", "cancelled"}),
    ConfirmCancel: frozenset({"cancelled"}),
}
"""Which events a report may lead to: by them a repeated report is known."""


class NotTheHolder(StaleAttempt):
    """The attempt is the current one, but in the hands of another worker, or of none any more."""

    def __init__(self, attempt: int, holder: str | None) -> None:
        super().__init__(reported=attempt, current=attempt)
        self.detail = f"attempt {attempt} is not in the hands of this worker"
        self.fields["holder"] = holder or "none"


_turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
"""One lease request of a worker at a time: two could together take more than it has room for."""


def source_of(worker_id: str) -> str:
    """How events of this worker are signed."""
    return f"worker.{worker_id}"


async def lease(
    api: Api, worker_id: str, *, most: int, wait_s: float, gone: Callable[[], bool]
) -> tuple[Worker, list[LeasedTask]]:
    """Lease up to ``most`` tasks, waiting up to ``wait_s`` for the first: for work, for room, for the end of a pause. ``gone``:
    whether nobody waits for the answer.

    Raises ``WorkerNotFound``, and ``IllegalTransition`` for a worker that has stopped or was called lost.
    """
    deadline = time.monotonic() + wait_s
    while True:
        async with _turns.setdefault(worker_id, asyncio.Lock()):
            worker = await _living(api, worker_id)
            if (room := await _room(api, worker_id, worker, most)) > 0:
                return await _take(api, worker_id, worker, room, deadline - time.monotonic(), gone)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or gone() or worker.status is WorkerStatus.DRAINING:
            return worker, []
        await asyncio.sleep(min(LOOK_S, left_s))


async def _take(
    api: Api, worker_id: str, worker: Worker, room: int, wait_s: float, gone: Callable[[], bool]
) -> tuple[Worker, list[LeasedTask]]:
    """Up to ``room`` tasks, once there are any; what the worker may not have any more by then is handed back."""
    deliveries = await _pull(api, worker, room, wait_s, gone)
    if not deliveries:
        return worker, []
    try:
        capacity, worker = worker.capacity, await _living(api, worker_id)
        if gone() or worker.status is not WorkerStatus.ACTIVE:
            room = 0
        elif worker.capacity < capacity:
            room = await _room(api, worker_id, worker, room)
    except EventqError:
        await _hand_back(api, deliveries)
        raise
    await _hand_back(api, deliveries[room:])
    claimed = await asyncio.gather(*(_claim(api, worker_id, worker, delivery) for delivery in deliveries[:room]))
    return worker, [task for task in claimed if task is not None]


async def _room(api: Api, worker_id: str, worker: Worker, most: int) -> int:
    """How much more it may take now, ``most`` at most."""
    if worker.status is not WorkerStatus.ACTIVE:
        return 0
    return max(0, min(most, worker.capacity - await _load(api, worker_id)))


async def _hand_back(api: Api, deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        await api.log.broker.nc.publish(delivery.lease, NAK)


async def _living(api: Api, worker_id: str) -> Worker:
    worker = await http_worker(api, worker_id)
    if worker.status not in LIVING:
        raise IllegalTransition(
            f"a worker with status {worker.status} leases nothing",
            status=str(worker.status),
            hint="register again: POST /api/v1/workers with this worker_id",
        )
    return worker


async def _load(api: Api, worker_id: str) -> int:
    """How much it holds, with all that the log knows now."""
    facts = await api.log.broker.stream_facts(EVENTS)
    await api.freshness.wait_for_position(0 if facts is None else facts.last, api.limits.read_wait_s)
    return (await held_by(api, worker_id)).total


async def _pull(api: Api, worker: Worker, room: int, wait_s: float, gone: Callable[[], bool]) -> list[Delivery]:
    """Up to ``room`` work items of the worker's routes, as a worker process takes them."""
    found: list[Delivery] = []
    arrived = asyncio.Event()

    def deliver(delivery: Delivery) -> None:
        found.append(delivery)
        arrived.set()

    puller = Puller(
        api.log.broker,
        api.log.routes,
        pool=worker.pool,
        queues=worker.queues,
        free=lambda: room - len(found),
        deliver=deliver,
        on_lease=lambda _: None,
    )
    pulling = asyncio.create_task(puller.run(), name="lease")
    deadline = time.monotonic() + max(wait_s, LOOK_S)
    try:
        while not (arrived.is_set() or gone() or pulling.done()) and (left_s := deadline - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK_S, left_s)):
                    await arrived.wait()
        if found and len(found) < room:
            await asyncio.sleep(GATHER_S)
    finally:
        puller.stop()  # what comes from here on is handed back
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await asyncio.shield(pulling)
        await end(pulling)
    return found


async def _claim(api: Api, worker_id: str, worker: Worker, delivery: Delivery) -> LeasedTask | None:
    """The task, if it is the worker's now. Without an answer from the log nothing is concluded, and nothing answered."""
    event, task = delivery.event, from_summary(delivery.event.state)
    publish = api.log.broker.nc.publish
    command = StartAttempt(worker_id, worker.hostname, DEVICE)
    trace = Trace(event.id, event.trace.correlation_id, event.trace.traceparent)
    started, after = next_event(
        TASKS,
        event.aggregate_id,
        task,
        decide(command, task)[0],
        source=source_of(worker_id),
        at=datetime.now(UTC),
        trace=trace,
    )
    failpoint("lease.before_start")
    try:
        await api.log.append(started)
    except VersionConflict:
        found = await read_task(api.log, event.aggregate_id, fresh=True)
        spent = found.finished or found.ready != event.version
        await publish(delivery.lease, ACK if spent else _nak(CLAIMED_DELAY_S))
        return None
    except LogUnavailable as error:
        log.warning("lease.claim_unknown", task_id=event.aggregate_id, worker_id=worker_id, error=error.detail)
        return None
    failpoint("lease.after_start")
    await publish(delivery.lease, ACK)
    api.freshness.note_write(event.aggregate_id, after.version)
    return await _leased(api, event, after)


def _nak(delay_s: float) -> bytes:
    return b"-NAK " + orjson.dumps({"delay": int(delay_s * 1e9)})


async def _leased(api: Api, event: Event, task: Task) -> LeasedTask:
    data = event.data
    submitted = data if isinstance(data, Submitted) else await submission_of(api.log, event.aggregate_id, task)
    stored = submitted.input
    return LeasedTask(
        task_id=event.aggregate_id,
        attempt=task.attempt,
        task_name=task.task_name,
        args=submitted.args if stored is None else None,
        kwargs=submitted.kwargs if stored is None else None,
        input=stored,
        input_url=None if stored is None else f"/api/v1/blobs/{stored.key}",
        timeout_s=task.timeout_s,
        queue_name=task.queue,
        priority=task.priority,
        version=task.version,
    )


async def held_attempt(api: Api, worker_id: str, task_id: str, attempt: int) -> Task:
    """The task, if this worker holds this attempt of it: the fence. Raises ``TaskNotFound``, ``StaleAttempt``."""
    task = await read_task(api.log, task_id, fresh=True)
    if task.version == 0:
        raise TaskNotFound(task_id)
    if task.attempt != attempt:
        raise StaleAttempt(reported=attempt, current=task.attempt)
    if not task.in_hand or task.worker_id != worker_id:
        raise NotTheHolder(attempt, task.worker_id if task.in_hand else None)
    return task


async def report(api: Api, worker_id: str, task_id: str, command: Command, *, attempt: int, trace: Trace = NO_TRACE) -> Task:
    """Write what became of an attempt; the task after it. Raises what :func:`held_attempt` and the rules say."""
    try:
        task = await held_attempt(api, worker_id, task_id, attempt)
        handled = await end_attempt(api.log, task_id, command, source=source_of(worker_id), task=task, trace=trace)
    except Conflict:
        if (done := await _reported_before(api, worker_id, task_id, command, attempt)) is not None:
            return done
        raise
    api.freshness.note_write(task_id, handled.state.version)
    return handled.state


async def _reported_before(api: Api, worker_id: str, task_id: str, command: Command, attempt: int) -> Task | None:
    """The task, where its last event is what this very report led to: the answer was lost on its way."""
    stored = await api.log.last("tasks", task_id, fresh=True)
    if stored is None:
        return None
    event = stored.event
    ours = event.source == source_of(worker_id) and event.attempt == attempt
    return from_summary(event.state) if ours and event.type in _ENDED_BY[type(command)] else None


async def completion(api: Api, worker_id: str, task_id: str, attempt: int, result: object) -> CompleteAttempt:
    """The report of a result; a large one is stored first, under a name that no other attempt writes."""
    task = await held_or_reported(api, worker_id, task_id, attempt)
    payload = orjson.dumps(result)
    duration_s = await _duration_s(api, task_id, attempt)
    if len(payload) <= INLINE_PAYLOAD_MAX_BYTES or task is None:
        return CompleteAttempt(attempt, result, None, duration_s)
    key = output_key(task_id, attempt, "result.json")
    output: BlobRef = await api.blobs.put_async(payload, key=key, media_type="application/json")
    return CompleteAttempt(attempt, None, output, duration_s)


async def _duration_s(api: Api, task_id: str, attempt: int) -> float:
    """Seconds since the attempt was leased; 0 where the projection has not seen that yet."""
    row = await api.queries.get_task(task_id)
    if row is None or row.attempt != attempt or row.started_at is None:
        return 0.0
    return max(0.0, round((datetime.now(UTC) - row.started_at).total_seconds(), 6))


async def held_or_reported(api: Api, worker_id: str, task_id: str, attempt: int) -> Task | None:
    """The task where the fence admits a report; ``None`` where only a repeated one could be. Raises ``TaskNotFound``."""
    try:
        return await held_attempt(api, worker_id, task_id, attempt)
    except StaleAttempt:
        return None


async def failure(
    api: Api, worker_id: str, task_id: str, attempt: int, error: ErrorInfo, *, retryable: bool, retry_after_s: float | None
) -> FailAttempt:
    """The report of an error, with the drawn delay of the attempt after it."""
    now = datetime.now(UTC)
    task = await held_or_reported(api, worker_id, task_id, attempt)
    if not retryable or task is None:
        return FailAttempt(attempt, error, None, now)
    declared = (await api.queries.declarations()).get(task.task_name)
    submitted = await submission_of(api.log, task_id, task)
    delay_s = draw_retry_s(submitted, None if declared is None else declared.retry, task, error.type, retry_after_s)
    return FailAttempt(attempt, error, delay_s, now)
