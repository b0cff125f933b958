"""Which tasks are due: folded from what the follower shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventq.services.due_tasks import FORGOTTEN_S, STALE_MAX, DueTasks
from eventq.services.follower import Fact

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
ALL = 1_000


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def fact(
    task_id: str, version: int, due_at: datetime | None, status: str = "SCHEDULED", stored_at: datetime = NOON, **more: Any
) -> Fact:
    state = {"version": version, "status": status, "due_at": due_at and due_at.isoformat(), **more}
    return Fact(1, "tasks", task_id, version, "any", False, int(stored_at.timestamp() * 1e9), {"state": state})


def shown(*facts: Fact) -> DueTasks:
    """By a follower that has seen all there is."""
    due = DueTasks()
    for each in facts:
        due.note(each)
    due.wake.set()
    return due


def test_what_is_due_is_taken_once_soonest_first() -> None:
    due = shown(
        fact("b", 1, after(2)), fact("c", 1, after(3)), fact("a", 3, after(1), "RETRYING"), fact("d", 1, after(3.000001))
    )
    assert list(due.take(after(0), 1, ALL)) == []
    taken = due.take(after(3), 1, ALL)
    assert [(task_id, task.version, task.due_at) for task_id, task in taken.items()] == [
        ("a", 3, after(1)),
        ("b", 1, after(2)),
        ("c", 1, after(3)),
    ]
    assert list(due.take(after(3), 1, ALL)) == []
    assert list(due.take(after(4), 1, ALL)) == ["d"]


def test_no_more_are_taken_than_asked_for() -> None:
    due = shown(*(fact(f"t{number}", 1, after(number)) for number in range(5)))
    assert [list(due.take(after(9), 1, 2)) for _ in range(4)] == [["t0", "t1"], ["t2", "t3"], ["t4"], []]


def test_who_waits_no_more_is_not_taken() -> None:
    due = shown(
        *(fact(task_id, 1, after(1)) for task_id in ("paused", "cancelled", "ready", "waits")),
        fact("paused", 2, after(1), "PAUSED"),
        fact("cancelled", 2, None, "CANCELLED"),
        fact("ready", 2, None, "PENDING"),
    )
    assert list(due.take(after(1), 1, ALL)) == ["waits"]


def test_who_waits_for_another_time_is_taken_then() -> None:
    due = shown(
        fact("later", 1, after(1)),
        fact("later", 2, after(5)),
        fact("sooner", 1, after(5)),
        fact("sooner", 2, after(1)),
        fact("resumed", 1, after(1)),
        fact("resumed", 2, after(1), "PAUSED"),
        fact("resumed", 3, after(1)),
    )
    assert {task_id: task.version for task_id, task in due.take(after(1), 1, ALL).items()} == {"sooner": 2, "resumed": 3}
    assert list(due.take(after(5), 1, ALL)) == ["later"]


def test_a_state_that_a_newer_program_wrote_is_left_to_it() -> None:
    assert list(shown(fact("a", 1, after(1), colour="red"), fact("b", 1, after(1))).take(after(1), 1, ALL)) == ["b"]


def test_where_nobody_asks_what_was_due_long_ago_is_forgotten() -> None:
    """Another scheduler gets all the hints."""
    due = shown(*(fact(f"t{number}", 1, after(0)) for number in range(100)))
    due.note(fact("new", 1, after(3600), stored_at=after(FORGOTTEN_S)))
    assert list(due.take(after(3600), 1, ALL)) == ["new"]


def test_other_histories_are_not_looked_at() -> None:
    other = fact("a", 1, after(1))._replace(kind="schedules", event={"state": {}})
    assert list(shown(other).take(after(1), 1, ALL)) == []


def test_fewer_than_wanted_are_left_for_the_next_time() -> None:
    due = shown(*(fact(f"t{number}", 1, after(number)) for number in range(5)))
    assert due.take(after(2), 4, ALL) == {}
    assert list(due.take(after(3), 4, ALL)) == ["t0", "t1", "t2", "t3"]


def test_nothing_is_taken_before_all_of_the_log_has_been_seen() -> None:
    due = shown(fact("a", 1, after(1)))
    due.wake.clear()
    assert due.take(after(1), 1, ALL) == {}
    due.wake.set()
    assert list(due.take(after(1), 1, ALL)) == ["a"]


@pytest.mark.parametrize("due_at", ["in 5 s", 5, {"at": "noon"}])
def test_a_time_that_only_a_newer_program_can_read_is_left_to_it(due_at: Any) -> None:
    unreadable = fact("a", 1, None)
    unreadable.state["due_at"] = due_at
    due = shown(unreadable, fact("b", 1, after(1)))
    assert list(due.take(after(9), 1, ALL)) == ["b"]


@pytest.mark.parametrize("ends", [True, False])
def test_memory_grows_with_those_that_wait_and_not_with_those_that_did(ends: bool) -> None:
    due = DueTasks()
    for number in range(5_000):
        task_id = f"t{number}" if ends else "always the same"
        due.note(fact(task_id, number + 1, after(3_600)))
        if ends:
            due.note(fact(task_id, number + 2, None, "CANCELLED"))
    assert len(due._soonest) <= STALE_MAX + 2  # pyright: ignore[reportPrivateUsage]


def test_old_entries_do_not_hold_up_what_is_due() -> None:
    due = shown(*(fact("a", number, after(1)) for number in range(1, STALE_MAX)), fact("a", STALE_MAX, after(2)))
    assert list(due.take(after(2), 1, ALL)) == ["a"]
