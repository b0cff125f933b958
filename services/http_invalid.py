"""pydantic's findings as one :class:`InvalidInput`: field, problem, limit, what was found, and a hint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from inspect import isclass
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from eventq.events.errors import InvalidInput
from eventq.services.http_body import BODY
from eventq.services.schemas import RefusedValue

ERRORS_SHOWN_MAX = 20
FOUND_MAX_CHARS = 80
_SUBJECT = re.compile(r"^(Input|String|List|Dictionary|Tuple) (?=should)")
_PYTHONS = {
    "should be a valid dictionary": "should be an object",
    "should be a valid list": "should be an array",
    "should be a valid tuple": "should be an array",
}
"""What pydantic calls by Python's names."""

_NAME_MARK = "[key]"
"""What pydantic appends to the place where a name in an object is wrong."""

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
    of_name = _is_of_name(details)
    names = [str(part)[:80] for part in (details["loc"][:-2] if of_name else details["loc"])]
    context: dict[str, Any] = details.get("ctx") or {}
    problem = _problem_of_name(details) if of_name else _problem(details)
    finding: dict[str, object] = {"field": _field(names, as_pointers), "problem": problem}
    if (limit := next((context[name] for name in _LIMIT_NAMES if name in context), None)) is not None:
        finding["limit"] = limit
    if details["type"] != "missing":
        finding["found"] = describe(details["input"])
    if details["type"] == "extra_forbidden" and (holder := _model_at(model, details["loc"][:-1])) is not None:
        finding["hint"] = _hint(names[-1], holder)
    if isinstance(refused := context.get("error"), RefusedValue):
        finding |= _facts(refused)
    return finding


def _facts(refused: RefusedValue) -> dict[str, object]:
    """What a check of the rules knows of the value: it may have counted it, which says more than the value itself."""
    facts = {name: refused.fields[name] for name in ("limit", "found", "hint") if name in refused.fields}
    return {name: describe(fact) if name == "found" and isinstance(fact, str) else fact for name, fact in facts.items()}


def _is_of_name(details: Any) -> bool:
    """Whether it is about a name in an object, not about what stands under it: no place of the body points at a name.

    A name may itself be what pydantic marks names with; then what was found is not the name.
    """
    place = details["loc"]
    return len(place) > 1 and place[-1] == _NAME_MARK and place[-2] == details["input"]


def _problem_of_name(details: Any) -> str:
    return "a name in it is empty" if details["input"] == "" else f"a name in it {_problem(details)}"


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
            message = _SUBJECT.sub("", str(details["msg"])).partition(" after validation")[0]
            return _PYTHONS.get(message, message)


def _hint(unknown: str, model: type[BaseModel]) -> str:
    known = [info.alias or name for name, info in model.model_fields.items()]
    longer = [name for name in known if name.endswith(f"_{unknown}")]  # what is called `args` elsewhere is `task_args` here
    near = longer if len(longer) == 1 else get_close_matches(unknown, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def _model_at(annotation: Any, path: Sequence[int | str]) -> type[BaseModel] | None:
    """The model at that place within what is annotated so; ``None`` where there is none."""
    model = _model_of(annotation)
    for name in (part for part in path if isinstance(part, str)):
        info = None if model is None else model.model_fields.get(name)
        model = None if info is None else _model_of(info.annotation)
    return model


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model itself, or the one that is listed, or may be null."""
    if isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_of, get_args(annotation))), None)
