"""``Idempotency-Key``: the same request, sent again, does nothing again and gets the same answer.

A key decides the id of what is made, and what is made exists once: the log's version check sees to that, for ever, in every
process, over restarts. Which request it was made for stands in its first event, so another request under the same key is told
apart. Only that two at the same moment are not both at work is remembered in the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import orjson
from aiohttp import web

from eventq.events.errors import Conflict, EventqError, InvalidInput
from eventq.events.limits import IDEMPOTENCY_KEY_MAX_CHARS
from eventq.events.task_events import Idempotency

HEADER = "Idempotency-Key"
IN_USE = web.AppKey("idempotency_keys_in_use", set[str])


class KeyReused(EventqError):
    """The key was used for another request."""

    code = "IDEMPOTENCY_KEY_REUSED"


class KeyInUse(Conflict):
    """The first request of this key is still being answered."""

    code = "IDEMPOTENCY_KEY_IN_USE"


def idempotency_key(request: web.Request) -> str | None:
    """The request's key, quoted or bare; ``None`` where it has none. Raises ``InvalidInput`` for one that is none."""
    given = request.headers.get(HEADER)
    if given is None:
        return None
    key = given.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not (0 < len(key) <= IDEMPOTENCY_KEY_MAX_CHARS and key.isascii() and key.isprintable()):
        problem = f"must be 1 to {IDEMPOTENCY_KEY_MAX_CHARS} visible ASCII characters"
        raise InvalidInput(HEADER, problem, limit=IDEMPOTENCY_KEY_MAX_CHARS, found=len(key))
    return key


def keyed_id(key: str, *scope: str) -> str:
    """The id of what ``key`` makes. ``scope``: of what kind, and which of several."""
    digest = hashlib.sha256("\n".join((*scope, key)).encode()).digest()
    return str(UUID(bytes=digest[:16], version=5))


def record_of(key: str, request: Any) -> Idempotency:
    """What is kept of the key and its request. ``request``: what was asked for, as JSON values."""
    body = orjson.dumps(request, option=orjson.OPT_SORT_KEYS)
    return Idempotency(key_sha256=_sha256(key.encode()), request_sha256=_sha256(body))


def check_same(stored: Idempotency | None, record: Idempotency) -> None:
    """Raise :class:`KeyReused` where what exists under the key was made by another request."""
    if stored != record:
        raise KeyReused("the key was used for another request before", field=HEADER)


@contextmanager
def holding(app: web.Application, key: str | None) -> Generator[None]:
    """No other request of this process works under ``key`` meanwhile. Raises :class:`KeyInUse` where one does."""
    if key is None:
        yield
        return
    in_use = app[IN_USE]
    if key in in_use:
        raise KeyInUse("the first request of this key is still being answered: try again", field=HEADER)
    in_use.add(key)
    try:
        yield
    finally:
        in_use.discard(key)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
