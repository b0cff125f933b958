"""What a history comes to in the tables, however it is cut into batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventq.events.data import BlobRef, EventData
from eventq.events.errors import LogDamaged, UnknownEvent
from eventq.events.reader import Message
from eventq.events.report import Log, LogLine, Progress
from eventq.events.task import Task, replay
from eventq.events.task_events import Cleaned, Completed, Erased, Failed, Queued, Retrying, Started
from eventq.events.worker_events import WorkerStopped
from eventq.projections import applier as applier_module
from eventq.projections.fold import TASK_FIXED, TASK_MOVING, TASK_SPEC
from eventq.projections.store import Store
from eventq.projections.tables import to_json
from tests.projections.support import (
    ERROR,
    NOW,
    History,
    new_applier,
    random_history,
    registered,
    report_message,
    submission,
    tables,
    to_messages,
)

STARTED = Started(worker_id="w1", hostname="host", device="cpu")
DONE = Completed(result={"rows": 3}, duration_s=0.5)


def folded(messages: Sequence[Message], cuts: Sequence[int] = (), *, again: int = 0) -> dict[str, list[tuple[Any, ...]]]:
    """The tables after these messages, cut into batches; each batch begins `again` messages too early."""
    with TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        try:
            applier = new_applier(store)
            edges = [0, *sorted({cut % (len(messages) + 1) for cut in cuts}), len(messages)]
            for start, end in pairwise(edges):
                applier.apply(messages[max(0, start - again) : end], [])
            return tables(store)
        finally:
            store.close()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_batch_boundaries_change_nothing(seed: int, cuts: list[int]) -> None:
    messages = random_history(seed, 80).messages()
    assert folded(messages, cuts) == folded(messages)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_one_event_at_a_time_is_the_same_as_all_at_once(seed: int) -> None:
    messages = random_history(seed, 40).messages()
    assert folded(messages, range(40)) == folded(messages)


def test_replay_twice_is_replay_once() -> None:
    messages = random_history(7, 120).messages()
    assert folded(messages, [10, 50, 51, 90], again=30) == folded(messages)


def test_forgotten_states_are_loaded_from_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = random_history(11, 150).messages()
    expected = folded(messages)
    monkeypatch.setattr(applier_module, "STATES_MAX", 1)
    assert folded(messages, range(0, 150, 3)) == expected


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_task_row_is_the_replay_of_its_events(seed: int) -> None:
    history = random_history(seed, 100)
    with TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        applier = new_applier(store)
        applier.apply(history.messages(), [])
        with store.read() as snapshot:
            rows = {row["task_id"]: row for row in snapshot.records("SELECT * FROM tasks")}
        store.close()
    assert rows.keys() == history.tasks.keys()
    for task_id, row in rows.items():
        task = replay((e.id, e.time, e.data) for e in history.events if e.aggregate_id == task_id)
        expected = {name: stored(value) for name, value in task._asdict().items()}
        assert {name: row[name] for name in expected} == expected


def test_all_of_a_task_has_a_column() -> None:
    """A new field of the fold must be stored, or a forgotten state would come back without it."""
    assert set(Task._fields) <= {*TASK_FIXED, *TASK_SPEC, *TASK_MOVING}


def stored(value: object) -> object:
    """As the table holds it: times are UTC without saying so, tuples are JSON."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    return to_json(value) if isinstance(value, tuple) else value


