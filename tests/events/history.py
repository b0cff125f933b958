"""What must hold of every task's history, whoever wrote it and whatever broke meanwhile.

Told from the events' types, versions and links alone, without `decide`, so that it can judge the rules themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from eventq.events import task as rules
from eventq.events.envelope import Event
from eventq.events.limits import LOSSES_MAX
from eventq.events.task import from_summary
from eventq.events.task_events import Paused, Queued, Submitted, TimedOut, Updated

TERMINAL_TYPES = {"completed", "failed", "timed_out", "cancelled"}
AFTERLIFE = {"cleaned", "erased"}
WORK = {"submitted", "queued", "updated"}
"""Types of events that can be work items."""


def ends_attempt(event: Event) -> bool:
    """Whether nobody has the task in hands after it. A pause ends the attempt unless it stands still in its worker."""
    frozen = isinstance(event.data, Paused) and event.data.frozen
    return event.type in {"retrying", "queued", "paused"} | TERMINAL_TYPES and not frozen


def violations(events: Sequence[Event]) -> list[str]:
    """What is wrong with one task's whole history, in words; empty for a good one."""
    return [*_chain(events), *_ends(events), *_Life().violations(events), *_bounds(events), *_states(events)]


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
    """One end, and after it nothing but that the task is cleaned up, then erased, each once."""
    types = [event.type for event in events]
    terminal = [event.version for event in events if event.type in TERMINAL_TYPES]
    if len(terminal) > 1:
        return [f"more than one terminal event: versions {terminal}"]
    end = next((at for at, name in enumerate(types) if name in TERMINAL_TYPES), len(types))
    if gone := AFTERLIFE & set(types[:end]):
        return [f"{min(gone)} before its end"]
    after = types[end + 1 :]
    if set(after) - AFTERLIFE:
        return [f"something happened after the end at version {terminal[0]}"]
    if after not in ([], ["cleaned"], ["erased"], ["cleaned", "erased"]):
        return [f"given up more than once: {after}"]
    return []


@dataclass
class _Life:
    """Attempts are numbered 1, 2, ...; none begins while another is current, while the task is paused, held or waits for
    its time, nor from any work item but the newest event."""

    attempt: int = 0
    running: bool = False
    paused: bool = False
    held: bool = False
    pause_requested: bool = False
    item: int = 0
    found: list[str] = field(default_factory=list[str])

    def violations(self, events: Sequence[Event]) -> list[str]:
        for event in events:
            if event.type == "started":
                self._begin(event)
            elif ends_attempt(event):
                self.running = False
            self._wait(event)
            if event.attempt != self.attempt:
                self.found.append(f"version {event.version} says attempt {event.attempt}, {self.attempt} have started")
        return self.found

    def _begin(self, event: Event) -> None:
        began = f"attempt {self.attempt + 1} began"
        if self.running:
            self.found.append(f"{began} while attempt {self.attempt} was current")
        if self.paused:
            self.found.append(f"{began} while the task was paused")
        elif self.held:
            self.found.append(f"{began} while the task was held at its queue's gate")
        elif not self.item:
            self.found.append(f"{began} although the task was not ready")
        elif self.item != event.version - 1:
            self.found.append(f"{began} from the stale work item of version {self.item}")
        self.attempt, self.running = self.attempt + 1, True

    def _wait(self, event: Event) -> None:
        data = event.data
        match event.type:
            case "pause_requested":
                self.pause_requested = True
            case "paused":
                self.paused, self.pause_requested = True, True
            case "retrying":
                self.paused = self.pause_requested
            case "queued" | "resumed":
                self.paused = self.pause_requested = False
            case "updated" if self.attempt:
                self.found.append(f"changed at version {event.version}, after it was started")
            case _:
                pass
        if isinstance(data, TimedOut) and data.reason == "queue_timeout" and self.attempt:
            self.found.append("timed out in its queue after it was started")
        self.held = (isinstance(data, Queued) and data.held) or (isinstance(data, Submitted) and data.gated)
        if isinstance(data, Updated):
            self.held = data.submission.gated
        if event.route is not None and (event.type not in WORK or self.paused or self.held):
            why = "is paused" if self.paused else "is held" if self.held else f"was {event.type}"
            self.found.append(f"version {event.version} is work although the task {why}")
        if event.type in WORK or event.type in {"started", "retrying", "paused"}:
            self.item = event.version if event.route is not None else 0


def _bounds(events: Sequence[Event]) -> list[str]:
    """Every attempt but the first is owed to a retry, a loss, an interruption or a pause; the first two are bounded."""
    if not events or not isinstance(events[0].data, Submitted):
        return []
    wanted = [e.data.submission if isinstance(e.data, Updated) else e.data for e in events]
    max_retries = [data.max_retries for data in wanted if isinstance(data, Submitted)][-1]
    reasons = [event.data.reason for event in events if isinstance(event.data, Queued)]
    retried = [event.type for event in events].count("retrying")
    pauses = [e.data for e in events if isinstance(e.data, Paused) and not e.data.frozen and e.data.confirmed_by is not None]
    losses = reasons.count("worker_lost") + sum(pause.lost for pause in pauses)
    started = [event.type for event in events].count("started")
    found: list[str] = []
    if retried > max_retries:
        found.append("retried more often than allowed")
    if losses >= LOSSES_MAX:
        found.append("run again after too many lost workers")
    if started > 1 + retried + losses + reasons.count("interrupted") + sum(not pause.lost for pause in pauses):
        found.append(f"{started} attempts, more than there was reason for")
    return found


def _states(events: Sequence[Event]) -> list[str]:
    """The state that each event carries is the fold of the history up to it, also after its way through JSON."""
    found: list[str] = []
    folded = rules.ABSENT
    for event in events:
        folded = rules.evolve(folded, event.id, event.time, event.data)
        if from_summary(orjson.loads(orjson.dumps(event.state))) != folded:
            found.append(f"the state in version {event.version} is not the fold of the history")
    return found
