"""Create or verify everything that must exist on the broker. Idempotent; every process may run it at its start.

An existing stream that differs is refused, not changed: a stream that silently drops its oldest events, say, would have
lost some already, and an operator must decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    KeyValueConfig,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from eventq.events.broker import Broker, check_durability
from eventq.events.errors import BrokerUnfit, LogUnavailable
from eventq.events.subjects import (
    DUE_FILTER,
    EVENT_SUBJECTS,
    EVENTS,
    PRESENCE,
    PROGRESS,
    PROGRESS_SUBJECTS,
    TAP,
    TIMER_CONSUMER,
    TIMER_SUBJECTS,
    TIMERS,
)

PROGRESS_PER_TASK_MAX = 1_000
"""Progress and log lines kept of one task; older ones give way."""

PRESENCE_TTL_S = 15.0
"""A worker whose heartbeat is older is not present. Heartbeats come every third of it."""

CONSUMERS_MAX = 10_000
"""Queues times priorities times pools, and a few readers. Unset it means 1,000; at the limit not even a reader can start."""

EVENTS_MAX_BYTES_DEFAULT = 8 * 1024**3
PROGRESS_SHARE = 4
"""``PROGRESS`` may hold a fourth of what ``EVENTS`` may. ``TIMERS`` has no limit of its own: schedules cannot refuse new
messages when full, and dropping the oldest would be to forget a task."""


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """What bootstrap needs to know. ``replicas``: 1, or 3 on a cluster. ``events_max_bytes``: at which the log is full."""

    monitor_urls: str = ""
    accept_lazy_sync: bool = False
    replicas: int = 1
    events_max_bytes: int = EVENTS_MAX_BYTES_DEFAULT


def stream_configs(config: BrokerConfig) -> list[StreamConfig]:
    """The streams as they must be. The log refuses new events when full: it never drops old ones."""
    common: dict[str, Any] = {
        "storage": StorageType.FILE,
        "num_replicas": config.replicas,
        "duplicate_window": 1,
    }
    return [
        StreamConfig(
            name=EVENTS,
            description="every fact, in one total order",
            subjects=EVENT_SUBJECTS,
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            max_bytes=config.events_max_bytes,
            max_consumers=CONSUMERS_MAX,
            allow_direct=True,
            allow_atomic=True,
            allow_batched=True,
            republish=RePublish(src=">", dest=TAP),
            **common,
        ),
        StreamConfig(
            name=PROGRESS,
            description="progress and log lines of tasks, the newest of each",
            subjects=PROGRESS_SUBJECTS,
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.OLD,
            max_bytes=config.events_max_bytes // PROGRESS_SHARE,
            max_msgs_per_subject=PROGRESS_PER_TASK_MAX,
            allow_direct=True,
            allow_batched=True,
            **common,
        ),
        StreamConfig(
            name=TIMERS,
            description="server-side timers: sched.* pending, due.* fired",
            subjects=TIMER_SUBJECTS,
            retention=RetentionPolicy.WORK_QUEUE,
            allow_direct=True,
            allow_batched=True,
            allow_msg_schedules=True,
            allow_rollup_hdrs=True,
            **common,
        ),
    ]


_VERIFIED = (
    "subjects",
    "retention",
    "discard",
    "storage",
    "num_replicas",
    "max_msgs_per_subject",
    "allow_direct",
    "allow_atomic",
    "allow_batched",
    "allow_msg_schedules",
    "republish",
)


async def bootstrap(broker: Broker, config: BrokerConfig | None = None) -> None:
    """Make the broker ready, or raise :class:`BrokerUnfit` with what is wrong and how to mend it.

    Raises ``LogUnavailable`` where the broker does not answer.
    """
    config = config or BrokerConfig()
    broker.check_version()
    await check_durability(config.monitor_urls, accept_lazy_sync=config.accept_lazy_sync)
    broker.syncs = not config.accept_lazy_sync
    try:
        for wanted in stream_configs(config):
            await _create_or_verify(broker, wanted)
        await _ensure_presence(broker, config.replicas)
        await ensure_promoter(broker)
    except ServiceUnavailableError as error:
        raise BrokerUnfit("the broker runs without JetStream (give it a `jetstream` block), or is still starting") from error
    except (nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"the broker could not be made ready: {error!r}") from error


async def _create_or_verify(broker: Broker, wanted: StreamConfig) -> None:
    assert wanted.name is not None
    try:
        info = await broker.js.stream_info(wanted.name)
    except NotFoundError:
        await _create(broker, wanted)
        return
    found = info.config
    for name in _VERIFIED:
        if (expected := getattr(wanted, name)) and (actual := getattr(found, name)) != expected:
            raise BrokerUnfit(
                f"stream {wanted.name} has {name}={actual!r}, eventq needs {expected!r}: change it with "
                f"`nats stream edit {wanted.name}`, or point eventq at a broker of its own",
                stream=wanted.name,
                field=name,
            )
    if (found.max_age or 0) > 0 and wanted.name == EVENTS:
        raise BrokerUnfit(f"stream {EVENTS} has max_age set: the log would lose its oldest events", field="max_age")


async def _create(broker: Broker, wanted: StreamConfig) -> None:
    try:
        await broker.js.add_stream(wanted)
    except APIError as error:
        raise BrokerUnfit(
            f"the broker refuses to create stream {wanted.name} of {wanted.max_bytes} bytes with "
            f"{wanted.num_replicas} replicas: {error.description}",
            stream=wanted.name,
            limit=wanted.max_bytes,
        ) from error


async def _ensure_presence(broker: Broker, replicas: int) -> None:
    try:
        await broker.js.key_value(PRESENCE)
    except NotFoundError:
        await broker.js.create_key_value(
            KeyValueConfig(
                bucket=PRESENCE,
                description="heartbeats of workers",
                ttl=PRESENCE_TTL_S,
                limit_marker_ttl=PRESENCE_TTL_S,
                max_bytes=64 * 1024 * 1024,
                storage=StorageType.FILE,
                replicas=replicas,
                direct=True,
            )
        )


async def ensure_promoter(broker: Broker) -> None:
    """The durable consumer of fired timers exists. Idempotent."""
    await broker.js.add_consumer(
        TIMERS,
        ConsumerConfig(
            durable_name=TIMER_CONSUMER,
            filter_subject=DUE_FILTER,
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
            ack_wait=30,
            max_deliver=-1,
            max_ack_pending=20_000,
        ),
    )
