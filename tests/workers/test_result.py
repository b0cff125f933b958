"""What a function may return: JSON that every reader reads alike, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from eventq.events.errors import InvalidInput, PayloadTooLarge
from eventq.workers.result import RESULT_DEPTH_MAX, RESULT_MAX_BYTES, encode_result


class Point(BaseModel):
    x: int
    at: datetime


@pytest.mark.parametrize("value", [None, True, 0, -(2**63), 2**63, 1.5, "ä\u2028", [], {"a": [1, {"b": None}]}])
def test_json_values_come_back_as_they_were(value: Any) -> None:
    assert orjson.loads(encode_result(value)) == value


def test_models_are_dumped() -> None:
    assert orjson.loads(encode_result([Point(x=1, at=datetime(2026, 1, 1, tzinfo=UTC))])) == [
        {"x": 1, "at": "2026-01-01T00:00:00Z"}
    ]


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("-inf"), 2**64, -(2**63) - 1, "\ud800", {1, 2}, object(), {"a": {"b": b"bytes"}}, (x for x in "a")],
)
def test_what_is_no_json_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        encode_result(value)
    assert refused.value.field == "result"


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(InvalidInput):
        encode_result(value)


def test_a_result_has_a_limit_to_its_depth() -> None:
    value: Any = 1
    for _ in range(RESULT_DEPTH_MAX // 2):
        value = [{"a": value}]
    assert orjson.loads(encode_result(value)) == value
    with pytest.raises(InvalidInput) as refused:
        encode_result([value])
    assert refused.value.fields["limit"] == RESULT_DEPTH_MAX


def test_a_result_has_a_limit() -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        encode_result("x" * RESULT_MAX_BYTES)
    assert refused.value.fields["limit"] == RESULT_MAX_BYTES
