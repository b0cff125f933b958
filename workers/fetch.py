"""Fetching a URL that a stranger wrote.

The address is checked at the moment of connecting, in the socket factory: that one place sees IP literals,
every answer of a name that resolves to several, a name that changes its answer, and each redirect. A custom
resolver would be bypassed by a literal, and a check before connecting by a second answer. Redirects are
followed by hand, three at most, each under the same rules. Bytes are counted twice, as they arrive and as
they inflate, and written to a temporary file; one deadline spans it all, since a peer that sends a byte now
and then never trips a read timeout. Nothing of the answer and nothing after the URL's ``?`` (tokens live
there) appears in an error or a log.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import tempfile
import threading
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, TypeVar

import aiohttp
from aiohttp.abc import AbstractCookieJar
from yarl import URL

from eventq.events.errors import FetchRefused, InvalidInput, PayloadTooLarge, Unavailable
from eventq.workers.fetch_policy import FetchPolicy, is_allowed, parse_address

URL_MAX_CHARS = 2_048
T = TypeVar("T")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 64 * 1024
_IN_MEMORY_BYTES = 1024 * 1024


class _Decompressor(Protocol):
    """What :func:`zlib.decompressobj` answers; its type has no public name."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came back. ``file`` is a temporary file at its beginning, the caller's to close; ``url`` has no
    query.
    """

    file: IO[bytes]
    size_bytes: int
    sha256: str
    media_type: str
    url: str


def fetch(url: str, policy: FetchPolicy, check: Callable[[], None] | None = None) -> Fetched:
    """Download ``url`` into a temporary file, from code that may block: a plain task function, or a thread.

    ``check`` is called as data arrives and may raise to give up. Raises :class:`InvalidInput` for what is no
    URL, :class:`FetchRefused` for an address, scheme, redirect or answer that is not allowed,
    :class:`PayloadTooLarge` over a limit, :class:`Unavailable` where another try may help: no answer, a
    server's error, the deadline.
    """
    return _run(fetch_async(url, policy, check))


async def fetch_async(url: str, policy: FetchPolicy, check: Callable[[], None] | None = None) -> Fetched:
    """As :func:`fetch`, on the running event loop."""
    guard = _Guard(policy)
    target = check_url(url)
    try:
        async with asyncio.timeout(policy.total_s), _session(policy, guard) as session:
            return await _follow(session, target, policy, check or _go_on)
    except aiohttp.InvalidURL:
        raise InvalidInput("url", "is not a URL") from None
    except TimeoutError:
        raise Unavailable(f"fetching {shown(target)} took too long", limit=policy.total_s) from None
    except (aiohttp.ClientError, OSError) as error:
        if guard.refused:
            raise FetchRefused(
                f"{shown(target)} leads to an address that is not allowed here",
                found=guard.refused[0],
                hint="EVENTQ_FETCH_ALLOW lists private networks that tasks may reach",
            ) from None
        raise Unavailable(f"fetching {shown(target)} failed: {type(error).__name__}") from error


def check_url(text: str) -> URL:
    """The parsed URL. Raises :class:`InvalidInput` unless it is plain ``http`` or ``https`` to a host."""
    if len(text) > URL_MAX_CHARS:
        raise InvalidInput("url", "is too long", limit=URL_MAX_CHARS, found=len(text))
    if not text.isascii() or any(c <= " " or c in "\\\x7f" for c in text):
        raise InvalidInput("url", "holds spaces, backslashes, control or non-ASCII characters; percent-encode them")
    try:
        url = URL(text)
    except ValueError:
        raise InvalidInput("url", "is not a URL") from None
    if url.scheme not in ("http", "https"):
        raise InvalidInput("url", "must begin with http:// or https://", found=url.scheme[:20])
    if not url.host:
        raise InvalidInput("url", "names no host")
    if "@" in re.split("[/?#]", text, maxsplit=3)[2]:  # judged by the text: the parser forgets an empty user name
        raise InvalidInput("url", "must not carry a user name or password")
    return url.with_fragment(None)


def shown(url: URL) -> str:
    """The URL as it may be shown and logged: without its query, where presigned links keep their secret."""
    return str(url.with_query(None).with_fragment(None))


@dataclass(slots=True)
class _Guard:
    """The socket factory of one fetch; it remembers what it refused, as the client reports that as any other
    failure.
    """

    policy: FetchPolicy
    refused: list[str] = field(default_factory=list[str])

    def make_socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, where = address
        host = str(where[0])
        if not is_allowed(parse_address(host), self.policy.admitted):
            self.refused.append(host)
            raise OSError(f"{host} is not allowed")
        return socket.socket(family, kind, protocol)


def _session(policy: FetchPolicy, guard: _Guard) -> aiohttp.ClientSession:
    cookies: AbstractCookieJar = aiohttp.DummyCookieJar()
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=guard.make_socket, force_close=True),
        trust_env=False,  # no proxy and no .netrc from the environment
        cookie_jar=cookies,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, connect=policy.connect_s, sock_read=policy.read_s),
        headers={"Accept-Encoding": "gzip, deflate", "User-Agent": "eventq"},
        max_line_size=8_190,
        max_field_size=8_190,
    )


async def _follow(session: aiohttp.ClientSession, url: URL, policy: FetchPolicy, check: Callable[[], None]) -> Fetched:
    for _ in range(policy.max_redirects + 1):
        async with session.get(url, allow_redirects=False) as response:
            if response.status not in _REDIRECTS:
                return await _receive(response, policy, check)
            url = _redirected(url, response.headers.get("Location", ""))
    raise FetchRefused(f"{shown(url)} is more than {policy.max_redirects} redirects away", limit=policy.max_redirects)


def _redirected(url: URL, location: str) -> URL:
    try:
        target = check_url(str(url.join(URL(location))))
    except (InvalidInput, ValueError):
        raise FetchRefused(f"{shown(url)} redirects to something that is not allowed") from None
    if url.scheme == "https" and target.scheme == "http":
        raise FetchRefused(f"{shown(url)} redirects from https to http")
    return target


async def _receive(response: aiohttp.ClientResponse, policy: FetchPolicy, check: Callable[[], None]) -> Fetched:
    where = shown(response.url)
    if response.status >= 500 or response.status in (408, 425, 429):
        raise Unavailable(f"{where} answered {response.status}", found=response.status)
    if response.status != 200:
        raise FetchRefused(f"{where} answered {response.status}, expected 200", found=response.status)
    if (response.content_length or 0) > policy.max_wire_bytes:
        raise _too_large(where, policy.max_wire_bytes)
    body = _Body(where, policy, response.headers.get("Content-Encoding", ""))
    try:
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            check()
            await asyncio.to_thread(body.add, chunk)  # inflating and writing must not hold up a shared loop
        return body.finish(response.content_type)
    except BaseException:
        body.file.close()
        raise


class _Body:
    """The bytes of one answer: counted, paced, inflated, hashed and written."""

    def __init__(self, where: str, policy: FetchPolicy, encoding: str) -> None:
        self._where = where
        self._policy = policy
        self._wire_bytes = 0
        self._size_bytes = 0
        self._hash = hashlib.sha256()
        self._encoding = encoding
        self._inflate = _decompressor(where, encoding)
        self._pace = _Pace(policy, asyncio.get_running_loop().time)
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115

    def add(self, chunk: bytes) -> None:
        self._wire_bytes += len(chunk)
        if self._wire_bytes > self._policy.max_wire_bytes:
            raise _too_large(self._where, self._policy.max_wire_bytes)
        self._pace.add(len(chunk), self._where)
        if self._inflate is None:
            self._write(chunk)
        else:
            self._write_inflated(chunk)

    def finish(self, media_type: str) -> Fetched:
        if self._inflate is not None and not self._inflate.eof:
            raise Unavailable(f"{self._where} broke off in the middle of its compressed body")
        self.file.seek(0)
        return Fetched(self.file, self._size_bytes, self._hash.hexdigest(), media_type, self._where)

    def _write_inflated(self, chunk: bytes) -> None:
        try:
            while chunk:
                inflate = self._inflate
                assert inflate is not None
                # Bounded pieces: one call could turn 64 KiB into 64 MiB.
                self._write(inflate.decompress(chunk, _CHUNK_BYTES))
                chunk = inflate.unconsumed_tail
                if inflate.eof and inflate.unused_data:  # gzip files may be several members in a row
                    chunk, self._inflate = inflate.unused_data, _decompressor(self._where, self._encoding)
        except zlib.error:
            raise FetchRefused(f"{self._where} sent a body that is not compressed as it says") from None

    def _write(self, data: bytes) -> None:
        self._size_bytes += len(data)
        if self._size_bytes > self._policy.max_bytes:
            raise _too_large(self._where, self._policy.max_bytes)
        self._hash.update(data)
        self.file.write(data)


class _Pace:
    """Notices a peer that drips: in each window at least the minimum rate has to arrive."""

    def __init__(self, policy: FetchPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._began = clock()
        self._bytes = 0

    def add(self, count: int, where: str) -> None:
        self._bytes += count
        elapsed = self._clock() - self._began
        if elapsed < self._policy.rate_window_s:
            return
        if self._bytes < self._policy.min_rate * elapsed:
            raise Unavailable(f"{where} sends too slowly", limit=self._policy.min_rate, found=self._bytes / elapsed)
        self._began, self._bytes = self._clock(), 0


def _decompressor(where: str, encoding: str) -> _Decompressor | None:
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        case "deflate":
            return zlib.decompressobj()
        case _:  # several in a row, or one that was not asked for
            raise FetchRefused(f"{where} uses a content encoding that was not asked for", found=encoding[:40])


def _too_large(where: str, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge("url", f"{where} sends more than {limit} bytes", limit=limit)


def _go_on() -> None: ...


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` on an event loop of its own; in another thread if this one's loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: list[T | BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # handed to the caller below
            outcome.append(error)

    thread = threading.Thread(target=run, name="fetch")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
