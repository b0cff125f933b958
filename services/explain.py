"""Why a task waits, and when it will probably start. Pure: facts in, reasons out.

Reasons are found in the order in which a task meets them: its own time or pause, its queue's pause, workers that could take
it, its queue's gate, those that are before it. All that apply are told, not the first only.

The prediction is a range. It takes the queue's newest completed attempts as what those that come first will take, and lets
all of them go first that are older or more urgent. Workers take urgent ones more often, not always, and keys that take turns do
not wait for each other's backlog; so a task of a low priority, or of a key with little to do, may start earlier than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import quantiles
from typing import Any

from eventq.events import gcra
from eventq.events.admission import FAIR_WINDOW, rate_ahead
from eventq.events.queue_events import QueueLimits, Rate
from eventq.events.task import Status
from eventq.events.worker import WorkerStatus
from eventq.projections.queue_queries import LineFacts
from eventq.projections.rows import TaskRow
from eventq.services.queue_models import PredictedStartAnswer, ReasonAnswer, ReasonCode

PICKUP_S = 1.0
"""Within what time a task that nothing stands in the way of is started."""

AHEAD_MAX_S = 366 * 24 * 3600.0
"""How far ahead a start is predicted."""

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PresentWorker:
    """A worker whose heartbeat is alive. ``queues``: that it serves; empty: all of its pool."""

    worker_id: str
    pool: str
    queues: tuple[str, ...]
    capacity: int
    running: int
    status: WorkerStatus

    def serves(self, pool: str, queue: str) -> bool:
        """Whether it takes work of that queue."""
        return self.pool == pool and (not self.queues or queue in self.queues)

    @property
    def free(self) -> int:
        """How much more it can take now."""
        return max(0, self.capacity - self.running) if self.status is WorkerStatus.ACTIVE else 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is said of a task. ``no_prediction``: why ``predicted`` is ``None``."""

    reasons: list[ReasonAnswer]
    predicted: PredictedStartAnswer | None
    no_prediction: str | None


def explain(task: TaskRow, line: LineFacts, workers: Sequence[PresentWorker], now: datetime) -> Explanation:
    """Why ``task`` waits, or what it does instead."""
    if (elsewhere := _not_waiting(task)) is not None:
        return Explanation([elsewhere], None, f"the task is {task.status}")
    reasons = [*_own_time(task), *_queue_paused(line), *_workers(task, workers)]
    if task.status is Status.PENDING:
        if task.ready == 0:
            reasons += _gate(task, line, now)
        if line.ahead:
            message = f"{line.ahead} tasks that are older or more urgent wait before it"
            reasons.append(_reason("behind", message, tasks_ahead=line.ahead, pool=task.pool, queue_name=task.queue))
        if not reasons:
            reasons.append(_reason("about_to_start", "nothing stands in its way: a worker is about to take it"))
    predicted, problem = _predict(task, line, workers, now, {reason.code for reason in reasons})
    return Explanation(reasons, predicted, problem)


def _not_waiting(task: TaskRow) -> ReasonAnswer | None:
    if task.status is Status.RUNNING:
        message = f"it has been running on {task.worker_id} since {_time(task.started_at)}"
        return _reason(
            "running", message, worker_id=task.worker_id, since=_time(task.started_at), attempt=task.attempt, reason=task.reason
        )
    if task.completed_at is not None:
        message = f"it ended as {task.status} at {_time(task.completed_at)}"
        facts: Facts = {"status": task.status.value, "reason": task.reason, "at": _time(task.completed_at)}
        return _reason("finished", message, **facts, worker_id=task.worker_id, attempts=task.attempt)
    return None


def _own_time(task: TaskRow) -> list[ReasonAnswer]:
    match task.status:
        case Status.SCHEDULED:
            return [_reason("scheduled_for", f"it is scheduled for {_time(task.due_at)}", due_at=_time(task.due_at))]
        case Status.RETRYING:
            message = f"its attempt {task.attempt} failed; the next is due at {_time(task.due_at)}"
            return [_reason("retrying_until", message, due_at=_time(task.due_at), failures=task.failures, reason=task.reason)]
        case Status.PAUSED:
            frozen = task.worker_id if task.worker_id is not None else None
            message = f"{task.pause_requested_by} paused it" + (f": {task.pause_reason}" if task.pause_reason else "")
            facts: Facts = {"by": task.pause_requested_by, "reason": task.pause_reason, "since": _time(task.updated_at)}
            return [_reason("paused", message, **facts, frozen_in=frozen)]
        case _:
            return []


