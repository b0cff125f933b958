"""One task, many hands: random commands decided on stale views, sent twice, delayed, lost in crashes.

The log is a list with the same check as the broker's: version n is taken or free. Everything between reading and appending
may go wrong. `history.violations` and a record of which report led to which event judge the outcome, and each is shown to
catch a rule that was broken on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eventq.events import task as rules
from eventq.events.commands import (
    AdmitTask,
    CancelTask,
    CleanTask,
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ConfirmPause,
    EraseTask,
    ExpireLease,
    ExpireQueueWait,
    FailAttempt,
    HoldTask,
    InterruptAttempt,
    PauseTask,
    PromoteTask,
    RequeueTask,
    ResumeTask,
    StartAttempt,
    SubmitTask,
    TimeOutAttempt,
    UpdateTask,
)
from eventq.events.data import EventData
from eventq.events.envelope import Event, decode, encode, next_event
from eventq.events.errors import IllegalTransition, StaleAttempt
from eventq.events.task import ABSENT, ACCEPTS, TASKS, Status, Task, from_summary, summary
from eventq.events.task_events import (
    Cancelled,
    Cleaned,
    Completed,
    Erased,
    Paused,
    Queued,
    Retrying,
    Submitted,
    TimedOut,
    Updated,
)
from tests.events.given import (
    ADMITTED,
    DUE,
    ERROR,
    FROZEN,
    HELD,
    INTERRUPTED,
    LATER,
    NOW,
    PAUSE_REQUESTED,
    PAUSED,
    RETRYING,
    STARTED,
    WORKER_LOST,
    submission,
)
from tests.events.history import AFTERLIFE, TERMINAL_TYPES, violations

NAMES = ("api", "w1", "w2", "w3", "scheduler")
ACTORS = st.sampled_from(NAMES)
RETRIES_IN_S = (0.0, 0.5, 1.0, 5.0, 30.0, None)
CHANCES = st.integers(0, 2**32).map(Random)
"""Drawn as one number: drawn one by one, choices cluster, and the long lives that find something hardly come up."""

SELDOM = st.sampled_from([False, False, False, True])
REPORTS = (
    CompleteAttempt,
    FailAttempt,
    TimeOutAttempt,
    InterruptAttempt,
    ExpireLease,
    ConfirmCancel,
    ConfirmPause,
)
ENDING = (CancelTask, CompleteAttempt, ConfirmCancel, ExpireQueueWait, CleanTask, EraseTask)
HABITS: list[tuple[type[Command], ...]] = [
    (),
    (StartAttempt, ExpireLease, PauseTask, ConfirmPause, ResumeTask),
    (StartAttempt, PauseTask, CancelTask, ConfirmPause),
    (PauseTask, CancelTask, ConfirmPause),
    (StartAttempt, FailAttempt, TimeOutAttempt, PromoteTask, PauseTask, ResumeTask),
    (HoldTask, AdmitTask, RequeueTask, UpdateTask, ExpireQueueWait),
]
"""What a life is mostly made of: lives that are all alike would rarely get anywhere."""

UPDATES = [
    submission(priority=9, queue_timeout_s=60.0),
    submission(queue="free", max_retries=1),
    submission(gated=True, max_retries=2),
]


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
        self.habit: tuple[type[Command], ...] = ()

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

    @initialize(
        delay_s=st.sampled_from([None, None, 30]),
        max_retries=st.sampled_from([0, 0, 1, 2]),
        queue_timeout_s=st.sampled_from([None, 45.0]),
        gated=st.booleans(),
        habit=st.sampled_from(HABITS),
    )
    def submit(
        self,
        delay_s: int | None,
        max_retries: int,
        queue_timeout_s: float | None,
        gated: bool,
        habit: tuple[type[Command], ...],
    ) -> None:
        self.habit = habit
        due = None if delay_s is None else self.now + timedelta(seconds=delay_s)
        wanted = submission(scheduled_at=due, max_retries=max_retries, queue_timeout_s=queue_timeout_s, gated=gated)
        self.decide("api", SubmitTask(wanted, self.now), hold=False)

    @rule(actor=ACTORS, chance=CHANCES, steps=st.integers(1, 5), stale=SELDOM, hold=SELDOM)
    def act(self, actor: str, chance: Random, steps: int, stale: bool, hold: bool) -> None:
        """Do what makes sense in the actor's eyes, which may be behind; perhaps send the last only later."""
        if not stale:
            self.read(actor)
        for left in reversed(range(steps)):
            view = self.views.get(actor, ABSENT)
            commands = self.commands(actor, view, 0, chance.choice(RETRIES_IN_S))
            sensible = [each for each in commands if leads_somewhere(each, view)]
            if chosen := self.likely(chance, view, sensible):
                self.decide(actor, chance.choice(chosen), hold=hold and not left)

    def likely(self, chance: Random, view: Task, sensible: list[Command]) -> list[Command]:
        """Mostly the habit, seldom an end: or most lives would be short and dull."""
        mood = chance.random()
        if mood < 0.6:
            return [each for each in sensible if isinstance(each, self.habit) and not ends(each, view)] or sensible
        if mood < 0.65 or view.finished:
            return [each for each in sensible if ends(each, view)] or sensible
        return [each for each in sensible if not ends(each, view)]

    @rule(actor=ACTORS, chance=CHANCES, behind=st.sampled_from([-1, 0, 1]), stale=SELDOM)
    def act_wildly(self, actor: str, chance: Random, behind: int, stale: bool) -> None:
        """Do anything, with the numbers of an earlier attempt or version."""
        if not stale:
            self.read(actor)
        commands = self.commands(actor, self.views.get(actor, ABSENT), behind, chance.choice(RETRIES_IN_S))
        self.decide(actor, chance.choice(commands), hold=False)

    @rule(actor=ACTORS, which=st.integers(0, 63), hold=SELDOM)
    def be_handed_work(self, actor: str, which: int, hold: bool) -> None:
        """A worker is handed a work item, perhaps again, perhaps one long stale, and claims it without reading anything."""
        items = [event for event in self.log if event.route is not None]
        if items:
            self.views[actor] = from_summary(items[-1 - which % min(len(items), 3)].state)
            self.decide(actor, StartAttempt(worker_id=actor, hostname="host", device="cpu"), hold=hold)

    def commands(self, actor: str, view: Task, behind: int, retry_in_s: float | None) -> list[Command]:
        attempt, version = view.attempt - behind, view.version - behind
        soon = submission(scheduled_at=self.now + timedelta(seconds=30), gated=view.gated)
        return [
            SubmitTask(submission(), self.now),
            *[StartAttempt(worker_id=actor, hostname="host", device="cpu")] * 3,
            CompleteAttempt(attempt, None, None, 1.0),
            FailAttempt(attempt, ERROR, retry_in_s, self.now),
            TimeOutAttempt(attempt, 60.0, retry_in_s, self.now),
            TimeOutAttempt(attempt, 5.0, retry_in_s, self.now, "heartbeat_timeout", ("asked",)),
            InterruptAttempt(attempt),
            ExpireLease(attempt),
            ConfirmCancel(attempt),
            ConfirmPause(attempt, frozen=True),
            ConfirmPause(attempt, frozen=False),
            *[PromoteTask(version, view.due_at or self.now)] * 2,
            RequeueTask(version),
            HoldTask(version),
            *[AdmitTask(version)] * 2,
            ExpireQueueWait(self.now),
            CancelTask(actor),
            PauseTask(actor),
            ResumeTask(actor, self.now),
            ResumeTask(actor, self.now),
            *[UpdateTask(wanted, ("priority",), actor, self.now) for wanted in (*UPDATES, soon)],
            CleanTask(actor, "requested"),
            EraseTask(actor, None, ()),
        ]

    def decide(self, actor: str, command: Command, *, hold: bool) -> None:
        """Decide on what the actor believes; a refusal leaves it with what it had."""
        view = self.views.get(actor, ABSENT)
        before, stored = summary(view), len(self.log)
        try:
            decided = rules.decide(command, view)
        except (IllegalTransition, StaleAttempt):
            decided = []
        assert summary(view) == before, "deciding changed the task"
        assert len(self.log) == stored
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
            assert current.in_hand, "a report about nobody's attempt was accepted"
        if current.status is after.status is Status.PENDING and current.queue_timeout_s == after.queue_timeout_s:
            assert after.start_by == current.start_by, "the wait in the queue was begun anew"

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

    @invariant()
    def the_state_makes_sense(self) -> None:
        assert nonsense(self.fold()) == []


