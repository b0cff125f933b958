"""Progress and log lines: many, small, and beside the history, so that they never disturb a task's version."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import ValidationError
from pydantic.dataclasses import dataclass as validated

from eventq.events.errors import LogDamaged
from eventq.events.ids import new_id


@validated(frozen=True, slots=True)
class Progress:
    """How far an attempt is. ``total`` is ``None`` where it is not known; ``unit`` names what is counted."""

    done: float
    total: float | None = None
    unit: str | None = None
    message: str | None = None


@validated(frozen=True, slots=True)
class LogLine:
    """One line that task code wrote. ``level``: debug, info, warning or error; ``at``: when, aware UTC."""

    message: str
    level: str = "info"
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@validated(frozen=True, slots=True)
class Log:
    """Lines in the order in which they were written. Several travel in one message, so that a task that talks much does
    not publish much."""

    lines: list[LogLine]


@dataclass(frozen=True, slots=True)
class Report:
    """A message of this stream as stored. ``time``: aware UTC, the worker's clock."""

    id: str
    source: str
    task_id: str
    attempt: int
    time: datetime
    data: Progress | Log


def encode_report(task_id: str, attempt: int, source: str, data: Progress | Log) -> bytes:
    """A message of ``task_id``'s attempt, written now by ``source``."""
    return orjson.dumps(
        {
            "id": new_id(),
            "source": source,
            "type": "progress" if isinstance(data, Progress) else "log",
            "subject": f"tasks.{task_id}",
            "time": datetime.now(UTC),
            "schema": 1,
            "attempt": attempt,
            "data": asdict(data),
        },
        option=orjson.OPT_UTC_Z,
    )


def decode_report(payload: bytes, subject: str) -> Report:
    """The message that ``payload`` holds; raises :class:`LogDamaged` for what is none."""
    try:
        raw = orjson.loads(payload)
        model = {"progress": Progress, "log": Log}[raw["type"]]
        return Report(
            id=raw["id"],
            source=raw["source"],
            task_id=subject.split(".")[1],
            attempt=raw["attempt"],
            time=datetime.fromisoformat(raw["time"]),
            data=model(**raw["data"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, ValidationError) as error:
        raise LogDamaged(f"what is stored under {subject} is not a report: {error}", subject=subject) from error
