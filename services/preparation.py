"""From what somebody wants run to the event that it will be: declared, with arguments that fit, within every limit."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import nats.errors
import orjson
from nats.js.errors import APIError

from eventq.events.data import BlobRef
from eventq.events.errors import InvalidInput, LogUnavailable, UnknownTask
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES, SCHEDULE_AHEAD_MAX_S
from eventq.events.subjects import EVENTS
from eventq.events.task_events import Idempotency, Submitted
from eventq.events.worker_events import TaskDeclaration
from eventq.services.api import Api
from eventq.services.http_limits import PARSE_INLINE_MAX_BYTES
from eventq.services.task_options import completed

AT_ONCE = 128
"""Submissions of many that are checked before other requests have a turn."""


class Submission(NamedTuple):
    """What somebody wants run. ``options``: by their names in ``Submitted``; what is left out, or ``None``, is as the task
    declares it. ``scheduled_at``: aware UTC.

    ``unique``: answer an unfinished task of the same name and arguments instead; ``unique_key``: of the same key.
    ``idempotency``: of the request's key, where it had one; ``task_id`` is then made of it, and is the task's unless it is
    unique, and so may be another's.
    """

    task_name: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: Mapping[str, Any] = MappingProxyType({})
    scheduled_at: datetime | None = None
    unique: bool = False
    unique_key: str | None = None
    requested_by: str | None = None
    idempotency: Idempotency | None = None
    task_id: str | None = None


class Prepared(NamedTuple):
    """One of many submissions, checked. ``outcome``: its event, or why it is refused; ``None`` where something must be looked
    up before its event is made, or stored beside it."""

    wanted: Submission
    outcome: Submitted | BaseException | None


async def prepare_all(api: Api, wanted: Sequence[Submission]) -> list[Prepared]:
    """Check many submissions; nothing is stored. A declaration is asked for once."""
    names = list(dict.fromkeys(each.task_name for each in wanted))
    found = await asyncio.gather(*(declaration_of(api, name) for name in names), return_exceptions=True)
    declarations = dict(zip(names, found, strict=True))
    prepared: list[Prepared] = []
    for number, each in enumerate(wanted):
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
        declaration = declarations[each.task_name]
        outcome: Submitted | BaseException | None = None
        if isinstance(declaration, BaseException):
            outcome = None if each.task_id is not None else declaration  # what is known of the id comes first
        elif not _looks_up(each) and len(encoded := _encoded(each)) <= INLINE_PAYLOAD_MAX_BYTES:
            try:
                outcome = await _prepare(api, each, declaration, encoded)
            except Exception as error:
                outcome = error
        prepared.append(Prepared(each, outcome))
    return prepared


def _looks_up(wanted: Submission) -> bool:
    """Whether another task may be answered instead."""
    return wanted.task_id is not None or wanted.unique or wanted.unique_key is not None


def _encoded(wanted: Submission) -> bytes:
    return orjson.dumps({"args": wanted.args, "kwargs": wanted.kwargs})


async def prepare(api: Api, wanted: Submission) -> Submitted:
    """The event that the submission will be, its arguments checked, and stored where they are large.

    Raises ``UnknownTask`` or ``InvalidInput``, and ``Unavailable`` where that cannot be told.
    """
    return await _prepare(api, wanted, await declaration_of(api, wanted.task_name), _encoded(wanted))


async def _prepare(api: Api, wanted: Submission, declaration: TaskDeclaration, encoded: bytes) -> Submitted:
    """:func:`prepare` with what is known already. ``encoded``: the arguments as they would be stored."""
    if wanted.scheduled_at is not None:
        check_schedule(wanted.scheduled_at)
    stored_input = await checked_arguments(api, declaration, wanted.args, wanted.kwargs, encoded)
    return Submitted.model_validate(
        completed(declaration, wanted.options)
        | {
            "task_name": declaration.name,
            "args": [] if stored_input else wanted.args,
            "kwargs": {} if stored_input else wanted.kwargs,
            "input": stored_input,
            "pool": declaration.pool,
            "scheduled_at": wanted.scheduled_at,
            "unique_key": _unique_key(wanted),
            "idempotency": wanted.idempotency,
            "requested_by": wanted.requested_by,
        }
    )


def _unique_key(wanted: Submission) -> str | None:
    """What the task is unique by."""
    if wanted.unique and wanted.unique_key is not None:
        raise InvalidInput("/unique_key", "cannot be given beside unique, which is by name and arguments")
    if wanted.unique:
        return unique_by_arguments(wanted.task_name, wanted.args, wanted.kwargs)
    return None if wanted.unique_key is None else _unique_by(b"key", wanted.task_name, wanted.unique_key.encode())


def unique_by_arguments(task_name: str, args: list[Any], kwargs: dict[str, Any]) -> str:
    """The key of a task that is unique by its name and arguments, whose names have no order."""
    encoded = orjson.dumps({"args": args, "kwargs": kwargs}, option=orjson.OPT_SORT_KEYS)
    return _unique_by(b"arguments", task_name, encoded)


def _unique_by(what: bytes, task_name: str, value: bytes) -> str:
    """A digest: one subject token, whatever the key holds."""
    return hashlib.sha256(b"\n".join((what, task_name.encode(), value))).hexdigest()[:40]


async def checked_arguments(
    api: Api, declaration: TaskDeclaration, args: list[Any], kwargs: dict[str, Any], encoded: bytes
) -> BlobRef | None:
    """Check arguments against the declaration; a reference to them where they are too large to stand in an event."""
    if len(encoded) > PARSE_INLINE_MAX_BYTES:
        await asyncio.to_thread(api.declarations.check, declaration, args, kwargs)
    else:
        api.declarations.check(declaration, args, kwargs)
    if len(encoded) <= INLINE_PAYLOAD_MAX_BYTES:
        return None
    return await api.blobs.put_async(encoded, media_type="application/json")


async def declaration_of(api: Api, task_name: str) -> TaskDeclaration:
    """What a worker declared, be it an instant ago: a name is called unknown only once the whole log has been folded."""
    try:
        return await api.declarations.get(task_name)
    except UnknownTask:
        try:
            facts = await api.log.broker.stream_facts(EVENTS)
        except (nats.errors.Error, APIError, TimeoutError) as error:
            raise LogUnavailable(f"nothing was stored: the broker does not tell where the log ends: {error!r}") from error
        await api.freshness.wait_for_position(0 if facts is None else facts.last, api.limits.read_wait_s)
        return await api.declarations.get(task_name)


def check_schedule(scheduled_at: datetime) -> None:
    """Raise ``InvalidInput`` for a time that is too far ahead."""
    now = datetime.now(UTC)
    if scheduled_at - now > timedelta(seconds=SCHEDULE_AHEAD_MAX_S):
        latest = (now + timedelta(seconds=SCHEDULE_AHEAD_MAX_S)).isoformat(timespec="seconds")
        raise InvalidInput("/scheduled_at", "is too far ahead", limit=latest, found=scheduled_at.isoformat())
