"""Heartbeats. Liveness is not history: a key that the broker forgets when it is not renewed, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg
from nats.js.errors import APIError, KeyDeletedError, KeyNotFoundError, NotFoundError
from nats.js.kv import KeyValue

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.subjects import PRESENCE, alive_subject
from eventq.events.worker import WorkerStatus

log = structlog.get_logger("eventq.presence")

PROBE_S = 0.3
"""How long to wait for the broker to say that nobody listens; it says so at once, also across a cluster."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a living worker says of itself. ``running``: ids of the tasks it holds; ``at``: aware UTC, its own clock;
    ``status``: what it obeys now, which is what the log wants of it an instant later."""

    worker_id: str
    hostname: str
    pool: str
    capacity: int
    running: list[str]
    at: datetime
    status: str = "ACTIVE"


async def beat(broker: Broker, heartbeat: Heartbeat) -> None:
    """Renew the worker's presence. Raises ``LogUnavailable`` where the broker did not take it."""
    payload = orjson.dumps(asdict(heartbeat), option=orjson.OPT_UTC_Z)
    try:
        await broker.js.publish(f"$KV.{PRESENCE}.{heartbeat.worker_id}", payload, timeout=5)
    except (APIError, nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"the heartbeat was not stored: {error!r}") from error


async def leave(broker: Broker, worker_id: str) -> None:
    """Withdraw the worker's presence at once instead of letting it lapse."""
    bucket = await broker.js.key_value(PRESENCE)
    await bucket.delete(worker_id)


async def heartbeat_of(broker: Broker, worker_id: str) -> Heartbeat | None:
    """The worker's last heartbeat, ``None`` where it lapsed. Raises ``LogUnavailable``."""
    try:
        return await _heartbeat(await broker.js.key_value(PRESENCE), worker_id)
    except NotFoundError:
        return None
    except (APIError, nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"presence cannot be read: {error!r}") from error


async def reachable(broker: Broker, worker_id: str) -> bool:
    """Whether any connection of the worker is still open: each listens on a subject of its own, and the broker says at once
    where nobody does. No answer at all says nothing and counts as yes."""
    try:
        await broker.nc.request(alive_subject(worker_id), b"", timeout=PROBE_S)
    except nats.errors.NoRespondersError:
        return False
    except (nats.errors.Error, TimeoutError):
        return True
    return True


async def listen(broker: Broker, worker_id: str) -> None:
    """Be found by :func:`reachable` for as long as this connection is open. Nothing is ever answered: to listen is enough."""
    await broker.nc.subscribe(alive_subject(worker_id), cb=_ignore)


async def _ignore(_: Msg) -> None:
    return


async def present(broker: Broker) -> dict[str, Heartbeat]:
    """Every worker whose heartbeat has not lapsed, by id. Raises ``LogUnavailable``.

    The keys come from the stream's own state, not from ``bucket.keys()``: that one watches, and takes a stream whose last
    messages are still on their way for an empty one.
    """
    prefix = f"$KV.{PRESENCE}."
    try:
        bucket = await broker.js.key_value(PRESENCE)
        info = await broker.js.stream_info(f"KV_{PRESENCE}", subjects_filter=f"{prefix}>")
        keys = [subject.removeprefix(prefix) for subject in info.state.subjects or {}]
        found = {key: await _heartbeat(bucket, key) for key in keys}
    except NotFoundError:
        return {}
    except (APIError, nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"presence cannot be read: {error!r}") from error
    return {key: heartbeat for key, heartbeat in found.items() if heartbeat is not None}


def unserved(pools: Iterable[str], alive: Mapping[str, Heartbeat]) -> list[str]:
    """Those of ``pools`` that none of the living takes work of, sorted; one that drains takes nothing new."""
    served = {heartbeat.pool for heartbeat in alive.values() if heartbeat.status != WorkerStatus.DRAINING}
    return sorted(set(pools) - served)


async def _heartbeat(bucket: KeyValue, worker_id: str) -> Heartbeat | None:
    try:
        value = (await bucket.get(worker_id)).value
        return _read(value) if value else None  # an expiry marker has none
    except (KeyNotFoundError, KeyDeletedError):  # lapsed or withdrawn, also between two reads
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("presence.unreadable_heartbeat", worker_id=worker_id, error=repr(error))
        return None


def _read(value: bytes) -> Heartbeat:
    """A heartbeat; what a newer worker says beyond it is passed over."""
    raw: dict[str, Any] = orjson.loads(value)
    return Heartbeat(
        worker_id=str(raw["worker_id"]),
        hostname=str(raw["hostname"]),
        pool=str(raw["pool"]),
        capacity=int(raw["capacity"]),
        running=list(map(str, raw["running"])),
        at=datetime.fromisoformat(raw["at"]).astimezone(UTC),
        status=str(raw.get("status", "ACTIVE")),
    )
