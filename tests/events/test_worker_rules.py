"""The rules of a worker's life: what may follow what, and that nothing else ever does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import pytest
from hypothesis import given as forall
from hypothesis import strategies as st

from eventq.events.data import EventData
from eventq.events.errors import IllegalTransition
from eventq.events.worker import (
    GONE,
    LIVING,
    WORKER_ACCEPTS,
    WORKERS,
    ChangeCapacity,
    DrainWorker,
    LoseWorker,
    PauseWorker,
    RegisterWorker,
    ResumeWorker,
    StopWorker,
    Worker,
    WorkerCommand,
    WorkerStatus,
    decide_worker,
    evolve_worker,
)
from eventq.events.worker_events import (
    CapacityChanged,
    WorkerDraining,
    WorkerLost,
    WorkerPaused,
    WorkerRegistered,
    WorkerResumed,
    WorkerStopped,
)
from tests.events.given import NOW, SUBMITTED

REGISTERED = WorkerRegistered(hostname="h", pid=7, pool="cpu", queues=[], capacity=4, devices=["cpu"], tasks=[])
PAUSED = WorkerPaused(requested_by="ada")
RESUMED = WorkerResumed(requested_by="ada")
DRAINING = WorkerDraining(requested_by="ada")
RESIZED = CapacityChanged(capacity=9, requested_by="ada")
STOPPED = WorkerStopped(reason="drained")
LOST = WorkerLost(evidence="disconnected", running=["t1"])


def given(*history: EventData) -> Worker:
    """The worker after these events."""
    worker = WORKERS.absent
    for number, data in enumerate(history, 1):
        worker = evolve_worker(worker, f"e{number}", NOW, data)
    return worker


STATES = {
    WorkerStatus.ABSENT: given(),
    WorkerStatus.ACTIVE: given(REGISTERED),
    WorkerStatus.PAUSED: given(REGISTERED, PAUSED),
    WorkerStatus.DRAINING: given(REGISTERED, DRAINING),
    WorkerStatus.STOPPED: given(REGISTERED, STOPPED),
    WorkerStatus.LOST: given(REGISTERED, LOST),
}


def test_every_status_is_either_living_or_gone() -> None:
    assert set(WorkerStatus) == LIVING | GONE
    assert not LIVING & GONE
    assert all(state.status is status for status, state in STATES.items())


@pytest.mark.parametrize(
    ("history", "command", "follows"),
    [
        ((), RegisterWorker(REGISTERED), REGISTERED),
        ((REGISTERED,), PauseWorker("ada"), PAUSED),
        ((REGISTERED, PAUSED), ResumeWorker("ada"), RESUMED),
        ((REGISTERED,), DrainWorker("ada"), DRAINING),
        ((REGISTERED, PAUSED), DrainWorker("ada"), DRAINING),
        ((REGISTERED,), ChangeCapacity(9, "ada"), RESIZED),
        ((REGISTERED, DRAINING), StopWorker("drained"), STOPPED),
        ((REGISTERED,), LoseWorker(1, "disconnected", ("t1",)), LOST),
        ((REGISTERED, DRAINING), LoseWorker(2, "disconnected", ("t1",)), LOST),
        ((REGISTERED, LOST), RegisterWorker(REGISTERED), REGISTERED),
        ((REGISTERED, STOPPED), RegisterWorker(REGISTERED), REGISTERED),
    ],
)
def test_a_command_leads_to_its_event(history: tuple[EventData, ...], command: WorkerCommand, follows: EventData) -> None:
    assert decide_worker(command, given(*history)) == [follows]


@pytest.mark.parametrize(
    ("history", "command"),
    [
        ((REGISTERED, PAUSED), PauseWorker("bob")),
        ((REGISTERED,), ResumeWorker("bob")),
        ((REGISTERED, DRAINING), DrainWorker("bob")),
        ((REGISTERED,), ChangeCapacity(4, "bob")),
    ],
)
def test_what_holds_already_changes_nothing(history: tuple[EventData, ...], command: WorkerCommand) -> None:
    assert decide_worker(command, given(*history)) == []


def test_a_worker_that_did_something_since_it_was_found_silent_is_not_lost() -> None:
    came_back = given(REGISTERED, LOST, REGISTERED)
    assert decide_worker(LoseWorker(1, "disconnected", ()), came_back) == []
    assert decide_worker(LoseWorker(3, "disconnected", ()), came_back) != []


def test_a_worker_that_was_called_lost_is_the_same_once_it_registers() -> None:
    again = given(REGISTERED, LOST, REGISTERED)
    assert (again.status, again.version, again.ended_at, again.end_reason) == (WorkerStatus.ACTIVE, 3, None, None)


@pytest.mark.parametrize(
    ("history", "status", "capacity"),
    [
        ((REGISTERED, LOST), WorkerStatus.ACTIVE, 4),
        ((REGISTERED, PAUSED, LOST), WorkerStatus.PAUSED, 4),
        ((REGISTERED, PAUSED, RESUMED, LOST), WorkerStatus.ACTIVE, 4),
        ((REGISTERED, DRAINING, LOST), WorkerStatus.DRAINING, 4),
        ((REGISTERED, RESIZED, LOST), WorkerStatus.ACTIVE, 9),
        ((REGISTERED, PAUSED, RESIZED, LOST), WorkerStatus.PAUSED, 9),
        ((REGISTERED, PAUSED, RESIZED, LOST, REGISTERED, LOST), WorkerStatus.PAUSED, 9),
        ((REGISTERED, PAUSED, LOST, REGISTERED, RESUMED, LOST), WorkerStatus.ACTIVE, 4),
    ],
)
@pytest.mark.parametrize("kind", ["process", "http"])
def test_a_worker_that_comes_back_from_being_lost_is_what_it_was_told_to_be(
    history: tuple[EventData, ...], status: WorkerStatus, capacity: int, kind: Literal["process", "http"]
) -> None:
    back = [data.model_copy(update={"kind": kind}) if data == REGISTERED else data for data in (*history, REGISTERED)]
    worker = given(*back)
    assert (worker.status, worker.capacity) == (status, capacity)
    assert "returns_as" not in WORKERS.summary(worker)


@pytest.mark.parametrize("told", [PAUSED, DRAINING, RESIZED])
@pytest.mark.parametrize(
    ("end", "registered"),
    [
        (STOPPED, REGISTERED),
        (LOST, REGISTERED.model_copy(update={"pid": 8})),
        (LOST, REGISTERED.model_copy(update={"kind": "http", "pid": 0})),
    ],
    ids=["stopped", "another process", "another kind"],
)
def test_a_new_start_forgets_what_the_one_before_was_told(told: EventData, end: EventData, registered: EventData) -> None:
    worker = given(REGISTERED, told, end, registered)
    assert (worker.status, worker.capacity) == (WorkerStatus.ACTIVE, 4)


def test_a_draining_worker_that_comes_back_can_end_and_then_starts_anew() -> None:
    back = given(REGISTERED, DRAINING, LOST, REGISTERED)
    assert decide_worker(StopWorker("drained"), back) == [STOPPED]
    assert given(REGISTERED, DRAINING, LOST, REGISTERED, STOPPED, REGISTERED).status is WorkerStatus.ACTIVE


def test_the_end_says_when_and_why() -> None:
    assert (given(REGISTERED, LOST).ended_at, given(REGISTERED, LOST).end_reason) == (NOW, "disconnected")
    assert (given(REGISTERED, STOPPED).ended_at, given(REGISTERED, STOPPED).end_reason) == (NOW, "drained")


def test_an_event_of_another_kind_is_none_of_a_worker() -> None:
    with pytest.raises(IllegalTransition):
        evolve_worker(given(REGISTERED), "e2", NOW, SUBMITTED)


@pytest.mark.parametrize(
    ("command", "status", "why"),
    [
        (RegisterWorker(REGISTERED), WorkerStatus.ACTIVE, "cannot register a worker with status ACTIVE"),
        (PauseWorker("ada"), WorkerStatus.DRAINING, "cannot pause a worker with status DRAINING"),
        (ResumeWorker("ada"), WorkerStatus.DRAINING, "cannot resume a worker with status DRAINING"),
        (DrainWorker("ada"), WorkerStatus.STOPPED, "cannot drain a worker with status STOPPED"),
        (ChangeCapacity(2, "ada"), WorkerStatus.DRAINING, "cannot change the capacity of a worker with status DRAINING"),
        (StopWorker("drained"), WorkerStatus.LOST, "cannot stop a worker with status LOST"),
        (LoseWorker(1, "disconnected", ()), WorkerStatus.STOPPED, "cannot call lost a worker with status STOPPED"),
    ],
)
def test_a_refusal_says_in_plain_words_what_cannot_be_done(command: WorkerCommand, status: WorkerStatus, why: str) -> None:
    with pytest.raises(IllegalTransition) as refused:
        decide_worker(command, STATES[status])
    assert refused.value.detail == why


COMMANDS: st.SearchStrategy[Any] = st.one_of(
    st.just(RegisterWorker(REGISTERED)),
    st.just(PauseWorker("ada")),
    st.just(ResumeWorker("ada")),
    st.just(DrainWorker("ada")),
    st.builds(ChangeCapacity, st.integers(1, 10), st.just("ada")),
    st.just(StopWorker("asked to stop")),
    st.builds(LoseWorker, st.integers(0, 12), st.just("presence_lapsed"), st.just(())),
)


@forall(st.lists(COMMANDS, max_size=12))
def test_whatever_is_commanded_a_refusal_changes_nothing_and_an_event_moves_one_version_on(
    commands: list[WorkerCommand],
) -> None:
    worker = WORKERS.absent
    for number, command in enumerate(commands):
        admitted = worker.status in WORKER_ACCEPTS[type(command)]
        try:
            decided = decide_worker(command, worker)
        except IllegalTransition:
            assert not admitted
            continue
        assert admitted
        assert len(decided) <= 1
        for data in decided:
            after = evolve_worker(worker, f"e{number}", NOW + timedelta(seconds=number), data)
            assert after.version == worker.version + 1
            assert after != worker.model_copy(update={"version": after.version, "event_id": after.event_id}), "it says nothing"
            assert (after.ended_at is None) == (after.status in LIVING)
            worker = after
        if decided:  # said twice, it is fulfilled, or too late
            try:
                again = decide_worker(command, worker)
            except IllegalTransition:
                again = []
            assert again == []
        assert WORKERS.from_summary(WORKERS.summary(worker)) == worker
