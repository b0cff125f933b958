"""Files in and out: streamed, limited, never interpreted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from eventq.events.blob_keys import check_key
from eventq.events.data import BlobRef
from eventq.events.errors import BlobDamaged, PayloadTooLarge
from eventq.services.api import api_of
from eventq.services.http_errors import BadRequest, RequestTimeout, UnsupportedMediaType
from eventq.services.http_limits import HttpLimits
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.schemas import BlobPath

CHUNK_BYTES = 256 * 1024
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,64}/[a-z0-9!#$&^_.+-]{1,64}", re.ASCII)

routes = HttpRoutes("blobs", "/api/v1")


@routes.post("/blobs", status=201, upload="*/*", errors=(400, 408, 413, 415, 503))
async def upload_blob(request: web.Request) -> Reply[BlobRef]:
    """Store a file.

    The body is the file itself, of any type. The answer is the reference that tasks take as input. The same bytes again
    are the same blob.
    """
    api = api_of(request)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the file itself, not a compressed transfer of it", field="Content-Encoding")
    if request.content_type.startswith("multipart/"):
        raise UnsupportedMediaType("send the file as the body, not as a form", field="Content-Type")
    limit = api.limits.blob_max_bytes
    if request.content_length is not None and request.content_length > limit:
        raise PayloadTooLarge("body", f"is larger than {limit} bytes", limit=limit, found=request.content_length)
    media_type = request.content_type if _MEDIA_TYPE.fullmatch(request.content_type) else "application/octet-stream"
    blob = await api.blobs.put_stream_async(_chunks(request, api.limits), media_type=media_type, max_bytes=limit)
    return Reply(blob, headers={"Location": f"/api/v1/blobs/{blob.key}"})


@routes.get("/blobs/{key:.+}", media_type="application/octet-stream", errors=(400, 404, 503))
async def download_blob(request: web.Request, path: BlobPath) -> web.StreamResponse:
    """Fetch a file, always as an attachment."""
    api = api_of(request)
    key = check_key(path.key)
    size_bytes = (await api.blobs.stat_async(key)).size_bytes
    name = key.rpartition("/")[2]
    response = web.StreamResponse(headers={"Content-Disposition": f'attachment; filename="{name}"'})
    response.content_type = "application/octet-stream"
    response.content_length = size_bytes
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    await response.prepare(request)
    if request.method != "HEAD":
        await _send(request, response, api.blobs.stream_async(key))
    return response


async def _send(request: web.Request, response: web.StreamResponse, chunks: Any) -> None:
    """One chunk is held back until the next arrived: damage shows at the end, and then the answer must stay incomplete."""
    held = b""
    try:
        async for chunk in chunks:
            if held:
                await response.write(held)
            held = chunk
    except BlobDamaged:
        if request.transport is not None:
            request.transport.abort()
        raise
    await response.write(held)


async def _chunks(request: web.Request, limits: HttpLimits) -> AsyncIterator[bytes]:
    try:
        while True:
            async with asyncio.timeout(limits.blob_stall_s):
                chunk = await request.content.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk
    except TimeoutError:
        stall = limits.blob_stall_s
        raise RequestTimeout(f"the upload sent nothing for {stall:g} s", field="body", limit=stall) from None
    except web.RequestPayloadError:
        raise BadRequest("the body's transfer encoding is broken", field="body") from None
