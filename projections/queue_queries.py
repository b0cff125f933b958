"""Typed reads of queues: how deep they are, how fast they move, who holds their slots, and what stands before one task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from eventq.events.queue import QUEUES, Queue
from eventq.projections.rows import TaskRow
from eventq.projections.store import Snapshot
from eventq.projections.tables import naive

HOLDERS_SHOWN = 100
"""Holders named of each queue; how many there are is always said."""

DURATIONS_MAX = 100
"""Newest completed attempts that a prediction goes by."""

ADMISSIONS_MAX = 1_000
"""Newest admissions of a queue that its rates are reckoned from. Older ones count only behind a burst larger than all of these;
then the next start is told too early."""

_HOLDS = "((status = 'PENDING' AND ready > 0) OR status = 'RUNNING' OR (status = 'PAUSED' AND worker_id IS NOT NULL))"

_NAMES = "SELECT queue FROM queues UNION SELECT queue FROM tasks"

_STATES = "SELECT queue, state FROM queues WHERE queue IN (SELECT unnest($queues))"

_DEPTHS = """
SELECT queue, pool, status, status = 'PENDING' AND ready = 0 AS held, count(*) AS tasks,
       min(updated_at) FILTER (status = 'PENDING') AS oldest_at
FROM tasks WHERE queue IN (SELECT unnest($queues))
GROUP BY ALL
"""

_RATES = """
SELECT queue,
       count(*) FILTER (started_at >= $minute) AS started_1m,
       count(*) FILTER (started_at >= $minutes) AS started_5m,
       count(*) FILTER (ended_at >= $minute AND outcome = 'completed') AS completed_1m,
       count(*) FILTER (ended_at >= $minutes AND outcome = 'completed') AS completed_5m,
       count(*) FILTER (ended_at >= $minute AND outcome IN ('failed', 'timed_out')) AS failed_1m,
       count(*) FILTER (ended_at >= $minutes AND outcome IN ('failed', 'timed_out')) AS failed_5m
FROM (
    SELECT tasks.queue, attempts.started_at, attempts.ended_at, attempts.outcome
    FROM attempts JOIN tasks USING (task_id)
    WHERE (attempts.started_at >= $minutes OR attempts.ended_at >= $minutes) AND tasks.queue IN (SELECT unnest($queues))
)
GROUP BY queue
"""

_HOLDERS = f"""
SELECT queue, task_id, status, key, pool, worker_id, updated_at AS since, count(*) OVER (PARTITION BY queue) AS holders
FROM tasks WHERE {_HOLDS} AND queue IN (SELECT unnest($queues))
QUALIFY row_number() OVER (PARTITION BY queue ORDER BY status = 'PENDING', position) <= {HOLDERS_SHOWN}
ORDER BY queue, status = 'PENDING', position
"""

_AHEAD = """
SELECT count(*) FROM tasks
WHERE status = 'PENDING' AND queue = $queue AND (ready = 0) = $held AND ($held OR pool = $pool)
  AND (priority > $priority OR (priority = $priority AND position < $position))
"""

_LINE = f"""
SELECT count(*) FILTER ({_HOLDS}) AS holders,
       count(*) FILTER ({_HOLDS} AND key = $key) AS holders_of_key,
       count(*) FILTER (status = 'PENDING' AND ready > 0 AND pool = $pool) AS waiting,
       count(*) FILTER (status = 'PENDING' AND ready > 0 AND pool = $pool AND key = $key) AS waiting_of_key,
       count(DISTINCT coalesce(key, '')) FILTER (status = 'PENDING' AND ready = 0) AS keys_held
FROM tasks WHERE queue = $queue AND status IN ('PENDING', 'RUNNING', 'PAUSED')
"""

_HOLDING_IDS = f"""
SELECT task_id FROM tasks WHERE queue = $queue AND {_HOLDS} AND ($key IS NULL OR key = $key)
ORDER BY position LIMIT {HOLDERS_SHOWN}
"""

_DURATIONS = f"""
SELECT greatest(0, epoch(attempts.ended_at) - epoch(attempts.started_at))
FROM attempts JOIN tasks USING (task_id)
WHERE tasks.queue = $queue AND tasks.pool = $pool AND attempts.outcome = 'completed'
ORDER BY attempts.position DESC LIMIT {DURATIONS_MAX}
"""

_ADMISSIONS = f"""
SELECT time, data FROM events
WHERE aggregate = 'queues' AND aggregate_id = $queue AND type = 'admitted'
  AND position > coalesce((
      SELECT max(position) FROM events WHERE aggregate = 'queues' AND aggregate_id = $queue AND type = 'configured'), 0)
ORDER BY position DESC LIMIT {ADMISSIONS_MAX}
"""


@dataclass(slots=True)
class Depth:
    """How many tasks there are, by status. ``held``: of the pending ones, those at the queue's gate."""

    by_status: dict[str, int] = field(default_factory=dict[str, int])
    held: int = 0
    oldest_pending_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """Attempts of the last so many seconds, by what became of them; ``failed`` with those that were timed out or retried."""

    started: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Holder:
    """A task that holds one of a queue's slots: it waits for a worker, or one has it."""

    task_id: str
    status: str
    key: str | None
    pool: str
    worker_id: str | None
    since: datetime


