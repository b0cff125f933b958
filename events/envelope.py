"""An event as it stands in the log: who, when, which version, after which event, and its data. Bytes in, bytes out.

On the wire an event is one plain JSON object with CloudEvents' names (``id source type time subject data``), readable with
nothing but the ``nats`` command. ``version`` counts the aggregate's events 1, 2, 3, ...; ``previous`` is the id of the one
before. Together they let a reader notice lost, altered or rewound messages, which the broker's own sequence cannot
show: after damage it may hand the same sequence out twice.
"""

from __future__ import annotations

from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from eventq.events.aggregate import Aggregate, S
from eventq.events.catalogue import TYPE_OF, read_data
from eventq.events.data import EventData
from eventq.events.errors import LogDamaged, PayloadTooLarge
from eventq.events.ids import new_id
from eventq.events.limits import EVENT_MAX_BYTES
from eventq.events.subjects import Route, event_subject


class Trace(NamedTuple):
    """What an event follows from: the request or event that caused it, the whole it belongs to, the W3C trace."""

    causation_id: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = None


NO_TRACE = Trace()


class Event(NamedTuple):
    """One fact. ``time``: aware UTC, the writer's clock; ``attempt``: the task's attempt after it (0 before the first);
    ``state``: the aggregate's summary after it; ``route``: set where the event is work as well."""

    id: str
    source: str
    aggregate: str
    aggregate_id: str
    type: str
    schema: int
    time: datetime
    version: int
    previous: str | None
    attempt: int
    trace: Trace
    state: dict[str, Any]
    data: EventData
    route: Route | None = None

    @property
    def subject(self) -> str:
        """The subject it is published to."""
        return event_subject(self.aggregate, self.aggregate_id, self.version, self.type, self.route)


class Stored(NamedTuple):
    """An event and its position: its sequence in the stream, which grows over the whole log and may have gaps."""

    position: int
    event: Event


def next_event(
    kind: Aggregate[S],
    aggregate_id: str,
    state: S,
    data: EventData,
    *,
    source: str,
    at: datetime,
    trace: Trace = NO_TRACE,
) -> tuple[Event, S]:
    """The next event of what is in ``state``, with ``data``, and the state after it. ``at``: aware UTC."""
    event_id = new_id()
    after = kind.evolve(state, event_id, at, data)
    named = TYPE_OF[type(data)]
    event = Event(
        id=event_id,
        source=source,
        aggregate=kind.name,
        aggregate_id=aggregate_id,
        type=named.name,
        schema=named.schema,
        time=at,
        version=after.version,
        previous=state.event_id,
        attempt=kind.attempt(after),
        trace=trace,
        state=kind.summary(after),
        data=data,
        route=kind.route(after),
    )
    return event, after


def encode(event: Event) -> bytes:
    """The event's payload. Raises :class:`PayloadTooLarge` above 256 KiB."""
    trace = event.trace
    payload = orjson.dumps(
        {
            "id": event.id,
            "source": event.source,
            "type": event.type,
            "subject": f"{event.aggregate}.{event.aggregate_id}",
            "time": event.time,
            "schema": event.schema,
            "version": event.version,
            "previous": event.previous,
            "attempt": event.attempt,
            "causation_id": trace.causation_id,
            "correlation_id": trace.correlation_id,
            "traceparent": trace.traceparent,
            "state": event.state,
            "data": event.data.wire(),
        },
        option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z,
    )
    if len(payload) > EVENT_MAX_BYTES:
        raise PayloadTooLarge(
            event.type,
            f"the event is larger than {EVENT_MAX_BYTES} bytes",
            limit=EVENT_MAX_BYTES,
            found=len(payload),
        )
    return payload


def decode(payload: bytes, subject: str) -> Event:
    """The event that ``payload`` holds, checked against the subject it was stored under.

    Raises :class:`LogDamaged` for what is not an event at all and ``UnknownEvent`` for what a newer program wrote.
    """
    tokens = subject.split(".")
    try:
        (
            event_id, source, name, owner, time, schema, version, previous, attempt, causation_id, correlation_id, traceparent,
            state, data,
        ) = _fields(payload)  # fmt: skip
        event = Event(
            event_id,
            source,
            tokens[0],
            tokens[1],
            name,
            schema,
            _utc(time),
            version,
            previous,
            attempt,
            Trace(causation_id, correlation_id, traceparent),
            state,
            read_data(tokens[0], name, schema, data),
            Route(tokens[4], tokens[5], int(tokens[6])) if len(tokens) == 7 else None,
        )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, ValidationError) as error:
        raise LogDamaged(f"what is stored under {subject} is not an event: {error}", subject=subject) from error
    if event.subject != subject or owner != f"{event.aggregate}.{event.aggregate_id}":
        raise LogDamaged(f"the event stored under {subject} says it is {event.subject}", subject=subject)
    return event


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "source": str,
    "type": str,
    "subject": str,
    "time": str,
    "schema": int,
    "version": int,
    "previous": (str, type(None)),
    "attempt": int,
    "causation_id": (str, type(None)),
    "correlation_id": (str, type(None)),
    "traceparent": (str, type(None)),
    "state": dict,
    "data": dict,
}


_values = itemgetter(*_FIELDS)
_KINDS = tuple(_FIELDS.values())


def _fields(payload: bytes) -> tuple[Any, ...]:
    """The values of ``_FIELDS``, each present and of its type; raises ``KeyError``, ``TypeError`` or ``ValueError``."""
    values: tuple[Any, ...] = _values(orjson.loads(payload))
    if not all(map(isinstance, values, _KINDS)):
        wrong = next(name for name, value in zip(_FIELDS, values, strict=True) if not isinstance(value, _FIELDS[name]))
        raise TypeError(f"{wrong} is of the wrong type")
    return values


def _utc(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"time {text!r} has no zone")
    return at.astimezone(UTC)
