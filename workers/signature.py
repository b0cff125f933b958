"""A task function's parameters as a model: what may be passed, and how it is converted.

Arguments arrive as JSON: a list in positional order and an object by name. Pydantic checks them against the
annotations with its usual conversions (``"2026-01-01"`` becomes a ``date`` where a ``date`` is asked for).
Names it does not know are refused, because a misspelt option that is silently ignored is a task that did
something else.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic_core import ErrorDetails

from eventq.events.errors import InvalidInput
from eventq.workers.context import Context

FOUND_MAX_CHARS = 100
"""How much of a bad value an error repeats."""


class TaskDefinitionError(TypeError):
    """A function cannot be a task as it is written. Raised where it is decorated, for its author."""


@dataclass(frozen=True, slots=True)
class Signature:
    """``positional``: the parameters that may be given without a name, in order, the context left out."""

    context_parameter: str | None
    names: list[str]
    positional: list[str]
    json_schema: dict[str, Any]
    _model: type[BaseModel]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Signature:
        """Read ``function``'s signature. Raises :class:`TaskDefinitionError` for what cannot be checked or
        called.
        """
        _refuse_what_is_no_function(function)
        hints = _hints(function)
        context_parameter: str | None = None
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(function).parameters.values():
            _refuse_what_cannot_be_bound(function, parameter, hints)
            if hints[parameter.name] is not Context:
                parameters.append(parameter)
            elif context_parameter is not None:
                raise _bad(function, f"takes two contexts: {context_parameter!r} and {parameter.name!r}")
            else:
                context_parameter = parameter.name
        model = _model(function, parameters, hints)
        return cls(
            context_parameter=context_parameter,
            names=[parameter.name for parameter in parameters],
            positional=[p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD],
            json_schema=model.model_json_schema(by_alias=True),
            _model=model,
        )

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments by name, checked and converted, defaults filled in. Raises :class:`InvalidInput`."""
        if len(args) > len(self.positional):
            raise InvalidInput(
                "args", "holds more values than the task has parameters", limit=len(self.positional), found=len(args)
            )
        given = dict(zip(self.positional, args, strict=False))
        for name in kwargs:
            if name in given:
                raise InvalidInput(name, "is given twice: in args by position and in kwargs by name")
        try:
            model = self._model.model_validate({**given, **kwargs})
        except ValidationError as error:
            raise self._invalid(error.errors(include_url=False, include_context=False)) from None
        return {name: getattr(model, _field_name(index)) for index, name in enumerate(self.names)}

    def _invalid(self, errors: list[ErrorDetails]) -> InvalidInput:
        first = errors[0]
        field = ".".join(str(part) for part in first["loc"]) or "kwargs"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        if first["type"] == "extra_forbidden":
            known = ", ".join(self.names) or "none"
            return InvalidInput(field[:200], f"is no parameter of this task{more}", hint=f"parameters: {known}")
        if first["type"] == "missing":
            return InvalidInput(field, f"is required{more}")
        problem = first["msg"][:1].lower() + first["msg"][1:]
        return InvalidInput(field[:200], problem + more, found=repr(first["input"])[:FOUND_MAX_CHARS])


def _field_name(index: int) -> str:
    """Inside the model a parameter goes by its number: ``schema``, ``copy`` or ``_x`` would clash with
    pydantic's own.
    """
    return f"p{index}"


def _model(function: Callable[..., Any], parameters: list[inspect.Parameter], hints: dict[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        _field_name(index): (Annotated[hints[p.name], Field(alias=p.name, title=p.name)], _default(p))
        for index, p in enumerate(parameters)
    }
    try:
        model: type[BaseModel] = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
        model.model_json_schema()
    except PydanticUserError as error:
        raise _bad(function, f"has a parameter of a type that cannot arrive as JSON: {error.message}") from None
    return model


def _default(parameter: inspect.Parameter) -> Any:
    return ... if parameter.default is inspect.Parameter.empty else parameter.default


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise _bad(
            function, f"has an annotation that cannot be found: {error}; import it for real, not under TYPE_CHECKING"
        ) from None


def _refuse_what_is_no_function(function: Callable[..., Any]) -> None:
    if not inspect.isfunction(function):
        raise TaskDefinitionError(f"{function!r} is no function: decorate a def or an async def")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise _bad(function, "is a generator; return one value, report the way there with context.progress()")


def _refuse_what_cannot_be_bound(function: Callable[..., Any], parameter: inspect.Parameter, hints: dict[str, Any]) -> None:
    match parameter.kind:
        case inspect.Parameter.VAR_POSITIONAL | inspect.Parameter.VAR_KEYWORD:
            raise _bad(function, f"takes *{parameter.name}; name every parameter, or take one list or dict")
        case inspect.Parameter.POSITIONAL_ONLY:
            raise _bad(function, f"has the positional-only parameter {parameter.name!r}; remove the '/'")
        case _ if parameter.name not in hints:
            raise _bad(function, f"has no type for the parameter {parameter.name!r}; annotate it")
        case _:
            pass


def _bad(function: Callable[..., Any], problem: str) -> TaskDefinitionError:
    code = function.__code__
    return TaskDefinitionError(
        f"{function.__module__}.{function.__qualname__} {problem} ({code.co_filename}:{code.co_firstlineno})"
    )
