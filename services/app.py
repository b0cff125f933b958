"""The HTTP application: routes, middlewares and the document, put together. Serve it with ``http_guard.GuardedRunner``."""

from __future__ import annotations

import asyncio

from aiohttp import web

from eventq.services import (
    api_batch,
    api_blobs,
    api_bulk,
    api_cleanup,
    api_control,
    api_dead_letters,
    api_explain,
    api_queues,
    api_schedules,
    api_system,
    api_tasks,
    api_worker_leases,
    api_workers,
    api_workflows,
    docs_pages,
)
from eventq.services.api import API, Api
from eventq.services.docs_pages import DOCUMENT, document_bytes
from eventq.services.http_errors import errors_middleware, finish_headers
from eventq.services.http_guard import host_middleware
from eventq.services.idempotency import IN_USE
from eventq.services.metrics import METRICS, Metrics, metrics_middleware
from eventq.services.openapi import LIMITS, HttpRoute
from eventq.services.openapi_document import openapi_document

ROUTES = (
    api_tasks.routes,
    api_batch.routes,
    api_cleanup.routes,
    api_control.routes,
    api_bulk.routes,
    api_dead_letters.routes,
    api_explain.routes,
    api_queues.routes,
    api_blobs.routes,
    api_schedules.routes,
    api_workflows.routes,
    api_workers.routes,
    api_worker_leases.routes,
    api_system.routes,
    api_system.root_routes,
    docs_pages.routes,
)


def create_app(api: Api) -> web.Application:
    """The app over ``api``. It opens and closes nothing: whoever made ``api`` ends it."""
    app = web.Application(
        middlewares=[metrics_middleware, errors_middleware, host_middleware(api.allowed_hosts)],
        client_max_size=api.limits.body_max_bytes,
    )
    app[API] = api
    app[LIMITS] = api.limits
    app[METRICS] = Metrics()
    app[IN_USE] = set()
    app[DOCUMENT] = document_bytes(openapi_document(declared_routes(), api.version))
    app[api_system.PROJECTION_TURN] = asyncio.Lock()
    app[api_worker_leases.STOPPING] = asyncio.Event()
    app.on_shutdown.append(api_worker_leases.stop_waiting)
    app.on_response_prepare.append(finish_headers)
    for routes in ROUTES:
        routes.register(app)
    return app


def declared_routes() -> list[HttpRoute]:
    """Every route of the app, as declared."""
    return [route for routes in ROUTES for route in routes.declared]
