"""The native API's route that says why a task waits."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from eventq.events.presence import present
from eventq.events.worker import WorkerStatus
from eventq.services.api import Api, api_of
from eventq.services.explain import PresentWorker, explain
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.queue_models import ExplainAnswer
from eventq.services.reading import AS_OF_HEADER, fresh_task
from eventq.services.schemas import ReadQuery, TaskPath
from eventq.services.task_views import etag

routes = HttpRoutes("tasks", "/api/v1")


@routes.get("/tasks/{task_id}/explain", errors=(400, 404, 421, 503))
async def explain_task(request: web.Request, path: TaskPath, query: ReadQuery) -> Reply[ExplainAnswer]:
    """Say why a task waits, and when it will probably start.

    Every reason that applies is told, each with a stable code, a sentence and the facts behind it. A task that does not wait
    is told of as well: where it runs, or how it ended.
    """
    api = api_of(request)
    row = await fresh_task(api, path.task_id, min_version=query.min_version, min_position=query.min_position)
    line = await api.queries.line_facts(row)
    found = explain(row, line, await _present_workers(api), datetime.now(UTC))
    answer = ExplainAnswer(
        task_id=row.task_id,
        status=row.status.value,
        waiting=not any(reason.code in {"running", "finished"} for reason in found.reasons),
        reasons=found.reasons,
        predicted_start=found.predicted,
        no_prediction=found.no_prediction,
        version=row.version,
        as_of=row.as_of,
    )
    return Reply(answer, headers={"ETag": etag(row.version), AS_OF_HEADER: str(row.as_of)})


async def _present_workers(api: Api) -> list[PresentWorker]:
    """Those whose heartbeat is alive, as far as they registered: before that they take no work."""
    beating = await present(api.log.broker)
    return [
        PresentWorker(row.worker_id, row.pool, tuple(row.queues), row.capacity, row.running, WorkerStatus(row.status))
        for row in await api.queries.living_workers()
        if row.worker_id in beating
    ]
