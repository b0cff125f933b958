"""One task, many hands: random commands decided on stale views, sent twice, delayed, lost in crashes.

The log is a list with the same check as the broker's: version n is taken or free. Everything between reading and appending
may go wrong. `history.violations` and a record of which report led to which event judge the outcome, and each is shown to
catch a rule that was broken on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from eventq.events import envelope
from eventq.events import task as rules
from eventq.events.commands import (
    CancelTask,
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ExpireLease,
    FailAttempt,
    InterruptAttempt,
    PromoteTask,
    RequeueTask,
    StartAttempt,
    SubmitTask,
    TimeOutAttempt,
)
from eventq.events.data import EventData
from eventq.events.envelope import Event, decode, encode, next_event
from eventq.events.errors import IllegalTransition, StaleAttempt
from eventq.events.task import ABSENT, ACCEPTS, TASKS, Status, Task, from_summary, summary
from eventq.events.task_events import Submitted
from tests.events.given import ERROR, NOW, submission
from tests.events.history import TERMINAL_TYPES, violations

ACTORS = st.sampled_from(["api", "w1", "w2", "w3", "scheduler"])
RETRY_IN_S = st.sampled_from([0.0, 0.5, 1.0, 5.0, 30.0, 30.0, 60.0, None])
RARELY = 56
SELDOM = st.sampled_from([False, False, False, True])
REPORTS = (CompleteAttempt, FailAttempt, TimeOutAttempt, InterruptAttempt, ExpireLease, ConfirmCancel)


@dataclass(frozen=True)
class Decision:
    """What an actor is about to append: decided on `view`, which may be old by the time it is sent."""

    command: Command
    view: Task
    data: EventData
    at: datetime


class TaskLife(RuleBasedStateMachine):
    """`log`: what is stored. `views`: what each actor believes. `pending`, `sent`: what it decided, and sent last."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.log: list[Event] = []
        self.views: dict[str, Task] = {}
        self.pending: dict[str, Decision] = {}
        self.sent: dict[str, Event] = {}

    def fold(self) -> Task:
        return from_summary(self.log[-1].state) if self.log else ABSENT

    def store(self, event: Event) -> bool:
        """The broker's part: the version must be free."""
        if event.version <= len(self.log):
            return False
        self.log.append(decode(encode(event), event.subject))
        return True

    @rule(seconds=st.integers(0, 120))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    def read(self, actor: str) -> None:
        self.views[actor] = self.fold()

    @initialize(delay_s=st.sampled_from([None, None, 30]), max_retries=st.sampled_from([0, 0, 1, 2]))
    def submit(self, delay_s: int | None, max_retries: int) -> None:
        due = None if delay_s is None else self.now + timedelta(seconds=delay_s)
        self.decide("api", SubmitTask(submission(scheduled_at=due, max_retries=max_retries), self.now), hold=False)

    @rule(actor=ACTORS, which=st.integers(0, 63), retry_in_s=RETRY_IN_S, stale=SELDOM, hold=SELDOM)
    def act(self, actor: str, which: int, retry_in_s: float | None, stale: bool, hold: bool) -> None:
        """Do something that makes sense in the actor's eyes, which may be behind; perhaps send it only later."""
        if not stale:
            self.read(actor)
        view = self.views.get(actor, ABSENT)
        sensible = [each for each in self.commands(actor, view, 0, retry_in_s) if view.status in ACCEPTS[type(each)]]
        if which < RARELY:  # or most lives would be short and dull
            sensible = [each for each in sensible if not isinstance(each, (CancelTask, CompleteAttempt, ConfirmCancel))]
        if sensible:
            self.decide(actor, sensible[which % len(sensible)], hold=hold)

    @rule(actor=ACTORS, which=st.integers(0, 63), behind=st.sampled_from([-1, 0, 1]), retry_in_s=RETRY_IN_S, stale=SELDOM)
    def act_wildly(self, actor: str, which: int, behind: int, retry_in_s: float | None, stale: bool) -> None:
        """Do anything, with the numbers of an earlier attempt or version."""
        if not stale:
            self.read(actor)
        commands = self.commands(actor, self.views.get(actor, ABSENT), behind, retry_in_s)
        self.decide(actor, commands[which % len(commands)], hold=False)

    def commands(self, actor: str, view: Task, behind: int, retry_in_s: float | None) -> list[Command]:
        attempt, version = view.attempt - behind, view.version - behind
        return [
            SubmitTask(submission(), self.now),
            StartAttempt(worker_id=actor, hostname="host", device="cpu"),
            CompleteAttempt(attempt, None, None, 1.0),
            FailAttempt(attempt, ERROR, retry_in_s, self.now),
            TimeOutAttempt(attempt, 60.0, retry_in_s, self.now),
            InterruptAttempt(attempt),
            ExpireLease(attempt),
            ConfirmCancel(attempt),
            PromoteTask(version, view.due_at or self.now),
            RequeueTask(version),
            CancelTask(actor),
        ]

    def decide(self, actor: str, command: Command, *, hold: bool) -> None:
        """Decide on what the actor believes; a refusal leaves it with what it had."""
        view = self.views.get(actor, ABSENT)
        before = replace(view)
        try:
            decided = rules.decide(command, view)
        except (IllegalTransition, StaleAttempt):
            decided = []
        assert view == before, "deciding changed the task"
        assert len(decided) <= 1
        if decided:
            self.pending[actor] = Decision(command, view, decided[0], self.now)
            if not hold:
                self.append(actor)

    @rule(actor=ACTORS, how=st.sampled_from(["append", "send_again", "crash"]))
    def go_wrong(self, actor: str, how: str) -> None:
        getattr(self, how)(actor)

    def append(self, actor: str) -> None:
        """Send what was decided: at once, or again after everybody else went on."""
        if (decision := self.pending.get(actor)) is None:
            return
        event, after = next_event(TASKS, "t1", decision.view, decision.data, source=actor, at=decision.at)
        current = self.fold()
        if not self.store(event):
            return
        self.sent[actor], self.views[actor] = event, after
        assert self.fold() == after, "the stored summary is not the task"
        if isinstance(decision.command, REPORTS):
            assert decision.command.attempt == sum(e.type == "started" for e in self.log[:-1]), "a stale report was accepted"
            assert current.status is Status.RUNNING

    def send_again(self, actor: str) -> None:
        """The answer was lost: the very same event once more. It must find its version taken, by itself."""
        if (event := self.sent.get(actor)) is not None:
            assert not self.store(event)
            assert self.log[event.version - 1].id == event.id

    def crash(self, actor: str) -> None:
        """After deciding and before appending, or at any other moment: what it knew is gone."""
        self.pending.pop(actor, None)
        self.sent.pop(actor, None)
        self.views.pop(actor, None)

    @invariant()
    def the_history_is_sound(self) -> None:
        assert violations(self.log) == []

    @invariant()
    def the_state_travels(self) -> None:
        assert from_summary(summary(self.fold())) == self.fold()


