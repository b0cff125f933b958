"""Typed reads of schedules. A row's ``state`` is the whole schedule, as its rules know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from eventq.events.schedule import SCHEDULES, Schedule, ScheduleStatus
from eventq.projections.store import Snapshot

EXISTING = (ScheduleStatus.ACTIVE, ScheduleStatus.PAUSED, ScheduleStatus.ENDED)


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """One schedule, true for the position ``as_of``."""

    schedule_id: str
    schedule: Schedule
    as_of: int


@dataclass(frozen=True, slots=True)
class SchedulePage:
    """A page of schedules. ``total``: all that match."""

    total: int
    rows: list[ScheduleRow]
    as_of: int


def get_schedule(snapshot: Snapshot, schedule_id: str) -> ScheduleRow | None:
    """The schedule; ``None`` where the projection has none of that id."""
    records = snapshot.records("SELECT schedule_id, state FROM schedules WHERE schedule_id = $id", {"id": schedule_id})
    return _row(records[0], snapshot.position) if records else None


def list_schedules(
    snapshot: Snapshot, statuses: tuple[ScheduleStatus, ...], task_name: str | None, limit: int, offset: int
) -> SchedulePage:
    """One page of those of these statuses, newest first."""
    where = "WHERE status IN (SELECT unnest($statuses))"
    parameters: dict[str, Any] = {"statuses": [status.value for status in statuses]}
    if task_name is not None:
        where += " AND task_name = $task_name"
        parameters["task_name"] = task_name
    total = snapshot.rows(f"SELECT count(*) FROM schedules {where}", parameters)[0][0]
    records = snapshot.records(
        f"SELECT schedule_id, state FROM schedules {where} ORDER BY created_at DESC, schedule_id LIMIT $limit OFFSET $offset",
        parameters | {"limit": limit, "offset": offset},
    )
    as_of = snapshot.position
    return SchedulePage(total, [_row(record, as_of) for record in records], as_of)


def _row(record: dict[str, Any], as_of: int) -> ScheduleRow:
    return ScheduleRow(record["schedule_id"], SCHEDULES.from_summary(orjson.loads(record["state"])), as_of)
