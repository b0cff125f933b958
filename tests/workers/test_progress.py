"""The throttle, with values: a clock that only moves when the test says so."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventq.events.errors import InvalidInput
from eventq.workers.progress import ProgressThrottle, ProgressUpdate


def at(done: float) -> ProgressUpdate:
    return ProgressUpdate(done)


def test_the_first_update_passes_at_once() -> None:
    assert ProgressThrottle().offer(at(1), now=0.0) == at(1)


def test_of_a_burst_the_first_and_the_newest_pass() -> None:
    throttle = ProgressThrottle(per_second=4)
    assert [throttle.offer(at(n), now=0.1) for n in range(5)] == [at(0), None, None, None, None]
    assert throttle.due_in(0.1) == pytest.approx(0.25)
    assert throttle.poll(0.3) is None
    assert throttle.poll(0.35) == at(4)
    assert throttle.due_in(0.35) is None
    assert throttle.poll(9.0) is None


def test_the_last_update_is_sent_however_recent_the_one_before() -> None:
    throttle = ProgressThrottle()
    throttle.offer(at(1), now=0.0)
    throttle.offer(at(2), now=0.0)
    assert throttle.flush() == at(2)
    assert throttle.flush() is None


def test_a_slow_reporter_is_never_held_back() -> None:
    throttle = ProgressThrottle(per_second=4)
    assert [throttle.offer(at(n), now=n * 0.25) for n in range(8)] == [at(n) for n in range(8)]


@given(gaps=st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_no_second_sees_more_than_four_and_the_last_is_kept(gaps: list[float]) -> None:
    throttle, now, sent = ProgressThrottle(per_second=4), 0.0, list[tuple[float, ProgressUpdate]]()
    for n, gap in enumerate(gaps):
        now += gap
        if (update := throttle.offer(at(n), now)) is not None:
            sent.append((now, update))
    rest = throttle.flush()

    assert all(later >= earlier + 0.25 for (earlier, _), (later, _) in pairwise(sent))
    assert (rest or sent[-1][1]) == at(len(gaps) - 1)


def test_texts_are_cut_and_an_empty_total_is_unknown() -> None:
    update = ProgressUpdate.checked(0, 0, "u" * 100, "m" * 10_000)
    assert update.total is None
    assert len(update.unit or "") == 32
    assert len(update.message or "") == 4_000
    with pytest.raises(InvalidInput):
        ProgressUpdate.checked(1, float("inf"))
