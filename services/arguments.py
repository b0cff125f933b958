"""Arguments checked against what a worker declared, before anything is stored.

Any process that knows a task's declaration can do this; it does not import the task's code. Positional arguments are
bound by the declared order of parameters, then all are checked against the declared JSON Schema.

The check runs while others wait, on what strangers send: so it must take no longer than in proportion to the arguments.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple, cast

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError
from pydantic_core import SchemaError, SchemaValidator, core_schema

from eventq.events.errors import InvalidInput, UnknownTask
from eventq.events.worker_events import TaskDeclaration
from eventq.services.http_invalid import describe

DECLARATIONS_TTL_S = 1.0
"""For how long a declaration is believed without asking the projection again; an unknown name asks at once."""

PROBLEM_MAX_CHARS = 300

FetchDeclarations = Callable[[], Awaitable[Mapping[str, TaskDeclaration]]]


class _Check(NamedTuple):
    """How a task's arguments are checked. ``takes_nothing``: it may be given none, which is said once and for all."""

    schema: dict[str, Any]
    validator: Any
    takes_nothing: bool


class Declarations:
    """The newest declaration of each task, held for a second so that a submission costs no query."""

    def __init__(self, fetch: FetchDeclarations) -> None:
        self._fetch = fetch
        self._known: Mapping[str, TaskDeclaration] = {}
        self._fetched_at = float("-inf")
        self._checks: dict[str, _Check] = {}
        self._fetching = asyncio.Lock()

    async def get(self, task_name: str) -> TaskDeclaration:
        """The declaration of ``task_name``. Raises :class:`UnknownTask` with the nearest known name."""
        if time.monotonic() - self._fetched_at > DECLARATIONS_TTL_S or task_name not in self._known:
            await self._refresh()
        declaration = self._known.get(task_name)
        if declaration is None:
            raise UnknownTask(
                "task_name", "is not a task that any worker declared", found=task_name, hint=self._hint(task_name)
            )
        return declaration

    def check(self, declaration: TaskDeclaration, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Raise :class:`InvalidInput` for the first argument that the declaration does not admit."""
        check = self._check_of(declaration)
        bound = _bind(declaration, args, kwargs)
        if bound or not check.takes_nothing:
            errors = _errors(check.validator, bound)
            if errors:
                raise _invalid(min(errors, key=lambda error: len(error.absolute_path)), declaration, len(args))

    async def _refresh(self) -> None:
        asked_at = time.monotonic()
        async with self._fetching:
            if self._fetched_at < asked_at:  # else somebody else's answer is newer than our question
                self._known = await self._fetch()
                self._fetched_at = time.monotonic()

    def _check_of(self, declaration: TaskDeclaration) -> _Check:
        known = self._checks.get(declaration.name)
        if known is None or known.schema != declaration.arguments:
            validator = _Validator(declaration.arguments)
            known = _Check(declaration.arguments, validator, takes_nothing=not _errors(validator, {}))
            self._checks[declaration.name] = known
        return known

    def _hint(self, task_name: str) -> str:
        if near := get_close_matches(task_name, self._known, n=1):
            return f"did you mean {near[0]!r}?"
        if not self._known:
            return "no worker has registered yet; start one with `eventq worker`"
        return f"known: {', '.join(sorted(self._known)[:20])}"


def linear_matcher(pattern: str) -> Callable[[object], bool] | None:
    """Whether a text holds the pattern, in time linear in the text; ``None`` where that cannot be promised: for look-around and
    back references. The engine is the one that pydantic checks with in the worker."""
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern)).isinstance_python
    except SchemaError:
        return None


@lru_cache(maxsize=1000)
def _matcher(pattern: str) -> Callable[[str], object]:
    return linear_matcher(pattern) or re.compile(pattern).search  # such a one can only be of a worker's own code


def _pattern(validator: Any, pattern: str, instance: Any, _: Any) -> Iterator[ValidationError]:
    """As the library's, whose engine is `re`: `^(a+)+$` would keep it busy for hours."""
    if validator.is_type(instance, "string") and not _matcher(pattern)(instance):
        yield ValidationError(f"{describe(instance)} does not match {pattern!r}")


def _unique_items(validator: Any, wanted: Any, instance: Any, _: Any) -> Iterator[ValidationError]:
    """As the library's, which compares items that cannot be sorted each with each: a `set[int]` that is sent a few thousand
    objects would keep it busy for minutes."""
    if wanted and validator.is_type(instance, "array") and len(set(map(_hashable, instance))) < len(instance):
        yield ValidationError("holds the same item twice")


def _hashable(value: object) -> object:
    """Equal for what JSON Schema calls equal: `1` and `1.0` are, `1` and `true` are not."""
    match value:
        case dict():
            return frozenset((name, _hashable(item)) for name, item in cast("dict[str, object]", value).items())
        case list():
            return tuple(map(_hashable, cast("list[object]", value)))
        case bool():
            return (bool, value)
        case _:
            return value


_followed: ContextVar[dict[tuple[str, int], list[ValidationError]]] = ContextVar("followed")
"""What came of following a reference for a value, within one check: by the reference, and where the value lies in memory."""


def _ref(validator: Any, reference: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """As the library's, once for each value: in a tree of `A | B`, where both hold such trees, each level is checked twice, and
    thirty of them would take days. Errors are yielded as copies, because whoever takes them writes their path into them."""
    followed = _followed.get()
    key = (reference, id(instance))
    if key not in followed:
        found: Iterator[ValidationError] = _LIBRARY_REF(validator, reference, instance, schema)
        followed[key] = [ValidationError.create_from(error) for error in found]
    yield from map(ValidationError.create_from, followed[key])


def _errors(validator: Any, bound: dict[str, Any]) -> list[ValidationError]:
    token = _followed.set({})
    try:
        return list(validator.iter_errors(bound))
    finally:
        _followed.reset(token)


_LIBRARY_REF: Any = Draft202012Validator.VALIDATORS["$ref"]
_Validator: Any = cast("Any", validators).extend(
    Draft202012Validator, {"pattern": _pattern, "uniqueItems": _unique_items, "$ref": _ref}
)


def _bind(declaration: TaskDeclaration, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    if not args:
        return kwargs
    parameters = declaration.parameters
    if len(args) > len(parameters):
        problem = f"has more arguments than {declaration.name} takes"
        raise InvalidInput("/task_args", problem, limit=len(parameters), found=len(args))
    positional = dict(zip(parameters, args, strict=False))
    if twice := next((name for name in positional if name in kwargs), None):
        raise InvalidInput(f"/task_kwargs/{twice}", "is given by position as well")
    return {**positional, **kwargs}


def _invalid(error: ValidationError, declaration: TaskDeclaration, positional: int) -> InvalidInput:
    path = [str(part) for part in error.absolute_path]
    wanted: Any = error.validator_value
    found: Any = error.instance
    match error.validator:
        case "required":
            missing = next(str(name) for name in wanted if name not in found)
            return InvalidInput(_place([*path, missing], declaration, positional), "is required")
        case "additionalProperties" if wanted is False:
            schema: Any = error.schema
            unknown = next(str(name) for name in found if name not in schema.get("properties", {}))
            hint = f"{declaration.name} takes: {', '.join(declaration.parameters) or 'nothing'}"
            return InvalidInput(_place([*path, unknown[:80]], declaration, positional), "is not a parameter", hint=hint)
        case _:
            problem = error.message if len(error.message) <= PROBLEM_MAX_CHARS else f"does not fit: {error.validator}"
            limit = wanted if isinstance(wanted, int | float | str) else None
            return InvalidInput(_place(path, declaration, positional), problem, limit=limit, found=describe(found))


def _place(path: list[str], declaration: TaskDeclaration, positional: int) -> str:
    """The JSON pointer in the request's body of a path in the bound arguments."""
    by_position = declaration.parameters[:positional]
    start = ["task_args", str(by_position.index(path[0]))] if path and path[0] in by_position else ["task_kwargs", *path[:1]]
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in start + path[1:])
