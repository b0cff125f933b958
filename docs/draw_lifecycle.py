"""Draw docs/lifecycle.md from the rules themselves: every arrow is found by asking `decide` and `evolve`.

Run `python docs/draw_lifecycle.py` after changing the rules; a test compares the page with what this draws.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eventq.events.commands import (
    AdmitTask,
    CancelTask,
    CleanTask,
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ConfirmPause,
    EraseTask,
    ExpireLease,
    ExpireQueueWait,
    FailAttempt,
    HoldTask,
    InterruptAttempt,
    PauseTask,
    PromoteTask,
    RequeueTask,
    ResumeTask,
    StartAttempt,
    SubmitTask,
    TimeOutAttempt,
    UpdateTask,
)
from eventq.events.data import ErrorInfo, EventData
from eventq.events.errors import IllegalTransition, StaleAttempt
from eventq.events.limits import LOSSES_MAX
from eventq.events.task import ABSENT, TERMINAL, Status, Task, decide, evolve
from eventq.events.task_events import Submitted

PAGE = Path(__file__).with_name("lifecycle.md")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
BEGIN, END = "<!-- drawn by draw_lifecycle.py: begin -->", "<!-- end -->"

_ERROR = ErrorInfo(type="ValueError", message="no")
_NOW_TASK = Submitted(task_name="t", pool="cpu", queue="default", priority=5, max_retries=1)
_LATER_TASK = _NOW_TASK.model_copy(update={"scheduled_at": NOW + timedelta(hours=1)})

SUBMITTER = "a client, a running task, a schedule or a workflow"
PROMOTER = "the promoter, or the reconciler where the timer got lost"
FINDER = "the worker watch, another worker or the reconciler"
WATCH_OF_HTTP = "the worker watch, of an HTTP worker"
CANCELLER = "a client, or the workflow that it belongs to"

WHO: list[tuple[Command, str, str]] = [
    (SubmitTask(_NOW_TASK, NOW), SUBMITTER, "submits"),
    (SubmitTask(_LATER_TASK, NOW), "a client, or a workflow for a step that must not run", "submits for a later time"),
    (PromoteTask(1, NOW + timedelta(hours=2)), PROMOTER, "finds it due"),
    (UpdateTask(_NOW_TASK, (), "someone", NOW), "a client", "updates, to run now"),
    (UpdateTask(_LATER_TASK, (), "someone", NOW), "a client", "updates, to run later"),
    (HoldTask(1), "the gate", "finds that its queue has got limits"),
    (AdmitTask(1), "the gate", "lets it through"),
    (RequeueTask(1), "the reconciler", "finds its work item lost"),
    (ExpireQueueWait(NOW + timedelta(hours=2)), PROMOTER, "finds that nobody started it in time"),
    (StartAttempt("w", "h", "cpu"), "a worker", "claims it"),
    (CompleteAttempt(1, None, None, 0.0), "its worker", "reports the result"),
    (FailAttempt(1, _ERROR, 1.0, NOW), "its worker", "reports an error that a retry may mend"),
    (FailAttempt(1, _ERROR, None, NOW), "its worker", "reports an error that no retry mends"),
    (TimeOutAttempt(1, 1.0, 1.0, NOW), "its worker", "stops it at its time limit, or for its silence"),
    (TimeOutAttempt(1, 1.0, 1.0, NOW), WATCH_OF_HTTP, "finds it over its time limit, or silent"),
    (InterruptAttempt(1), "its worker", "hands it back unfinished, as when it shuts down"),
    (InterruptAttempt(1), WATCH_OF_HTTP, "finds that it does not know of the attempt"),
    (ExpireLease(1), FINDER, "finds its worker gone"),
    (PauseTask("someone"), "a client", "pauses"),
    (ConfirmPause(1, frozen=False), "its worker", "has ended the attempt at a checkpoint, as asked"),
    (ConfirmPause(1, frozen=True), "its worker", "has frozen the attempt, as asked"),
    (ResumeTask("someone", NOW), "a client", "resumes"),
    (CancelTask("someone"), CANCELLER, "cancels"),
    (ConfirmCancel(1), "its worker", "has stopped it as asked"),
    (ConfirmCancel(1, ("asked", "revoked")), WATCH_OF_HTTP, "takes it away, since its worker does not stop it"),
    (CleanTask("someone", "requested"), "a client, or the scheduler when the result has had its time", "gives up the result"),
    (EraseTask("someone", None, ()), "a client", "erases"),
]


def situations() -> Iterator[tuple[str, Task]]:
    """One task for each status, and those whose past decides what may follow."""
    base = Task(version=1, event_id="e", pool="cpu", queue="default", priority=5, max_retries=1)
    started = base._replace(attempt=1)
    yield "", ABSENT
    yield "", base._replace(status=Status.SCHEDULED, due_at=NOW)
    yield "", base._replace(status=Status.PENDING, ready=1)
    yield "it is held", base._replace(status=Status.PENDING, ready=0, gated=True)
    timely = base._replace(status=Status.PENDING, ready=1, queue_timeout_s=60.0, start_by=NOW)
    yield "it has a queue time-out", timely
    running = started._replace(status=Status.RUNNING, worker_id="w")
    yield "", running
    yield "", started._replace(status=Status.RETRYING, due_at=NOW)
    paused = base._replace(status=Status.PAUSED, pause_requested_by="someone")
    yield "", paused
    yield "its time lies ahead", paused._replace(due_at=NOW + timedelta(hours=1))
    yield "its retry lies ahead", paused._replace(due_at=NOW + timedelta(hours=1), attempt=1)
    yield "its queue is gated", paused._replace(gated=True)
    frozen = paused._replace(attempt=1, worker_id="w")
    yield "it is frozen", frozen
    yield "it is frozen, no retry left", frozen._replace(failures=1)
    yield f"it is frozen, {LOSSES_MAX - 1} workers lost before", frozen._replace(losses=LOSSES_MAX - 1)
    yield "it is frozen, cancellation requested", frozen._replace(cancel_requested_by="someone")
    yield "no retry left", running._replace(failures=1)
    yield f"{LOSSES_MAX - 1} workers lost before", running._replace(losses=LOSSES_MAX - 1)
    yield "pause requested", running._replace(pause_requested_by="someone")
    yield "cancellation requested", running._replace(cancel_requested_by="someone")
    both = running._replace(pause_requested_by="someone", cancel_requested_by="someone")
    yield "pause, then cancellation requested", both
    for status in Status:
        if status in TERMINAL:
            yield "", started._replace(status=status)


def moves(task: Task) -> Iterator[tuple[str, str, EventData]]:
    """Who may do what to the task, and the event that it leads to."""
    for command, who, does in WHO:
        if who == WATCH_OF_HTTP and task.frozen:
            continue  # HTTP workers freeze nothing
        try:
            decided = decide(command, task)
        except (IllegalTransition, StaleAttempt):
            continue
        for data in decided:
            yield who, does, data


def arrows() -> list[tuple[str, str, str, str, str, str]]:
    """Every (from, to, who, does what, event, situation) that the rules admit, plain situations first."""
    found: dict[tuple[str, str, str, str, str], str] = {}
    for situation, task in situations():
        for who, does, data in moves(task):
            after = evolve(task, "e2", NOW, data)
            key = (task.status.value, after.status.value, who, does, type(data).__name__)
            found.setdefault(key, situation)
    return [(*key, situation) for key, situation in found.items()]


def drawing() -> str:
    """The diagram and the table, as they stand in the page."""
    found = arrows()
    lines = ["```mermaid", "stateDiagram-v2"]
    for source, target in dict.fromkeys((a[0], a[1]) for a in found):
        lines.append(f"    {'[*]' if source == 'ABSENT' else source} --> {target}")
    lines += [f"    {status} --> [*]" for status in Status if status in TERMINAL]
    lines += ["```", "", "| from | to | who | does | event | only when |", "|---|---|---|---|---|---|"]
    for source, target, who, does, event, situation in found:
        lines.append(f"| {source.replace('ABSENT', '—')} | {target} | {who} | {does} | `{event}` | {situation} |")
    return "\n".join(lines)


def redrawn(page: str) -> str:
    """The page with today's drawing between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{drawing()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    text = redrawn(PAGE.read_text())
    if sys.argv[1:] == ["--check"]:
        sys.exit(text != PAGE.read_text())
    PAGE.write_text(text)
