"""What is sent to a stream and what comes back: the message, its place in a batch of fast ingest, the broker's refusals.

A batch is opened by its first message, and each says its number in it, in the subject to answer to. The broker answers every
``flow`` messages that all up to here are stored, each that is refused by itself, and a message that never came as a gap.
"""

from __future__ import annotations

from typing import NamedTuple

from eventq.events.errors import LogFull, LogUnavailable

OPEN, ADD, ADD_AND_COMMIT = 0, 1, 2
"""What a message does beside being stored."""

WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
STORE_FULL = frozenset({10077, 10047, 10023})
BATCH_UNKNOWN = 10208
BATCH_REFUSED = frozenset({10205, 10206, 10210, 10211})
"""Fast ingest is off for the stream, or too many batches are open."""


class Refused(Exception):
    """The version is taken. By whom is for the caller to read."""


class Outgoing(NamedTuple):
    """A message on its way into a stream. ``headers``: of an event, those that store it only where its version is free."""

    subject: str
    payload: bytes
    headers: dict[str, str]


def reply_subject(inbox: str, batch: str, flow: int, number: int, operation: int) -> str:
    """Where the answer to a message goes, which tells the broker what it is. A gap is told, and does not end the batch."""
    return f"{inbox}.{batch}.{flow}.ok.{number}.{operation}.$FI"


def error_of(code: int, description: str) -> Exception:
    """What the refusal of one message means."""
    if code in WRONG_LAST_SEQUENCE:
        return Refused()
    if code in STORE_FULL:
        return LogFull(f"the event log is full and refuses new events: {description}")
    return LogUnavailable(f"the broker refused the event: {description}", broker_code=code)
