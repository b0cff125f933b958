"""Server-side timers. A fired timer is a hint that a task's time has come; the rules decide whether it has.

A timer belongs to one version of a task and is set *before* the event that waits for it is appended. Dying between the two
leaves a timer that fires for nothing, which is harmless; the other order could leave a task that nobody wakes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import nats.errors
import orjson
from nats.js.errors import APIError

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.subjects import TIMERS, due_subject, timer_subject

SCHEDULE, SCHEDULE_TARGET = "Nats-Schedule", "Nats-Schedule-Target"


async def set_timer(broker: Broker, task_id: str, version: int, due_at: datetime) -> None:
    """At ``due_at`` (aware; the past means at once) deliver a hint to the promoter. Setting it again replaces it."""
    # The broker's timers have a resolution of one second's fraction but parse whole RFC 3339: round up, never early.
    at = due_at.astimezone(UTC)
    if at.microsecond % 1000:
        at += timedelta(microseconds=1000 - at.microsecond % 1000)
    headers = {
        SCHEDULE: f"@at {at.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}",
        SCHEDULE_TARGET: due_subject(task_id, version),
    }
    body = orjson.dumps({"task_id": task_id, "version": version})
    try:
        await broker.js.publish(timer_subject(task_id, version), body, headers=headers, stream=TIMERS, timeout=5)
    except (APIError, nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"the timer could not be set: {error!r}") from error
