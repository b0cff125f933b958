"""Server-side timers. A fired timer is a hint that the time for something has come; the rules decide whether it has.

A timer is set *before* the event that waits for it is appended. Dying between the two leaves a timer that fires for nothing,
which is harmless; the other order could leave a task that nobody wakes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import orjson

from eventq.events.appender import Appender
from eventq.events.errors import InvalidInput, LogFull, LogUnavailable
from eventq.events.ids import check_id
from eventq.events.ingest import Outgoing
from eventq.events.subjects import due_subject, timer_subject

SCHEDULE, SCHEDULE_TARGET = "Nats-Schedule", "Nats-Schedule-Target"

DUE = "due"
"""A scheduled or retrying task becomes ready. Of one version of the task."""

START_BY = "start_by"
"""A ready task that nobody started times out. Of the version that begins the wait, or of a later one."""

WAIT_SLACK_S = 0.05
"""The wait begins with the time of the event, which is written an instant after the timer is set."""


@dataclass(frozen=True, slots=True)
class Hint:
    """What a timer is about. ``kind`` and ``id``: whose history; ``what``: one word of that kind's; ``version``: the version
    that waits for it, 0 where any does. Setting a timer with the same four replaces it. ``fired_at``: when it fired, by the
    broker's clock, which this host's may be behind."""

    kind: str
    id: str
    what: str
    version: int = 0
    fired_at: datetime | None = field(default=None, compare=False)

    @property
    def tokens(self) -> str:
        """As part of a subject."""
        return f"{self.kind}.{self.id}.{self.what}.{self.version}"


async def set_timer(timers: Appender, hint: Hint, due_at: datetime) -> None:
    """At ``due_at`` (aware; the past means at once) deliver the hint to the promoter. Setting it again replaces it.

    Raises ``LogUnavailable`` where the broker did not take it.
    """
    # The broker's timers have a resolution of one second's fraction but parse whole RFC 3339: round up, never early.
    at = due_at.astimezone(UTC)
    if at.microsecond % 1000:
        at += timedelta(microseconds=1000 - at.microsecond % 1000)
    headers = {
        SCHEDULE: f"@at {at.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}",
        SCHEDULE_TARGET: due_subject(hint.tokens),
    }
    body = orjson.dumps({"kind": hint.kind, "id": hint.id, "what": hint.what, "version": hint.version})
    try:
        await timers.append(Outgoing(timer_subject(hint.tokens), body, headers))
    except LogFull as error:
        raise LogUnavailable("the timer could not be set: the broker has no room for it") from error
    except LogUnavailable as error:
        raise LogUnavailable(f"the timer could not be set: {error.detail}", **error.fields) from error


async def set_task_timers(
    timers: Appender, task_id: str, *, version: int, due_at: datetime | None, queue_timeout_s: float | None, now: datetime
) -> None:
    """Set what a task will need that is about to become version ``version``: ``due_at`` where it waits for a time, and when
    it times out in its queue. Raises ``LogUnavailable``."""
    if due_at is not None:
        await set_timer(timers, Hint("tasks", task_id, DUE, version), due_at)
    if queue_timeout_s is not None:
        start_by = max(due_at or now, now) + timedelta(seconds=queue_timeout_s + WAIT_SLACK_S)
        await set_timer(timers, Hint("tasks", task_id, START_BY, version), start_by)


def read_hint(payload: bytes, fired_at: datetime | None = None) -> Hint | None:
    """What a timer is about; ``None`` for what no timer of ours wrote. Anybody may publish there."""
    try:
        raw = orjson.loads(payload)
        return Hint(
            check_id(raw["kind"], "kind"),
            check_id(raw["id"], "id"),
            check_id(raw["what"], "what"),
            int(raw["version"]),
            fired_at,
        )
    except (ValueError, TypeError, KeyError, OverflowError, InvalidInput):
        return None
