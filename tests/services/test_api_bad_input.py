"""What must be refused: a clear 4xx with the field and limit, never a 500, and nothing stored."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventq.events.limits import TASK_NAME_MAX_CHARS
from eventq.services.schemas import SubmitRequest
from tests.services.backend import Backend

JSON = {"Content-Type": "application/json"}
GOOD = {"task_name": "resize", "task_kwargs": {"width": 10}}

BODIES: list[tuple[str, Any, int, dict[str, Any]]] = [
    ("no task name", {}, 400, {"field": "/task_name"}),
    ("unknown task", {"task_name": "resise"}, 400, {"code": "UNKNOWN_TASK", "hint": "did you mean 'resize'?"}),
    ("name with a dot-dot", {"task_name": "../x"}, 400, {"field": "/task_name"}),
    ("name with a wildcard", {"task_name": "resize.>"}, 400, {"field": "/task_name"}),
    ("long name", {"task_name": "a" * 70_000}, 400, {"field": "/task_name", "limit": TASK_NAME_MAX_CHARS, "found": 70_000}),
    ("name of another type", {"task_name": 5}, 400, {"field": "/task_name", "found": "5"}),
    ("args of another type", {**GOOD, "task_args": "x"}, 400, {"field": "/task_args"}),
    ("kwargs of another type", {**GOOD, "task_kwargs": [1]}, 400, {"field": "/task_kwargs"}),
    ("too many args", {**GOOD, "task_args": [1] * 5}, 400, {"field": "/task_args", "limit": 3, "found": 5}),
    ("argument given twice", {**GOOD, "task_args": [1]}, 400, {"field": "/task_kwargs/width"}),
    ("argument missing", {"task_name": "resize"}, 400, {"field": "/task_kwargs/width"}),
    ("argument unknown", {**GOOD, "task_kwargs": {"width": 1, "heigth": 2}}, 400, {"field": "/task_kwargs/heigth"}),
    (
        "argument too large",
        {**GOOD, "task_kwargs": {"width": 20_000}},
        400,
        {"field": "/task_kwargs/width", "limit": 10_000, "found": "20000"},
    ),
    ("argument of another type", {**GOOD, "task_kwargs": {"width": "10"}}, 400, {"field": "/task_kwargs/width"}),
    ("positional argument wrong", {"task_name": "resize", "task_args": ["x"]}, 400, {"field": "/task_args/0"}),
    (
        "inside an argument",
        {**GOOD, "task_kwargs": {"width": 1, "tags": ["a", 5]}},
        400,
        {"field": "/task_kwargs/tags/1", "found": "5"},
    ),
    ("priority too high", {**GOOD, "priority": 11}, 400, {"field": "/priority", "limit": 10, "found": "11"}),
    ("priority negative", {**GOOD, "priority": -1}, 400, {"field": "/priority", "limit": 0}),
    ("priority as text", {**GOOD, "priority": "8"}, 400, {"field": "/priority"}),
    ("priority as a bool", {**GOOD, "priority": True}, 400, {"field": "/priority"}),
    ("priority as a float", {**GOOD, "priority": 1.5}, 400, {"field": "/priority"}),
    ("queue with a dot", {**GOOD, "queue_name": "a.b"}, 400, {"field": "/queue_name", "found": "'a.b'"}),
    ("queue empty", {**GOOD, "queue_name": ""}, 400, {"field": "/queue_name"}),
    ("queue too long", {**GOOD, "queue_name": "q" * 65}, 400, {"field": "/queue_name"}),
    ("retries negative", {**GOOD, "max_retries": -1}, 400, {"field": "/max_retries", "limit": 0}),
    ("retries too many", {**GOOD, "max_retries": 101}, 400, {"field": "/max_retries", "limit": 100}),
    ("timeout zero", {**GOOD, "timeout_seconds": 0}, 400, {"field": "/timeout_seconds", "limit": 0.0}),
    ("timeout too long", {**GOOD, "timeout_seconds": 1e12}, 400, {"field": "/timeout_seconds"}),
    ("time impossible", {**GOOD, "scheduled_at": "2026-02-30T00:00:00Z"}, 400, {"field": "/scheduled_at"}),
    ("time too far ahead", {**GOOD, "scheduled_at": "9000-01-01T00:00:00Z"}, 400, {"field": "/scheduled_at"}),
    ("time of another type", {**GOOD, "scheduled_at": 1769351400}, 400, {"field": "/scheduled_at"}),
    ("unknown field", {**GOOD, "prioritty": 1}, 400, {"field": "/prioritty", "hint": "did you mean 'priority'?"}),
    ("short name of a field", {**GOOD, "args": [1]}, 400, {"field": "/args", "hint": "did you mean 'task_args'?"}),
    ("unknown field inside", {**GOOD, "retry": {"initial": 1}}, 400, {"hint": "did you mean 'initial_s'?"}),
    ("a delay as text", {**GOOD, "retry": {"initial_s": "5"}}, 400, {"field": "/retry/initial_s", "found": "'5'"}),
    ("a delay as a bool", {**GOOD, "retry": {"after_s": {"A": True}}}, 400, {"field": "/retry/after_s/A", "found": "true"}),
    ("no array", {**GOOD, "retry": {"never": "ValueError"}}, 400, {"detail": "/retry/never: should be an array"}),
    ("too many", {**GOOD, "tags": ["x"] * 100}, 400, {"detail": "/tags: should have at most 20 items", "limit": 20}),
    ("an empty name", {**GOOD, "metadata": {"": "x"}}, 400, {"detail": "/metadata: a name in it is empty"}),
    (
        "a long name",
        {**GOOD, "metadata": {"n" * 65: "x"}},
        400,
        {"detail": "/metadata: a name in it should have at most 64 characters", "limit": 64, "found": repr("n" * 65)},
    ),
    (
        "a name that could not be searched for",
        {**GOOD, "metadata": {"a=b": "c"}},
        400,
        {"detail": "/metadata: a name in it should match pattern '^[^=]*$'", "limit": "^[^=]*$", "found": "'a=b'"},
    ),
    ("a value under an odd name", {**GOOD, "metadata": {"[key]": 5}}, 400, {"field": "/metadata/[key]", "found": "5"}),
    ("an empty error name", {**GOOD, "retry": {"after_s": {"": 1}}}, 400, {"field": "/retry/after_s"}),
    ("an array", [GOOD], 400, {"field": "body"}),
]

RAW: list[tuple[str, bytes, dict[str, str], int, dict[str, Any]]] = [
    ("empty", b"", JSON, 400, {"field": "body"}),
    ("not JSON", b"{", JSON, 400, {"field": "body"}),
    ("NaN", b'{"task_name": "resize", "task_kwargs": {"width": NaN}}', JSON, 400, {"field": "/task_kwargs/width"}),
    ("1e999", b'{"task_name": "resize", "task_kwargs": {"width": 1e999}}', JSON, 400, {"field": "/task_kwargs/width"}),
    ("bad UTF-8", b'{"task_name": "\xff"}', JSON, 400, {"field": "body"}),
    ("deep", b'{"task_kwargs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON, 400, {"limit": 32}),
    ("10 MB", b'{"task_name": "' + b"x" * 10_000_000 + b'"}', JSON, 413, {"code": "PAYLOAD_TOO_LARGE", "limit": 1048576}),
    ("duplicate key", b'{"task_name": "resize", "task_name": "echo"}', JSON, 400, {"found": "task_name"}),
    ("no content type", json.dumps(GOOD).encode(), {}, 415, {"field": "Content-Type"}),
    ("form", b"task_name=resize", {"Content-Type": "application/x-www-form-urlencoded"}, 415, {"field": "Content-Type"}),
    ("compressed", b"\x1f\x8b", {**JSON, "Content-Encoding": "gzip"}, 415, {"field": "Content-Encoding"}),
    ("UTF-16", json.dumps(GOOD).encode("utf-16"), {"Content-Type": "application/json; charset=utf-16"}, 415, {}),
    ("foreign host", json.dumps(GOOD).encode(), {**JSON, "Host": "evil.example"}, 421, {"field": "Host"}),
    ("foreign page", json.dumps(GOOD).encode(), {**JSON, "Origin": "http://evil.example"}, 403, {"field": "Origin"}),
    ("cross site", json.dumps(GOOD).encode(), {**JSON, "Sec-Fetch-Site": "cross-site"}, 403, {"code": "CROSS_SITE"}),
]

IDS = ["a" * 65, "a" * 5000, "a.b", "*", ">", "a b", "a\tb", "a\x00b", "a\r\nb", "\u00e9", "\u0430\u0430"]

QUERIES = [
    ("limit=0", "limit"),
    ("limit=501", "limit"),
    ("limit=-1", "limit"),
    ("limit=x", "limit"),
    ("limit=1&limit=2", "limit"),
    ("offset=-1", "offset"),
    ("offset=99999999999999999999", "offset"),
    ("sort_by=task_id;drop", "sort_by"),
    ("sort_order=up", "sort_order"),
    ("status=DONE", "status.0"),
    ("status=FAILED%00", "status"),
    ("priority=11", "priority"),
    ("queue_name=a.b", "queue_name"),
    ("task_name=a%20b", "task_name"),
    ("min_position=-1", "min_position"),
    ("limitt=1", "limitt"),
]


def _check_refusal(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {"detail", "code", "request_id", "timestamp"} <= body.keys()
    assert {name: body.get(name) for name in expected} == expected


async def test_no_wrong_submission_is_stored(backend: Backend) -> None:
    before = await backend.last_position()
    for name, body, status, expected in BODIES:
        found = await backend.post("/tasks", body)
        assert found[0] == status, (name, found)
        _check_refusal(found[1], expected)
    assert await backend.last_position() == before


async def test_no_wrong_bytes_are_stored(backend: Backend) -> None:
    before = await backend.last_position()
    for name, raw, headers, status, expected in RAW:
        options: dict[str, Any] = {"skip_auto_headers": ["Content-Type"]}
        async with backend.client.post("/api/v1/tasks", data=BytesIO(raw), headers=headers, **options) as answer:
            body = await answer.json()
            assert answer.status == status, (name, body)
            _check_refusal(body, expected)
    assert await backend.last_position() == before


@pytest.mark.parametrize("suffix", ["", "/timeline", "/compare/x"])
async def test_bad_ids_are_refused_by_name(backend: Backend, suffix: str) -> None:
    for task_id in IDS:
        status, body = await backend.get(f"/tasks/{quote(task_id, safe='')}{suffix}")
        assert status == 400, (task_id, body)
        assert body["field"] in ("task_id", "task_id1")
    for task_id in ("", "..", "a/b", "a%2Fb"):
        async with backend.client.get(f"/api/v1/tasks/{task_id}{suffix}") as answer:
            assert answer.status in (200, 400, 404), task_id


async def test_bad_ids_are_refused_before_a_write(backend: Backend) -> None:
    before = await backend.last_position()
    for task_id in IDS:
        for verb in ("cancel", "retry", "replay"):
            status, body = await backend.post(f"/tasks/{quote(task_id, safe='')}/{verb}")
            assert (status, body["field"]) == (400, "task_id"), task_id
    assert await backend.last_position() == before


async def test_bad_queries_are_refused_by_name(backend: Backend) -> None:
    for query, field in QUERIES:
        status, body = await backend.get(f"/tasks?{query}")
        assert (status, body.get("field")) == (400, field), (query, body)


async def test_bad_moments_are_refused(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    for moment in ("yesterday", "-1", "9" * 30, "2026-13-01", "1.5", ""):
        status, body = await backend.get(f"/tasks/{task_id}", params={"as_of": moment})
        assert (status, body["field"]) == (400, "as_of"), (moment, body)


async def test_a_stalled_body_is_given_up_and_nothing_is_stored(backend: Backend) -> None:
    before = await backend.last_position()
    reader, writer = await asyncio.open_connection("127.0.0.1", backend.client.port)
    head = "POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    writer.write(head.encode())
    async with asyncio.timeout(8):
        assert (await reader.readline()).split()[1] == b"408"
    writer.close()
    assert await backend.last_position() == before


async def test_a_body_in_tiny_chunks_is_read(backend: Backend) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", backend.client.port)
    writer.write(
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    for byte in json.dumps(GOOD).encode():
        writer.write(b"1\r\n%c\r\n" % byte)
    writer.write(b"0\r\n\r\n")
    async with asyncio.timeout(8):
        assert (await reader.readline()).split()[1] == b"201"
    writer.close()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*SubmitRequest.model_fields, "", "x"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(FIELDS, VALUES, max_size=6) | VALUES)
async def test_no_body_whatever_is_a_fault_of_the_server(backend: Backend, body: Any) -> None:
    raw = json.dumps(body).encode()
    async with backend.client.post("/api/v1/tasks", data=raw, headers=JSON) as answer:
        assert answer.status in (201, 400, 413), await answer.text()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.text(min_size=1, max_size=30), query=st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=3))
async def test_no_path_or_query_is_a_fault_of_the_server(backend: Backend, path: str, query: dict[str, str]) -> None:
    encoded = quote(path.encode("utf-8", "replace"), safe="")
    texts = {name.encode("utf-8", "replace").decode(): text.encode("utf-8", "replace").decode() for name, text in query.items()}
    async with backend.client.get(f"/api/v1/tasks/{encoded}", params=texts) as answer:
        assert answer.status in (200, 400, 404), await answer.text()
