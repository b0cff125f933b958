"""What task code may ask of its context: children with names, arguments and numbers within their limits."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eventq.events.errors import InvalidInput, PayloadTooLarge
from eventq.events.limits import SPAWNED_MAX
from eventq.events.retry import DELAY_MAX_S
from eventq.workers.context import SPAWN_INPUT_MAX_BYTES, SPAWN_KEY_MAX_CHARS
from eventq.workers.outcome import RetryAfter
from tests.workers.support import RecordingHost, make_context


def test_children_are_told_apart_by_key_or_by_the_order_of_calls(tmp_path: Path) -> None:
    host = RecordingHost()
    context = make_context(tmp_path, host)
    context.spawn("a")
    context.spawn("a", key="named")
    context.spawn("b", [1], {"x": (2,)})
    assert [one.key for one in host.spawned] == ["call 1", "key named", "call 2"]
    assert (host.spawned[2].args, host.spawned[2].kwargs) == ([1], {"x": [2]})


@pytest.mark.parametrize("key", ["", "k" * (SPAWN_KEY_MAX_CHARS + 1), 7])
def test_a_key_that_is_none_is_refused(tmp_path: Path, key: Any) -> None:
    host = RecordingHost()
    with pytest.raises(InvalidInput, match="key"):
        make_context(tmp_path, host).spawn("a", key=key)
    assert host.spawned == []


def test_arguments_that_are_no_json_or_too_large_are_refused(tmp_path: Path) -> None:
    host = RecordingHost()
    context = make_context(tmp_path, host)
    with pytest.raises(InvalidInput, match="JSON"):
        context.spawn("a", [object()])
    with pytest.raises(PayloadTooLarge) as caught:
        context.spawn("a", ["x" * SPAWN_INPUT_MAX_BYTES])
    assert caught.value.fields["limit"] == SPAWN_INPUT_MAX_BYTES
    assert host.spawned == []


def test_an_attempt_has_a_bounded_number_of_children_and_asking_again_for_one_is_free(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    for number in range(SPAWNED_MAX):
        context.spawn("a", key=str(number))
    context.spawn("a", key="0")
    with pytest.raises(InvalidInput) as caught:
        context.spawn("a")
    assert caught.value.fields["limit"] == SPAWNED_MAX


@pytest.mark.parametrize("seconds", [-1, DELAY_MAX_S + 1, float("nan"), float("inf")])
def test_a_delay_that_is_none_is_refused_where_it_is_asked_for(seconds: float) -> None:
    with pytest.raises(InvalidInput, match="seconds"):
        RetryAfter(seconds)


def test_arguments_are_what_they_are_after_a_journey(tmp_path: Path) -> None:
    host = RecordingHost()
    make_context(tmp_path, host).spawn("a", [datetime(2026, 1, 2, tzinfo=UTC)])
    assert host.spawned[0].args == ["2026-01-02T00:00:00+00:00"]
