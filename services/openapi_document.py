"""The OpenAPI 3.1 document, made from the declared routes and their models."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable
from typing import Any, Literal, cast

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from eventq.services.answers import ErrorAnswer
from eventq.services.openapi import NO_CONTENT, HttpRoute

Mode = Literal["validation", "serialization"]
Schemas = dict[tuple[type[BaseModel], Mode], dict[str, Any]]

REF = "#/components/schemas/{model}"
_ERROR_MEANING = {
    400: "The request is wrong: `field` says where, `limit` and `found` why.",
    403: "A write from another site's page.",
    404: "There is no such thing.",
    408: "The body did not arrive in time.",
    409: "The present state does not admit this.",
    412: "It is not at the version that `If-Match` names.",
    413: "Something is too large: `limit` says how large it may be.",
    415: "The body is of a type or encoding that is not read here.",
    422: "The `Idempotency-Key` was used for another request.",
    421: "This server does not answer for that host.",
    500: "A fault of the server; its log has the details under `request_id`.",
    503: "Not now: `Retry-After` says when to try again.",
}


def openapi_document(routes: Iterable[HttpRoute], version: str) -> dict[str, Any]:
    """The document of ``routes``. ``version``: the product's."""
    routes = list(routes)
    schemas, definitions = _schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas, definitions)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "eventq",
            "version": version,
            "description": "An event-sourced task queue: every answer here is folded from one log of events.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {"schemas": _without_unused(paths, definitions)},
    }


def _schemas(routes: list[HttpRoute]) -> tuple[Schemas, dict[str, Any]]:
    wanted: list[tuple[type[BaseModel], Mode]] = [(ErrorAnswer, "serialization")]
    for route in routes:
        wanted.extend((m, "validation") for m in (route.body, route.query, route.params) if m is not None)
        if route.answer is not None:
            wanted.append((route.answer, "serialization"))
    schemas, document = models_json_schema(list(dict.fromkeys(wanted)), ref_template=REF)
    return cast("Schemas", schemas), document.get("$defs", {})


def _without_unused(paths: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """``definitions`` without the models of query strings and paths, which stand in the operations themselves."""
    text = json.dumps([paths, definitions])
    return {name: shape for name, shape in definitions.items() if f'"{REF.format(model=name)}"' in text}


def _operation(route: HttpRoute, schemas: Schemas, definitions: dict[str, Any]) -> dict[str, Any]:
    summary, _, description = inspect.cleandoc(route.handler.__doc__ or route.name).partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": summary.replace("\n", " ").rstrip("."),
        "tags": [route.tag],
        "responses": _responses(route, schemas),
    }
    if description:
        operation["description"] = description
    parameters = [
        *_parameters("path", route.params, schemas, definitions),
        *_parameters("query", route.query, schemas, definitions),
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = {"application/json": {"schema": schemas[route.body, "validation"]}}
        operation["requestBody"] = {"required": route.body_required, "content": content}
    elif route.upload is not None:
        operation["requestBody"] = {"required": True, "content": {route.upload: {"schema": {}}}}
    return operation


def _responses(route: HttpRoute, schemas: Schemas) -> dict[str, Any]:
    schema = schemas[route.answer, "serialization"] if route.answer is not None else {}
    content = {route.media_type or "application/json": {"schema": schema}}
    done = {"description": "Done."} if route.status == NO_CONTENT else {"description": "Done.", "content": content}
    responses: dict[str, Any] = {str(route.status): done}
    for status, meaning in route.also.items():
        responses[str(status)] = {"description": meaning, "content": content}
    problem = {"application/json": {"schema": schemas[ErrorAnswer, "serialization"]}}
    for status in sorted({*route.errors, 500}):
        responses[str(status)] = {"description": _ERROR_MEANING[status], "content": problem}
    return responses


def _parameters(
    where: str, model: type[BaseModel] | None, schemas: Schemas, definitions: dict[str, Any]
) -> list[dict[str, Any]]:
    if model is None:
        return []
    name_in_definitions = schemas[model, "validation"]["$ref"].rsplit("/", 1)[1]
    schema = definitions[name_in_definitions]
    required = schema.get("required", [])
    parameters: list[dict[str, Any]] = []
    for name, shape in schema.get("properties", {}).items():
        parameter: dict[str, Any] = {"name": name, "in": where, "required": where == "path" or name in required}
        if description := shape.get("description"):
            parameter["description"] = description
        parameter["schema"] = {k: v for k, v in shape.items() if k not in ("description", "title")}
        parameters.append(parameter)
    return parameters
