"""Slow and silent clients, with raw sockets: each is closed or refused in time, and honest ones are served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from eventq.services.http_body import read_json
from eventq.services.http_errors import errors_middleware, finish_headers
from eventq.services.http_guard import LOOPBACK_HOSTS, GuardedRunner, host_middleware, host_name
from eventq.services.http_limits import HttpLimits
from tests.support.poll import eventually

LIMITS = HttpLimits(
    body_max_bytes=10_000,
    body_deadline_s=0.5,
    first_request_deadline_s=0.5,
    keepalive_s=0.5,
    write_stall_s=1.0,
    lingering_s=0.2,
    connections_max=8,
)
BOUND_S = 6.0
HEAD = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"


class Raw:
    """A raw client socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self) -> bytes:
        """All that the server still sends, once it has closed; fails when it does not close in time."""
        async with asyncio.timeout(BOUND_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def answer(self) -> tuple[int, Any]:
        """Status and JSON body of one answer on a connection that stays open."""
        async with asyncio.timeout(BOUND_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            return int(head.split()[1]), json.loads(await self.reader.readexactly(length))


class Server:
    """The guarded app on a free port, and its raw clients."""

    def __init__(self, runner: GuardedRunner, ended: asyncio.Event) -> None:
        """``ended``: set when a large answer is sent, or given up."""
        self.runner, self.ended = runner, ended
        self.port: int = runner.addresses[0][1]
        self.clients: list[Raw] = []

    async def connect(self) -> Raw:
        client = Raw(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 16))
        self.clients.append(client)
        return client


@asynccontextmanager
async def serve(limits: HttpLimits) -> AsyncGenerator[Server]:
    async def echo(request: web.Request) -> web.Response:
        return web.json_response(await read_json(request, limits))

    ended = asyncio.Event()

    async def big(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(400):
                await response.write(b"x" * 100_000)
        finally:
            ended.set()
        return response

    app = web.Application(middlewares=[errors_middleware, host_middleware(LOOPBACK_HOSTS)])
    app.on_response_prepare.append(finish_headers)
    app.router.add_post("/echo", echo)
    app.router.add_get("/big", big)
    runner = GuardedRunner(app, limits, shutdown_s=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served = Server(runner, ended)
    yield served
    for client in served.clients:
        client.writer.close()
    await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve(LIMITS) as served:
        yield served


@pytest.fixture
async def patient_server() -> AsyncIterator[Server]:
    """Keep-alive is long, so that only the deadline for a first request can close a connection."""
    async with serve(replace(LIMITS, keepalive_s=60.0)) as served:
        yield served


async def test_a_silent_connection_is_closed(patient_server: Server) -> None:
    assert await (await patient_server.connect()).until_closed() == b""


async def test_half_sent_headers_are_closed(patient_server: Server) -> None:
    client = await patient_server.connect()
    await client.send(b"GET /big HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
    assert await client.until_closed() == b""


async def test_dripping_headers_are_closed(patient_server: Server) -> None:
    client = await patient_server.connect()
    closed = asyncio.create_task(client.until_closed())
    await client.send(b"GET /big HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    while not closed.done():
        try:
            await client.send(b"X: y\r\n")
        except ConnectionError:
            break
        await asyncio.wait([closed], timeout=0.1)
    assert await closed == b""


async def test_half_sent_headers_of_a_second_request_are_closed(server: Server) -> None:
    client = await server.connect()
    await client.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}")
    assert await client.answer() == (200, {})
    await client.send(b"POST /echo HTTP/1.1\r\nHost: ")
    assert await client.until_closed() == b""


async def test_a_stalled_body_is_answered_408(server: Server) -> None:
    client = await server.connect()
    await client.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b'Content-Length: 100\r\n\r\n{"a"')
    status, body = await client.answer()
    assert (status, body["code"]) == (408, "REQUEST_TIMEOUT")
    assert (body["field"], body["limit"], body["found"]) == ("body", 0.5, "4 bytes")
    await client.until_closed()


async def test_an_endless_chunked_body_is_answered_413(server: Server) -> None:
    client = await server.connect()
    await client.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(3):
        await client.send(b"1000\r\n" + b" " * 4096 + b"\r\n")
    status, body = await client.answer()
    assert (status, body["code"], body["limit"]) == (413, "PAYLOAD_TOO_LARGE", 10_000)


async def test_a_client_that_reads_nothing_is_cut(server: Server) -> None:
    client = await server.connect()
    await client.send(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
    # The client never reads, its buffers fill: the server must not keep the rest of the answer for ever.
    await eventually(lambda: server.runner.server is not None and server.runner.server.connections)
    await eventually(lambda: server.runner.server is not None and not server.runner.server.connections)


async def test_a_client_that_leaves_in_the_middle_of_an_answer_is_no_error(server: Server) -> None:
    with capture_logs() as logs:
        client = await server.connect()
        await client.send(b"GET /big HTTP/1.1\r\n" + HEAD + b"\r\n")
        await client.reader.readexactly(1000)
        client.writer.transport.abort()
        async with asyncio.timeout(BOUND_S):
            await server.ended.wait()
        guarded = server.runner.server
        assert guarded is not None
        await eventually(lambda: not guarded.connections, BOUND_S)
    assert [entry for entry in logs if entry["log_level"] == "error"] == []


async def test_more_connections_than_allowed_are_closed_at_once(server: Server) -> None:
    held = [await server.connect() for _ in range(LIMITS.connections_max)]
    async with asyncio.timeout(0.4):
        assert await (await server.connect()).until_closed() == b""
    await held[0].send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}")
    assert (await held[0].answer())[0] == 200


async def test_keep_alive_works_and_ends(server: Server) -> None:
    client = await server.connect()
    for number in range(3):
        body = json.dumps({"n": number}).encode()
        await client.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert await client.answer() == (200, {"n": number})
    assert await client.until_closed() == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
    ids=["not HTTP", "no Host", "long header", "long URL", "many headers", "two framings", "two Hosts"],
)
async def test_malformed_requests_are_refused_in_the_documented_shape(server: Server, request_bytes: bytes) -> None:
    client = await server.connect()
    await client.send(request_bytes)
    status, body = await client.answer()
    assert status in (400, 421)
    assert {"detail", "code", "request_id", "timestamp"} <= body.keys()


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        (b"Host: evil.example\r\n", 421, "MISDIRECTED_HOST"),
        (b"Host: 127.0.0.1.evil.example:80\r\n", 421, "MISDIRECTED_HOST"),
        (b"Host: \r\n", 421, "MISDIRECTED_HOST"),
        (b"Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403, "CROSS_SITE"),
        (b"Host: localhost\r\nOrigin: http://evil.example\r\n", 403, "CROSS_SITE"),
        (b"Host: localhost:80\r\nOrigin: null\r\n", 403, "CROSS_SITE"),
        (b"Host: localhost\r\nOrigin: http://[\r\n", 403, "CROSS_SITE"),
        (b"Host: localhost\r\nOrigin: http://\xff\r\n", 403, "CROSS_SITE"),
        (b"Host: local\xffhost\r\n", 421, "MISDIRECTED_HOST"),
    ],
)
async def test_foreign_hosts_and_pages_are_refused(server: Server, headers: bytes, status: int, code: str) -> None:
    client = await server.connect()
    await client.send(b"POST /echo HTTP/1.1\r\n" + headers + b"Content-Length: 2\r\n\r\n{}")
    answered, body = await client.answer()
    assert (answered, body["code"]) == (status, code)


@pytest.mark.parametrize(
    "headers",
    [
        b"Host: LOCALHOST:8000\r\nOrigin: http://localhost:8000\r\nSec-Fetch-Site: same-origin\r\n",
        b"Host: [::1]:8000\r\n",
        b"Host: 127.0.0.1\r\nSec-Fetch-Site: none\r\n",
    ],
)
async def test_own_hosts_and_pages_are_served(server: Server, headers: bytes) -> None:
    client = await server.connect()
    content = b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    await client.send(b"POST /echo HTTP/1.1\r\n" + headers + content)
    assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a:80", "a"),
        ("A", "a"),
        ("[::1]", "[::1]"),
        ("[::1]:8", "[::1]"),
        ("", ""),
        (":80", ":80"),
        ("a:b", "a:b"),
    ],
)
def test_the_name_of_a_host_header(host: str, name: str) -> None:
    assert host_name(host) == name
