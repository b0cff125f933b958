"""The native API's routes of queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import nats.errors
import structlog
from aiohttp import web
from nats.js.errors import APIError

from eventq.events.errors import QueueNotFound
from eventq.events.failpoints import failpoint
from eventq.events.handle import handle_any
from eventq.events.queue import QUEUES, ConfigureQueue, PauseQueue, QueueCommand, ResumeQueue
from eventq.events.subjects import Route
from eventq.projections.fold import version_key
from eventq.projections.queue_queries import Depth, Moved, QueueFacts
from eventq.services.api import SOURCE, Api, api_of, requester, trace_of
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.queue_models import (
    ConfigureQueueRequest,
    HolderAnswer,
    LimitsBody,
    MovedAnswer,
    PauseQueueRequest,
    PoolDepthAnswer,
    QueueAnswer,
    QueueListAnswer,
    QueuePath,
    QueueQuery,
    QueuesQuery,
    RatesAnswer,
    SlotsAnswer,
)
from eventq.services.reading import AS_OF_HEADER, fresh_enough
from eventq.services.task_views import etag

log = structlog.get_logger("eventq.queues")

routes = HttpRoutes("queues", "/api/v1")

WRITE_ERRORS = (400, 403, 408, 413, 415, 421, 503)
READ_ERRORS = (400, 404, 421, 503)

_NOT_ANSWERED = (nats.errors.Error, APIError, TimeoutError)


@routes.get("/queues", errors=READ_ERRORS)
async def list_queues(request: web.Request, query: QueuesQuery) -> Reply[QueueListAnswer]:
    """List the queues that have tasks, limits, a pause, or workers' attention, by name, in pages.

    A queue need not be created: it is there as soon as a task names it.
    """
    api = api_of(request)
    await fresh_enough(api, min_position=query.min_position)
    served = await _served(api)
    now = datetime.now(UTC)
    page = await api.queries.queue_page(now, served, limit=query.limit, offset=query.offset)
    answer = QueueListAnswer(
        total=page.total,
        limit=query.limit,
        offset=query.offset,
        queues=[_answer(facts, served.get(facts.name, ()), now, page.as_of) for facts in page.queues],
        as_of=page.as_of,
    )
    return Reply(answer, headers={AS_OF_HEADER: str(page.as_of)})


@routes.get("/queues/{queue_name}", errors=READ_ERRORS)
async def get_queue(request: web.Request, path: QueuePath, query: QueueQuery) -> Reply[QueueAnswer]:
    """Read a queue: how deep it is, how it moves, what limits it, and who holds its slots."""
    await fresh_enough(api_of(request), min_position=query.min_position)
    return await _reply(api_of(request), path.queue_name, must_exist=True)


@routes.route("PUT", "/queues/{queue_name}", errors=WRITE_ERRORS)
async def configure_queue(request: web.Request, path: QueuePath, body: ConfigureQueueRequest) -> Reply[QueueAnswer]:
    """Set all limits of a queue.

    They hold for what runs already, too: it keeps its slots, and nothing more is started until there is room. Tasks that wait
    for a worker are called back and wait for admission. Without limits all are let go.
    """
    return await _change(request, path, ConfigureQueue(body.limits.limits(), requester(request)))


@routes.post("/queues/{queue_name}/pause", errors=WRITE_ERRORS)
async def pause_queue(request: web.Request, path: QueuePath, body: PauseQueueRequest | None) -> Reply[QueueAnswer]:
    """Start no task of the queue until it is resumed. What runs goes on, and new tasks are accepted."""
    return await _change(request, path, PauseQueue(requester(request), None if body is None else body.reason))


@routes.post("/queues/{queue_name}/resume", errors=WRITE_ERRORS)
async def resume_queue(request: web.Request, path: QueuePath) -> Reply[QueueAnswer]:
    """Start tasks of the queue again."""
    return await _change(request, path, ResumeQueue(requester(request)))


async def _change(request: web.Request, path: QueuePath, command: QueueCommand) -> Reply[QueueAnswer]:
    api, name = api_of(request), path.queue_name
    handled = await handle_any(api.log, QUEUES, name, command, source=SOURCE, trace=trace_of(request))
    api.freshness.note_write(version_key(QUEUES.name, name), handled.state.version)
    api.submitter.queues.forget(name)
    failpoint("queue.after_append")
    if isinstance(command, PauseQueue | ResumeQueue):
        try:
            await api.log.routes.set_paused(name, handled.state.paused)
        except _NOT_ANSWERED as error:  # it is a fact: the gate brings its effect about
            log.warning("queue.pause_left_to_the_gate", queue=name, error=repr(error))
    await fresh_enough(api)
    return await _reply(api, name, must_exist=False)


async def _reply(api: Api, name: str, *, must_exist: bool) -> Reply[QueueAnswer]:
    served = (await _served(api)).get(name, ())
    now = datetime.now(UTC)
    page = await api.queries.queue(now, name)
    if not page.queues and not served and must_exist:
        raise QueueNotFound(name)
    facts = page.queues[0] if page.queues else QueueFacts(name)
    answer = _answer(facts, served, now, page.as_of)
    return Reply(answer, headers={"ETag": etag(answer.version), AS_OF_HEADER: str(page.as_of)})


async def _served(api: Api) -> Mapping[str, Sequence[Route]]:
    """Routes that workers take work of, by queue; none where the broker does not say."""
    found: dict[str, list[Route]] = {}
    try:
        for route in await api.log.routes.existing():
            found.setdefault(route.queue, []).append(route)
    except _NOT_ANSWERED as error:
        log.warning("queues.routes_unknown", error=repr(error))
    return found


def _answer(facts: QueueFacts, served: Sequence[Route], now: datetime, as_of: int) -> QueueAnswer:
    """``served``: its routes that workers take work of."""
    queue = facts.queue
    pools = sorted(facts.pools.keys() | {route.pool for route in served})
    oldest = min((d.oldest_pending_at for d in facts.pools.values() if d.oldest_pending_at is not None), default=None)
    depth: dict[str, int] = {}
    for one in facts.pools.values():
        for status, tasks in one.by_status.items():
            depth[status] = depth.get(status, 0) + tasks
    return QueueAnswer(
        queue_name=facts.name,
        depth=depth,
        held=sum(one.held for one in facts.pools.values()),
        oldest_pending_at=oldest,
        oldest_age_seconds=None if oldest is None else max(0.0, (now - oldest).total_seconds()),
        pools=[_pool(pool, facts.pools.get(pool, Depth()), served) for pool in pools],
        rates=RatesAnswer(last_minute=_moved(facts.last_minute), last_5_minutes=_moved(facts.last_5_minutes)),
        limits=LimitsBody.of(queue.limits),
        configured_by=queue.configured_by,
        paused=queue.paused,
        paused_by=queue.paused_by,
        paused_at=queue.paused_at,
        paused_reason=queue.paused_reason,
        slots=SlotsAnswer(
            used=facts.held_slots,
            maximum=queue.limits.max_running,
            holders=[HolderAnswer(**{name: getattr(one, name) for name in HolderAnswer.model_fields}) for one in facts.holders],
        ),
        version=queue.version,
        as_of=as_of,
    )


def _pool(pool: str, depth: Depth, served: Sequence[Route]) -> PoolDepthAnswer:
    return PoolDepthAnswer(
        pool=pool,
        depth=depth.by_status,
        held=depth.held,
        oldest_pending_at=depth.oldest_pending_at,
        priorities=sorted((route.priority for route in served if route.pool == pool), reverse=True),
    )


def _moved(moved: Moved) -> MovedAnswer:
    return MovedAnswer(started=moved.started, completed=moved.completed, failed=moved.failed)
