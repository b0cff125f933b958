"""The rules of a queue: its limits, its pauses, its gate; one by one, and with many hands on stale views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given as for_all
from pydantic import ValidationError

from eventq.events import queue as rules
from eventq.events.data import EventData
from eventq.events.envelope import Event, decode, encode, next_event
from eventq.events.errors import IllegalTransition, UnknownEvent
from eventq.events.limits import QUEUE_RUNNING_MAX
from eventq.events.queue import (
    NO_LIMITS,
    QUEUES,
    AdmitTasks,
    ConfigureQueue,
    PauseQueue,
    Queue,
    QueueCommand,
    ResumeQueue,
    decide_queue,
    evolve_queue,
)
from eventq.events.queue_events import (
    Admission,
    QueueAdmitted,
    QueueConfigured,
    QueueLimits,
    QueuePaused,
    QueueResumed,
    Rate,
)
from eventq.events.worker_events import WorkerStopped
from tests.events.given import NOW

FEW = QueueLimits(max_running=2)
ONE = Admission(task_id="t1", version=1)
TWO = Admission(task_id="t2", version=3, key="tenant-7")


def given(*history: EventData) -> Queue:
    """The queue after these events."""
    queue = QUEUES.absent
    for number, data in enumerate(history, 1):
        queue = evolve_queue(queue, f"e{number}", NOW, data)
    return queue


CONFIGURED = QueueConfigured(limits=FEW, requested_by="ada")
PAUSED = QueuePaused(requested_by="eve", reason="maintenance")
RESUMED = QueueResumed(requested_by="bob")


def test_a_queue_nobody_spoke_of_has_no_limits_and_lets_everything_through() -> None:
    queue = given()
    assert (queue.version, queue.limits, queue.gated, queue.paused) == (0, NO_LIMITS, False, False)


@pytest.mark.parametrize(
    ("limits", "gated"),
    [
        ({}, False),
        ({"max_running": 1}, True),
        ({"max_running_per_key": 1}, True),
        ({"rate": Rate(limit=1)}, True),
        ({"rate_per_key": Rate(limit=1)}, True),
        ({"fair": True}, True),
    ],
)
def test_any_limit_and_fair_sharing_need_a_gate(limits: dict[str, Any], gated: bool) -> None:
    assert given(QueueConfigured(limits=QueueLimits(**limits), requested_by="ada")).gated is gated


def test_limits_are_replaced_as_a_whole() -> None:
    rate = QueueLimits(rate=Rate(limit=5))
    assert decide_queue(ConfigureQueue(rate, "bob"), given(CONFIGURED)) == [QueueConfigured(limits=rate, requested_by="bob")]
    assert given(CONFIGURED, QueueConfigured(limits=rate, requested_by="bob")).limits.max_running is None


def test_configuring_what_holds_already_changes_nothing() -> None:
    assert decide_queue(ConfigureQueue(FEW, "bob"), given(CONFIGURED)) == []
    assert decide_queue(ConfigureQueue(NO_LIMITS, "bob"), given()) == []


def test_a_queue_is_paused_and_resumed_once_and_says_by_whom_and_why() -> None:
    assert decide_queue(PauseQueue("eve", "maintenance"), given()) == [PAUSED]
    paused = given(PAUSED)
    assert (paused.paused, paused.paused_by, paused.paused_reason) == (True, "eve", "maintenance")
    assert decide_queue(PauseQueue("bob"), paused) == []
    assert decide_queue(ResumeQueue("bob"), paused) == [RESUMED]
    resumed = given(PAUSED, RESUMED)
    assert (resumed.paused, resumed.paused_reason) == (False, None)
    assert decide_queue(ResumeQueue("bob"), resumed) == []


def test_a_pause_keeps_the_limits_and_limits_keep_the_pause() -> None:
    assert given(CONFIGURED, PAUSED).limits == FEW
    assert given(PAUSED, CONFIGURED).paused


def test_tasks_are_admitted_in_the_order_given() -> None:
    assert decide_queue(AdmitTasks(1, (TWO, ONE)), given(CONFIGURED)) == [QueueAdmitted(tasks=[TWO, ONE])]
    assert given(CONFIGURED, QueueAdmitted(tasks=[TWO, ONE])).version == 2


def test_admitting_nobody_writes_nothing() -> None:
    assert decide_queue(AdmitTasks(1, ()), given(CONFIGURED)) == []


@pytest.mark.parametrize("since", [CONFIGURED, PAUSED, QueueAdmitted(tasks=[TWO])], ids=lambda data: type(data).__name__)
def test_an_admission_counted_before_anything_else_happened_to_the_queue_is_refused(since: EventData) -> None:
    with pytest.raises(IllegalTransition, match="outdated view"):
        decide_queue(AdmitTasks(1, (ONE,)), given(CONFIGURED, since))


def test_nobody_is_admitted_while_the_queue_is_paused() -> None:
    with pytest.raises(IllegalTransition, match="while the queue is paused"):
        decide_queue(AdmitTasks(2, (ONE,)), given(CONFIGURED, PAUSED))
    assert decide_queue(AdmitTasks(3, (ONE,)), given(CONFIGURED, PAUSED, RESUMED)) == [QueueAdmitted(tasks=[ONE])]


def test_a_worker_s_event_is_no_event_of_a_queue() -> None:
    with pytest.raises(IllegalTransition, match="WorkerStopped"):
        evolve_queue(given(), "e1", NOW, WorkerStopped(reason="done"))


@pytest.mark.parametrize(
    "limits",
    [
        {"max_running": 0},
        {"max_running": QUEUE_RUNNING_MAX + 1},
        {"max_running_per_key": -1},
        {"rate": {"limit": 0}},
        {"rate": {"limit": 1, "per_s": 0}},
        {"rate": {"limit": 1, "burst": 0}},
        {"colour": "red"},
    ],
    ids=str,
)
def test_limits_that_make_no_sense_cannot_be_said(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QueueLimits.model_validate(limits)


def test_a_state_that_a_newer_program_wrote_is_unknown() -> None:
    with pytest.raises(UnknownEvent, match="newer version"):
        QUEUES.from_summary({"version": 1, "colour": "red"})


# Many hands

LIMITS = st.sampled_from([NO_LIMITS, FEW, QueueLimits(rate=Rate(limit=1)), QueueLimits(fair=True)])


@dataclass(frozen=True)
class Step:
    """Somebody reads the queue as it was `behind` events ago, decides, and appends."""

    behind: int
    command: str
    limits: QueueLimits
    tasks: int


STEPS = st.lists(
    st.builds(
        Step, st.integers(0, 3), st.sampled_from(["configure", "pause", "resume", "admit", "admit"]), LIMITS, st.integers(0, 3)
    ),
    max_size=40,
)


def lived(steps: Sequence[Step]) -> list[Event]:
    """What is in the log after these steps. It refuses what its version check refuses: a version that is taken."""
    log: list[Event] = []
    states: list[Queue] = [QUEUES.absent]
    for number, step in enumerate(steps):
        view = states[max(0, len(states) - 1 - step.behind)]
        named = tuple(Admission(task_id=f"t{number}-{each}", version=1) for each in range(step.tasks))
        commands: dict[str, QueueCommand] = {
            "configure": ConfigureQueue(step.limits, "ada"),
            "pause": PauseQueue("ada"),
            "resume": ResumeQueue("ada"),
            "admit": AdmitTasks(states[max(0, len(states) - 1 - step.behind)].version, named),
        }
        at = NOW + timedelta(seconds=number)
        for attempt in (view, states[-1]):  # the second time on what is true, as `handle` does
            try:
                decided = rules.decide_queue(commands[step.command], attempt)
            except IllegalTransition:
                break
            if not decided:
                break
            event, after = next_event(QUEUES, "reports", attempt, decided[0], source="test", at=at)
            if event.version > len(log):
                log.append(decode(encode(event), event.subject))
                states.append(after)
                break
    return log


def misdeeds(log: Sequence[Event]) -> list[str]:
    """What is wrong with a queue's history; told without `decide`."""
    found: list[str] = []
    if [event.version for event in log] != list(range(1, len(log) + 1)):
        found.append("versions are not contiguous")
    limits, paused, previous, admitted = NO_LIMITS, False, None, set[str]()
    for event in log:
        match event.data:
            case QueueConfigured():
                if event.data.limits == limits:
                    found.append("configured what held already")
                limits = event.data.limits
            case QueuePaused() | QueueResumed():
                if paused is isinstance(event.data, QueuePaused):
                    found.append("paused or resumed twice")
                paused = isinstance(event.data, QueuePaused)
            case QueueAdmitted():
                if again := admitted & {task.task_id for task in event.data.tasks}:
                    found.append(f"admitted twice: {again}")
                admitted |= {task.task_id for task in event.data.tasks}
                if paused:
                    found.append("admitted while paused")
                if not event.data.tasks:
                    found.append("admitted nobody")
            case _:
                found.append(f"unknown {event.type}")
        state = QUEUES.from_summary(event.state)
        if (state.limits, state.paused, state.version) != (limits, paused, event.version) or event.previous != previous:
            found.append(f"version {event.version} does not say what happened")
        previous = event.id
    return found