TestTaskLife = TaskLife.TestCase
TestTaskLife.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)

PLANTED = settings(
    max_examples=1_000,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    report_multiple_bugs=False,
)


def a_finished_task_takes_results(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACCEPTS, CompleteAttempt, frozenset({Status.RUNNING, Status.COMPLETED, Status.CANCELLED}))


def a_cancelled_task_starts(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACCEPTS, StartAttempt, frozenset({Status.PENDING, Status.CANCELLED}))


def a_running_task_starts_again(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACCEPTS, StartAttempt, frozenset({Status.PENDING, Status.RUNNING}))


def attempts_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    honest = rules.evolve

    def forgetful(task: Task, event_id: str, at: datetime, data: EventData) -> Task:
        return replace(honest(task, event_id, at, data), attempt=min(task.attempt, 1))

    patch.setattr(envelope, "evolve", forgetful)


def there_is_one_retry_too_many(patch: pytest.MonkeyPatch) -> None:
    honest = rules.decide

    def generous(command: Command, task: Task) -> list[EventData]:
        return honest(command, replace(task, max_retries=task.max_retries + 1))

    patch.setattr(rules, "decide", generous)


def stale_reports_pass(patch: pytest.MonkeyPatch) -> None:
    honest = rules.decide

    def trusting(command: Command, task: Task) -> list[EventData]:
        return honest(replace(command, attempt=task.attempt) if isinstance(command, REPORTS) else command, task)

    patch.setattr(rules, "decide", trusting)


def versions_are_written_twice(patch: pytest.MonkeyPatch) -> None:
    def careless(self: TaskLife, event: Event) -> bool:
        self.log.append(event)
        return True

    patch.setattr(TaskLife, "store", careless)


BROKEN: list[Callable[[pytest.MonkeyPatch], None]] = [
    a_finished_task_takes_results,
    a_cancelled_task_starts,
    a_running_task_starts_again,
    attempts_are_not_counted,
    there_is_one_retry_too_many,
    stale_reports_pass,
    versions_are_written_twice,
]


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_a_broken_rule_is_caught(breaking: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(TaskLife, settings=PLANTED)


def a_history(*data: EventData) -> list[Event]:
    task, events = ABSENT, list[Event]()
    for each in data:
        event, task = next_event(TASKS, "t1", task, each, source="test", at=NOW)
        events.append(event)
    return events


def test_the_machine_reaches_every_end() -> None:
    """What it never reaches it cannot judge."""
    seen: set[str] = set()

    class Witness(TaskLife):
        def teardown(self) -> None:
            seen.update(event.type for event in self.log)

    run_state_machine_as_test(Witness, settings=settings(PLANTED, max_examples=150))
    assert seen >= TERMINAL_TYPES
    assert seen >= {"submitted", "queued", "started", "retrying", "cancel_requested"}


def test_the_judge_accepts_no_history_and_a_first_event() -> None:
    assert violations([]) == []
    assert violations(a_history(submission())) == []
    assert isinstance(a_history(submission())[0].data, Submitted)
