"""A function's value as JSON: strict, so that what is stored is what every reader reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import orjson
from pydantic import BaseModel

from eventq.events.errors import InvalidInput, PayloadTooLarge

RESULT_MAX_BYTES = 16 * 1024 * 1024
"""A larger result belongs into ``ctx.put_output``; the result then refers to it."""

RESULT_DEPTH_MAX = 100
"""Lists and objects within each other. The event around the result adds some, and its encoder ends at 254."""


def encode_result(value: Any) -> bytes:
    """The value as JSON bytes. Pydantic models are dumped.

    NaN, integers beyond 64 bits, lone surrogates, other types and values nested deeper than ``RESULT_DEPTH_MAX`` raise
    :class:`InvalidInput`.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_dump)
        encoded = text.encode()
        parsed = json.loads(text)
        _check_depth(parsed)
        orjson.dumps(parsed)  # refuses integers that readers in other languages would round
    except RecursionError:
        raise _too_deep(value) from None
    except (TypeError, ValueError) as error:
        raise InvalidInput("result", f"is not JSON: {error}", found=type(value).__name__) from None
    if len(encoded) > RESULT_MAX_BYTES:
        raise PayloadTooLarge(
            "result",
            "is too large; store it with ctx.put_output and return the reference",
            limit=RESULT_MAX_BYTES,
            found=len(encoded),
        )
    return encoded


def _check_depth(value: Any) -> None:
    level: list[Any] = [[value]]
    for _ in range(RESULT_DEPTH_MAX + 1):
        level = [inner for outer in level for inner in _parts(outer) if isinstance(inner, list | dict)]
        if not level:
            return
    raise _too_deep(value)


def _parts(container: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _too_deep(value: Any) -> InvalidInput:
    return InvalidInput("result", "is nested too deeply", limit=RESULT_DEPTH_MAX, found=type(value).__name__)


def _dump(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
