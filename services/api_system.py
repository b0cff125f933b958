"""Health, probes, metrics, and the two things an operator does to a projection."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from aiohttp import web

from eventq.events.errors import Conflict, LogUnavailable
from eventq.events.presence import present
from eventq.projections.rebuild import rebuild_live, verify
from eventq.services.answers import DifferenceAnswer, HealthAnswer, ProbeAnswer, RebuildAnswer, TableAnswer, VerifyAnswer
from eventq.services.api import api_of
from eventq.services.health import UNHEALTHY, all_checks, lag_events, overall, ready_problems
from eventq.services.metrics import METRICS, METRICS_TYPE, Metrics
from eventq.services.openapi import HttpRoutes, Reply

routes = HttpRoutes("system", "/api/v1")
root_routes = HttpRoutes("system")

PROJECTION_TURN = web.AppKey("projection_turn", asyncio.Lock)


@routes.get("/health", also={503: "Something that requests need does not work."})
async def get_health(request: web.Request) -> Reply[HealthAnswer]:
    """How the whole system is, part by part."""
    api = api_of(request)
    checks = await all_checks(api)
    found = {check.name: check.status for check in checks}
    answer = HealthAnswer(
        status=overall(checks),
        version=api.version,
        checks={**found, "redis": found["broker"]},
        problems={check.name: check.problem for check in checks if check.problem is not None},
    )
    return Reply(answer, status=503 if answer.status == UNHEALTHY else 200)


@root_routes.get("/healthz")
async def get_liveness(request: web.Request) -> ProbeAnswer:
    """Whether this process answers at all."""
    return ProbeAnswer(status="ok")


@root_routes.get("/readyz", also={503: "Not now; `problems` says why."})
async def get_readiness(request: web.Request) -> Reply[ProbeAnswer]:
    """Whether this process should get requests: its broker answers and its projection has caught up."""
    problems = await ready_problems(api_of(request))
    if problems:
        return Reply(ProbeAnswer(status="not ready", problems=problems), status=503)
    return Reply(ProbeAnswer(status="ok"))


@root_routes.get("/metrics", media_type=METRICS_TYPE)
async def get_metrics(request: web.Request) -> web.Response:
    """Metrics for Prometheus."""
    metrics = request.app[METRICS]
    await _read_gauges(request, metrics)
    return web.Response(body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


@routes.post("/projection/verify", errors=(409, 503))
async def verify_projection(request: web.Request) -> VerifyAnswer:
    """Fold the log anew, aside, and compare: is what this replica serves the fold of the log?

    Takes as long as folding takes (about a second for 30,000 events). Reads go on meanwhile.
    """
    api = api_of(request)
    async with _turn(request):
        found = await verify(api.projector.store, api.log.broker)
    return VerifyAnswer(
        equal=found.equal,
        position=found.position,
        seconds=found.seconds,
        tables={name: TableAnswer(rows=rows, sha256=digest) for name, (rows, digest) in found.tables.items()},
        differences=[DifferenceAnswer(**asdict(difference)) for difference in found.differences],
    )


@routes.post("/projection/rebuild", errors=(409, 503))
async def rebuild_projection(request: web.Request) -> RebuildAnswer:
    """Fold the log anew and serve the result. Reads go on meanwhile, from the old tables."""
    api = api_of(request)
    async with _turn(request):
        done = await rebuild_live(api.projector)
    return RebuildAnswer(position=done.position, messages=done.messages, seconds=done.seconds)


def _turn(request: web.Request) -> asyncio.Lock:
    """One at a time: each needs disk for a whole copy."""
    turn = request.app[PROJECTION_TURN]
    if turn.locked():
        raise Conflict("a verification or rebuild of this replica is running already")
    return turn


async def _read_gauges(request: web.Request, metrics: Metrics) -> None:
    """What can be read now; a broker that is away must not hide the rest."""
    api = api_of(request)
    metrics.applied.set(api.freshness.position)
    metrics.healthy.set(0 if api.freshness.halted else 1)
    metrics.tasks.clear()
    for (pool, queue, status), count in (await api.queries.counts()).items():
        metrics.tasks.labels(pool, queue, status).set(count)
    try:
        metrics.lag.set(await lag_events(api))
        metrics.workers.set(len(await present(api.log.broker)))
    except (LogUnavailable, TimeoutError):
        metrics.lag.set(float("nan"))
        metrics.workers.set(float("nan"))