def test_attempts_end_with_what_ended_them(store: Store) -> None:
    history = History()
    history.task("t1", submission(), STARTED, Retrying(error=ERROR, reason="error", due_at=NOW))
    history.task("t1", Queued(reason="retry_due"), STARTED, Queued(reason="worker_lost", worker_id="w1"))
    history.task("t1", STARTED, Queued(reason="interrupted", worker_id="w1"), STARTED, DONE)
    history.task("t2", submission(), STARTED, Failed(error=ERROR, reason="poison"))
    history.task("t3", submission(), STARTED)
    new_applier(store).apply(history.messages(), [])
    with store.read() as snapshot:
        found = snapshot.rows("SELECT task_id, attempt, outcome, error IS NOT NULL FROM attempts ORDER BY ALL")
    assert found == [
        ("t1", 1, "failed", True),
        ("t1", 2, "worker_lost", False),
        ("t1", 3, "interrupted", False),
        ("t1", 4, "completed", False),
        ("t2", 1, "worker_lost", True),
        ("t3", 1, None, False),
    ]


def test_an_outcome_in_the_blob_store_leaves_no_result(store: Store) -> None:
    history = History()
    output = BlobRef(key="k", sha256="0" * 64, size_bytes=99_000)
    history.task("t1", submission(), STARTED, Completed(output=output, duration_s=1.0))
    new_applier(store).apply(history.messages(), [])
    with store.read() as snapshot:
        [(result, stored)] = snapshot.rows("SELECT result, output FROM tasks")
    assert result is None
    assert BlobRef.model_validate_json(stored) == output


def test_the_newest_declaration_of_a_task_counts(store: Store) -> None:
    history = History()
    history.worker("w1", registered(pid=1), WorkerStopped(reason="asked to"))
    history.worker("w2", registered(pid=2))
    applier = new_applier(store)
    for message in history.messages():
        applier.apply([message], [])
    with store.read() as snapshot:
        assert snapshot.rows("SELECT worker_id, declaration->>'doc' FROM task_declarations") == [("w2", "pid 2")]
        assert snapshot.rows("SELECT worker_id, status, end_reason FROM workers ORDER BY 1") == [
            ("w1", "STOPPED", "asked to"),
            ("w2", "ACTIVE", None),
        ]


class TestDamage:
    """Nothing of a batch is written that does not continue the log."""

    def history(self) -> History:
        history = History()
        history.task("t1", submission(), STARTED, DONE)
        history.task("t2", submission(), STARTED, DONE)
        return history

    def refused(self, store: Store, messages: list[Message], what: str) -> None:
        applier = new_applier(store)
        applier.apply(messages[:1], [])
        before = tables(store)
        with pytest.raises(LogDamaged, match=what):
            applier.apply(messages[1:], [])
        assert tables(store) == before

    def test_a_missing_position(self, store: Store) -> None:
        messages = self.history().messages()
        self.refused(store, messages[:3] + messages[4:], "positions 4 to 4")

    def test_a_missing_version(self, store: Store) -> None:
        events = self.history().events
        self.refused(store, to_messages(events[:4] + events[5:]), "version 3")

    def test_an_event_that_follows_another_one_than_was_applied(self, store: Store) -> None:
        events = self.history().events
        events[4] = events[4]._replace(previous="another-event")
        self.refused(store, to_messages(events), "another-event")

    def test_a_first_event_twice(self, store: Store) -> None:
        events = self.history().events
        self.refused(store, to_messages([*events, events[0]]), "lost, changed or rewound")

    def test_a_first_event_of_a_finished_task_twice_and_in_another_batch(self, store: Store) -> None:
        messages = to_messages([*(events := self.history().events), events[0]])
        applier = new_applier(store)
        applier.apply(messages[:-1], [])
        before = tables(store)
        with pytest.raises(LogDamaged, match="twice"):
            applier.apply(messages[-1:], [])
        assert tables(store) == before

    def test_an_attempt_that_was_not_started(self, store: Store) -> None:
        events = self.history().events
        events[4] = events[4]._replace(attempt=2)
        self.refused(store, to_messages(events), "says attempt 2")

    def test_an_event_of_an_unknown_type(self, store: Store) -> None:
        messages = self.history().messages()
        subject = messages[1].subject.replace("started", "teleported")
        odd = messages[1].payload.replace(b'"type":"started"', b'"type":"teleported"')
        messages[1] = messages[1]._replace(subject=subject, payload=odd)
        with pytest.raises(UnknownEvent, match="teleported"):
            new_applier(store).apply(messages, [])
        assert not tables(store)["events"]

    def test_bytes_that_are_no_event(self, store: Store) -> None:
        messages = self.history().messages()
        messages[2] = messages[2]._replace(payload=messages[2].payload[:-10])
        self.refused(store, messages, "is not an event")


