"""What the handlers work with: one typed value, made where the process is wired and put into the app under ``API``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from aiohttp import web

from eventq.events.blobs import BlobStore
from eventq.events.envelope import Trace
from eventq.events.log import EventLog
from eventq.events.submitter import Submitter
from eventq.projections.freshness import Freshness
from eventq.projections.projector import Projector
from eventq.projections.queries import Queries
from eventq.services.arguments import Declarations
from eventq.services.http_errors import REQUEST_ID
from eventq.services.http_guard import LOOPBACK_HOSTS
from eventq.services.http_limits import HttpLimits

SOURCE = "api"
"""The ``source`` of events that requests lead to."""

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Api:
    """One API process. ``allowed_hosts``: names without port; ``*`` admits all."""

    log: EventLog
    submitter: Submitter
    projector: Projector
    queries: Queries
    freshness: Freshness
    blobs: BlobStore
    declarations: Declarations
    version: str
    allowed_hosts: frozenset[str] = LOOPBACK_HOSTS
    limits: HttpLimits = field(default_factory=HttpLimits)


API = web.AppKey("api", Api)


def api_of(request: web.Request) -> Api:
    """The process's :class:`Api`."""
    return request.app[API]


def trace_of(request: web.Request) -> Trace:
    """What an event that this request leads to follows from: the request's id, and the caller's W3C trace if valid."""
    traceparent = request.headers.get("traceparent")
    if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = None
    request_id = request[REQUEST_ID]
    return Trace(causation_id=request_id, correlation_id=request_id, traceparent=traceparent)


def requester(request: web.Request) -> str:
    """Who asks, as far as is known without authentication: the address."""
    return request.remote or "unknown"
