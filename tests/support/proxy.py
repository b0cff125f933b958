"""A TCP proxy that misbehaves on request: what lies between a client and a server on a bad day.

Bytes run through two directions, `up` (client to server) and `down` (server to client). Each may be delayed, swallowed (a
black hole: the sender notices nothing), or cut after so many bytes; single chunks may be dropped. `reset` ends all
connections with a RST, as a crashed peer or an impatient load balancer does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Direction:
    """The faults of one direction; they apply to every connection, present and future."""

    def __init__(self) -> None:
        self.latency_s = 0.0
        self.swallow = False
        self.cut_after: int | None = None
        self.drop_once: Callable[[bytes], bool] | None = None
        self.bytes_seen = 0
        self.dropped = 0

    def pass_on(self, chunk: bytes) -> bytes:
        """What of `chunk` goes on. Raises `ConnectionResetError` where the connection is to be cut."""
        if self.cut_after is not None:
            self.cut_after -= len(chunk)
            if self.cut_after < 0:
                self.cut_after = None
                raise ConnectionResetError("cut by the proxy")
        self.bytes_seen += len(chunk)
        if self.drop_once is not None and self.drop_once(chunk):
            self.drop_once = None
            self.dropped += 1
            return b""
        return b"" if self.swallow else chunk


class Proxy:
    """`async with Proxy(port) as proxy:` listens on `proxy.url` and forwards to `port` of this machine."""

    def __init__(self, target_port: int) -> None:
        self.up = Direction()
        self.down = Direction()
        self.refuse = False
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None, "the proxy is not running"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Its address for a NATS client."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections run through it now."""
        return len(self._writers) // 2

    def reset(self) -> None:
        """End every connection at once, with a RST to both sides. New ones are accepted unless `refuse` is set."""
        for writer in list(self._writers):
            _abort(writer)

    def heal(self) -> None:
        """Forward honestly from now on."""
        self.refuse = False
        for direction in (self.up, self.down):
            direction.latency_s, direction.swallow, direction.cut_after, direction.drop_once = 0.0, False, None, None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            _abort(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            _abort(writer)
            return
        pair = {writer, far_writer}
        self._writers |= pair
        pumps = [
            asyncio.create_task(_pump(reader, far_writer, self.up)),
            asyncio.create_task(_pump(far_reader, writer, self.down)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._writers -= pair
            for each in pair:
                _abort(each)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            if direction.latency_s:
                await asyncio.sleep(direction.latency_s)
            if passed := direction.pass_on(chunk):
                writer.write(passed)
                await writer.drain()


def _abort(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()
