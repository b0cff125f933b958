"""What a process wrote and reads again: known by its very bytes, and parsed where there is any doubt."""

from __future__ import annotations

from typing import Any

import pytest

from eventq.events import echoes as module
from eventq.events.broker import Broker
from eventq.events.echoes import ECHO_MAX_BYTES, Echoes
from eventq.events.envelope import Event, decode, encode
from eventq.events.errors import LogDamaged, VersionConflict
from eventq.events.ids import new_id
from eventq.events.ingest import Outgoing
from eventq.events.log import EventLog
from tests.events.given import ready_event


def message_of(event: Event) -> Outgoing:
    """What stores it."""
    return Outgoing(event.subject, encode(event), {})


def test_what_comes_back_in_the_same_bytes_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        pytest.fail("parsed again")

    monkeypatch.setattr(module, "decode", never)
    event, echoes = ready_event(), Echoes()
    echoes.expect(event, message_of(event))

    assert echoes.decode(encode(event), event.subject) is event


def test_other_bytes_under_its_subject_are_believed_instead() -> None:
    ours, echoes = ready_event("t1"), Echoes()
    theirs = ready_event("t1", args=["another writer"])
    echoes.expect(ours, message_of(ours))

    assert echoes.decode(encode(theirs), theirs.subject) == decode(encode(theirs), theirs.subject)


def test_damaged_bytes_are_told_as_ever() -> None:
    event, echoes = ready_event(), Echoes()
    echoes.expect(event, message_of(event))

    with pytest.raises(LogDamaged):
        echoes.decode(encode(event)[:-1], event.subject)


def test_what_nobody_here_wrote_or_what_came_before_is_parsed() -> None:
    event, echoes = ready_event(), Echoes()
    echoes.expect(event, message_of(event))

    for _ in range(2):
        assert echoes.decode(encode(event), event.subject).id == event.id


def test_large_events_and_those_that_were_not_stored_are_not_remembered() -> None:
    large, refused, echoes = ready_event(args=["x" * ECHO_MAX_BYTES]), ready_event(), Echoes()
    echoes.expect(large, message_of(large))
    echoes.expect(refused, message_of(refused))
    echoes.forget(refused)
    echoes.forget(refused)
    assert echoes._written == {}  # pyright: ignore[reportPrivateUsage]


async def test_the_log_forgets_what_it_could_not_store(broker: Broker) -> None:
    log = await EventLog.open(broker)
    log.echoes = Echoes()
    taken = [ready_event() for _ in range(10)]
    assert await log.append_all(taken) == [None] * 10
    rivals = [event._replace(id=new_id()) for event in taken]
    assert None not in await log.append_all(rivals)
    with pytest.raises(VersionConflict):
        await log.append(rivals[0])
    assert log.echoes._written == {}  # pyright: ignore[reportPrivateUsage]
    await log.close()


def test_what_never_comes_back_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ECHOES_MAX", 10)
    echoes = Echoes()
    for _ in range(100):
        event = ready_event()
        echoes.expect(event, message_of(event))
        assert len(echoes._written) <= 10  # pyright: ignore[reportPrivateUsage]
