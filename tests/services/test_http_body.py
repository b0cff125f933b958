"""The strict JSON reader: what is refused, where, and that what is plain comes through unchanged."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventq.events.errors import InvalidInput
from eventq.services.http_body import parse_json
from eventq.services.http_limits import JSON_DEPTH_MAX, JSON_KEYS_MAX

DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
AT_LIMIT = b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX
OVER_LIMIT = b'{"a":' + AT_LIMIT + b"}"
MANY_KEYS = json.dumps({"o": {f"k{i}": i for i in range(JSON_KEYS_MAX + 1)}}).encode()

REFUSED: list[tuple[str, bytes, str, str]] = [
    ("empty", b"", "body", "empty"),
    ("blank", b" \n\t", "body", "empty"),
    ("cut off", b'{"a": 1', "body", "not JSON"),
    ("trailing data", b"{} {}", "body", "Extra data"),
    ("byte order mark", b"\xef\xbb\xbf{}", "body", "byte order mark"),
    ("UTF-16", '{"a":1}'.encode("utf-16"), "body", "byte order mark"),
    ("bad UTF-8", b'{"a": "\xff\xfe"}', "body", "UTF-8 at byte 7"),
    ("overlong UTF-8", b'{"a": "\xc0\xaf"}', "body", "UTF-8"),
    ("far too deep", DEEP, "body", "deeper than 32"),
    ("one too deep", OVER_LIMIT, "/a" + "/0" * (JSON_DEPTH_MAX - 1), "deeper than 32"),
    ("too many keys", MANY_KEYS, "/o", "more than 1000 keys"),
    ("duplicate key", b'{"a": {"x": 1, "x": 2}}', "/a", "same key twice"),
    ("NaN", b'{"a": [1, NaN]}', "/a/1", "finite"),
    ("Infinity", b'{"a": Infinity}', "/a", "finite"),
    ("-Infinity", b'{"a": -Infinity}', "/a", "finite"),
    ("overflowing float", b'{"a": 1e999}', "/a", "too large"),
    ("int above 64 bits", b'{"a": 9223372036854775808}', "/a", "64 bits"),
    ("int below 64 bits", b'{"a": -9223372036854775809}', "/a", "64 bits"),
    ("int of 5000 digits", b'{"a": ' + b"9" * 5000 + b"}", "/a", "64 bits"),
    ("lone surrogate", b'{"a": "\\ud800"}', "/a", "surrogate"),
    ("lone surrogate in a key", b'{"\\udc00": 1}', "body", "surrogate"),
    ("NUL", b'{"a": "x\\u0000y"}', "/a", "NUL"),
    ("NUL in a key", b'{"b": {"\\u0000": 1}}', "/b", "NUL"),
    ("raw control character", b'{"a": "\x01"}', "body", "not JSON"),
    ("pointer is escaped", b'{"a/b": {"~": NaN}}', "/a~1b/~0", "finite"),
]


@pytest.mark.parametrize(("raw", "field", "says"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_is_not_plain_json_is_refused_by_name(raw: bytes, field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_json(raw)
    assert refused.value.field == field
    assert says in refused.value.detail


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": 9223372036854775807, "b": -9223372036854775808}', {"a": 2**63 - 1, "b": -(2**63)}),
        (b'{"a": -0, "b": 1e308, "c": 1.5}', {"a": 0, "b": 1e308, "c": 1.5}),
        ('{"a": "\\ud83d\\ude00 \u2028 e\u0301 \u05d0"}'.encode(), {"a": "\U0001f600 \u2028 e\u0301 \u05d0"}),
        (b"null", None),
        (b" [true, false] ", [True, False]),
    ],
)
def test_plain_json_comes_through(raw: bytes, value: object) -> None:
    assert parse_json(raw) == value


def test_the_depth_limit_itself_is_allowed() -> None:
    assert json.dumps(parse_json(AT_LIMIT)).encode() == AT_LIMIT


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_storable_value_survives(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with suppress(InvalidInput):
        parse_json(raw)


def test_a_megabyte_of_brackets_costs_little() -> None:
    before = time.process_time()
    for raw in (b"[" + b"[]," * 340_000 + b"[]]", b'"' + b'\\"' * 500_000, b"[" * 1_000_000):
        with suppress(InvalidInput):
            parse_json(raw)
    assert time.process_time() - before < 5.0
