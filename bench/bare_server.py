"""The baseline of submitting: a bare aiohttp handler that parses JSON and answers 201."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from eventq.services.child import announce_ready

# The size of the API's own answer.
ANSWER = {
    "task_id": "0" * 36,
    "task_name": "noop",
    "status": "PENDING",
    "priority": 5,
    "queue_name": "default",
    "created_at": "2026-01-01T00:00:00.000000Z",
    "links": dict.fromkeys(("self", "timeline", "cancel"), "/api/v1/tasks/" + "0" * 36),
}


async def accept(request: web.Request) -> web.Response:
    """Parse the body and answer, storing nothing."""
    await request.json()
    return web.json_response(ANSWER, status=201)


async def _announce(_: web.Application) -> None:
    announce_ready()


def main(arguments: Sequence[str]) -> None:
    """Serve on the port given until told to stop."""
    app = web.Application()
    app.router.add_post("/api/v1/tasks", accept)
    app.on_startup.append(_announce)
    web.run_app(app, host="127.0.0.1", port=int(arguments[0]), print=None, access_log=None)
