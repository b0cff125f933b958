"""A function's value as JSON: strict, so that what is stored is what every reader reads."""

from __future__ import annotations

import json
from typing import Any

import orjson
from pydantic import BaseModel

from eventq.events.errors import InvalidInput, PayloadTooLarge

RESULT_MAX_BYTES = 16 * 1024 * 1024
"""A larger result belongs into ``ctx.put_output``; the result then refers to it."""


def encode_result(value: Any) -> bytes:
    """The value as JSON bytes. Pydantic models are dumped.

    NaN, integers beyond 64 bits, lone surrogates and other types raise :class:`InvalidInput`.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_dump)
        encoded = text.encode()
        orjson.dumps(json.loads(text))  # refuses integers that readers in other languages would round
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput("result", f"is not JSON: {error}", found=type(value).__name__) from None
    if len(encoded) > RESULT_MAX_BYTES:
        raise PayloadTooLarge(
            "result",
            "is too large; store it with ctx.put_output and return the reference",
            limit=RESULT_MAX_BYTES,
            found=len(encoded),
        )
    return encoded


def _dump(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
