"""The native API's route that does one thing with many tasks."""

from __future__ import annotations

from aiohttp import web

from eventq.services.api import api_of, requester, trace_of
from eventq.services.bulk import carry_out
from eventq.services.bulk_models import BulkAnswer, BulkRequest
from eventq.services.openapi import HttpRoutes

routes = HttpRoutes("tasks", "/api/v1")


@routes.post("/tasks/bulk", errors=(400, 403, 408, 409, 413, 415, 421, 503))
async def act_on_tasks(request: web.Request, body: BulkRequest) -> BulkAnswer:
    """Cancel, retry, delete, pause or resume all tasks that a filter selects.

    Without `expected` nothing is done and the answer is a preview: how many tasks there are, and a digest of which. Sent again
    with that as `expected` it is carried out, unless the filter selects other tasks by now, or one of them has changed: that is
    refused with 409 and a new preview. Tasks whose status does not admit the action are left out and counted as `excluded`.
    """
    return await carry_out(api_of(request), body, requester(request), trace_of(request))