class TestProgress:
    """PROGRESS has no order with EVENTS: what is kept depends on its own order alone."""

    def newest(self, store: Store) -> list[tuple[Any, ...]]:
        with store.read() as snapshot:
            return snapshot.rows("SELECT task_id, attempt, done, position FROM task_progress ORDER BY ALL")

    @pytest.mark.parametrize("cut", range(6))
    def test_the_newest_line_of_the_highest_attempt_is_kept(self, store: Store, cut: int) -> None:
        lines = [
            report_message(1, "t1", 1, Progress(done=10)),
            report_message(2, "t1", 2, Progress(done=1)),
            report_message(3, "t1", 1, Progress(done=99)),
            report_message(4, "t1", 2, Progress(done=2)),
            report_message(9, "t2", 1, Progress(done=5)),
        ]
        applier = new_applier(store)
        applier.apply([], lines[:cut])
        applier.apply([], lines[max(0, cut - 2) :])
        assert self.newest(store) == [("t1", 2, 2.0, 4), ("t2", 1, 5.0, 9)]

    def test_log_lines_are_kept_once(self, store: Store) -> None:
        lines = [report_message(n, "t1", 1, Log([LogLine(f"line {n}", fields={"n": n})])) for n in range(1, 6)]
        applier = new_applier(store)
        applier.apply([], lines[:3])
        applier.apply([], lines)
        with store.read() as snapshot:
            assert snapshot.rows("SELECT message FROM task_logs ORDER BY position") == [(f"line {n}",) for n in range(1, 6)]

    @pytest.mark.parametrize("end", [Cleaned(requested_by="ada", reason="requested"), Erased(requested_by="ada", events=[])])
    @pytest.mark.parametrize("apart", [False, True])
    def test_what_a_task_gave_up_does_not_come_back_with_lines_that_are_late(
        self, store: Store, end: EventData, apart: bool
    ) -> None:
        history = History()
        history.task("t1", submission(), STARTED, DONE, end)
        history.task("t2", submission(), STARTED)
        late = [report_message(n, f"t{n}", 1, Log([LogLine("hello")])) for n in (1, 2)]
        late += [report_message(2 + n, f"t{n}", 1, Progress(done=1)) for n in (1, 2)]
        applier = new_applier(store)
        if apart:
            applier.apply(history.messages(), [])
        applier.apply(history.messages(), late)
        assert self.newest(store) == [("t2", 1, 1.0, 4)]
        with store.read() as snapshot:
            assert snapshot.rows("SELECT task_id FROM task_logs") == [("t2",)]

    def test_an_unreadable_line_is_counted_and_passed_over(self, store: Store) -> None:
        applier = new_applier(store)
        good = report_message(2, "t1", 1, Progress(done=1))
        applier.apply([], [Message(1, "progress.t1", b"{not json", 0, 0), good])
        assert applier.unreadable_reports == 1
        assert self.newest(store) == [("t1", 1, 1.0, 2)]


def test_a_batch_of_both_streams_is_one_commit(store: Store) -> None:
    history = random_history(random.Random(3).randrange(1000), 30)
    applied = new_applier(store).apply(history.messages(), [report_message(4, "t1", 1, Progress(done=1))])
    assert (applied.position, applied.progress_position) == (30, 4)
    workers = {f"workers.{worker_id}": worker.version for worker_id, worker in history.workers.items()}
    assert applied.versions == {task_id: task.version for task_id, task in history.tasks.items()} | workers
