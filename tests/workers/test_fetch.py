"""The fetcher against a hostile server on loopback, and the address rules as values."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from eventq.events.errors import FetchRefused, InvalidInput, PayloadTooLarge, Unavailable
from eventq.workers.builtin.csv_processing import csv_processing
from eventq.workers.context import TaskCancelled
from eventq.workers.fetch import Fetched, check_url, fetch, fetch_async
from eventq.workers.fetch_policy import FetchPolicy, is_allowed, parse_address, parse_networks
from tests.workers.support import make_context

LOOPBACK = parse_networks(["127.0.0.0/8", "::1/128"])
ADMITTED = FetchPolicy(admitted=LOOPBACK, total_s=20)
KIB = 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Start = Callable[[Handler], Awaitable[str]]
StartRaw = Callable[[bytes, float], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Start]:
    """`await serve(handler)`: a server on a free loopback port, for every path; answers its base URL."""
    runners: list[web.ServerRunner] = []

    async def start(handler: Handler) -> str:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await handler(request)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

        runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def serve_raw() -> AsyncIterator[StartRaw]:
    """`await serve_raw(answer, drip_s)`: sends those very bytes, one each `drip_s` seconds where that is not 0."""
    servers: list[asyncio.Server] = []
    talking: set[asyncio.Task[Any] | None] = set()

    async def start(answer: bytes, drip_s: float) -> str:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            talking.add(asyncio.current_task())
            try:
                await reader.readuntil(b"\r\n\r\n")
                for piece in [answer[n : n + 1] for n in range(len(answer))] if drip_s else [answer]:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(drip_s)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        servers.append(server)
        host, port = server.sockets[0].getsockname()
        return f"http://{host}:{port}/"

    yield start
    for server in servers:
        server.close()
    for task in talking:
        if task is not None:
            task.cancel()
    await asyncio.gather(*(task for task in talking if task is not None), return_exceptions=True)


def answering(body: bytes, status: int = 200, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(
            body=body, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    return handler


def redirecting(locate: Callable[[web.Request], str], status: int = 302) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": locate(request)})

    return handler


async def take(url: str, policy: FetchPolicy = ADMITTED) -> tuple[bytes, Fetched]:
    """What `url` answers, read and closed, and the facts about it."""
    got = await fetch_async(url, policy)
    with got.file:
        return got.file.read(), got


async def test_a_file_comes_back_with_its_digest(serve: Start) -> None:
    body = b"a,b\n1,2\n" * 100_000
    base = await serve(answering(body, content_type="text/csv"))
    data, got = await take(f"{base}/data.csv?token=secret")
    assert data == body
    assert (got.size_bytes, got.sha256) == (len(body), hashlib.sha256(body).hexdigest())
    assert (got.media_type, got.url) == ("text/csv", f"{base}/data.csv")


async def test_plain_code_may_fetch_with_and_without_a_running_loop(serve: Start) -> None:
    base = await serve(answering(b"x"))
    for got in (await asyncio.to_thread(fetch, base, ADMITTED), await fetch_async(base, ADMITTED)):
        with got.file:
            assert got.file.read() == b"x"
    with pytest.raises(InvalidInput):
        fetch("ftp://x/", ADMITTED)  # here a loop is running


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "//host/x",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "ftp://127.0.0.1/",
        "data:text/plain,x",
        "http:///x",
        "http://user@127.0.0.1/",
        "http://user:pass@127.0.0.1/",
        "http://:pass@127.0.0.1/",
        "http://@127.0.0.1/",
        "http://127.0.0.1\\@example.com/",
        "http://127.0.0.1/\r\nX: y",
        "http://127.0.0.1/ x",
        "http://127.0.0.1/\x00",
        "http://bücher.example/",
        "http://[::1/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1/" + "x" * 2048,
    ],
)
async def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await fetch_async(url, ADMITTED)
    assert refused.value.field == "url"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0x7f.1",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.1.",
        "0.0.0.0",
    ],
)
async def test_no_spelling_of_loopback_reaches_a_server(serve: Start, host: str) -> None:
    reached: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        reached.append(request.path)
        return web.Response(text="secret")

    base = await serve(handler)
    port = base.rpartition(":")[2]
    with pytest.raises((FetchRefused, InvalidInput, Unavailable)) as refused:
        await fetch_async(f"http://{host}:{port}/?token=secret", FetchPolicy(total_s=5))
    assert reached == []
    assert "secret" not in str(refused.value.fields) + refused.value.detail


async def test_a_refusal_names_the_address_and_the_way_out(serve: Start) -> None:
    base = await serve(answering(b"secret"))
    with pytest.raises(FetchRefused) as refused:
        await fetch_async(base, FetchPolicy(admitted=parse_networks(["10.0.0.0/8"])))
    assert refused.value.fields["found"] == "127.0.0.1"
    assert "EVENTQ_FETCH_ALLOW" in str(refused.value.fields["hint"])


async def test_environment_proxies_and_cookies_are_not_used(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(dict(request.headers))
        if request.path == "/second":
            return web.Response(text="done")
        return web.Response(status=302, headers={"Location": "/second", "Set-Cookie": "session=1; Path=/"})

    base = await serve(handler)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1/")
    await take(base)
    assert len(seen) == 2
    assert not {"Cookie", "Authorization", "Referer"} & set(seen[1])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed_and_no_more(serve: Start, status: int) -> None:
    def step(request: web.Request) -> str:
        return f"{int(request.path[1:]) - 1}"

    redirect = redirecting(step, status)

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text="there") if request.path == "/0" else await redirect(request)

    base = await serve(handler)
    assert (await take(f"{base}/3"))[1].url == f"{base}/0"
    with pytest.raises(FetchRefused) as refused:
        await fetch_async(f"{base}/4", ADMITTED)
    assert refused.value.fields["limit"] == 3


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://user@127.0.0.1/",
        "",
        "http://[::1/",
        "\u00fc",
        "http://169.254.169.254/",
        "http://127.0.0.2:1/",
    ],
)
async def test_each_redirect_is_checked_again(serve: Start, location: str) -> None:
    base = await serve(redirecting(lambda request: location))
    port = ip_network("127.0.0.1/32")
    with pytest.raises(FetchRefused):
        await fetch_async(base, FetchPolicy(admitted=(port,), total_s=5))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (204, FetchRefused),
        (206, FetchRefused),
        (304, FetchRefused),
        (404, FetchRefused),
        (500, Unavailable),
        (503, Unavailable),
        (429, Unavailable),
    ],
)
async def test_only_a_plain_success_is_one(serve: Start, status: int, error: type[Exception]) -> None:
    base = await serve(answering(b"" if status in (204, 304) else b"secret body", status))
    with pytest.raises(error) as refused:
        await fetch_async(base, ADMITTED)
    assert "secret" not in str(refused.value)
    assert str(status) in str(refused.value)


async def test_a_body_at_the_limit_passes_and_one_byte_more_does_not(serve: Start) -> None:
    policy = FetchPolicy(admitted=LOOPBACK, max_bytes=100 * KIB)
    assert (await take(await serve(answering(bytes(100 * KIB))), policy))[1].size_bytes == 100 * KIB
    with pytest.raises(PayloadTooLarge) as refused:
        await fetch_async(await serve(answering(bytes(100 * KIB + 1))), policy)
    assert refused.value.fields["limit"] == 100 * KIB


async def test_an_endless_body_is_cut_off(serve: Start) -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(64 * KIB))
            sent += 64 * KIB

    with pytest.raises(PayloadTooLarge):
        await fetch_async(await serve(handler), FetchPolicy(admitted=LOOPBACK, max_wire_bytes=KIB * KIB))
    assert sent < 16 * KIB * KIB


async def test_a_body_announced_too_large_is_not_begun(serve_raw: StartRaw) -> None:
    url = await serve_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", 0)
    with pytest.raises(PayloadTooLarge):
        await fetch_async(url, ADMITTED)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_body_is_inflated_within_its_own_limit(serve: Start, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    body = b"0123456789" * 100_000
    base = await serve(answering(pack(body), content_encoding=encoding))
    data, got = await take(base)
    assert (got.size_bytes, data) == (len(body), body)

    bomb = await serve(answering(pack(bytes(200 * KIB * KIB)), content_encoding=encoding))
    with pytest.raises(PayloadTooLarge) as refused:
        await fetch_async(bomb, FetchPolicy(admitted=LOOPBACK, max_bytes=KIB * KIB))
    assert refused.value.fields["limit"] == KIB * KIB


async def test_a_gzip_file_of_several_members_is_read_to_its_end(serve: Start) -> None:
    base = await serve(answering(gzip.compress(b"one") + gzip.compress(b"two"), content_encoding="gzip"))
    assert (await take(base))[0] == b"onetwo"


@pytest.mark.parametrize(
    ("body", "encoding", "error"),
    [
        (b"no gzip", "gzip", FetchRefused),
        (gzip.compress(b"x" * 1000)[:-10], "gzip", Unavailable),
        (gzip.compress(b"x") + b"tail", "gzip", FetchRefused),
        (b"x", "br", FetchRefused),
        (gzip.compress(gzip.compress(b"x")), "gzip, gzip", FetchRefused),
    ],
    ids=["not compressed", "cut off", "garbage behind", "not asked for", "nested"],
)
async def test_a_body_that_is_not_as_it_says_is_refused(
    serve: Start, body: bytes, encoding: str, error: type[Exception]
) -> None:
    base = await serve(answering(body, content_encoding=encoding))
    with pytest.raises(error):
        await fetch_async(base, ADMITTED)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"not HTTP at all\r\n\r\n",
        b"",
    ],
    ids=["short body", "cut chunk", "bad chunk", "huge header", "no HTTP", "nothing"],
)
async def test_a_broken_answer_may_be_tried_again(serve_raw: StartRaw, answer: bytes) -> None:
    with pytest.raises(Unavailable):
        await fetch_async(await serve_raw(answer, 0), ADMITTED)


async def test_a_peer_that_drips_hits_the_deadline(serve_raw: StartRaw) -> None:
    url = await serve_raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000, 0.02)
    with pytest.raises(Unavailable) as refused:
        await fetch_async(url, FetchPolicy(admitted=LOOPBACK, total_s=0.5))
    assert refused.value.fields["limit"] == 0.5


async def test_a_peer_that_drips_is_below_the_minimum_rate(serve: Start) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.01)

    with pytest.raises(Unavailable, match="too slowly"):
        await fetch_async(await serve(handler), FetchPolicy(admitted=LOOPBACK, rate_window_s=0.2, min_rate=10_000))


async def test_a_cancel_ends_a_download(serve: Start) -> None:
    def cancelled() -> None:
        raise TaskCancelled("stop")

    base = await serve(answering(bytes(KIB)))
    with pytest.raises(TaskCancelled):
        await fetch_async(base, ADMITTED, cancelled)


async def test_nobody_listening_may_be_tried_again() -> None:
    with pytest.raises(Unavailable):
        await fetch_async("http://127.0.0.1:1/", ADMITTED)
    with pytest.raises(Unavailable):
        await fetch_async("http://no-such-host.invalid/", ADMITTED)


async def test_a_task_takes_its_input_by_url(serve: Start, tmp_path: Path) -> None:
    base = await serve(answering(b"a,b\n1,2\n3,4\n"))
    context = make_context(tmp_path, fetch_allow=LOOPBACK)
    result = await asyncio.to_thread(csv_processing, context, url=f"{base}/t.csv?token=secret")
    assert (result["total_rows"], result["source"]) == (2, f"{base}/t.csv")
    with pytest.raises(FetchRefused):
        await asyncio.to_thread(csv_processing, make_context(tmp_path), url=base)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.255", "168.63.129.16", "169.254.169.254",
        "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
        "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1",
        "64:ff9b:1::808:808", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::", "3fff::1",
        "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "4000::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_denied(address: str) -> None:
    assert not is_allowed(parse_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "223.255.255.255",
     "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)  # fmt: skip
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_allowed(parse_address(address))


def test_admitted_networks_are_allowed_beside_public_ones() -> None:
    admitted = parse_networks(["10.1.0.0/16", " fd00::/8 "])
    assert is_allowed(ip_address("10.1.2.3"), admitted)
    assert is_allowed(ip_address("::ffff:10.1.2.3"), admitted)
    assert is_allowed(ip_address("fd12::1"), admitted)
    assert not is_allowed(ip_address("10.2.0.1"), admitted)
    for wrong in ("10.1.0.0/33", "10.1.2.3/16", "all", ""):
        with pytest.raises(InvalidInput):
            parse_networks([wrong])


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_judged_as_the_one_it_maps(address: Any) -> None:
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert is_allowed(ip_address(wrapped)) == is_allowed(address)


@given(st.ip_addresses())
def test_what_the_standard_library_calls_private_is_never_allowed(address: Any) -> None:
    if is_allowed(address) and address.version == 4:
        assert address.is_global
        assert not address.is_multicast


def test_a_fragment_is_dropped() -> None:
    assert str(check_url("https://example.com/a?b=c#d")) == "https://example.com/a?b=c"
