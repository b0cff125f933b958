"""Reads that are as new as their caller has a right to expect, and reads of the past."""

from __future__ import annotations

from datetime import UTC, datetime

import nats.errors
from nats.js.errors import APIError

from eventq.events.errors import InvalidInput, LogUnavailable, ProjectionLagging, TaskNotFound
from eventq.events.subjects import EVENTS
from eventq.projections.queries import TaskRow
from eventq.services.api import Api

AS_OF_HEADER = "X-Eventq-As-Of"


async def fresh_enough(api: Api, *, min_position: int | None = None) -> None:
    """Return once this process's own writes, and all up to ``min_position``, are visible here.

    Raises ``ProjectionLagging`` past the bound. A halted projection serves its last good state to whoever asks for no
    particular position.
    """
    wait_s = api.limits.read_wait_s
    if min_position is not None:
        await api.freshness.wait_for_position(min_position, wait_s)
    if api.freshness.halted is None:
        await api.freshness.wait_own_writes(wait_s)


async def up_to_date(api: Api) -> None:
    """Return once all that the log holds now is visible here. Raises ``LogUnavailable`` and ``ProjectionLagging``."""
    try:
        facts = await api.log.broker.stream_facts(EVENTS)
    except (nats.errors.Error, APIError, TimeoutError) as error:
        raise LogUnavailable(f"nothing was done: the broker does not tell where the log ends: {error!r}") from error
    await api.freshness.wait_for_position(0 if facts is None else facts.last, api.limits.read_wait_s)


async def fresh_task(api: Api, task_id: str, *, min_version: int | None = None, min_position: int | None = None) -> TaskRow:
    """The task's row, with at least ``min_version``. Raises ``TaskNotFound``, ``InvalidInput``, ``ProjectionLagging``."""
    if min_version:
        await _wait_for_version(api, task_id, min_version)
    await fresh_enough(api, min_position=min_position)
    row = await api.queries.get_task(task_id)
    if row is None:
        raise TaskNotFound(task_id)
    return row


async def _wait_for_version(api: Api, task_id: str, version: int) -> None:
    """A version that the log does not hold is the caller's mistake and is told so, at once, instead of a timeout."""
    try:
        await api.freshness.wait_for_version(task_id, version, 0)
    except ProjectionLagging:
        last = await api.log.last("tasks", task_id, fresh=True)
        if last is None:
            raise TaskNotFound(task_id) from None
        if last.event.version < version:
            found, limit = version, last.event.version
            raise InvalidInput("min_version", "is ahead of the task", limit=limit, found=found) from None
        await api.freshness.wait_for_version(task_id, version, api.limits.read_wait_s)


async def past_task(api: Api, task_id: str, moment: int | datetime) -> TaskRow:
    """The task as it was at a position or time. Raises ``TaskNotFound`` where it did not exist then, and
    ``InvalidInput`` for a moment that has not come: its answer could still change."""
    facts = await api.log.broker.stream_facts(EVENTS)
    last = 0 if facts is None else facts.last
    if isinstance(moment, datetime):
        if moment > datetime.now(UTC):
            raise InvalidInput("as_of", "lies in the future", found=moment.isoformat())
        await fresh_enough(api, min_position=last)
        row = await api.queries.get_task_as_of(task_id, time=moment)
    else:
        if moment > last:
            raise InvalidInput("as_of", "is ahead of the log", limit=last, found=moment)
        await fresh_enough(api, min_position=moment)
        row = await api.queries.get_task_as_of(task_id, position=moment)
    if row is None:
        raise TaskNotFound(task_id)
    return row