def ends(command: Command, task: Task) -> bool:
    """Whether the life is over or all but over with it."""
    return isinstance(command, ENDING) and not (isinstance(command, CancelTask) and task.in_hand)


def leads_somewhere(command: Command, task: Task) -> bool:
    """Whether the rules answer it with an event."""
    try:
        return bool(rules.decide(command, task))
    except (IllegalTransition, StaleAttempt):
        return False


def nonsense(task: Task) -> list[str]:
    """What no task can be, whatever happened to it: nobody would ever move it, or somebody's wish would be forgotten."""
    waits = task.status in {Status.SCHEDULED, Status.RETRYING}
    pending = task.status is Status.PENDING
    wrong = {
        "waits for no time": waits and task.due_at is None,
        "is ready and waits for a time": pending and task.due_at is not None,
        "is held at no gate": task.held and not task.gated,
        "is ready by an older event": pending and task.ready not in {0, task.version},
        "runs in nobody's hands": task.status is Status.RUNNING and task.worker_id is None,
        "is in somebody's hands and does not run": (waits or pending) and task.worker_id is not None,
        "is to be cancelled by nobody": bool(task.cancel_requested_by) and not (task.in_hand or task.finished),
        "is to be paused and does not run": bool(task.pause_requested_by) and (waits or pending),
        "is paused by nobody": task.status is Status.PAUSED and task.pause_requested_by is None,
        "may wait for ever": pending and not task.attempt and bool(task.queue_timeout_s) and task.start_by is None,
        "times out in a queue it is not in": task.start_by is not None and (not pending or task.attempt > 0),
        "names other losses than it counts": len(task.lost) != task.losses,
    }
    return [what for what, holds in wrong.items() if holds]