def _queue_paused(line: LineFacts) -> list[ReasonAnswer]:
    queue = line.queue
    if not queue.paused:
        return []
    message = f"{queue.paused_by} paused its queue at {_time(queue.paused_at)}"
    message += f": {queue.paused_reason}" if queue.paused_reason else ""
    facts: Facts = {"by": queue.paused_by, "since": _time(queue.paused_at), "reason": queue.paused_reason}
    return [_reason("queue_paused", message, **facts)]


def _workers(task: TaskRow, workers: Sequence[PresentWorker]) -> list[ReasonAnswer]:
    """What is to be said of those that could take it; nothing where one of them is free."""
    serving = [worker for worker in workers if worker.serves(task.pool, task.queue)]
    if not serving:
        served = sorted({(worker.pool, ", ".join(worker.queues) or "every queue") for worker in workers})
        message = f"no worker serves the queue {task.queue} of the pool {task.pool}; "
        message += "; ".join(f"{pool}: {queues}" for pool, queues in served) if served else "no worker is there at all"
        return [_reason("no_worker", message, served=[{"pool": pool, "queues": queues} for pool, queues in served])]
    active = [worker for worker in serving if worker.status is WorkerStatus.ACTIVE]
    if not active:
        states = {worker.worker_id: worker.status.value for worker in serving}
        return [_reason("workers_paused", "all workers that serve it take no new work", workers=states)]
    if task.status is Status.PENDING and not any(worker.free for worker in active):
        slots = sum(worker.capacity for worker in active)
        message = f"all {slots} slots of the {len(active)} workers that serve it are taken"
        busy = {worker.worker_id: worker.running for worker in active}
        return [_reason("workers_busy", message, slots=slots, running=busy)]
    return []


def _gate(task: TaskRow, line: LineFacts, now: datetime) -> list[ReasonAnswer]:
    """What holds it at its queue's gate."""
    limits, key = line.queue.limits, task.key
    reasons: list[ReasonAnswer] = []
    if limits.max_running is not None and line.holders >= limits.max_running:
        reasons.append(_limit("max_running", line.holders, limits.max_running, line.holding, None))
    if key is not None and limits.max_running_per_key is not None and line.holders_of_key >= limits.max_running_per_key:
        of_key = (line.holders_of_key, limits.max_running_per_key, line.holding_of_key, key)
        reasons.append(_limit("max_running_per_key", *of_key))
    for name, rate, waiting, arrival in _rates(line, key, now):
        if not gcra.available(rate, arrival, now.timestamp()):
            next_start = _time(datetime.fromtimestamp(gcra.allowed_at(rate, arrival), UTC))
            message = f"its queue's {name} lets the next one start at {next_start}"
            reasons.append(_reason("rate_limited", message, limit=name, next_start_at=next_start, key=_of(name, key)))
        elif waiting >= rate_ahead(rate):
            message = f"{waiting} tasks were let through by its queue's {name} and not started by a worker yet"
            reasons.append(_reason("rate_limited", message, limit=name, not_started=waiting, key=_of(name, key)))
    if _shared(limits) and (line.keys_held > 1 or line.waiting >= FAIR_WINDOW):
        message = f"{line.keys_held} keys take turns in its queue"
        reasons.append(
            _reason("fair_turn", message, keys=line.keys_held, key=key, not_started=line.waiting, window=FAIR_WINDOW)
        )
    if not (reasons or line.queue.paused):
        message = "it waits to be let through by a scheduler's gate, which should take an instant"
        reasons.append(_reason("awaiting_admission", message))
    return reasons


def _rates(line: LineFacts, key: str | None, now: datetime) -> list[tuple[str, Rate, int, float]]:
    """The rates that hold for the task: name, rate, how many wait that it let through, its theoretical arrival time."""
    limits = line.queue.limits
    found: list[tuple[str, Rate, int, list[float]]] = []
    if limits.rate is not None:
        times = [at.timestamp() for at, keys in line.admissions for _ in keys]
        found.append(("rate", limits.rate, line.waiting, times))
    if limits.rate_per_key is not None and key is not None:
        times = [at.timestamp() for at, keys in line.admissions for one in keys if one == key]
        found.append(("rate_per_key", limits.rate_per_key, line.waiting_of_key, times))
    return [(n, rate, w, gcra.bounded(rate, gcra.fold(rate, times), now.timestamp())) for n, rate, w, times in found]


