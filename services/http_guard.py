"""Against slow, silent and misdirected clients.

aiohttp waits for ever for a client that opens a connection and sends nothing, or half a header, or never
reads its answer. Three deadlines close such connections: for the first request's headers and for an unread
answer here, for the headers of later requests by aiohttp's own keep-alive timer (which, unlike its name, also
fires in the middle of a header). Bodies have theirs in ``http_body``. One sweep a second looks at all
connections; nothing runs per connection.

A server on loopback is reachable by every web page open on the same machine. So the ``Host`` header must name
this server (else a page whose name was re-bound to 127.0.0.1 could read everything), and a write must not
come from another site's page.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from eventq.events.ids import new_id
from eventq.services.http_errors import CrossSite, MisdirectedHost, plain_error
from eventq.services.http_limits import HttpLimits

log = structlog.get_logger()

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
SWEEP_S = 1.0
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(slots=True)
class _Watch:
    """What the sweep knows of one connection. Times are the loop's, in seconds."""

    transport: asyncio.Transport
    opened_at: float
    served: bool = False
    unread_bytes: int = 0
    unread_since: float = 0.0


class _Protocol(RequestHandler):
    """aiohttp's connection, with its own refusals (not HTTP, headers too long) in the documented error
    shape."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500 and not isinstance(exc, ConnectionError):  # a client that has gone is nobody's mistake
            log.error("connection.failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer was sent already; no error can follow it")
        first_line = (message or "").strip().splitlines()[:1]
        detail = first_line[0][:200] if status < 500 and first_line else "Internal error"
        response = plain_error(status, f"Bad request: {detail}" if status < 500 else detail, new_id())
        response.force_close()
        return response


class GuardedServer(web.Server):
    """aiohttp's connection factory with the deadlines of ``HttpLimits``."""

    def __init__(self, inner: web.Server, limits: HttpLimits, **options: Any) -> None:
        self._limits = limits
        self._make = inner.request_factory
        self._options: dict[str, Any] = {
            **options,
            "keepalive_timeout": limits.keepalive_s,
            "lingering_time": limits.lingering_s,
            "auto_decompress": False,  # compressed bodies are refused, so nothing here may inflate one
        }
        self._watched: dict[RequestHandler, _Watch] = {}
        self._running_loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        super().__init__(inner.request_handler, request_factory=self._begin_request, loop=self._running_loop)

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._running_loop, **self._options)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._watched) >= self._limits.connections_max:
            transport.abort()
            return
        self._watched[handler] = _Watch(transport, self._running_loop.time())
        if self._timer is None:
            self._timer = self._running_loop.call_later(SWEEP_S, self._sweep)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        self._watched.pop(handler, None)
        super().connection_lost(handler, exc)

    def _begin_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        if (watch := self._watched.get(protocol)) is not None:
            watch.served = True
        return self._make(message, payload, protocol, writer, task)

    def _sweep(self) -> None:
        now = self._running_loop.time()
        for watch in list(self._watched.values()):
            if self._overdue(watch, now):
                watch.transport.abort()
        waiting = bool(self._watched)
        self._timer = self._running_loop.call_later(SWEEP_S, self._sweep) if waiting else None

    def _overdue(self, watch: _Watch, now: float) -> bool:
        if not watch.served:
            return now - watch.opened_at > self._limits.first_request_deadline_s
        unread = watch.transport.get_write_buffer_size()
        if watch.unread_bytes == 0 or unread < watch.unread_bytes:
            watch.unread_since = now
        watch.unread_bytes = unread
        return unread > 0 and now - watch.unread_since > self._limits.write_stall_s


class GuardedRunner(web.AppRunner):
    """``web.AppRunner`` whose connections are guarded; use it wherever the app is served."""

    def __init__(self, app: web.Application, limits: HttpLimits | None = None, *, shutdown_s: float = 10.0) -> None:
        """``shutdown_s``: how long a stop waits for requests in progress."""
        super().__init__(app, access_log=None, shutdown_timeout=shutdown_s)
        self._limits = limits or HttpLimits()

    async def _make_server(self) -> web.Server:
        return GuardedServer(await super()._make_server(), self._limits, access_log=None)


def host_middleware(allowed_hosts: frozenset[str]) -> Any:
    """Refuse requests whose ``Host`` is not one of ``allowed_hosts`` with 421, and writes that another site's
    page makes with 403. ``allowed_hosts`` are names without a port; ``*`` among them admits all.
    """

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        name = host_name(request.headers.get("Host", ""))
        if "*" not in allowed_hosts and name not in allowed_hosts:
            raise MisdirectedHost(
                "this server does not answer for that host",
                field="Host",
                found=request.headers.get("Host", "")[:100],
                hint="add the name to EVENTQ_ALLOWED_HOSTS if it is meant to reach this server",
            )
        if request.method not in _SAFE_METHODS:
            _refuse_cross_site(request)
        response: web.StreamResponse = await handler(request)
        return response

    return check


def host_name(host: str) -> str:
    """The name of a Host header without its port, in lower case: ``[::1]:8000`` gives ``[::1]``."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).lower()


def _refuse_cross_site(request: web.Request) -> None:
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if site not in ("same-origin", "none"):
        raise CrossSite("writes from another site's page are refused", field="Sec-Fetch-Site", found=site[:40])
    origin = request.headers.get("Origin")
    if origin is not None and _netloc(origin) != request.headers.get("Host", "").lower():
        raise CrossSite("writes from another origin are refused", field="Origin", found=origin[:100])


def _netloc(origin: str) -> str | None:
    """Host and port of an Origin header; ``None`` for what is none, which equals no Host."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
