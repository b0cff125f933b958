"""Prometheus metrics of one API process. Names begin with ``eventq_``; no label ever holds an id.

Counters and histograms of HTTP are written as requests end; gauges of tasks, workers and lag are read from the
projection when somebody scrapes, so that they cost nothing in between.
"""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

METRICS_TYPE = "text/plain"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One process's metrics, in a registry of their own: tests and several apps in one process do not collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "eventq_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "eventq_http_request_seconds",
            "Time to answer a request.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.submitted = Counter(
            "eventq_tasks_submitted_total", "Tasks accepted by this process.", ["queue"], registry=self.registry
        )
        self.tasks = Gauge(
            "eventq_tasks", "Tasks by pool, queue and status.", ["pool", "queue", "status"], registry=self.registry
        )
        self.workers = Gauge("eventq_workers", "Workers whose heartbeat is alive.", registry=self.registry)
        self.applied = Gauge("eventq_projection_position", "Position applied by this replica.", registry=self.registry)
        self.healthy = Gauge("eventq_projection_healthy", "1, or 0 while the projection has halted.", registry=self.registry)
        self.lag = Gauge("eventq_projection_lag_events", "Events not applied yet by this replica.", registry=self.registry)

    def exposition(self) -> bytes:
        """The text format that Prometheus reads."""
        return generate_latest(self.registry)


METRICS = web.AppKey("metrics", Metrics)


@web.middleware
async def metrics_middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    """Count the answer by the route's pattern, never by the path somebody sent."""
    began = time.perf_counter()
    response: web.StreamResponse = await handler(request)
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "none"
    method = request.method if resource is not None else "none"
    metrics = request.app[METRICS]
    metrics.requests.labels(method, route, str(response.status)).inc()
    metrics.request_seconds.labels(method, route).observe(time.perf_counter() - began)
    return response