@dataclass(slots=True)
class QueueFacts:
    """One queue, over all pools. ``holders``: at most ``HOLDERS_SHOWN`` of ``held_slots``."""

    name: str
    queue: Queue = field(default_factory=Queue)
    pools: dict[str, Depth] = field(default_factory=dict[str, Depth])
    last_minute: Moved = field(default_factory=Moved)
    last_5_minutes: Moved = field(default_factory=Moved)
    holders: list[Holder] = field(default_factory=list[Holder])
    held_slots: int = 0


@dataclass(frozen=True, slots=True)
class QueuePage:
    """Queues in order of their names, true for the position ``as_of``. ``total``: how many there are in all."""

    total: int
    queues: list[QueueFacts]
    as_of: int


@dataclass(frozen=True, slots=True)
class LineFacts:
    """What stands before one waiting task. ``ahead``: older or more urgent ones that wait as it does; ``waiting``,
    ``waiting_of_key``: those of its pool that were let through and not started; ``admissions``: times and keys of the queue's
    admissions under its present limits, oldest first; ``durations``: seconds, newest first."""

    queue: Queue
    ahead: int
    holders: int
    holders_of_key: int
    waiting: int
    waiting_of_key: int
    keys_held: int
    holding: list[str]
    holding_of_key: list[str]
    admissions: list[tuple[datetime, list[str | None]]]
    durations: list[float]


def queue_page(snapshot: Snapshot, now: datetime, served: Collection[str], limit: int, offset: int) -> QueuePage:
    """A page of all queues that the projection knows or that are ``served``. ``now``: what the rates look back from."""
    names = sorted({name for (name,) in snapshot.rows(_NAMES)}.union(served))
    wanted = names[offset : offset + limit]
    found = _queues(snapshot, now, wanted)
    return QueuePage(len(names), [found.get(name, QueueFacts(name)) for name in wanted], snapshot.position)


def one_queue(snapshot: Snapshot, now: datetime, name: str) -> QueuePage:
    """The queue of this name as a page of one; an empty page where the projection does not know it."""
    found = list(_queues(snapshot, now, [name]).values())
    return QueuePage(len(found), found, snapshot.position)


def _queues(snapshot: Snapshot, now: datetime, names: Sequence[str]) -> dict[str, QueueFacts]:
    """What the projection knows of these, by name."""
    which: dict[str, Any] = {"queues": list(names)}
    since = {"minute": naive(now - timedelta(minutes=1)), "minutes": naive(now - timedelta(minutes=5))}
    found: defaultdict[str, QueueFacts] = defaultdict(lambda: QueueFacts(""))
    for queue, state in snapshot.rows(_STATES, which):
        found[queue].queue = QUEUES.from_summary(orjson.loads(state))
    for queue, pool, status, held, tasks, oldest_at in snapshot.rows(_DEPTHS, which):
        _add(found[queue].pools.setdefault(pool, Depth()), status, held, tasks, oldest_at)
    for queue, *counts in snapshot.rows(_RATES, which | since):
        started_1m, started_5m, completed_1m, completed_5m, failed_1m, failed_5m = counts
        found[queue].last_minute = Moved(started_1m, completed_1m, failed_1m)
        found[queue].last_5_minutes = Moved(started_5m, completed_5m, failed_5m)
    for queue, task_id, status, key, pool, worker_id, since_at, holders in snapshot.rows(_HOLDERS, which):
        found[queue].holders.append(Holder(task_id, status, key, pool, worker_id, since_at.replace(tzinfo=UTC)))
        found[queue].held_slots = holders
    for queue, facts in found.items():
        facts.name = queue
    return dict(found)


def line_facts(snapshot: Snapshot, task: TaskRow) -> LineFacts:
    """What stands before ``task``."""
    key, pool = task.key, task.pool
    here: dict[str, Any] = {"queue": task.queue}
    states = snapshot.rows("SELECT state FROM queues WHERE queue = $queue", here)
    place = {"pool": pool, "priority": task.priority, "position": task.position, "held": task.ready == 0}
    holders, holders_of_key, waiting, waiting_of_key, keys_held = snapshot.rows(_LINE, here | {"key": key, "pool": pool})[0]
    admitted = snapshot.rows(_ADMISSIONS, here)
    return LineFacts(
        queue=QUEUES.from_summary(orjson.loads(states[0][0])) if states else Queue(),
        ahead=snapshot.rows(_AHEAD, here | place)[0][0],
        holders=holders,
        holders_of_key=holders_of_key,
        waiting=waiting,
        waiting_of_key=waiting_of_key,
        keys_held=keys_held,
        holding=_ids(snapshot.rows(_HOLDING_IDS, here | {"key": None})),
        holding_of_key=[] if key is None else _ids(snapshot.rows(_HOLDING_IDS, here | {"key": key})),
        admissions=[(time.replace(tzinfo=UTC), _keys(data)) for time, data in reversed(admitted)],
        durations=[row[0] for row in snapshot.rows(_DURATIONS, here | {"pool": pool})],
    )


def _add(depth: Depth, status: str, held: bool, tasks: int, oldest_at: datetime | None) -> None:
    depth.by_status[status] = depth.by_status.get(status, 0) + tasks
    depth.held += tasks if held else 0
    if oldest_at is not None:
        at = oldest_at.replace(tzinfo=UTC)
        depth.oldest_pending_at = at if depth.oldest_pending_at is None else min(at, depth.oldest_pending_at)


def _keys(data: str) -> list[str | None]:
    return [task.get("key") for task in orjson.loads(data)["tasks"]]


def _ids(rows: Iterable[tuple[Any, ...]]) -> list[str]:
    return [row[0] for row in rows]