TestTaskLife = TaskLife.TestCase
TestTaskLife.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)

LIVES = 400
STEPS = 40


def wander(seed: int) -> TaskLife:
    """One life by plain chance: longer ones than Hypothesis likes to begin with. It, in turn, shrinks what it finds."""
    chance, machine = Random(seed), TaskLife()
    retries, habit = chance.randint(0, 2), chance.choice(HABITS)
    machine.submit(chance.choice((None, None, 30)), retries, chance.choice((None, 45.0)), chance.random() < 0.3, habit)
    for _ in range(STEPS):
        actor, stale, hold = chance.choice(NAMES), chance.random() < 0.1, chance.random() < 0.1
        match chance.choices(("act", "wild", "work", "wrong", "time"), (6, 1, 2, 2, 1))[0]:
            case "act":
                machine.act(actor, chance, 2, stale, hold)
            case "wild":
                machine.act_wildly(actor, chance, chance.choice((-1, 0, 1)), stale)
            case "work":
                machine.be_handed_work(actor, chance.randrange(64), hold)
            case "wrong":
                machine.go_wrong(actor, chance.choice(("append", "send_again", "crash")))
            case _:
                machine.time_passes(chance.randint(0, 120))
        machine.the_history_is_sound()
        machine.the_state_travels()
        machine.the_state_makes_sense()
    return machine


def test_lives_by_plain_chance_are_sound() -> None:
    for seed in range(LIVES):
        wander(seed)


def a_finished_task_takes_results(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACCEPTS, CompleteAttempt, frozenset({Status.RUNNING, Status.COMPLETED, Status.CANCELLED}))
    patch.setattr(Task, "in_hand", property(lambda task: task.worker_id is not None))


def a_cancelled_task_starts(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACCEPTS, StartAttempt, frozenset({Status.PENDING, Status.CANCELLED}))


def a_running_task_starts_again(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACCEPTS, StartAttempt, frozenset({Status.PENDING, Status.RUNNING}))


def attempts_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    honest = rules.evolve

    def forgetful(task: Task, event_id: str, at: datetime, data: EventData) -> Task:
        return honest(task, event_id, at, data)._replace(attempt=min(task.attempt, 1))

    evolving(patch, forgetful)


def evolving(patch: pytest.MonkeyPatch, evolve: Callable[[Task, str, datetime, EventData], Task]) -> None:
    """Events are folded like this, by whoever writes them and by whoever replays them."""
    patch.setattr(rules, "evolve", evolve)
    patch.setitem(globals(), "TASKS", replace(TASKS, evolve=evolve))


