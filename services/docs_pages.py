"""The API's documentation: the document itself, Swagger UI and ReDoc, served from this package and from nowhere else.

The pages work without a network, and a strict Content-Security-Policy makes sure that they cannot ask for one. ReDoc
wants its own logo from another host: its address is replaced while serving, so that the vendored file stays as published.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Literal

import orjson
from aiohttp import web
from pydantic import BaseModel

from eventq.services.openapi import HttpRoutes

DOCUMENT = web.AppKey("openapi_document", bytes)

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_EMPTY_PICTURE = b"data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_REDOC_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"

routes = HttpRoutes("documentation")


class StaticPath(BaseModel):
    """Which file of the documentation's pages."""

    name: Literal["swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "swagger-init.js", "redoc-init.js"]


@routes.get("/openapi.json", media_type="application/json")
async def openapi_json(request: web.Request) -> web.Response:
    """This document."""
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")


@routes.get("/docs", media_type="text/html")
async def swagger_ui(request: web.Request) -> web.Response:
    """The API to read and to try out (Swagger UI)."""
    return _page("swagger.html")


@routes.get("/redoc", media_type="text/html")
async def redoc(request: web.Request) -> web.Response:
    """The API to read (ReDoc)."""
    return _page("redoc.html")


@routes.get("/docs/static/{name}", media_type="*/*", errors=(400,))
async def docs_static(request: web.Request, path: StaticPath) -> web.Response:
    """A script or style of the pages above."""
    response = web.Response(body=_file(path.name), content_type=_TYPES[PurePosixPath(path.name).suffix])
    response.charset = "utf-8"
    response.headers["Cache-Control"] = "public, max-age=3600"
    return response


@routes.get("/", media_type="text/html")
async def front_door(request: web.Request) -> web.Response:
    """Leads to the documentation."""
    return web.Response(status=302, headers={"Location": "/docs"})


def document_bytes(document: dict[str, object]) -> bytes:
    """The document as it is served."""
    return orjson.dumps(document)


def _page(name: str) -> web.Response:
    return web.Response(
        body=_file(name),
        content_type="text/html",
        charset="utf-8",
        headers={"Content-Security-Policy": CSP, "Referrer-Policy": "no-referrer"},
    )


@cache
def _file(name: str) -> bytes:
    content = (resources.files("eventq.services") / "static" / name).read_bytes()
    return content.replace(_REDOC_LOGO, _EMPTY_PICTURE) if name == "redoc.standalone.js" else content
