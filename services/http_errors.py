"""Errors over HTTP: one table from codes to statuses, and one JSON shape for everything that goes wrong.

``{"detail": sentence, "code": stable code, "request_id": id, "timestamp": RFC 3339}``, and beside them
``field``, ``limit``, ``found`` and ``hint`` where they are known. An error that nobody meant is logged in
full under the request's id and answered as ``INTERNAL_ERROR`` without a word of what it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from aiohttp import web

from eventq.events.errors import Damaged, EventqError, Unavailable
from eventq.events.ids import new_id
from eventq.services.http_limits import REQUEST_ID_MAX_CHARS

log = structlog.get_logger()

STATUS_OF: dict[str, int] = {
    "INVALID_INPUT": 400,
    "UNKNOWN_TASK": 400,
    "PAYLOAD_TOO_LARGE": 413,
    "NOT_FOUND": 404,
    "TASK_NOT_FOUND": 404,
    "SCHEDULE_NOT_FOUND": 404,
    "WORKFLOW_NOT_FOUND": 404,
    "BLOB_NOT_FOUND": 404,
    "WORKER_NOT_FOUND": 404,
    "QUEUE_NOT_FOUND": 404,
    "CONFLICT": 409,
    "ILLEGAL_TRANSITION": 409,
    "STALE_ATTEMPT": 409,
    "VERSION_CONFLICT": 409,
    "TASK_ERASED": 409,
    "IDEMPOTENCY_KEY_IN_USE": 409,
    "IDEMPOTENCY_KEY_REUSED": 422,
    "SELECTION_CHANGED": 409,
    "PRECONDITION_FAILED": 412,
    "FETCH_REFUSED": 400,
    "UNAVAILABLE": 503,
    "LOG_UNAVAILABLE": 503,
    "LOG_FULL": 503,
    "LAGGING": 503,
    "BROKER_UNFIT": 503,
    "DAMAGED": 500,
    "LOG_DAMAGED": 500,
    "UNKNOWN_EVENT": 500,
    "BLOB_DAMAGED": 500,
    "INTERNAL_ERROR": 500,
    "BAD_REQUEST": 400,
    "CROSS_SITE": 403,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "MISDIRECTED_HOST": 421,
}
"""The one table. An error whose own code is missing here is answered as the branch of the tree that it stands on."""

RETRY_AFTER_S: dict[str, int] = {"LAGGING": 1, "LOG_UNAVAILABLE": 2, "UNAVAILABLE": 2, "LOG_FULL": 30}
"""After how many seconds a 503 is worth another try."""

REQUEST_ID = web.RequestKey("request_id", str)
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUEST_ID = re.compile(rf"[A-Za-z0-9_.-]{{1,{REQUEST_ID_MAX_CHARS}}}", re.ASCII)
_CODE_OF_STATUS = {400: "BAD_REQUEST", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "PAYLOAD_TOO_LARGE"}


class BadRequest(EventqError):
    """The bytes are not a request that this server understands."""

    code = "BAD_REQUEST"


class CrossSite(EventqError):
    """A web page of another origin tried to write."""

    code = "CROSS_SITE"


class RequestTimeout(EventqError):
    """The client did not send its body in time."""

    code = "REQUEST_TIMEOUT"


class UnsupportedMediaType(EventqError):
    """A content type or encoding that this route does not read."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class MisdirectedHost(EventqError):
    """The Host header names another site: the mark of a DNS-rebinding page."""

    code = "MISDIRECTED_HOST"


def request_id_from(header: str | None) -> str:
    """The caller's ``X-Request-Id`` where it is one to 64 plain characters, else a new one."""
    return header if header is not None and _REQUEST_ID.fullmatch(header) else new_id()


def error_body(code: str, detail: str, request_id: str, fields: Mapping[str, object] | None = None) -> bytes:
    """The documented error object as JSON."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body: dict[str, Any] = {"detail": detail, "code": code, "request_id": request_id, "timestamp": now}
    body |= {name: value for name, value in (fields or {}).items() if name not in body}
    try:
        return orjson.dumps(body, default=str)
    except TypeError:  # what was found may be bytes that are no text, such as a header's
        return orjson.dumps(body | {name: ascii(value)[:200] for name, value in (fields or {}).items()}, default=str)


def error_response(error: EventqError, request_id: str) -> web.Response:
    """``error`` in the documented shape, with the status of its code and ``Retry-After`` where waiting
    helps."""
    body = error_body(error.code, error.detail, request_id, error.fields)
    response = _json(status_of(error), body)
    if isinstance(error, Unavailable):
        response.headers["Retry-After"] = str(RETRY_AFTER_S.get(error.code, 2))
    return response


def status_of(error: EventqError) -> int:
    """The HTTP status of an error: of its code, else of the nearest branch of the tree that the table knows."""
    branches = (kind for kind in type(error).__mro__ if issubclass(kind, EventqError))
    return next((STATUS_OF[kind.code] for kind in branches if kind.code in STATUS_OF), 500)


def plain_error(status: int, detail: str, request_id: str) -> web.Response:
    """An HTTP-level refusal (unknown path, wrong method, malformed request) in the documented shape."""
    code = _CODE_OF_STATUS.get(status, "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR")
    return _json(status, error_body(code, detail, request_id))


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


@web.middleware
async def errors_middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    """Outermost: gives the request its id, and turns whatever is raised below into the documented answer."""
    request_id = request_id_from(request.headers.get("X-Request-Id"))
    request[REQUEST_ID] = request_id
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    try:
        response: web.StreamResponse = await handler(request)
    except EventqError as error:
        _log_refusal(request, error)
        return error_response(error, request_id)
    except web.HTTPException as error:
        return _from_aiohttp(error, request_id)
    except ConnectionError:
        raise  # the client went away: there is nobody to answer
    except Exception:
        log.exception("request.failed", method=request.method, path=request.path)
        return plain_error(500, "Internal error; the log has the details under this request id.", request_id)
    if request.method not in _READS:
        log.info("request.answered", method=request.method, path=request.path, status=response.status)
    return response


def _log_refusal(request: web.Request, error: EventqError) -> None:
    if isinstance(error, Damaged):
        log.error("request.damaged", code=error.code, detail=error.detail, path=request.path)
    elif status_of(error) >= 500:
        log.warning("request.unavailable", code=error.code, detail=error.detail, path=request.path)


def _from_aiohttp(error: web.HTTPException, request_id: str) -> web.StreamResponse:
    if error.status < 400:
        return web.Response(status=error.status, headers={"Location": error.headers.get("Location", "/")})
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            detail = f"{error.method} is not possible here; possible: {allowed}"
            response = plain_error(error.status, detail, request_id)
            response.headers["Allow"] = allowed
        case web.HTTPNotFound():
            response = plain_error(error.status, "No such path; see /docs for those there are.", request_id)
        case _:
            response = plain_error(error.status, error.reason, request_id)
    return response


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """For ``on_response_prepare``: every answer carries the request's id, is not sniffed, and says little of
    the server."""
    if (request_id := request.get(REQUEST_ID)) is not None:
        response.headers["X-Request-Id"] = request_id
    response.headers["Server"] = "eventq"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