def _limit(name: str, used: int, maximum: int, task_ids: list[str], key: str | None) -> ReasonAnswer:
    message = f"{used} of {maximum} slots of its queue" + (f" for the key {key}" if key is not None else "") + " are taken"
    return _reason("limit_held", message, limit=name, used=used, maximum=maximum, held_by=task_ids, key=key)


def _shared(limits: QueueLimits) -> bool:
    return limits.fair or limits.max_running_per_key is not None or limits.rate_per_key is not None


def _of(name: str, key: str | None) -> str | None:
    return key if name.endswith("_per_key") else None


_BLOCKING: dict[str, str] = {
    "paused": "the task is paused",
    "queue_paused": "its queue is paused",
    "no_worker": "no worker serves its queue",
    "workers_paused": "the workers that serve it take no new work",
}


def _predict(
    task: TaskRow,
    line: LineFacts,
    workers: Sequence[PresentWorker],
    now: datetime,
    codes: set[ReasonCode],
) -> tuple[PredictedStartAnswer | None, str | None]:
    for code, why in _BLOCKING.items():
        if code in codes:
            return None, why
    serving = [w for w in workers if w.serves(task.pool, task.queue) and w.status is WorkerStatus.ACTIVE]
    limits = line.queue.limits
    slots, free = sum(w.capacity for w in serving), sum(w.free for w in serving)
    if limits.max_running is not None:
        slots, free = min(slots, limits.max_running), min(free, max(0, limits.max_running - line.holders))
    if task.key is not None and limits.max_running_per_key is not None:
        free = min(free, max(0, limits.max_running_per_key - line.holders_of_key))
    soonest_s, spaced_s = _spaced(task, line, now)
    if spaced_s > AHEAD_MAX_S:
        return None, f"its queue's rates let it start more than {AHEAD_MAX_S / 86_400:g} days ahead"
    due = max(now, task.due_at or now)
    begins = max(due, now + timedelta(seconds=soonest_s))
    spaced = max(due, now + timedelta(seconds=spaced_s))
    before = line.ahead + (0 if task.ready else line.waiting)  # what was admitted is before all that is held
    based_on: Facts = {"tasks_ahead": before, "slots": slots, "free_slots": free}
    if before < free:
        latest = spaced + timedelta(seconds=PICKUP_S)
        return PredictedStartAnswer(earliest=begins, latest=latest, based_on=based_on), None
    if slots == 0:
        return None, "the workers that serve it have no slots"
    if not line.durations:
        return None, f"no attempt in the queue {task.queue} of the pool {task.pool} was ever completed"
    low, high = _range(line.durations)
    rounds = (before - free) // slots
    if (rounds + 1) * high > AHEAD_MAX_S:
        return None, f"those before it may take more than {AHEAD_MAX_S / 86_400:g} days"
    # Those that run now may end at once, or take as long as any.
    earliest = max(begins, now + timedelta(seconds=rounds * low))
    latest = max(earliest, spaced, begins + timedelta(seconds=(rounds + 1) * high)) + timedelta(seconds=PICKUP_S)
    based_on |= {"durations": len(line.durations), "fast_seconds": low, "slow_seconds": high}
    return PredictedStartAnswer(earliest=earliest, latest=latest, based_on=based_on), None


def _spaced(task: TaskRow, line: LineFacts, now: datetime) -> tuple[float, float]:
    """In how many seconds its queue's rates let it start: at the earliest, and where all before it are of its key."""
    if task.ready:
        return 0.0, 0.0
    waits = [
        (
            gcra.wait_s(rate, arrival, now.timestamp(), 0 if name.endswith("_per_key") else line.ahead),
            gcra.wait_s(rate, arrival, now.timestamp(), line.ahead),
        )
        for name, rate, _, arrival in _rates(line, task.key, now)
    ]
    return max((one for one, _ in waits), default=0.0), max((other for _, other in waits), default=0.0)


def _range(durations: Sequence[float]) -> tuple[float, float]:
    """What a quarter takes at most, and what a tenth exceeds."""
    if len(durations) == 1:
        return durations[0], durations[0]
    parts = quantiles(durations, n=20, method="inclusive")
    return parts[4], parts[17]


def _reason(code: ReasonCode, message: str, **facts: Any) -> ReasonAnswer:
    return ReasonAnswer(code=code, message=message, facts={name: value for name, value in facts.items() if value is not None})


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
