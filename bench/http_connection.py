"""A keep-alive HTTP/1.1 connection that costs its process next to nothing, so that the server is what is measured."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

ANSWER_MAX_S = 30.0


class HttpConnection(asyncio.Protocol):
    """One request at a time. Understands answers with a Content-Length, which is what our servers send."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    async def open(cls, url: str) -> HttpConnection:
        """Connect to the server of ``url``."""
        address = urlsplit(url)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(address.netloc), str(address.hostname), int(address.port or 80)
        )
        return connection

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        """A request's bytes: made once, sent often."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        return head.encode() + b"\r\n" + content

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send and answer the status and the body. Raises ``TimeoutError`` or ``ConnectionError``."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_MAX_S):
            return await self._answer

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _content_length(head):
            return
        self._received = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server hung up"))


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line[:15].lower() == b"content-length:":
            return int(line[15:])
    return 0
