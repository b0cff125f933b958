"""Messages that are stored all together or not at all: an atomic batch of JetStream.

But for a broker whose own limit of storage (``max_file``) is reached in the middle of one: it keeps the first of them and does
not answer (``tests/contracts``). So nobody may rely on the last where he sees the first.

Dear (some ten milliseconds whatever its size, one after the other): for what must never be seen in part, and for groups where
that is still cheaper than to have each message synced by itself (``group``).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client

from eventq.events.errors import LogUnavailable
from eventq.events.ingest import Outgoing, error_of

BATCH_ID, BATCH_SEQUENCE, BATCH_COMMIT = "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"

TOGETHER_MAX = 1_000
"""What the broker takes in one batch."""

ANSWER_S = 10.0


def as_batch(messages: Sequence[Outgoing], batch: str) -> Iterator[Outgoing]:
    """The messages as they are sent: the last one commits, and is the only one whose answer means anything."""
    for number, message in enumerate(messages, 1):
        headers = {**message.headers, BATCH_ID: batch, BATCH_SEQUENCE: str(number)}
        yield message._replace(headers=headers if number < len(messages) else {**headers, BATCH_COMMIT: "1"})


async def store_together(nc: Client, messages: Sequence[Outgoing]) -> int:
    """Store them one after the other, with nothing between them; answers the position of the last. ``messages``: at most
    ``TOGETHER_MAX``.

    Raises ``Refused`` where a version that one of them is meant for is taken, ``LogFull`` where the stream is full, both with
    nothing stored, and ``LogUnavailable`` where the outcome is unknown.
    """
    *first, last = as_batch(messages, secrets.token_hex(8))
    try:
        for message in first:
            await nc.publish(message.subject, message.payload, headers=message.headers)
        answer = await nc.request(last.subject, last.payload, timeout=ANSWER_S, headers=last.headers)
    except (nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"the broker did not answer a batch of {len(messages)}: {error!r}") from error
    told: dict[str, Any] = orjson.loads(answer.data)
    if (refusal := told.get("error")) is not None:
        raise error_of(int(refusal.get("err_code", 0)), refusal.get("description", ""))
    return int(told["seq"])
