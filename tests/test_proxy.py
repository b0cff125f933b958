"""The misbehaving proxy itself: a fault that it does not make proves nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.support.poll import eventually
from tests.support.proxy import Proxy


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """In front of a server that answers every line with itself."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_it_forwards_both_ways(proxy: Proxy) -> None:
    reader, writer = await connect(proxy)
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    assert proxy.connections == 1
    writer.close()
    await eventually(lambda: proxy.connections == 0)


async def test_it_delays(proxy: Proxy) -> None:
    proxy.up.latency_s = 0.1
    reader, writer = await connect(proxy)
    began = time.monotonic()
    writer.write(b"late\n")
    assert await reader.readline() == b"late\n"
    assert time.monotonic() - began >= 0.1
    writer.close()


async def test_it_swallows_without_a_word(proxy: Proxy) -> None:
    reader, writer = await connect(proxy)
    proxy.down.swallow = True
    writer.write(b"lost\n")
    await eventually(lambda: proxy.down.bytes_seen == 5)
    proxy.heal()
    writer.write(b"next\n")
    assert await reader.readline() == b"next\n"
    writer.close()


async def test_it_drops_one_chunk(proxy: Proxy) -> None:
    reader, writer = await connect(proxy)
    proxy.up.drop_once = lambda chunk: b"two" in chunk
    for line in (b"one\n", b"two\n", b"three\n"):
        seen = proxy.up.bytes_seen
        writer.write(line)
        await eventually(lambda: proxy.up.bytes_seen > seen)  # noqa: B023
    assert [await reader.readline() for _ in range(2)] == [b"one\n", b"three\n"]
    assert proxy.up.dropped == 1
    writer.close()


async def test_it_cuts_after_so_many_bytes(proxy: Proxy) -> None:
    reader, writer = await connect(proxy)
    proxy.up.cut_after = 8
    writer.write(b"four\n")
    assert await reader.readline() == b"four\n"
    writer.write(b"more\n")
    with pytest.raises(ConnectionResetError):
        await reader.readline()


async def test_it_resets_and_refuses(proxy: Proxy) -> None:
    reader, writer = await connect(proxy)
    writer.write(b"hello\n")
    await reader.readline()
    proxy.refuse = True
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await reader.readline()
    reader, _ = await connect(proxy)
    with pytest.raises(ConnectionResetError):
        await reader.readline()