def there_is_one_retry_too_many(patch: pytest.MonkeyPatch) -> None:
    honest = rules.decide

    def generous(command: Command, task: Task) -> list[EventData]:
        return honest(command, task._replace(max_retries=task.max_retries + 1))

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


def a_paused_task_starts(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACCEPTS, StartAttempt, frozenset({Status.PENDING, Status.PAUSED}))


def deciding(patch: pytest.MonkeyPatch, kind: type[Command], **believed: object) -> None:
    """One kind of command is decided as if the task were another."""
    honest = rules.decide

    def mistaken(command: Command, task: Task) -> list[EventData]:
        return honest(command, task._replace(**believed) if isinstance(command, kind) else task)  # type: ignore[arg-type]

    patch.setattr(rules, "decide", mistaken)


def a_held_task_starts(patch: pytest.MonkeyPatch) -> None:
    deciding(patch, StartAttempt, ready=1)


def a_started_task_is_updated(patch: pytest.MonkeyPatch) -> None:
    deciding(patch, UpdateTask, attempt=0)


def a_pause_swallows_a_cancellation(patch: pytest.MonkeyPatch) -> None:
    deciding(patch, ConfirmPause, cancel_requested_by=None)


def workers_lost_while_pausing_are_forgiven(patch: pytest.MonkeyPatch) -> None:
    deciding(patch, ExpireLease, losses=0)


def a_started_task_times_out_in_its_queue(patch: pytest.MonkeyPatch) -> None:
    deciding(patch, ExpireQueueWait, start_by=NOW, queue_timeout_s=1.0)


def a_task_is_cleaned_up_again_and_again(patch: pytest.MonkeyPatch) -> None:
    deciding(patch, CleanTask, cleaned=False)


