"""The native API's route that takes many tasks at once."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from eventq.events.errors import EventqError
from eventq.services.api import api_of, requester, trace_of
from eventq.services.api_tasks import submission_of
from eventq.services.batch import JSON_TYPE, LINES_TYPE, Batch, error_of, items_of, line
from eventq.services.idempotency import holding, idempotency_key
from eventq.services.metrics import METRICS
from eventq.services.openapi import HttpRoutes
from eventq.services.submission import refuse_when_damaged

routes = HttpRoutes("tasks", "/api/v1")


@routes.post(
    "/tasks/batch",
    errors=(400, 403, 408, 409, 413, 415, 421, 503),
    media_type=LINES_TYPE,
    upload=LINES_TYPE,
)
async def submit_tasks(request: web.Request) -> web.StreamResponse:
    """Submit up to 10,000 tasks.

    The body is one task a line (`application/x-ndjson`, read as it comes) or one JSON array (`application/json`, up to 16 MiB);
    a task is as for submitting one. Each is accepted or refused by itself, and answered by one line, in order, as soon as it is
    stored: `{"index", "task_id", "status", "version"}` or `{"index", "error"}`; an `error` without an `index` is about the
    rest of the body, and what came before it stays accepted. The last line is `{"accepted", "refused"}`. With
    `Accept: application/json` all come as one object. Read the answer while sending: who does not is not read from.

    `Idempotency-Key`: sent again under the same key, each task is accepted once, and answered the same.
    """
    api, key = api_of(request), idempotency_key(request)
    refuse_when_damaged(api)
    batch = Batch(api, submission_of, requested_by=requester(request), trace=trace_of(request), idempotency_key=key)
    with holding(request.app, key):
        try:
            if _wants_one_object(request):
                return await _one_object(request, batch)
            return await _lines(request, batch)
        finally:
            for queue, count in batch.queues.items():
                request.app[METRICS].submitted.labels(queue).inc(count)


def _wants_one_object(request: web.Request) -> bool:
    accept = request.headers.get("Accept", "")
    return JSON_TYPE in accept and LINES_TYPE not in accept


async def _one_object(request: web.Request, batch: Batch) -> web.Response:
    tasks: list[dict[str, Any]] = []

    async def keep(answers: list[dict[str, Any]]) -> None:
        tasks.extend(answers)

    answer: dict[str, Any] = {}
    try:
        await batch.run(items_of(request, api_of(request).limits), keep)
    except EventqError as error:
        if not tasks:
            raise
        answer["error"] = error_of(error)
    answer |= {"accepted": batch.accepted, "refused": batch.refused, "tasks": tasks}
    response = web.Response(body=orjson.dumps(answer, default=str), content_type=JSON_TYPE)
    if "error" in answer:
        response.force_close()  # the rest of the body is not read
    return response


async def _lines(request: web.Request, batch: Batch) -> web.StreamResponse:
    """The answer begins with the first group: what is wrong before it is refused as every request is."""
    response = web.StreamResponse(headers={"Content-Type": LINES_TYPE})

    async def write(answers: list[dict[str, Any]]) -> None:
        if not response.prepared:
            await response.prepare(request)
        await response.write(b"".join(map(line, answers)))

    try:
        await batch.run(items_of(request, api_of(request).limits), write)
    except EventqError as error:
        if not response.prepared:
            raise
        response.force_close()  # the rest of the body is not read
        await response.write(line({"error": error_of(error)}))
    if not response.prepared:
        await response.prepare(request)
    await response.write(line({"accepted": batch.accepted, "refused": batch.refused}))
    await response.write_eof()
    return response
