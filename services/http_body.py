"""One strict reader of JSON bodies. What it lets through is plain: finite, bounded, unambiguous, storable
everywhere.

Python's own parser lets NaN, duplicate keys, lone surrogates and 5,000-digit integers pass, and raises things
that are not about the input for the rest. Here each is refused as :class:`InvalidInput` with the JSON pointer
of the place, the limit and what was found. Findings inside a value are first left in place as ``_Bad`` marks,
because the parser's hooks do not know where they are; the walk that checks depth and strings meets the marks
and knows.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

from eventq.events.errors import InvalidInput, PayloadTooLarge
from eventq.services.http_errors import BadRequest, RequestTimeout, UnsupportedMediaType
from eventq.services.http_limits import (
    INT64_MAX,
    INT64_MIN,
    JSON_DEPTH_MAX,
    JSON_KEYS_MAX,
    PARSE_INLINE_MAX_BYTES,
    HttpLimits,
)

BODY = "body"
"""The field named where the whole body is meant; inside it fields are JSON pointers such as
``/task_kwargs/rows``."""

_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_INT64_MAX_DIGITS = 19


@dataclass(frozen=True, slots=True)
class _Bad:
    """Stands in the parsed value where something is wrong with it."""

    problem: str
    limit: object = None
    found: object = None


_Link = tuple[Any, str] | None
"""Where a value stands: the parent's link and the key or index in it, so that a pointer is only spelt when
needed."""


async def read_json(request: web.Request, limits: HttpLimits) -> Any:
    """The request's body as a JSON value.

    Raises :class:`UnsupportedMediaType`, :class:`PayloadTooLarge`, :class:`RequestTimeout` or
    :class:`InvalidInput`.
    """
    check_headers(request, limits.body_max_bytes)
    raw = await read_bounded(request, limits.body_max_bytes, limits.body_deadline_s)
    if len(raw) > PARSE_INLINE_MAX_BYTES:
        return await asyncio.to_thread(parse_json, raw)
    return parse_json(raw)


def parse_json(raw: bytes) -> Any:
    """``raw`` as a JSON value, or :class:`InvalidInput` naming the place."""
    if not raw.strip():
        raise InvalidInput(BODY, "is empty; a JSON object is expected")
    if raw.startswith(_BOMS):
        raise InvalidInput(BODY, "starts with a byte order mark; plain UTF-8 is expected")
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"0x{raw[error.start]:02x}"
        raise InvalidInput(BODY, f"is not UTF-8 at byte {error.start}", found=found) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidInput(BODY, f"is not JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise _too_deep(BODY) from None
    _check(value)
    return value


def check_headers(request: web.Request, max_bytes: int, media_types: tuple[str, ...] = ("application/json",)) -> None:
    """Refuse by its headers a body that is compressed, of another type, not UTF-8 or too large."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        found = request.headers["Content-Encoding"][:60]
        raise UnsupportedMediaType("compressed bodies are not read here", field="Content-Encoding", found=found)
    if request.content_type not in media_types:
        found = request.headers.get("Content-Type", "none")[:60]
        raise UnsupportedMediaType(f"the body must be {' or '.join(media_types)}", field="Content-Type", found=found)
    charset = request.charset
    if charset is not None and charset.lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("the body must be UTF-8", field="Content-Type", found=charset[:60])
    if request.content_length is not None and request.content_length > max_bytes:
        raise too_large(max_bytes, request.content_length)


async def read_bounded(request: web.Request, max_bytes: int, deadline_s: float) -> bytes:
    """The whole body. Raises :class:`PayloadTooLarge` or :class:`RequestTimeout`."""
    body = bytearray()
    try:
        async with asyncio.timeout(deadline_s):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large(max_bytes, f"more than {max_bytes}")
    except TimeoutError:
        found = f"{len(body)} bytes"
        problem = f"the body did not arrive within {deadline_s:g} s"
        raise RequestTimeout(problem, field=BODY, limit=deadline_s, found=found) from None
    except web.RequestPayloadError:
        raise BadRequest("the body's transfer encoding is broken", field=BODY) from None
    return bytes(body)


def too_large(limit: int, found: object) -> PayloadTooLarge:
    """A body over its limit, in bytes."""
    return PayloadTooLarge(
        BODY,
        f"is larger than {limit} bytes",
        limit=limit,
        found=found,
        hint="upload large inputs with POST /api/v1/blobs and pass the reference",
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Bad:
    if len(pairs) > JSON_KEYS_MAX:
        return _Bad(f"has more than {JSON_KEYS_MAX} keys", JSON_KEYS_MAX, len(pairs))
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    counts = Counter(key for key, _ in pairs)
    return _Bad("has the same key twice", found=counts.most_common(1)[0][0][:80])


def _integer(digits: str) -> int | _Bad:
    if len(digits.lstrip("-")) <= _INT64_MAX_DIGITS and INT64_MIN <= (value := int(digits)) <= INT64_MAX:
        return value
    return _Bad("is an integer outside 64 bits", f"{INT64_MIN}..{INT64_MAX}", _shortened(digits))


def _number(digits: str) -> float | _Bad:
    value = float(digits)
    return value if math.isfinite(value) else _Bad("is too large for a number", found=_shortened(digits))


def _constant(name: str) -> _Bad:
    return _Bad("is not a JSON number; numbers must be finite", found=name)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant)


def _check(value: Any) -> None:
    """Depth and strings, and the marks that the hooks left. A loop, not a recursion: depth is what it guards
    against."""
    todo: list[tuple[Any, _Link, int]] = [(value, None, 1)]
    while todo:
        value, link, depth = todo.pop()
        match value:
            case _Bad():
                raise InvalidInput(_pointer(link), value.problem, limit=value.limit, found=value.found)
            case str():
                _check_text(value, link)
            case dict():
                _check_depth(depth, link)
                for key, item in cast("dict[str, Any]", value).items():
                    _check_text(key, link)
                    todo.append((item, (link, key), depth + 1))
            case list():
                _check_depth(depth, link)
                todo.extend((item, (link, str(index)), depth + 1) for index, item in enumerate(cast("list[object]", value)))
            case _:
                pass


def _check_depth(depth: int, link: _Link) -> None:
    if depth > JSON_DEPTH_MAX:
        raise _too_deep(_pointer(link))


def _too_deep(field: str) -> InvalidInput:
    problem = f"is nested deeper than {JSON_DEPTH_MAX} levels"
    return InvalidInput(field, problem, limit=JSON_DEPTH_MAX, found=f"> {JSON_DEPTH_MAX}")


def _check_text(text: str, link: _Link) -> None:
    if "\0" in text:
        raise InvalidInput(_pointer(link), "holds a NUL character", found="\\u0000")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"\\u{ord(text[error.start]):04x}"
            raise InvalidInput(_pointer(link), "holds half of a surrogate pair", found=found) from None


def _pointer(link: _Link) -> str:
    keys: list[str] = []
    while link is not None:
        link, key = link
        keys.append(key.replace("~", "~0").replace("/", "~1").encode("utf-8", "replace").decode())
    return "".join(f"/{key[:80]}" for key in reversed(keys)) or BODY


def _shortened(digits: str) -> str:
    return digits if len(digits) <= 40 else f"{digits[:20]}... ({len(digits)} characters)"
