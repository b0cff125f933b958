"""Draw docs/lifecycle.md from the rules themselves: every arrow is found by asking `decide` and `evolve`.

Run `python docs/draw_lifecycle.py` after changing the rules; a test compares the page with what this draws.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from eventq.events.commands import (
    CancelTask,
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ExpireLease,
    FailAttempt,
    InterruptAttempt,
    PromoteTask,
    RequeueTask,
    StartAttempt,
    SubmitTask,
    TimeOutAttempt,
)
from eventq.events.data import ErrorInfo
from eventq.events.errors import IllegalTransition
from eventq.events.limits import LOSSES_MAX
from eventq.events.task import ABSENT, TERMINAL, Status, Task, decide, evolve
from eventq.events.task_events import Submitted

PAGE = Path(__file__).with_name("lifecycle.md")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
BEGIN, END = "<!-- drawn by draw_lifecycle.py: begin -->", "<!-- end -->"

_ERROR = ErrorInfo(type="ValueError", message="no")
_NOW_TASK = Submitted(task_name="t", pool="cpu", queue="default", priority=5, max_retries=1)
_LATER_TASK = _NOW_TASK.model_copy(update={"scheduled_at": NOW + timedelta(hours=1)})

WHO: list[tuple[Command, str, str]] = [
    (SubmitTask(_NOW_TASK, NOW), "a client", "submits"),
    (SubmitTask(_LATER_TASK, NOW), "a client", "submits for a later time"),
    (PromoteTask(1, NOW + timedelta(hours=2)), "the promoter", "finds it due"),
    (RequeueTask(1), "the reconciler", "finds its work item lost"),
    (StartAttempt("w", "h", "cpu"), "a worker", "claims it"),
    (CompleteAttempt(1, None, None, 0.0), "its worker", "reports the result"),
    (FailAttempt(1, _ERROR, 1.0, NOW), "its worker", "reports an error that a retry may mend"),
    (FailAttempt(1, _ERROR, None, NOW), "its worker", "reports an error that no retry mends"),
    (TimeOutAttempt(1, 1.0, 1.0, NOW), "its worker", "stops it at its time limit"),
    (InterruptAttempt(1), "its worker", "shuts down and hands it back"),
    (ExpireLease(1), "another worker or the reconciler", "finds its worker gone"),
    (CancelTask("someone"), "a client", "cancels"),
    (ConfirmCancel(1), "its worker", "has stopped it as asked"),
]


def situations() -> Iterator[tuple[str, Task]]:
    """One task for each status, and those whose past decides what may follow."""
    base = Task(version=1, event_id="e", attempt=1, pool="cpu", queue="default", priority=5, max_retries=1)
    yield "", ABSENT
    for status in Status:
        if status is Status.ABSENT:
            continue
        due_at = NOW if status in {Status.SCHEDULED, Status.RETRYING} else None
        yield "", base._replace(status=status, due_at=due_at)
    running = base._replace(status=Status.RUNNING, worker_id="w")
    yield "no retry left", running._replace(failures=1)
    yield f"{LOSSES_MAX - 1} workers lost before", running._replace(losses=LOSSES_MAX - 1)
    yield "cancellation requested", running._replace(cancel_requested_by="someone")


def arrows() -> list[tuple[str, str, str, str, str, str]]:
    """Every (from, to, who, does what, event, situation) that the rules admit, plain situations first."""
    found: dict[tuple[str, str, str, str, str], str] = {}
    for situation, task in situations():
        for command, who, does in WHO:
            try:
                decided = decide(command, task)
            except IllegalTransition:
                continue
            for data in decided:
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
