"""The only file with the names of streams, subjects and consumers, and the headers of the version check.

``tasks.<id>.<version>.<event>`` names a fact. ``tasks.<id>.<version>.<event>.<pool>.<queue>.<priority>`` names a fact that
is also work: a durable consumer filtered on the last three tokens hands it to a worker. One publish makes the history
entry and the work item, so there is no second write to lose.
"""

from __future__ import annotations

from typing import NamedTuple

EVENTS = "EVENTS"
PROGRESS = "PROGRESS"
TIMERS = "TIMERS"
PRESENCE = "PRESENCE"

EVENT_SUBJECTS = ["tasks.>", "workers.>", "queues.>", "schedules.>", "workflows.>", "system.>"]
PROGRESS_SUBJECTS = ["progress.*"]
TIMER_SUBJECTS = ["sched.>", "due.>"]
TAP = "tap.>"
STEERING = ("tasks.*.*.cancel_requested", "tasks.*.*.pause_requested", "tasks.*.*.resumed")
"""Events that ask a worker for something that it has in hand."""

PLACEHOLDER = "gone"
"""The type of what holds the place of an erased event."""

QUEUE_CREATED = "ctl.queue_created"
"""Core message (a hint, it may be lost): a queue got its first consumer; workers look at once instead of at the next look."""

DISCONNECTS = "$SYS.ACCOUNT.*.DISCONNECT"
"""The broker's own events, for users of its system account: a client's connection ended."""

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SEQUENCE_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"

TIMER_CONSUMER = "promoter"
DUE_FILTER = "due.>"


class Route(NamedTuple):
    """Where ready work goes: a worker pool, a queue of that pool, a priority (0 to 10, larger first)."""

    pool: str
    queue: str
    priority: int


def event_subject(aggregate: str, aggregate_id: str, version: int, name: str, route: Route | None) -> str:
    """The subject of an event; with a ``route`` it is work as well."""
    subject = f"{aggregate}.{aggregate_id}.{version}.{name}"
    return subject if route is None else f"{subject}.{route.pool}.{route.queue}.{route.priority}"


def version_filter(aggregate: str, aggregate_id: str, version: int) -> str:
    """Matches whatever stands at one version of one aggregate."""
    return f"{aggregate}.{aggregate_id}.{version}.>"


def aggregate_filter(aggregate: str, aggregate_id: str) -> str:
    """Matches every event of one aggregate."""
    return f"{aggregate}.{aggregate_id}.>"


def type_filter(aggregate: str, aggregate_id: str, name: str) -> str:
    """Matches every event of one type, which is never work, of one aggregate."""
    return f"{aggregate}.{aggregate_id}.*.{name}"


def version_check(aggregate: str, aggregate_id: str, version: int) -> dict[str, str]:
    """Headers that make an append conditional on nobody having written this version.

    The only place that builds them: the broker checks the filter against nothing, so a misspelt one is silently no check.
    Every writer uses this literal filter, which keeps the check strict on replicated streams too.

    A first event asks that there be none at all: erasing deletes the messages of first events, and a version 1 that only looked
    for another version 1 could then begin the same history a second time.
    """
    first = version == 1
    nobody = aggregate_filter(aggregate, aggregate_id) if first else version_filter(aggregate, aggregate_id, version)
    return {EXPECTED_SEQUENCE: "0", EXPECTED_SEQUENCE_SUBJECT: nobody}


def alive_subject(worker_id: str) -> str:
    """Where each connection of a worker listens, so that others can ask the broker whether any is open."""
    return f"ctl.alive.{worker_id}"


def work_consumer(route: Route) -> str:
    """Name of the durable consumer of a route. Stable: autoscalers and operators refer to it."""
    return f"work-{route.pool}-{route.priority}-{route.queue}"


def route_of_consumer(name: str) -> Route | None:
    """The inverse of :func:`work_consumer`; ``None`` for consumers that are not work."""
    parts = name.split("-", 3)
    if len(parts) != 4 or parts[0] != "work" or not parts[2].isdigit():
        return None
    return Route(pool=parts[1], queue=parts[3], priority=int(parts[2]))


def work_filter(route: Route) -> str:
    """Matches every event, of any task, that makes work for this route."""
    return f"tasks.*.*.*.{route.pool}.{route.queue}.{route.priority}"


def progress_subject(task_id: str) -> str:
    """Progress and log lines of one task."""
    return f"progress.{task_id}"


def timer_subject(tokens: str) -> str:
    """A pending timer. ``tokens``: what it is about."""
    return f"sched.{tokens}"


def due_subject(tokens: str) -> str:
    """Where that timer's message appears when its time has come."""
    return f"due.{tokens}"
