"""What a worker keeps for a second attempt: as it was submitted, whatever the first did with it, and never too much."""

from __future__ import annotations

import pytest

from eventq.events.envelope import encode
from eventq.events.task_events import Submitted
from eventq.workers import retries as module
from eventq.workers.retries import KEPT_MAX_BYTES, Retries
from tests.events.given import ready_event


def test_it_comes_back_once_and_as_it_was() -> None:
    event, retries = ready_event("t1", args=[[1, 2]]), Retries()
    payload = encode(event)
    retries.keep(event, payload)
    assert isinstance(event.data, Submitted)
    event.data.args[0].append("changed by the task's function")

    found = retries.take("t1", 1)

    assert found is not None
    again, raw = found
    assert isinstance(again.data, Submitted)
    assert again.data.args == [[1, 2]]
    assert (again.subject, raw) == (event.subject, payload)
    assert retries.take("t1", 1) is None


def test_another_version_of_the_task_is_not_it() -> None:
    event, retries = ready_event("t1"), Retries()
    retries.keep(event, encode(event))
    assert retries.take("t1", 2) is None
    assert retries.take("t2", 1) is None


def test_large_ones_are_not_kept() -> None:
    event, retries = ready_event("t1", args=["x" * KEPT_MAX_BYTES]), Retries()
    retries.keep(event, encode(event))
    assert retries.take("t1", 1) is None


def test_of_too_many_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 3)
    retries = Retries()
    for number in range(5):
        event = ready_event(f"t{number}")
        retries.keep(event, encode(event))
    assert [retries.take(f"t{number}", 1) is not None for number in range(5)] == [False, False, True, True, True]
