"""Heartbeats. Liveness is not history: a key that the broker forgets when it is not renewed, and nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import nats.errors
import orjson
import structlog
from nats.js.errors import APIError, BucketNotFoundError, NoKeysError

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.subjects import PRESENCE

log = structlog.get_logger("eventq.presence")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a living worker says of itself. ``running``: ids of the tasks it holds; ``at``: aware UTC, its own clock."""

    worker_id: str
    hostname: str
    pool: str
    capacity: int
    running: list[str]
    at: datetime


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


async def present(broker: Broker) -> dict[str, Heartbeat]:
    """Every worker whose heartbeat has not lapsed, by id."""
    try:
        bucket = await broker.js.key_value(PRESENCE)
        keys: list[str] = await bucket.keys()
    except (NoKeysError, BucketNotFoundError):
        return {}
    except (nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"presence cannot be read: {error!r}") from error
    found: dict[str, Heartbeat] = {}
    for key in keys:
        try:
            value = (await bucket.get(key)).value
        except APIError:
            continue  # lapsed between the two reads
        if value:  # an expiry marker has none
            try:
                found[key] = _read(value)
            except (ValueError, KeyError, TypeError) as error:
                log.warning("presence.unreadable_heartbeat", worker_id=key, error=repr(error))
    return found


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
    )
