"""What is in the log, read past eventq: a bare client and a plain consumer."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, NamedTuple

import nats
import orjson
from nats.js.api import AckPolicy, ConsumerConfig

EVENTS = "EVENTS"
PAGE = 1_000


class Record(NamedTuple):
    """One stored message and its JSON."""

    position: int
    subject: str
    raw: dict[str, Any]


async def stored(url: str, subject: str = ">") -> list[Record]:
    """Every message of the log under `subject`, in order."""
    nc = await nats.connect(url)
    try:
        js = nc.jetstream()
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, filter_subject=subject)
        subscription = await js.pull_subscribe(subject, stream=EVENTS, config=config)
        left = (await subscription.consumer_info()).num_pending or 0
        found: list[Record] = []
        while len(found) < left:
            for message in await subscription.fetch(min(PAGE, left - len(found)), timeout=5):
                position = int(message.reply.split(".")[5])
                found.append(Record(position, message.subject, orjson.loads(message.data)))
        return found
    finally:
        await nc.close()


def ids(records: list[Record]) -> Counter[str]:
    """How often each event id is stored."""
    return Counter(str(record.raw["id"]) for record in records)


async def settle(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """The results or exceptions of all `tasks`."""
    return await asyncio.gather(*tasks, return_exceptions=True)
