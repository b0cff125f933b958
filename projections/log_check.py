"""Is the log still the one that was folded? Asked at boot and whenever the connection or the consumer was lost.

A broker can come back without its newest events, from an old copy, or with a new stream of the same name, and hand out
positions a second time. A checkpoint by position alone would fold on, or wait for ever. So the checkpoint also holds the
stream's creation time and the id of the event at its position, and all three must agree with the log.
"""

from __future__ import annotations

import nats.errors
from nats.js.errors import APIError, NotFoundError

from eventq.events.broker import Broker, StreamFacts
from eventq.events.envelope import decode
from eventq.events.errors import LogDamaged, LogUnavailable
from eventq.events.subjects import EVENTS, PROGRESS, PROGRESS_SUBJECTS
from eventq.projections.applier import Checkpoint
from eventq.projections.tombstones import Tombstones


async def facts_of(broker: Broker, stream: str) -> StreamFacts:
    """Facts of a stream. Raises ``LogUnavailable`` where the broker does not answer, ``LogDamaged`` where there is none."""
    try:
        facts = await broker.stream_facts(stream)
    except (nats.errors.Error, APIError, TimeoutError) as error:
        raise LogUnavailable(f"the broker does not say what it has of {stream}: {error!r}") from error
    if facts is None:
        raise LogDamaged(f"stream {stream} does not exist: it was deleted, or this is another broker", stream=stream)
    return facts


async def first_checkpoint(broker: Broker, stream: str) -> Checkpoint:
    """Where a file that holds nothing begins: before the first message of ``stream``."""
    facts = await facts_of(broker, stream)
    return Checkpoint(0, None, facts.created)


async def check_events(broker: Broker, checkpoint: Checkpoint, tombstones: Tombstones) -> None:
    """Raise :class:`LogDamaged` unless EVENTS continues what ``checkpoint`` was taken of. What was erased counts as there.

    Raises ``LogUnavailable`` where the broker does not answer: nothing is known then.
    """
    facts = await facts_of(broker, EVENTS)
    position = checkpoint.position
    if facts.created != checkpoint.stream_created:
        raise LogDamaged(
            f"stream {EVENTS} was created at {facts.created.isoformat()}, the projection was folded from one created at "
            f"{checkpoint.stream_created.isoformat()}: it was deleted and made anew",
            position=position,
        )
    if facts.last < position:
        raise LogDamaged(
            f"the log ends at position {facts.last}, the projection has applied {position}: the log was rewound",
            position=position,
            found=facts.last,
        )
    if facts.messages and facts.first > position + 1 and not await _all_erased(tombstones, position + 1, facts.first):
        raise LogDamaged(
            f"the log begins at position {facts.first}, the projection goes on from {position + 1}: events between are gone",
            position=position + 1,
            found=facts.first,
        )
    if position > 0:
        await _check_event_at(broker, checkpoint, tombstones)


async def _all_erased(tombstones: Tombstones, first: int, end: int) -> bool:
    return len(await tombstones.at(range(first, end))) == end - first


async def check_progress(broker: Broker, checkpoint: Checkpoint) -> Checkpoint:
    """Where to go on in PROGRESS: at ``checkpoint``, or from the start of a stream that was made anew, or from the end of
    one that was rewound. Progress is no history: losing lines of it is survived, not refused."""
    facts = await facts_of(broker, PROGRESS)
    if facts.created != checkpoint.stream_created:
        return Checkpoint(0, None, facts.created)
    if facts.last < checkpoint.position:
        return Checkpoint(facts.last, None, facts.created)
    return checkpoint


async def _check_event_at(broker: Broker, checkpoint: Checkpoint, tombstones: Tombstones) -> None:
    position = checkpoint.position
    subject, payload = await _message_at(broker, position, tombstones)
    found = decode(payload, subject).id
    if found != checkpoint.event_id:
        raise LogDamaged(
            f"position {position} holds event {found}, the projection applied event {checkpoint.event_id} there: "
            "the log was rewound and written again",
            position=position,
            event_id=found,
        )


async def _message_at(broker: Broker, position: int, tombstones: Tombstones) -> tuple[str, bytes]:
    """Subject and payload of what stands at a position, or of what is left of it."""
    try:
        message = await broker.js.get_msg(EVENTS, seq=position)
    except NotFoundError:
        if (left := (await tombstones.at([position])).get(position)) is not None:
            return left.subject, left.payload
        raise LogDamaged(f"the event at position {position}, once applied, is gone", position=position) from None
    except (nats.errors.Error, APIError, TimeoutError) as error:
        raise LogUnavailable(f"the broker does not answer what stands at position {position}: {error!r}") from error
    assert message.subject is not None
    return message.subject, message.data or b""


async def last_progress(broker: Broker) -> int:
    """The position of the newest message of PROGRESS that was not deleted; 0 where there is none."""
    try:
        newest = await broker.js.get_last_msg(PROGRESS, PROGRESS_SUBJECTS[0])
    except NotFoundError:
        return 0
    except (nats.errors.Error, APIError, TimeoutError) as error:
        raise LogUnavailable(f"the broker does not say what it has of {PROGRESS}: {error!r}") from error
    return newest.seq or 0