@for_all(STEPS)
def test_whatever_the_order_and_however_stale_the_views_the_history_is_sound(steps: list[Step]) -> None:
    assert misdeeds(lived(steps)) == []


@for_all(STEPS, st.integers(1, 3))
def test_an_admission_counts_only_on_the_newest_view(steps: list[Step], behind: int) -> None:
    log = lived(steps)
    queue = QUEUES.from_summary(log[-1].state) if log else QUEUES.absent
    if queue.version >= behind:
        with pytest.raises(IllegalTransition):
            decide_queue(AdmitTasks(queue.version - behind, (ONE,)), queue)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (QueueConfigured(limits=FEW, requested_by="ada"), "configured what held already"),
        (QueueResumed(requested_by="ada"), "paused or resumed twice"),
        (QueueAdmitted(tasks=[ONE]), "admitted twice"),
        (QueueAdmitted(tasks=[]), "admitted nobody"),
    ],
    ids=["configured", "resumed", "admitted twice", "admitted nobody"],
)
def test_the_judge_finds_what_is_wrong(broken: EventData, expected: str) -> None:
    queue, log = QUEUES.absent, list[Event]()
    for data in (CONFIGURED, QueueAdmitted(tasks=[ONE]), broken):
        event, queue = next_event(QUEUES, "reports", queue, data, source="test", at=NOW)
        log.append(event)
    assert any(expected in line for line in misdeeds(log))


def test_the_judge_finds_an_admission_to_a_paused_queue() -> None:
    queue, log = QUEUES.absent, list[Event]()
    for data in (CONFIGURED, PAUSED, QueueAdmitted(tasks=[ONE])):
        event, queue = next_event(QUEUES, "reports", queue, data, source="test", at=NOW)
        log.append(event)
    assert misdeeds(log) == ["admitted while paused"]
