"""Events to bytes and back: nothing is lost, nothing foreign is taken for an event."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import given as for_all

from eventq.events import catalogue
from eventq.events.catalogue import CATALOGUE, EventType, read_data
from eventq.events.data import EventData
from eventq.events.envelope import Event, Trace, decode, encode, next_event
from eventq.events.errors import LogDamaged, PayloadTooLarge, UnknownEvent
from eventq.events.limits import EVENT_MAX_BYTES
from eventq.events.subjects import Route
from eventq.events.task import ABSENT, TASKS, from_summary
from eventq.events.task_events import Completed, Submitted
from tests.events.given import ERROR, LATER, NOW, STARTED, SUBMITTED, given, submission
from tests.golden.examples import lives

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
TOKENS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
SUBMISSIONS = st.builds(
    Submitted,
    task_name=st.just("echo"),
    args=st.lists(JSON, max_size=3),
    kwargs=st.dictionaries(TEXT, JSON, max_size=3),
    pool=st.just("cpu"),
    queue=TOKENS,
    priority=st.integers(0, 10),
    max_retries=st.integers(0, 100),
    timeout_s=st.none() | st.floats(0, 1e6),
    scheduled_at=st.none() | TIMES,
    requested_by=st.none() | TEXT,
)
TRACES = st.builds(Trace, st.none() | TOKENS, st.none() | TOKENS, st.none() | TOKENS)


@for_all(SUBMISSIONS, TOKENS, TIMES, TRACES)
def test_an_event_comes_back_as_it_went(data: Submitted, task_id: str, at: datetime, trace: Trace) -> None:
    event, task = next_event(TASKS, task_id, ABSENT, data, source="api", at=at, trace=trace)

    found = decode(encode(event), event.subject)

    assert found._replace(state={}) == event._replace(state={})
    assert from_summary(found.state) == task
    assert encode(found) == encode(event)


@for_all(JSON, st.floats(0, 1e6))
def test_a_result_comes_back_as_it_went(result: Any, duration_s: float) -> None:
    task = given(SUBMITTED, STARTED)
    event, _ = next_event(TASKS, "t1", task, Completed(result=result, duration_s=duration_s), source="worker.w1", at=NOW)

    found = decode(encode(event), event.subject).data

    assert isinstance(found, Completed)
    assert (found.result, found.duration_s) == (result, duration_s)


def a_ready_event() -> Event:
    return next_event(TASKS, "t1", ABSENT, SUBMITTED, source="api", at=NOW)[0]


def test_a_ready_event_is_work_and_says_for_whom() -> None:
    assert a_ready_event().subject == "tasks.t1.1.submitted.cpu.default.5"
    assert decode(encode(a_ready_event()), a_ready_event().subject).route == Route("cpu", "default", 5)


def test_a_scheduled_event_is_no_work() -> None:
    event, _ = next_event(TASKS, "t1", ABSENT, submission(scheduled_at=LATER), source="api", at=NOW)
    assert event.subject == "tasks.t1.1.submitted"


@pytest.mark.parametrize(
    "subject",
    [
        "tasks.t2.1.submitted.cpu.default.5",
        "tasks.t1.2.submitted.cpu.default.5",
        "tasks.t1.1.queued.cpu.default.5",
        "tasks.t1.01.submitted.cpu.default.5",
        "tasks.t1.1.submitted.cpu.default.05",
        "tasks.t1.1.submitted.cpu.default.high",
        "tasks.t1.1.submitted.cpu.default.5.more",
        "tasks.t1.1.submitted.cpu.default",
        "tasks",
    ],
)
def test_an_event_under_another_s_subject_is_damage(subject: str) -> None:
    with pytest.raises(LogDamaged) as damaged:
        decode(encode(a_ready_event()), subject)
    assert damaged.value.fields["subject"] == subject


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"type": "adjourned"}, {"type": "adjourned"}),
        ({"schema": 3}, {"type": "submitted", "found": 3, "limit": 2}),
    ],
    ids=["a newer type", "a newer schema"],
)
def test_what_a_newer_program_wrote_is_unknown_and_not_skipped(change: dict[str, Any], found: dict[str, Any]) -> None:
    payload = orjson.dumps({**orjson.loads(encode(a_ready_event())), **change})
    with pytest.raises(UnknownEvent) as unknown:
        decode(payload, a_ready_event().subject)
    assert unknown.value.fields == found


def test_another_aggregate_s_events_are_unknown() -> None:
    with pytest.raises(UnknownEvent):
        decode(encode(a_ready_event()), "workflows.t1.1.submitted")


BENT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda raw: [raw],
    "a string": lambda raw: "event",
    "without id": lambda raw: {k: v for k, v in raw.items() if k != "id"},
    "without data": lambda raw: {k: v for k, v in raw.items() if k != "data"},
    "with a data field of its own": lambda raw: {**raw, "data": {**raw["data"], "colour": "red"}},
    "with data that lacks a field": lambda raw: {**raw, "data": {"task_name": "echo"}},
    "with data of another type": lambda raw: {**raw, "data": "echo"},
    "with a time that is none": lambda raw: {**raw, "time": "yesterday"},
    "with a time that is a number": lambda raw: {**raw, "time": 1.5},
    "with a time before all times": lambda raw: {**raw, "time": "0001-01-01T00:00:00+23:00"},
    "with a time without a zone": lambda raw: {**raw, "time": "2026-11-21T03:00:00"},
    "with a version that is text": lambda raw: {**raw, "version": "1"},
    "with a schema that is text": lambda raw: {**raw, "schema": "1"},
    "with schema 0": lambda raw: {**raw, "schema": 0},
    "with an id that is a number": lambda raw: {**raw, "id": 7},
    "with an attempt that is text": lambda raw: {**raw, "attempt": "0"},
    "with a state that is none": lambda raw: {**raw, "state": None},
    "of another subject": lambda raw: {**raw, "subject": "tasks.t2"},
}


@pytest.mark.parametrize("bend", BENT.values(), ids=BENT)
def test_a_bent_event_is_damage(bend: Callable[[dict[str, Any]], Any]) -> None:
    payload = orjson.dumps(bend(orjson.loads(encode(a_ready_event()))))
    with pytest.raises(LogDamaged):
        decode(payload, a_ready_event().subject)


@for_all(st.binary(max_size=200) | JSON.map(orjson.dumps))
def test_garbage_is_damage_and_nothing_worse(payload: bytes) -> None:
    with pytest.raises(LogDamaged):
        decode(payload, "tasks.t1.1.submitted")


@for_all(st.data())
def test_a_flipped_bit_is_noticed_or_harmless(data: st.DataObject) -> None:
    """It cannot turn into another exception. Inside text it may go unseen: there the links between events tell."""
    event = a_ready_event()
    payload = bytearray(encode(event))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode(bytes(payload), event.subject)
    except (LogDamaged, UnknownEvent):
        return
    assert (found.aggregate_id, found.version, found.type) == (event.aggregate_id, event.version, event.type)


def test_an_event_may_have_256_kib_and_not_a_byte_more() -> None:
    def event_of(length: int) -> Event:
        return next_event(TASKS, "t1", ABSENT, submission(args=["x" * length]), source="api", at=NOW)[0]

    room = EVENT_MAX_BYTES - len(encode(event_of(0)))
    assert len(encode(event_of(room))) == EVENT_MAX_BYTES
    with pytest.raises(PayloadTooLarge) as refused:
        encode(event_of(room + 1))
    assert refused.value.fields == {"field": "submitted", "limit": EVENT_MAX_BYTES, "found": EVENT_MAX_BYTES + 1}


def test_times_are_written_in_utc_whatever_their_zone() -> None:
    berlin = datetime(2026, 11, 21, 4, 0, tzinfo=timezone(timedelta(hours=1)))
    event, _ = next_event(TASKS, "t1", ABSENT, submission(scheduled_at=berlin), source="api", at=NOW)
    found = decode(encode(event), event.subject).data
    assert isinstance(found, Submitted)
    assert found.scheduled_at == datetime(2026, 11, 21, 3, 0, tzinfo=UTC)


class Renamed(EventData):
    """`Started` as a third schema might have it: `device` in words, and `node` instead of `hostname`."""

    worker_id: str
    node: str
    device: str


def test_older_data_goes_through_every_upcaster_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: dict[int, catalogue.Upcaster] = {
        1: lambda data: {"worker_id": data["worker_id"], "node": data["hostname"], "device": data["device"]},
        2: lambda data: {**data, "device": {"cpu": "processor"}.get(data["device"], data["device"])},
    }
    monkeypatch.setitem(CATALOGUE, ("tasks", "started"), EventType("tasks", "started", Renamed, 3, steps))

    first = {"worker_id": "w1", "hostname": "host", "device": "cpu"}
    second = {"worker_id": "w1", "node": "host", "device": "cpu"}
    third = {"worker_id": "w1", "node": "host", "device": "processor"}

    expected = Renamed(worker_id="w1", node="host", device="processor")
    assert read_data("tasks", "started", 1, first) == expected
    assert read_data("tasks", "started", 2, second) == expected
    assert read_data("tasks", "started", 3, third) == expected
    with pytest.raises(UnknownEvent):
        read_data("tasks", "started", 4, third)


def test_a_whole_event_of_an_older_schema_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: dict[int, catalogue.Upcaster] = {
        1: lambda data: {"worker_id": data["worker_id"], "node": data["hostname"], "device": data["device"]}
    }
    event, _ = next_event(TASKS, "t1", given(SUBMITTED), STARTED, source="worker.w1", at=NOW)
    payload = encode(event)
    monkeypatch.setitem(CATALOGUE, ("tasks", "started"), EventType("tasks", "started", Renamed, 2, steps))

    found = decode(payload, event.subject)

    assert found.data == Renamed(worker_id="w1", node="host", device="cpu")
    assert found.schema == 1


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=lambda kind: f"{kind.aggregate}.{kind.name}")
def test_every_older_schema_has_an_upcaster(kind: EventType) -> None:
    assert set(kind.upcasters) == set(range(1, kind.schema))


def test_event_data_cannot_be_changed_and_takes_no_unknown_field() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ERROR.message = "another"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="colour"):
        submission(colour="red")


def test_every_type_of_event_has_an_example() -> None:
    assert {(e.aggregate, e.type) for events in lives().values() for e in events} == set(CATALOGUE)
