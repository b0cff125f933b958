"""Typed reads of workers. Those that have gone stay in their table for ever, so what is asked of it is filtered there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from eventq.events.worker import LIVING, WorkerStatus
from eventq.projections.rows import WorkerRow, values_of
from eventq.projections.store import Snapshot

_COLUMNS = frozenset(column.name for column in fields(WorkerRow))

_WORKERS = """
SELECT workers.*, coalesce(busy.running, 0) AS running
FROM workers
LEFT JOIN (
    SELECT worker_id, count(*) AS running FROM tasks
    WHERE status = 'RUNNING' OR (status = 'PAUSED' AND worker_id IS NOT NULL) GROUP BY worker_id
) AS busy ON busy.worker_id = workers.worker_id
"""

_NEWEST_FIRST = "ORDER BY registered_at DESC, workers.worker_id"


@dataclass(frozen=True, slots=True)
class WorkerPage:
    """A page of workers. ``total``: all that match."""

    total: int
    rows: list[WorkerRow]
    as_of: int


def list_workers(
    snapshot: Snapshot, statuses: Collection[WorkerStatus], pool: str | None, limit: int, offset: int
) -> WorkerPage:
    """One page of the workers of these statuses (none: of any) and of this pool, newest first."""
    where, parameters = _conditions(statuses, pool)
    total = snapshot.rows(f"SELECT count(*) FROM workers {where}", parameters)[0][0]
    records = snapshot.records(
        f"{_WORKERS} {where} {_NEWEST_FIRST} LIMIT $limit OFFSET $offset", parameters | {"limit": limit, "offset": offset}
    )
    return WorkerPage(total, [_row(record) for record in records], snapshot.position)


def living_workers(snapshot: Snapshot) -> list[WorkerRow]:
    """All workers that are not known to have gone, newest first."""
    where, parameters = _conditions(LIVING, None)
    return [_row(record) for record in snapshot.records(f"{_WORKERS} {where} {_NEWEST_FIRST}", parameters)]


def _conditions(statuses: Collection[WorkerStatus], pool: str | None) -> tuple[str, dict[str, Any]]:
    where: list[str] = []
    parameters: dict[str, Any] = {}
    if statuses:
        where.append("workers.status IN (SELECT unnest($statuses))")
        parameters["statuses"] = [status.value for status in statuses]
    if pool is not None:
        where.append("workers.pool = $pool")
        parameters["pool"] = pool
    return (f"WHERE {' AND '.join(where)}" if where else ""), parameters


def _row(record: dict[str, Any]) -> WorkerRow:
    return WorkerRow(**values_of(record, _COLUMNS))
