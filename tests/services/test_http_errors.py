"""The table of statuses, the shape of errors, and request ids."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from eventq.events.errors import (
    BlobNotFound,
    EventqError,
    InvalidInput,
    LogFull,
    ProjectionLagging,
    TaskNotFound,
    Unavailable,
)
from eventq.services.http_errors import STATUS_OF, error_response, plain_error, request_id_from, status_of


def tree(root: type[EventqError]) -> Iterator[type[EventqError]]:
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


def test_every_error_of_the_log_has_a_status_of_its_own() -> None:
    missing = {kind.code for kind in tree(EventqError) if kind.__module__ == "eventq.events.errors"} - STATUS_OF.keys()
    assert not missing


def test_an_unlisted_error_is_answered_as_the_branch_it_stands_on() -> None:
    class DiskFull(Unavailable):
        code = "DISK_FULL"

    assert status_of(DiskFull("full")) == 503
    assert status_of(EventqError("?")) == 500


@pytest.mark.parametrize(
    ("error", "status", "fields"),
    [
        (TaskNotFound("t"), 404, {"detail": "Task not found", "code": "TASK_NOT_FOUND", "task_id": "t"}),
        (BlobNotFound("k"), 404, {"code": "BLOB_NOT_FOUND", "key": "k"}),
        (InvalidInput("/a", "is odd", limit=2, found=3), 400, {"field": "/a", "limit": 2, "found": 3}),
    ],
)
def test_errors_have_the_documented_shape(error: EventqError, status: int, fields: dict[str, object]) -> None:
    response = error_response(error, "req-1")
    assert isinstance(response.body, bytes)
    body = json.loads(response.body)
    assert response.status == status
    assert body["request_id"] == "req-1"
    assert body["timestamp"].endswith("Z")
    assert {name: body[name] for name in fields} == fields


def test_a_field_cannot_replace_the_code_or_id() -> None:
    response = error_response(EventqError("x", code="MINE", request_id="other"), "req-1")
    assert isinstance(response.body, bytes)
    body = json.loads(response.body)
    assert (body["code"], body["request_id"]) == ("INTERNAL_ERROR", "req-1")


@pytest.mark.parametrize(("error", "seconds"), [(ProjectionLagging("x"), "1"), (LogFull("x"), "30"), (Unavailable("x"), "2")])
def test_unavailable_says_when_to_try_again(error: EventqError, seconds: str) -> None:
    assert error_response(error, "r").headers["Retry-After"] == seconds


def test_unknown_statuses_fall_back() -> None:
    assert plain_error(418, "teapot", "r").status == 418


@pytest.mark.parametrize("given", ["a", "req-1.2_3", "x" * 64])
def test_a_plain_request_id_is_kept(given: str) -> None:
    assert request_id_from(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "a\nb", "é", "<x>"])
def test_any_other_request_id_is_replaced(given: str | None) -> None:
    assert request_id_from(given) not in (given, "")
