"""Typed routes over aiohttp, and all that an OpenAPI 3.1 document needs to know of them.

A handler declares what it takes and answers in its signature::

    @routes.post("/tasks", status=201, errors=(400, 503))
    async def submit_task(request: web.Request, body: SubmitRequest, query: SubmitQuery) -> Reply[SubmitAnswer]:

``body`` is the JSON body, ``query`` the query string, ``path`` the path's parameters, each a pydantic model; the answer
is a model, a :class:`Reply` of one, or a plain response where the route says its media type. The same models check the
request and make the document (``openapi_document``), so the two cannot disagree.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from aiohttp import web
from pydantic import BaseModel, ValidationError

from eventq.events.errors import InvalidInput
from eventq.services.http_body import BODY, read_json
from eventq.services.http_invalid import invalid_input
from eventq.services.http_limits import QUERY_VALUE_MAX_CHARS, HttpLimits

NO_CONTENT = 204
"""The status of an answer without a body."""

LIMITS = web.AppKey("limits", HttpLimits)

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Reply(Generic[M]):
    """An answer with a status or headers of its own. ``status=None``: the route's."""

    body: M
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Handler = Callable[..., Awaitable[BaseModel | Reply[Any] | web.StreamResponse]]
H = TypeVar("H", bound=Handler)


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One route as declared. ``media_type``: set where the answer is not a model; ``upload``: where the body is not."""

    method: str
    path: str
    handler: Handler
    tag: str
    status: int
    errors: tuple[int, ...]
    also: Mapping[int, str]
    media_type: str | None
    upload: str | None
    body: type[BaseModel] | None
    body_required: bool
    query: type[BaseModel] | None
    params: type[BaseModel] | None
    answer: type[BaseModel] | None

    @property
    def name(self) -> str:
        """The operation's id."""
        return self.handler.__name__

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Check the request against the models, call the handler, and turn its answer into a response."""
        arguments: dict[str, Any] = {}
        if self.params is not None:
            arguments["path"] = _validated_texts(self.params, dict(request.match_info))
        if self.query is not None:
            arguments["query"] = _validated_texts(self.query, _query_texts(request, self.query))
        if self.body is not None:
            arguments["body"] = await self._read_body(self.body, request)
        result = await self.handler(request, **arguments)
        if isinstance(result, web.StreamResponse):
            return result
        reply: Reply[Any] = Reply(result) if isinstance(result, BaseModel) else result
        return web.Response(
            status=reply.status or self.status,
            body=reply.body.__pydantic_serializer__.to_json(reply.body),
            content_type="application/json",
            headers=reply.headers,
        )

    async def _read_body(self, model: type[BaseModel], request: web.Request) -> BaseModel | None:
        if not self.body_required and not request.can_read_body:
            return None
        return _validated_body(model, await read_json(request, request.app[LIMITS]))


class HttpRoutes:
    """The routes of one file: declared with ``get`` and ``post``, put into an app with ``register``."""

    def __init__(self, tag: str, prefix: str = "") -> None:
        self._tag = tag
        self._prefix = prefix
        self.declared: list[HttpRoute] = []

    def get(self, path: str, **options: Any) -> Callable[[H], H]:
        """Declare a GET route; see :meth:`route`."""
        return self.route("GET", path, **options)

    def post(self, path: str, **options: Any) -> Callable[[H], H]:
        """Declare a POST route; see :meth:`route`."""
        return self.route("POST", path, **options)

    def route(
        self,
        method: str,
        path: str,
        *,
        status: int = 200,
        errors: tuple[int, ...] = (),
        also: Mapping[int, str] | None = None,
        media_type: str | None = None,
        upload: str | None = None,
    ) -> Callable[[H], H]:
        """Declare a route. ``errors``: statuses answered with the error object; ``also``: further successful ones."""

        def declare(handler: H) -> H:
            hints = get_type_hints(handler)
            route = HttpRoute(
                method=method,
                path=self._prefix + path,
                handler=handler,
                tag=self._tag,
                status=status,
                errors=errors,
                also=also or {},
                media_type=media_type,
                upload=upload,
                body=_first_model(hints.get("body")),
                body_required=type(None) not in get_args(hints.get("body")),
                query=hints.get("query"),
                params=hints.get("path"),
                answer=_answer_model(hints["return"]),
            )
            if (route.answer is None) == (media_type is None and status != NO_CONTENT):
                raise TypeError(f"{handler.__name__}: answer a model, or say the media type")
            self.declared.append(route)
            return handler

        return declare

    def register(self, app: web.Application) -> None:
        """Add every declared route to ``app``."""
        for route in self.declared:
            app.router.add_route(route.method, route.path, route.respond, name=route.name)
            if route.method == "GET":
                app.router.add_route("HEAD", route.path, route.respond)


def _first_model(hint: Any) -> type[BaseModel] | None:
    """``Model`` of ``Model`` and of ``Model | None``, which declares a body that may be left out."""
    return next((kind for kind in (hint, *get_args(hint)) if inspect.isclass(kind) and issubclass(kind, BaseModel)), None)


def _answer_model(returned: Any) -> type[BaseModel] | None:
    if get_origin(returned) is Reply:
        returned = get_args(returned)[0]
    return returned if inspect.isclass(returned) and issubclass(returned, BaseModel) else None


def _validated_body(model: type[BaseModel], value: Any) -> BaseModel:
    if not isinstance(value, dict):
        raise InvalidInput(BODY, "must be a JSON object", found=type(value).__name__)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid_input(error, model, as_pointers=True) from None


def _validated_texts(model: type[BaseModel], values: dict[str, Any]) -> BaseModel:
    try:
        return model.model_validate(values, strict=False)  # all are texts: here numbers are read from them
    except ValidationError as error:
        raise invalid_input(error, model, as_pointers=False) from None


def _query_texts(request: web.Request, model: type[BaseModel]) -> dict[str, Any]:
    """The query string by name; a parameter that is not a list may be given once only."""
    values: dict[str, Any] = {}
    lists = {info.alias or name for name, info in model.model_fields.items() if get_origin(info.annotation) is list}
    for name in dict.fromkeys(request.query):
        given = request.query.getall(name)
        for text in given:
            _check_query_text(name[:80], text)
        if name not in lists and len(given) > 1:
            raise InvalidInput(name[:80], "is given more than once", limit=1, found=len(given))
        values[name] = given if name in lists else given[0]
    return values


def _check_query_text(name: str, text: str) -> None:
    if len(text) > QUERY_VALUE_MAX_CHARS:
        problem = f"is longer than {QUERY_VALUE_MAX_CHARS} characters"
        raise InvalidInput(name, problem, limit=QUERY_VALUE_MAX_CHARS, found=len(text))
    if "\0" in text or not text.isprintable():
        raise InvalidInput(name, "holds characters that cannot be printed")
