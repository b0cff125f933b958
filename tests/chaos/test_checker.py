"""The checker finds what it is there to find: each rule is shown a hand-made history that breaks it, and a good one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eventq.events.data import ErrorInfo, EventData
from eventq.events.envelope import Event, encode, next_event
from eventq.events.reader import Message
from eventq.events.task import ABSENT, TASKS, Status, Task
from eventq.events.task_events import (
    Cancelled,
    CancelRequested,
    Cleaned,
    Completed,
    Failed,
    Paused,
    PauseRequested,
    Queued,
    Resumed,
    Retrying,
    Started,
    Submitted,
    TimedOut,
)
from tests.chaos.checker import History, Projected, Visit, violations

NOW = datetime(2026, 11, 21, 3, tzinfo=UTC)
SUBMITTED = Submitted(task_name="work", pool="cpu", queue="default", priority=5, max_retries=3)
LOST = Queued(reason="worker_lost", worker_id="a")
DONE = Completed(result=1, duration_s=0.1)
CANCELLED = Cancelled(requested_by="somebody")
ERROR = ErrorInfo(type="ValueError", message="no")
PAUSED = Paused(requested_by="x", confirmed_by="a")
FROZEN = Paused(requested_by="x", frozen=True, confirmed_by="a")


def started(worker_id: str) -> Started:
    return Started(worker_id=worker_id, hostname="host", device="cpu")


def told(*steps: tuple[str, EventData], task_id: str = "t1") -> list[Event]:
    """The events of a task, each written by whom the step says. Follows the form of a history, not the rules."""
    task: Task = ABSENT
    events: list[Event] = []
    for source, data in steps:
        event, task = next_event(TASKS, task_id, task, data, source=source, at=NOW)
        events.append(event)
    return events


def good() -> History:
    """A task whose first worker was lost and whose second completed it, as witness and projection have it too."""
    events = told(
        ("api", SUBMITTED),
        ("worker.a", started("a")),
        ("worker.b", LOST),
        ("worker.b", started("b")),
        ("worker.b", DONE),
    )
    visits = [Visit("t1", 1, "enter", 1), Visit("t1", 2, "enter", 2), Visit("t1", 2, "exit", 2)]
    shown = {"t1": Projected(Status.COMPLETED, 5, 2, events[-1].id)}
    return History(events, {"t1"}, visits, shown)


def changed(version: int, **fields: Any) -> Callable[[History], None]:
    """The event of one version with other fields."""

    def change(history: History) -> None:
        history.log = [e._replace(**fields) if e.version == version else e for e in history.log]

    return change


def retold(*steps: tuple[str, EventData]) -> Callable[[History], None]:
    """Another history of the task."""

    def change(history: History) -> None:
        history.log, history.visits, history.projection = told(*steps), [], None

    return change


def lose_a_task(history: History) -> None:
    history.acknowledged.add("t2")


def forget_an_event(history: History) -> None:
    del history.log[2]


def store_an_event_twice(history: History) -> None:
    history.log.append(history.log[-1])


def reorder(history: History) -> None:
    history.log[3], history.log[4] = history.log[4], history.log[3]


def end_twice(history: History) -> None:
    ends = told(*[("worker.b", DONE)] * 2)
    history.log += [ends[1]._replace(version=6, previous=history.log[-1].id)]


def end_twice_under_one_version(history: History) -> None:
    history.log.append(history.log[-1]._replace(id="another", source="worker.a"))


def stop_before_the_end(history: History) -> None:
    del history.log[-1]


def enter_again(history: History) -> None:
    history.visits.append(Visit("t1", 2, "enter", 3))


def enter_an_attempt_that_nobody_started(history: History) -> None:
    history.visits.append(Visit("t1", 3, "enter", 3))


def enter_a_task_that_was_cancelled(history: History) -> None:
    retold(("api", SUBMITTED), ("api", CANCELLED))(history)
    history.visits = [Visit("t1", 1, "enter", 1)]


def never_return(history: History) -> None:
    history.visits.pop()


def show_another_status(history: History) -> None:
    history.projection = {"t1": Projected(Status.RUNNING, 4, 2, history.log[3].id)}


def show_nothing(history: History) -> None:
    history.projection = {}


def show_a_task_that_is_not_there(history: History) -> None:
    assert history.projection is not None
    history.projection = {**history.projection, "t9": Projected(Status.PENDING, 1, 0, "x")}


START, END = ("worker.a", started("a")), ("worker.a", DONE)

BAD: list[tuple[Callable[[History], None], str]] = [
    (lose_a_task, "task t2: lost"),
    (forget_an_event, "versions are not contiguous"),
    (forget_an_event, "does not follow the one before it"),
    (store_an_event_twice, "versions are not contiguous"),
    (reorder, "versions are not contiguous"),
    (changed(3, previous="somebody else"), "does not follow the one before it"),
    (end_twice, "more than one terminal event"),
    (end_twice_under_one_version, "more than one terminal event"),
    (stop_before_the_end, "never came to its end"),
    (changed(4, attempt=1), "version 4 says attempt 1"),
    (changed(4, state={}), "the state in version 4 is not the fold"),
    (retold(("api", SUBMITTED), ("api", SUBMITTED)), "not submitted exactly once"),
    (retold(("api", CANCELLED), ("api", SUBMITTED)), "something happened before the submission"),
    (retold(("api", SUBMITTED), ("api", CANCELLED), START, END), "started at version 3 after it was cancelled"),
    (retold(("api", SUBMITTED), ("api", CANCELLED), ("api", LOST)), "something happened after the end"),
    (retold(("api", SUBMITTED), START, ("worker.b", started("b")), END), "attempt 2 began while attempt 1 was current"),
    (
        retold(("api", SUBMITTED), START, ("worker.b", LOST), ("worker.b", started("b")), END),
        "completed at version 5 by worker.a",
    ),
    (retold(("api", SUBMITTED), START, ("worker.b", LOST), END), "held by None"),
    (retold(("api", SUBMITTED), END), "held by None"),
    (retold(("api", SUBMITTED), START, ("worker.a", PAUSED), END), "held by None"),
    (retold(("api", SUBMITTED), START, ("worker.a", FROZEN), ("worker.b", DONE)), "completed at version 4 by worker.b"),
    (retold(("api", SUBMITTED), START, ("api", PAUSED), ("worker.b", started("b")), END), "while the task was paused"),
    (
        retold(("api", SUBMITTED), START, ("worker.b", Retrying(error=ERROR, reason="error", due_at=NOW)), ("api", CANCELLED)),
        "retrying at version 3 by worker.b",
    ),
    (
        retold(("api", SUBMITTED), *[START, ("worker.b", LOST)] * 3, ("worker.b", started("b")), ("worker.b", DONE)),
        "run again after too many lost workers",
    ),
    (enter_again, "user code was entered 2 times for attempt 2"),
    (enter_an_attempt_that_nobody_started, "entered for attempt 3, which was never started"),
    (enter_a_task_that_was_cancelled, "of a task that was cancelled first"),
    (never_return, "completed by attempt 2, whose code never returned"),
    (show_another_status, "the projection shows Projected(status=<Status.RUNNING"),
    (show_nothing, "the projection shows None"),
    (show_a_task_that_is_not_there, "task t9: the projection shows"),
]


@pytest.mark.parametrize(("spoil", "expected"), BAD, ids=[expected for _, expected in BAD])
def test_a_bad_history_is_found(spoil: Callable[[History], None], expected: str) -> None:
    history = good()
    spoil(history)
    found = violations(history)
    assert any(expected in line for line in found), found


def test_a_good_history_has_nothing_wrong() -> None:
    assert violations(good()) == []


@pytest.mark.parametrize(
    "steps",
    [
        [("api", SUBMITTED), ("api", CANCELLED)],
        [("api", SUBMITTED), START, ("api", CancelRequested(requested_by="x")), ("worker.a", CANCELLED)],
        [("api", SUBMITTED), START, ("worker.b", Failed(error=ERROR, reason="poison"))],
        [("api", SUBMITTED), ("scheduler", TimedOut(reason="queue_timeout", after_s=30.0))],
        [("api", SUBMITTED), START, END, ("api", Cleaned(requested_by="x", reason="requested"))],
        [
            ("api", SUBMITTED),
            START,
            ("api", PauseRequested(requested_by="x")),
            ("worker.a", FROZEN),
            ("api", Resumed(requested_by="x")),
            END,
        ],
        [("api", SUBMITTED), START, ("worker.a", Failed(error=ERROR, reason="not_retryable"))],
        [("api", SUBMITTED), START, ("worker.a", Queued(reason="interrupted")), ("worker.b", started("b")), ("worker.b", DONE)],
    ],
)
def test_every_way_to_end_is_good(steps: list[tuple[str, EventData]]) -> None:
    history = History(told(*steps), {"t1"})
    assert violations(history) == []


def test_a_task_may_be_unfinished_while_the_run_goes_on() -> None:
    history = good()
    stop_before_the_end(history)
    history.projection = None
    history.visits.clear()
    assert violations(history, finished=False) == []


def test_a_stored_task_that_nobody_acknowledged_is_no_violation() -> None:
    """Its submitter died before it heard of it: the outcome was unknown to it, and the task exists as a whole."""
    history = good()
    history.acknowledged.clear()
    assert violations(history) == []


def test_what_is_no_event_is_named_by_its_position(tmp_path: Path) -> None:
    events = good().log
    messages = [Message(i, event.subject, encode(event), 0, 0) for i, event in enumerate(events, 1)]
    assert violations(History.read(messages, {"t1"}, tmp_path / "none")) == []
    messages[4] = messages[4]._replace(payload=b"{}")
    found = violations(History.read(messages, {"t1"}, tmp_path / "none"))
    assert found[0].startswith("position 5: ")
    assert "never came to its end" in found[1]
