"""What must hold of every task's history, whoever wrote it and whatever broke meanwhile.

Told from the events' types, versions and links alone, without `decide`, so that it can judge the rules themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from eventq.events.envelope import Event
from eventq.events.limits import LOSSES_MAX
from eventq.events.task import from_summary, replay
from eventq.events.task_events import Queued, Started, Submitted

TERMINAL_TYPES = {"completed", "failed", "timed_out", "cancelled"}
ENDS_ATTEMPT = {"retrying", "queued"} | TERMINAL_TYPES
READY = {"submitted", "queued"}


def violations(events: Sequence[Event]) -> list[str]:
    """What is wrong with one task's whole history, in words; empty for a good one."""
    return [*_chain(events), *_ends(events), *_attempts(events), *_bounds(events), *_states(events)]


def _chain(events: Sequence[Event]) -> list[str]:
    found: list[str] = []
    if [event.version for event in events] != list(range(1, len(events) + 1)):
        found.append(f"versions are not contiguous: {[event.version for event in events]}")
    if [event.previous for event in events] != [None, *[event.id for event in events]][: len(events)]:
        found.append("an event does not follow the one before it")
    if [event.type for event in events].count("submitted") != (1 if events else 0):
        found.append("not submitted exactly once")
    elif events and events[0].type != "submitted":
        found.append("something happened before the submission")
    return found


def _ends(events: Sequence[Event]) -> list[str]:
    terminal = [event.version for event in events if event.type in TERMINAL_TYPES]
    if len(terminal) > 1:
        return [f"more than one terminal event: versions {terminal}"]
    if terminal and terminal[0] != events[-1].version:
        return [f"something happened after the end at version {terminal[0]}"]
    return []


def _attempts(events: Sequence[Event]) -> list[str]:
    """Attempts are numbered 1, 2, ...; none begins while another is current, nor while the task is not ready."""
    found: list[str] = []
    attempt, running, ready = 0, False, False
    for event in events:
        if event.type == "started":
            if running:
                found.append(f"attempt {attempt + 1} began while attempt {attempt} was current")
            if not ready:
                found.append(f"attempt {attempt + 1} began although the task was not ready")
            attempt, running, ready = attempt + 1, True, False
        elif event.type in ENDS_ATTEMPT:
            running = False
        if event.type in READY:
            ready = event.route is not None
        if event.attempt != attempt:
            found.append(f"version {event.version} says attempt {event.attempt}, {attempt} have started")
    return found


def _bounds(events: Sequence[Event]) -> list[str]:
    if not events or not isinstance(events[0].data, Submitted):
        return []
    reasons = [event.data.reason for event in events if isinstance(event.data, Queued)]
    failures = sum(event.type in {"retrying", "timed_out"} for event in events)
    started = sum(isinstance(event.data, Started) for event in events)
    found: list[str] = []
    if failures > events[0].data.max_retries + 1 or [e.type for e in events].count("retrying") > events[0].data.max_retries:
        found.append("retried more often than allowed")
    if reasons.count("worker_lost") >= LOSSES_MAX:
        found.append("run again after too many lost workers")
    if started > events[0].data.max_retries + LOSSES_MAX + reasons.count("interrupted") + 1:
        found.append(f"{started} attempts")
    return found


def _states(events: Sequence[Event]) -> list[str]:
    """The state that each event carries is the fold of the history up to it, also after its way through JSON."""
    found: list[str] = []
    for count, event in enumerate(events, 1):
        folded = replay((each.id, each.time, each.data) for each in events[:count])
        if from_summary(orjson.loads(orjson.dumps(event.state))) != folded:
            found.append(f"the state in version {event.version} is not the fold of the history")
    return found