def a_running_task_is_erased(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(ACCEPTS, EraseTask, frozenset({Status.RUNNING}))


def the_wait_begins_anew_with_admission(patch: pytest.MonkeyPatch) -> None:
    honest = rules.evolve

    def patient(task: Task, event_id: str, at: datetime, data: EventData) -> Task:
        return honest(task._replace(start_by=None) if isinstance(data, Queued) else task, event_id, at, data)

    evolving(patch, patient)


def a_failing_attempt_forgets_the_pause(patch: pytest.MonkeyPatch) -> None:
    honest = rules.evolve

    def forgetful(task: Task, event_id: str, at: datetime, data: EventData) -> Task:
        after = honest(task, event_id, at, data)
        return after._replace(status=Status.RETRYING) if isinstance(data, Retrying) else after

    evolving(patch, forgetful)


BROKEN: list[Callable[[pytest.MonkeyPatch], None]] = [
    a_finished_task_takes_results,
    a_cancelled_task_starts,
    a_running_task_starts_again,
    attempts_are_not_counted,
    there_is_one_retry_too_many,
    stale_reports_pass,
    versions_are_written_twice,
    a_paused_task_starts,
    a_held_task_starts,
    a_started_task_is_updated,
    a_pause_swallows_a_cancellation,
    workers_lost_while_pausing_are_forgiven,
    a_started_task_times_out_in_its_queue,
    a_task_is_cleaned_up_again_and_again,
    a_running_task_is_erased,
    the_wait_begins_anew_with_admission,
    a_failing_attempt_forgets_the_pause,
]


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_a_broken_rule_is_caught(breaking: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch)
    with pytest.raises(AssertionError):
        test_lives_by_plain_chance_are_sound()


def a_history(*data: EventData) -> list[Event]:
    task, events = ABSENT, list[Event]()
    for each in data:
        event, task = next_event(TASKS, "t1", task, each, source="test", at=NOW)
        events.append(event)
    return events


def test_the_machine_reaches_every_end() -> None:
    """What it never reaches it cannot judge."""
    seen = {event.type for seed in range(100) for event in wander(seed).log}
    assert seen >= TERMINAL_TYPES | AFTERLIFE
    assert seen >= {"submitted", "updated", "queued", "started", "retrying", "cancel_requested"}
    assert seen >= {"pause_requested", "paused", "resumed"}


def test_the_judge_accepts_no_history_and_a_first_event() -> None:
    assert violations([]) == []
    assert violations(a_history(submission())) == []
    assert isinstance(a_history(submission())[0].data, Submitted)


DONE = Completed(duration_s=0.1)
QUEUE_TIMEOUT = TimedOut(reason="queue_timeout", after_s=30.0)
LOST_WHILE_PAUSING = Paused(requested_by="eve", lost=True, confirmed_by="w1")
CHANGED = Updated(submission=submission(), changed=[], requested_by="bob")
CLEANED = Cleaned(requested_by="ada", reason="requested")
ERASED = Erased(requested_by="ada", events=[])
CANCELLED = Cancelled(requested_by="ada")
RESUMED = Queued(reason="resumed")

JUDGED: list[tuple[str, list[EventData]]] = [
    ("more than one terminal event", [submission(), CANCELLED, DONE]),
    ("something happened after the end", [submission(), CANCELLED, DUE]),
    ("cleaned before its end", [submission(), CLEANED, CANCELLED]),
    ("erased before its end", [submission(), ERASED]),
    ("given up more than once", [submission(), CANCELLED, CLEANED, CLEANED]),
    ("given up more than once", [submission(), CANCELLED, ERASED, CLEANED]),
    ("began while attempt 1 was current", [submission(), STARTED, STARTED]),
    ("began while attempt 1 was current", [submission(), STARTED, PAUSE_REQUESTED, FROZEN, STARTED]),
    ("began while the task was paused", [submission(), PAUSED, STARTED]),
    ("began while the task was paused", [submission(), STARTED, PAUSE_REQUESTED, RETRYING, STARTED]),
    ("held at its queue's gate", [submission(gated=True), STARTED]),
    ("held at its queue's gate", [submission(), HELD, STARTED]),
    ("although the task was not ready", [submission(scheduled_at=LATER), STARTED]),
    ("although the task was not ready", [submission(), STARTED, RETRYING, STARTED]),
    ("from the stale work item of version 1", [submission(), PAUSE_REQUESTED, STARTED]),
    ("changed at version 4, after it was started", [submission(), STARTED, INTERRUPTED, CHANGED]),
    ("timed out in its queue after it was started", [submission(), STARTED, INTERRUPTED, QUEUE_TIMEOUT]),
    ("retried more often than allowed", [submission(max_retries=0), STARTED, RETRYING]),
    (
        "too many lost workers",
        [submission(), STARTED, WORKER_LOST, STARTED, WORKER_LOST, STARTED, PAUSE_REQUESTED, LOST_WHILE_PAUSING],
    ),
    ("attempts, more than there was reason for", [submission(), STARTED, Queued(reason="reconciled"), STARTED]),
]


@pytest.mark.parametrize(("expected", "data"), JUDGED, ids=[expected for expected, _ in JUDGED])
def test_the_judge_finds_what_is_wrong(expected: str, data: list[EventData]) -> None:
    found = violations(a_history(*data))
    assert any(expected in line for line in found), found


def test_the_judge_finds_a_work_item_that_is_none() -> None:
    first, paused = a_history(submission(), PAUSED)
    assert violations([first, paused._replace(route=first.route)]) == ["version 2 is work although the task is paused"]


def test_the_judge_accepts_a_long_life() -> None:
    life = [
        submission(gated=True),
        ADMITTED,
        PAUSED,
        Queued(reason="resumed", held=True),
        ADMITTED,
        STARTED,
        PAUSE_REQUESTED,
        LOST_WHILE_PAUSING,
        RESUMED,
        STARTED,
        RETRYING,
        Queued(reason="retry_due"),
        STARTED,
        DONE,
        CLEANED,
        ERASED,
    ]
    assert violations(a_history(*life)) == []


NONSENSE: dict[str, Task] = {
    "waits for no time": Task(status=Status.RETRYING),
    "is to be cancelled by nobody": Task(status=Status.PAUSED, pause_requested_by="eve", cancel_requested_by="ada"),
    "may wait for ever": Task(status=Status.PENDING, version=1, ready=1, queue_timeout_s=1.0),
    "names other losses than it counts": Task(losses=1),
    "runs in nobody's hands": Task(status=Status.RUNNING),
}


@pytest.mark.parametrize("expected", NONSENSE)
def test_a_task_that_cannot_be_is_noticed(expected: str) -> None:
    assert nonsense(NONSENSE[expected]) == [expected]
