"""pydantic's findings as one :class:`InvalidInput`: field, problem, limit, what was found, and a hint."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from eventq.events.errors import InvalidInput
from eventq.services.http_body import BODY

ERRORS_SHOWN_MAX = 20
FOUND_MAX_CHARS = 80
_LIMIT_NAMES = ("le", "lt", "ge", "gt", "max_length", "min_length", "pattern", "expected")


def invalid_input(error: ValidationError, model: type[BaseModel], *, as_pointers: bool) -> InvalidInput:
    """The first finding as the error, and all of them (at most 20) under ``errors`` where there are several.

    ``as_pointers``: name fields as JSON pointers (bodies) rather than by plain name (query strings and paths).
    """
    findings = [_finding(details, model, as_pointers) for details in error.errors(include_url=False)]
    first = findings[0]
    result = InvalidInput(
        str(first["field"]),
        str(first["problem"]),
        limit=first.get("limit"),
        found=first.get("found"),
        hint=cast("str | None", first.get("hint")),
    )
    if len(findings) > 1:
        result.fields["errors"] = findings[:ERRORS_SHOWN_MAX]
    return result


def describe(value: object) -> str:
    """What was found, short enough to answer and to log; containers by their type and size only."""
    match value:
        case dict():
            return f"an object of {len(cast('dict[str, object]', value))} keys"
        case list():
            return f"an array of {len(cast('list[object]', value))}"
        case str():
            return repr(value) if len(value) <= FOUND_MAX_CHARS else f"a string of {len(value)} characters"
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case _:
            return repr(value)[:FOUND_MAX_CHARS]


def _finding(details: Any, model: type[BaseModel], as_pointers: bool) -> dict[str, object]:
    names = [str(part)[:80] for part in details["loc"]]
    context: dict[str, Any] = details.get("ctx") or {}
    finding: dict[str, object] = {"field": _field(names, as_pointers), "problem": _problem(details)}
    if (limit := next((context[name] for name in _LIMIT_NAMES if name in context), None)) is not None:
        finding["limit"] = limit
    if details["type"] != "missing":
        finding["found"] = describe(details["input"])
    if (hint := _hint(details["type"], names, model)) is not None:
        finding["hint"] = hint
    return finding


def _field(names: list[str], as_pointers: bool) -> str:
    if not as_pointers:
        return ".".join(names)
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names) or BODY


def _problem(details: Any) -> str:
    match details["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not a known field"
        case "value_error":
            return str(details["ctx"]["error"])
        case _:
            message = str(details["msg"])
            return message.replace("Input should", "should").replace("String should", "should")


def _hint(kind: str, names: list[str], model: type[BaseModel]) -> str | None:
    if kind != "extra_forbidden" or len(names) != 1:
        return None
    known = [info.alias or name for name, info in model.model_fields.items()]
    near = get_close_matches(names[0], known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
