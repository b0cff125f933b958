"""The layer of typed routes, on a small app: what is checked, what is answered, what the document says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, get_args

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import Field

from eventq.events.task import Status
from eventq.services.answers import Answer
from eventq.services.http_errors import errors_middleware
from eventq.services.http_limits import HttpLimits
from eventq.services.openapi import LIMITS, HttpRoutes, Reply
from eventq.services.openapi_document import openapi_document
from eventq.services.schemas import Closed, StatusName, Utc
from tests.services.http import GuardedTestServer


class Tree(Closed):
    """Recursive, as real models are."""

    name: str = Field(max_length=5)
    children: list[Tree] = Field(default_factory=list["Tree"])
    at: Utc | None = None


class Which(Closed):
    """A path."""

    number: int = Field(ge=1)


class Options(Closed):
    """A query."""

    flag: bool = Field(False, alias="async")
    colour: list[Literal["red", "green"]] = Field(default_factory=list[Literal["red", "green"]])
    limit: int = Field(5, le=10)


class Planted(Answer):
    """An answer."""

    tree: Tree
    number: int
    options: Options
    note: str | None = None


routes = HttpRoutes("trees", "/v1")


@routes.post("/trees/{number}", status=201, errors=(400, 413))
async def plant(request: web.Request, path: Which, query: Options, body: Tree) -> Reply[Planted]:
    """Plant a tree.

    With more to say of it.
    """
    return Reply(Planted(tree=body, number=path.number, options=query), headers={"ETag": '"1"'})


@routes.get("/raw", media_type="text/plain")
async def raw(request: web.Request) -> web.Response:
    """Plain text."""
    return web.Response(text="hello")


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    app = web.Application(middlewares=[errors_middleware])
    app[LIMITS] = HttpLimits()
    routes.register(app)
    async with TestClient(GuardedTestServer(app)) as client:
        yield client


async def post(client: TestClient[Any, Any], path: str, body: object) -> tuple[int, Any]:
    answer = await client.post(path, json=body)
    return answer.status, await answer.json()


async def test_what_is_declared_arrives_typed(client: TestClient[Any, Any]) -> None:
    answer = await client.post(
        "/v1/trees/7?async=true&colour=red&colour=green",
        json={"name": "oak", "children": [{"name": "nut"}], "at": "2026-01-25T15:30:00.5+01:00"},
    )
    assert answer.status == 201
    assert answer.headers["ETag"] == '"1"'
    body = await answer.json()
    assert body["number"] == 7
    assert body["options"]["colour"] == ["red", "green"]
    assert body["tree"]["at"] == "2026-01-25T14:30:00.500000Z"
    assert body["tree"]["children"][0]["name"] == "nut"


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/trees/0", {"name": "a"}, {"field": "number", "limit": 1, "found": "'0'"}),
        ("/v1/trees/x", {"name": "a"}, {"field": "number", "found": "'x'"}),
        ("/v1/trees/1?limit=11", {"name": "a"}, {"field": "limit", "limit": 10, "found": "'11'"}),
        ("/v1/trees/1?limit=1&limit=2", {"name": "a"}, {"field": "limit", "limit": 1, "found": 2}),
        ("/v1/trees/1?colour=blue", {"name": "a"}, {"field": "colour.0", "found": "'blue'"}),
        ("/v1/trees/1?limt=1", {"name": "a"}, {"field": "limt", "hint": "did you mean 'limit'?"}),
        ("/v1/trees/1?limit=%00", {"name": "a"}, {"field": "limit"}),
        ("/v1/trees/1", {}, {"field": "/name"}),
        ("/v1/trees/1", {"name": 5}, {"field": "/name", "found": "5"}),
        ("/v1/trees/1", {"name": "toolong"}, {"field": "/name", "limit": 5, "found": "'toolong'"}),
        ("/v1/trees/1", {"name": "a", "children": [{"name": "b"}, {"name": None}]}, {"field": "/children/1/name"}),
        ("/v1/trees/1", {"name": "a", "nmae": 1}, {"field": "/nmae", "hint": "did you mean 'name'?"}),
        ("/v1/trees/1", {"name": "a", "at": "yesterday"}, {"field": "/at", "found": "'yesterday'"}),
        ("/v1/trees/1", {"name": "a", "at": 5}, {"field": "/at", "found": "5"}),
        ("/v1/trees/1", {"name": "a", "at": "0001-01-01T00:00:00+14:00"}, {"field": "/at"}),
        ("/v1/trees/1", {"name": "a", "at": "9999-12-31T23:59:59-14:00"}, {"field": "/at"}),
        ("/v1/trees/1", [], {"field": "body", "found": "list"}),
        ("/v1/trees/1", "tree", {"field": "body", "found": "str"}),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(
    client: TestClient[Any, Any], path: str, body: object, expected: dict[str, Any]
) -> None:
    status, answer = await post(client, path, body)
    assert (status, answer["code"]) == (400, "INVALID_INPUT")
    assert {name: answer.get(name) for name in expected} == expected


async def test_several_findings_are_all_told(client: TestClient[Any, Any]) -> None:
    _, answer = await post(client, "/v1/trees/1", {"name": 1, "x": 2})
    assert [found["field"] for found in answer["errors"]] == ["/name", "/x"]


async def test_unknown_paths_and_methods_have_the_documented_shape(client: TestClient[Any, Any]) -> None:
    for method, path, status, code in (
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("DELETE", "/v1/raw", 405, "METHOD_NOT_ALLOWED"),
    ):
        answer = await client.request(method, path, headers={"X-Request-Id": "mine-1"})
        body = await answer.json()
        assert (answer.status, body["code"], body["request_id"]) == (status, code, "mine-1")


async def test_a_body_of_another_kind_is_refused(client: TestClient[Any, Any]) -> None:
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}):
        answer = await client.post("/v1/trees/1", data=b"{}", headers=headers, skip_auto_headers=["Accept-Encoding"])
        assert answer.status == 415
    answer = await client.post("/v1/trees/1", data=aiohttp.FormData({"name": "a"}))
    assert answer.status == 415


async def test_head_answers_as_get_without_a_body(client: TestClient[Any, Any]) -> None:
    answer = await client.head("/v1/raw")
    assert (answer.status, await answer.text()) == (200, "")


def test_the_document_is_valid_and_tells_input_from_output() -> None:
    document = openapi_document(routes.declared, "1.2.3")
    OpenAPIV31SpecValidator(document).validate()
    operation = document["paths"]["/v1/trees/{number}"]["post"]
    assert operation["summary"] == "Plant a tree"
    assert {p["name"]: (p["in"], p["required"]) for p in operation["parameters"]} == {
        "number": ("path", True),
        "async": ("query", False),
        "colour": ("query", False),
        "limit": ("query", False),
    }
    assert {"201", "400", "413", "500"} == operation["responses"].keys()
    schemas = document["components"]["schemas"]
    assert schemas["Tree-Input"]["required"] == ["name"]
    assert "note" in schemas["Planted"]["required"]
    assert document["paths"]["/v1/raw"]["get"]["responses"]["200"]["content"] == {"text/plain": {"schema": {}}}


def test_every_status_a_task_can_have_can_be_asked_for() -> None:
    assert set(get_args(StatusName)) == set(Status) - {Status.ABSENT}
