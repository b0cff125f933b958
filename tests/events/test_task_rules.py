"""The rules of a task's life, one by one: given a history, when a command comes, then these events follow, or none."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

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
from eventq.events.data import ErrorInfo, EventData
from eventq.events.errors import IllegalTransition, StaleAttempt, UnknownEvent
from eventq.events.limits import LOSSES_MAX
from eventq.events.subjects import Route
from eventq.events.task import (
    ABSENT,
    ACCEPTS,
    TERMINAL,
    Status,
    Task,
    decide,
    evolve,
    from_summary,
    replay,
    route_of,
    summary,
)
from eventq.events.task_events import (
    Cancelled,
    CancelRequested,
    Cleaned,
    Completed,
    Erased,
    ErasedEvent,
    Failed,
    LostAttempt,
    Paused,
    PauseRequested,
    Queued,
    Resumed,
    Retrying,
    Started,
    Submitted,
    TimedOut,
    Updated,
)
from eventq.events.worker_events import WorkerStopped
from tests.events.given import (
    ADMITTED,
    CANCEL_REQUESTED,
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
    SCHEDULED,
    STARTED,
    SUBMITTED,
    WORKER_LOST,
    given,
    submission,
)

COMPLETED = Completed(result={"rows": 3}, duration_s=0.5)
CANCELLED = Cancelled(requested_by="ada", reason="no longer needed")
EXHAUSTED = Failed(error=ERROR, reason="attempts_exhausted")
TIMED_OUT = TimedOut(reason="execution_timeout", after_s=60.0)
RESUMED = Resumed(requested_by="bob")
GATED = submission(gated=True)
HURRIED = submission(queue_timeout_s=30.0)
CLEANED = Cleaned(requested_by="ada", reason="requested")
ERASED = Erased(requested_by="ada", events=[])
STALE = NOW + timedelta(seconds=30)
"""When `HURRIED` times out in its queue."""

TASKS: dict[str, Task] = {
    "ABSENT": ABSENT,
    "SCHEDULED": given(SCHEDULED),
    "PENDING": given(SUBMITTED),
    "PENDING, held": given(GATED),
    "PENDING, admitted": given(GATED, ADMITTED),
    "PENDING, started before": given(SUBMITTED, STARTED, INTERRUPTED),
    "RUNNING": given(SUBMITTED, STARTED),
    "RUNNING, cancel requested": given(SUBMITTED, STARTED, CANCEL_REQUESTED),
    "RUNNING, pause requested": given(SUBMITTED, STARTED, PAUSE_REQUESTED),
    "RUNNING, both requested": given(SUBMITTED, STARTED, PAUSE_REQUESTED, CANCEL_REQUESTED),
    "RETRYING": given(SUBMITTED, STARTED, RETRYING),
    "PAUSED": given(SUBMITTED, PAUSED),
    "PAUSED, started before": given(SUBMITTED, STARTED, PAUSE_REQUESTED, PAUSED),
    "PAUSED, frozen": given(SUBMITTED, STARTED, PAUSE_REQUESTED, FROZEN),
    "PAUSED, frozen, cancel requested": given(SUBMITTED, STARTED, PAUSE_REQUESTED, FROZEN, CANCEL_REQUESTED),
    "COMPLETED": given(SUBMITTED, STARTED, COMPLETED),
    "FAILED": given(SUBMITTED, STARTED, EXHAUSTED),
    "TIMED_OUT": given(SUBMITTED, STARTED, TIMED_OUT),
    "CANCELLED": given(SUBMITTED, CANCELLED),
    "CANCELLED, cleaned": given(SUBMITTED, CANCELLED, CLEANED),
    "CANCELLED, erased": given(SUBMITTED, CANCELLED, ERASED),
}

START = StartAttempt(worker_id="w2", hostname="other", device="cuda:0")
CLEAN = CleanTask(requested_by="ada", reason="requested")
ERASE = EraseTask(requested_by="ada", reason=None, events=())


def complete(attempt: int = 1) -> CompleteAttempt:
    return CompleteAttempt(attempt=attempt, result={"rows": 3}, output=None, duration_s=0.5)


def fail(attempt: int = 1, retry_in_s: float | None = 300.0) -> FailAttempt:
    return FailAttempt(attempt=attempt, error=ERROR, retry_in_s=retry_in_s, now=NOW)


def time_out(attempt: int = 1, retry_in_s: float | None = 300.0) -> TimeOutAttempt:
    return TimeOutAttempt(attempt=attempt, after_s=60.0, retry_in_s=retry_in_s, now=NOW)


def pause_confirmed(attempt: int = 1, frozen: bool = False) -> ConfirmPause:
    return ConfirmPause(attempt=attempt, frozen=frozen)


def update(wanted: Submitted, *changed: str) -> UpdateTask:
    return UpdateTask(submission=wanted, changed=changed, requested_by="bob", now=NOW)


def updated(wanted: Submitted, *changed: str) -> Updated:
    return Updated(submission=wanted, changed=list(changed), requested_by="bob")


def commands_for(task: Task) -> list[Command]:
    """Every command, each as well-informed about `task` as can be: only the status can speak against it."""
    return [
        SubmitTask(submission=SUBMITTED, now=NOW),
        START,
        complete(task.attempt),
        fail(task.attempt),
        time_out(task.attempt),
        InterruptAttempt(attempt=task.attempt),
        ExpireLease(attempt=task.attempt),
        PromoteTask(version=task.version, now=LATER),
        RequeueTask(version=task.version),
        HoldTask(version=task.version),
        AdmitTask(version=task.version),
        ExpireQueueWait(now=LATER),
        CancelTask(requested_by="ada"),
        ConfirmCancel(attempt=task.attempt),
        PauseTask(requested_by="eve"),
        pause_confirmed(task.attempt),
        ResumeTask(requested_by="bob", now=NOW),
        update(submission(priority=9), "priority"),
        CLEAN,
        ERASE,
    ]


# Written out by hand: a table derived from ACCEPTS would agree with whatever ACCEPTS says.
REPORTS = {"CompleteAttempt", "FailAttempt", "TimeOutAttempt", "InterruptAttempt", "ExpireLease", "ConfirmCancel"}
IN_QUEUE = {"RequeueTask", "HoldTask", "AdmitTask", "ExpireQueueWait", "CancelTask", "PauseTask"}
ADMITTED_IN: dict[str, set[str]] = {
    "ABSENT": {"SubmitTask"},
    "SCHEDULED": {"PromoteTask", "CancelTask", "PauseTask", "UpdateTask"},
    "PENDING": IN_QUEUE | {"StartAttempt", "UpdateTask"},
    "PENDING, held": IN_QUEUE | {"UpdateTask"},
    "PENDING, admitted": IN_QUEUE | {"StartAttempt", "UpdateTask"},
    "PENDING, started before": IN_QUEUE | {"StartAttempt"},
    "RUNNING": REPORTS | {"CancelTask", "PauseTask"},
    "RUNNING, cancel requested": REPORTS | {"CancelTask"},
    "RUNNING, pause requested": REPORTS | {"CancelTask", "PauseTask", "ConfirmPause", "ResumeTask"},
    "RUNNING, both requested": REPORTS | {"CancelTask", "ConfirmPause", "ResumeTask"},
    "RETRYING": {"PromoteTask", "CancelTask", "PauseTask"},
    "PAUSED": {"CancelTask", "PauseTask", "ResumeTask", "UpdateTask"},
    "PAUSED, started before": {"CancelTask", "PauseTask", "ResumeTask"},
    "PAUSED, frozen": REPORTS | {"CancelTask", "PauseTask", "ResumeTask"},
    "PAUSED, frozen, cancel requested": REPORTS | {"CancelTask", "ResumeTask"},
    "COMPLETED": {"CleanTask", "EraseTask"},
    "FAILED": {"CleanTask", "EraseTask"},
    "TIMED_OUT": {"CleanTask", "EraseTask"},
    "CANCELLED": {"CleanTask", "EraseTask"},
    "CANCELLED, cleaned": {"CleanTask", "EraseTask"},
    "CANCELLED, erased": {"CleanTask", "EraseTask"},
}
NOT_IN_HAND = {"PAUSED", "PAUSED, started before"}
"""Here a report is refused for what it says of the attempt, not for the status."""

CELLS = [(where, command) for where, task in TASKS.items() for command in commands_for(task)]


@pytest.mark.parametrize(("where", "command"), CELLS, ids=[f"{where}-{type(command).__name__}" for where, command in CELLS])
def test_each_status_admits_these_commands_and_no_others(where: str, command: Command) -> None:
    task = TASKS[where]
    before = summary(task)

    if type(command).__name__ in ADMITTED_IN[where]:
        decide(command, task)
    elif where in NOT_IN_HAND and type(command).__name__ in REPORTS:
        with pytest.raises(StaleAttempt):
            decide(command, task)
    else:
        with pytest.raises(IllegalTransition) as refused:
            decide(command, task)
        assert refused.value.fields == {"status": str(task.status)}

    assert summary(task) == before


def test_the_table_covers_every_command_and_every_status() -> None:
    assert set(ACCEPTS) == {type(command) for command in commands_for(ABSENT)}
    assert {task.status for task in TASKS.values()} == set(Status)
    assert {command for command, statuses in ACCEPTS.items() if statuses & TERMINAL} == {CleanTask, EraseTask}


@pytest.mark.parametrize("attempt", [0, 1, 3, 99])
@pytest.mark.parametrize("report", [complete, fail, time_out, InterruptAttempt, ExpireLease, ConfirmCancel, pause_confirmed])
def test_a_report_of_another_attempt_is_refused(report: type[Command], attempt: int) -> None:
    task = given(SUBMITTED, STARTED, WORKER_LOST, STARTED)

    with pytest.raises(StaleAttempt) as refused:
        decide(report(attempt), task)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]

    assert refused.value.fields == {"reported": attempt, "current": 2}


def when(command: Command, *history: EventData) -> list[EventData]:
    return decide(command, given(*history))


def then_nothing_happened(decided: list[EventData]) -> None:
    assert decided == []


def test_a_task_that_may_run_now_is_pending() -> None:
    assert when(SubmitTask(SUBMITTED, NOW)) == [SUBMITTED]
    assert given(SUBMITTED).status is Status.PENDING
    assert given(SUBMITTED).ready == 1


def test_a_task_that_may_run_later_is_scheduled_and_not_ready() -> None:
    assert when(SubmitTask(SCHEDULED, NOW)) == [SCHEDULED]
    assert given(SCHEDULED).status is Status.SCHEDULED
    assert given(SCHEDULED).ready == 0
    assert given(SCHEDULED).due_at == LATER


def test_a_time_that_has_passed_is_now() -> None:
    late = submission(scheduled_at=NOW - timedelta(seconds=1))
    assert route_of(given(late)) == Route("cpu", "default", 5)
    assert given(late).status is Status.PENDING
    assert given(late).due_at is None


def test_starting_counts_the_attempt_and_names_its_worker() -> None:
    assert when(START, SUBMITTED) == [Started(worker_id="w2", hostname="other", device="cuda:0")]
    running = given(SUBMITTED, STARTED)
    assert (running.status, running.attempt, running.worker_id) == (Status.RUNNING, 1, "w1")


def test_the_second_worker_to_start_is_refused() -> None:
    with pytest.raises(IllegalTransition, match="cannot start a task with status RUNNING"):
        when(START, SUBMITTED, STARTED)


def test_the_result_ends_the_task() -> None:
    assert when(complete(), SUBMITTED, STARTED) == [COMPLETED]
    assert given(SUBMITTED, STARTED, COMPLETED).finished


def test_a_finished_task_refuses_a_second_result() -> None:
    with pytest.raises(IllegalTransition):
        when(complete(), SUBMITTED, STARTED, COMPLETED)


def test_a_failure_with_a_retry_left_is_retried_at_its_time() -> None:
    assert when(fail(), SUBMITTED, STARTED) == [Retrying(error=ERROR, reason="error", due_at=LATER)]
    retrying = given(SUBMITTED, STARTED, RETRYING)
    assert (retrying.status, retrying.failures, retrying.due_at, retrying.worker_id) == (Status.RETRYING, 1, LATER, None)


def test_the_last_failure_leaves_no_retry() -> None:
    twice = (SUBMITTED, STARTED, RETRYING, DUE, STARTED, RETRYING, DUE, STARTED)
    assert when(fail(attempt=3), *twice) == [Failed(error=ERROR, reason="attempts_exhausted")]


def test_a_task_without_retries_fails_at_once() -> None:
    assert when(fail(), submission(max_retries=0), STARTED) == [EXHAUSTED]


def test_a_failure_that_no_retry_can_help_is_not_retried() -> None:
    assert when(fail(retry_in_s=None), SUBMITTED, STARTED) == [Failed(error=ERROR, reason="not_retryable")]


def test_a_timeout_is_retried_like_a_failure_and_says_so() -> None:
    [retrying] = when(time_out(), SUBMITTED, STARTED)
    assert isinstance(retrying, Retrying)
    assert (retrying.reason, retrying.error.type, retrying.due_at) == ("execution_timeout", "ExecutionTimeout", LATER)


def test_the_last_timeout_ends_the_task_as_timed_out() -> None:
    assert when(time_out(), submission(max_retries=0), STARTED) == [TIMED_OUT]
    assert given(submission(max_retries=0), STARTED, TIMED_OUT).failures == 1


def test_an_interruption_costs_neither_a_retry_nor_a_loss() -> None:
    assert when(InterruptAttempt(1), SUBMITTED, STARTED) == [INTERRUPTED]
    pending = given(SUBMITTED, STARTED, INTERRUPTED)
    assert (pending.status, pending.failures, pending.losses, pending.attempt) == (Status.PENDING, 0, 0, 1)
    assert pending.ready == pending.version == 3


def test_a_lost_worker_s_task_is_queued_again_and_the_loss_counted() -> None:
    assert when(ExpireLease(1), SUBMITTED, STARTED) == [WORKER_LOST]
    assert given(SUBMITTED, STARTED, WORKER_LOST).losses == 1


def test_a_task_that_cost_too_many_workers_is_poison() -> None:
    lost = (STARTED, WORKER_LOST) * (LOSSES_MAX - 1)
    [failed] = when(ExpireLease(LOSSES_MAX), SUBMITTED, *lost, STARTED)
    assert isinstance(failed, Failed)
    assert failed.reason == "poison"
    assert given(SUBMITTED, *lost, STARTED, failed).losses == LOSSES_MAX
    assert given(SUBMITTED, *lost, STARTED, failed).failures == 0
    assert failed.evidence == [LostAttempt(attempt=number + 1, worker_id="w1") for number in range(LOSSES_MAX)]


@pytest.mark.parametrize(
    ("history", "reason"), [((SCHEDULED,), "due"), ((SUBMITTED, STARTED, RETRYING), "retry_due")], ids=["first", "retry"]
)
def test_a_waiting_task_is_promoted_when_its_time_has_come(history: tuple[EventData, ...], reason: str) -> None:
    [queued] = when(PromoteTask(version=len(history), now=LATER), *history)
    assert isinstance(queued, Queued)
    assert queued.reason == reason
    promoted = given(*history, queued)
    assert (promoted.status, promoted.due_at, promoted.ready) == (Status.PENDING, None, len(history) + 1)


def test_a_timer_that_fires_early_does_nothing() -> None:
    then_nothing_happened(when(PromoteTask(version=1, now=LATER - timedelta(microseconds=1)), SCHEDULED))


def test_a_timer_of_an_older_version_does_nothing() -> None:
    then_nothing_happened(when(PromoteTask(version=3, now=LATER), SUBMITTED, STARTED, RETRYING, DUE, STARTED, RETRYING))


def test_a_lost_work_item_is_made_anew() -> None:
    assert when(RequeueTask(version=1), SUBMITTED) == [Queued(reason="reconciled")]


def test_requeueing_what_was_requeued_does_nothing() -> None:
    then_nothing_happened(when(RequeueTask(version=1), SUBMITTED, Queued(reason="reconciled")))


@pytest.mark.parametrize("history", [(SCHEDULED,), (SUBMITTED,), (SUBMITTED, STARTED, RETRYING)], ids=len)
def test_a_waiting_task_is_cancelled_at_once(history: tuple[EventData, ...]) -> None:
    assert when(CancelTask("ada", "no longer needed"), *history) == [CANCELLED]
    assert given(*history, CANCELLED).due_at is None


def test_a_running_task_is_asked_to_stop() -> None:
    assert when(CancelTask("ada", "no longer needed"), SUBMITTED, STARTED) == [CANCEL_REQUESTED]
    assert given(SUBMITTED, STARTED, CANCEL_REQUESTED).status is Status.RUNNING


def test_asking_twice_changes_nothing() -> None:
    then_nothing_happened(when(CancelTask("bob"), SUBMITTED, STARTED, CANCEL_REQUESTED))


def test_a_cancelled_task_refuses_to_start() -> None:
    with pytest.raises(IllegalTransition, match="cannot start a task with status CANCELLED"):
        when(START, SUBMITTED, CANCELLED)


@pytest.mark.parametrize("end", [fail(), time_out(), InterruptAttempt(1), ExpireLease(1), ConfirmCancel(1)], ids=repr)
def test_a_task_somebody_wants_cancelled_is_not_run_again(end: Command) -> None:
    confirmed = Cancelled(requested_by="ada", reason="no longer needed", confirmed_by="w1")
    assert when(end, SUBMITTED, STARTED, CANCEL_REQUESTED) == [confirmed]


def test_a_result_that_came_before_the_cancellation_counts() -> None:
    assert when(complete(), SUBMITTED, STARTED, CANCEL_REQUESTED) == [COMPLETED]


@pytest.mark.parametrize("where", TASKS)
def test_the_summary_is_the_task(where: str) -> None:
    assert from_summary(summary(TASKS[where])) == TASKS[where]


def test_folding_leaves_the_task_before_untouched() -> None:
    pending = given(SUBMITTED)
    running = evolve(pending, "e2", NOW, STARTED)
    assert (pending.version, pending.attempt, running.version) == (1, 0, 2)


def test_a_worker_s_event_is_no_event_of_a_task() -> None:
    with pytest.raises(IllegalTransition, match="WorkerStopped"):
        evolve(given(SUBMITTED), "e2", NOW, WorkerStopped(reason="done"))


def test_an_error_s_traceback_is_kept() -> None:
    error = ErrorInfo(type="E", message="m", traceback="line 1")
    [failed] = when(FailAttempt(1, error, None, NOW), SUBMITTED, STARTED)
    assert isinstance(failed, Failed)
    assert failed.error.traceback == "line 1"


def test_cancel_requested_is_a_fact_of_its_own() -> None:
    requested = given(SUBMITTED, STARTED, CancelRequested(requested_by="ada", reason=None))
    assert (requested.cancel_requested_by, requested.version, requested.attempt) == ("ada", 3, 1)


# Pause and resume


@pytest.mark.parametrize("history", [(SCHEDULED,), (SUBMITTED,), (GATED,), (SUBMITTED, STARTED, RETRYING)], ids=len)
def test_a_waiting_task_is_paused_at_once(history: tuple[EventData, ...]) -> None:
    assert when(PauseTask("eve", "machine needed"), *history) == [PAUSED]
    paused = given(*history, PAUSED)
    assert (paused.status, paused.ready, paused.frozen, paused.in_hand) == (Status.PAUSED, 0, False, False)
    assert paused.due_at == given(*history).due_at


def test_a_running_task_is_asked_to_pause() -> None:
    assert when(PauseTask("eve", "machine needed"), SUBMITTED, STARTED) == [PAUSE_REQUESTED]
    assert given(SUBMITTED, STARTED, PAUSE_REQUESTED).status is Status.RUNNING


@pytest.mark.parametrize(
    "history",
    [(SUBMITTED, STARTED, PAUSE_REQUESTED), (SUBMITTED, STARTED, PAUSE_REQUESTED, FROZEN), (SUBMITTED, PAUSED)],
    ids=["asked for", "frozen", "waiting"],
)
def test_asking_to_pause_twice_changes_nothing(history: tuple[EventData, ...]) -> None:
    then_nothing_happened(when(PauseTask("bob"), *history))


def test_a_task_that_is_being_cancelled_is_not_paused() -> None:
    with pytest.raises(IllegalTransition, match="cannot pause a task that is being cancelled"):
        when(PauseTask("eve"), SUBMITTED, STARTED, CANCEL_REQUESTED)


def test_an_attempt_that_ended_for_a_pause_leaves_a_task_that_begins_anew() -> None:
    [paused] = when(pause_confirmed(), SUBMITTED, STARTED, PAUSE_REQUESTED)
    assert paused == Paused(requested_by="eve", reason="machine needed", confirmed_by="w1")
    task = given(SUBMITTED, STARTED, PAUSE_REQUESTED, paused)
    assert (task.status, task.worker_id, task.attempt, task.failures, task.losses) == (Status.PAUSED, None, 1, 0, 0)


def test_a_frozen_attempt_stays_with_its_worker() -> None:
    [paused] = when(pause_confirmed(frozen=True), SUBMITTED, STARTED, PAUSE_REQUESTED)
    assert paused == FROZEN
    task = given(SUBMITTED, STARTED, PAUSE_REQUESTED, FROZEN)
    assert (task.status, task.worker_id, task.ready, task.in_hand) == (Status.PAUSED, "w1", 1, True)


def test_a_pause_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(IllegalTransition, match="nobody asked to pause"):
        when(pause_confirmed(), SUBMITTED, STARTED)


@pytest.mark.parametrize(
    ("history", "status"),
    [((SCHEDULED, PAUSED), Status.SCHEDULED), ((SUBMITTED, STARTED, RETRYING, PAUSED), Status.RETRYING)],
    ids=["first", "retry"],
)
def test_a_resumed_task_waits_again_while_its_time_lies_ahead(history: tuple[EventData, ...], status: Status) -> None:
    assert when(ResumeTask("bob", LATER - timedelta(microseconds=1)), *history) == [RESUMED]
    resumed = given(*history, RESUMED)
    assert (resumed.status, resumed.due_at, resumed.ready, resumed.pause_requested_by) == (status, LATER, 0, None)


@pytest.mark.parametrize("history", [(SCHEDULED, PAUSED), (SUBMITTED, STARTED, RETRYING, PAUSED), (SUBMITTED, PAUSED)], ids=len)
def test_a_resumed_task_whose_time_has_come_is_ready(history: tuple[EventData, ...]) -> None:
    assert when(ResumeTask("bob", LATER), *history) == [Queued(reason="resumed")]
    ready = given(*history, Queued(reason="resumed"))
    assert (ready.status, ready.due_at, ready.ready) == (Status.PENDING, None, len(history) + 1)
    assert (ready.pause_requested_by, ready.pause_reason) == (None, None)


def test_a_resumed_task_of_a_gated_queue_waits_for_admission_again() -> None:
    [queued] = when(ResumeTask("bob", NOW), GATED, ADMITTED, PAUSED)
    assert queued == Queued(reason="resumed", held=True)
    assert given(GATED, ADMITTED, PAUSED, queued).held


def test_a_frozen_attempt_goes_on_as_the_same_attempt() -> None:
    frozen = (SUBMITTED, STARTED, PAUSE_REQUESTED, FROZEN)
    assert when(ResumeTask("bob", NOW), *frozen) == [RESUMED]
    running = given(*frozen, RESUMED)
    assert (running.status, running.attempt, running.worker_id, running.ready) == (Status.RUNNING, 1, "w1", 1)
    assert running.pause_requested_by is None
    assert decide(complete(1), running) == [COMPLETED]


def test_a_pause_can_be_withdrawn_before_it_takes_effect() -> None:
    asked = (SUBMITTED, STARTED, PAUSE_REQUESTED)
    assert when(ResumeTask("bob", NOW), *asked) == [RESUMED]
    running = given(*asked, RESUMED)
    assert (running.status, running.pause_requested_by, running.pause_reason) == (Status.RUNNING, None, None)
    with pytest.raises(IllegalTransition, match="nobody asked to pause"):
        decide(pause_confirmed(), running)
    assert decide(InterruptAttempt(1), running) == [INTERRUPTED]


@pytest.mark.parametrize("failure", [fail(), time_out()], ids=["error", "timeout"])
def test_a_pause_that_was_asked_for_survives_a_failing_attempt(failure: Command) -> None:
    [retrying] = when(failure, SUBMITTED, STARTED, PAUSE_REQUESTED)
    assert isinstance(retrying, Retrying)
    paused = given(SUBMITTED, STARTED, PAUSE_REQUESTED, retrying)
    assert (paused.status, paused.failures, paused.due_at) == (Status.PAUSED, 1, LATER)
    assert (paused.worker_id, paused.pause_requested_by) == (None, "eve")
    assert decide(ResumeTask("bob", NOW), paused) == [RESUMED]
    assert decide(ResumeTask("bob", LATER), paused) == [Queued(reason="resumed")]
    with pytest.raises(IllegalTransition):
        decide(PromoteTask(paused.version, LATER), paused)


def test_a_frozen_attempt_may_be_stopped_at_its_time_limit_and_the_task_stays_paused() -> None:
    [retrying] = when(time_out(), SUBMITTED, STARTED, PAUSE_REQUESTED, FROZEN)
    paused = given(SUBMITTED, STARTED, PAUSE_REQUESTED, FROZEN, retrying)
    assert (paused.status, paused.frozen) == (Status.PAUSED, False)


@pytest.mark.parametrize("history", [(PAUSE_REQUESTED,), (PAUSE_REQUESTED, FROZEN)], ids=["requested", "frozen"])
def test_an_interrupted_attempt_of_a_task_to_be_paused_leaves_it_paused(history: tuple[EventData, ...]) -> None:
    [paused] = when(InterruptAttempt(1), SUBMITTED, STARTED, *history)
    assert paused == Paused(requested_by="eve", reason="machine needed", confirmed_by="w1")
    task = given(SUBMITTED, STARTED, *history, paused)
    assert (task.status, task.in_hand, task.losses, task.ready) == (Status.PAUSED, False, 0, 0)


@pytest.mark.parametrize("history", [(PAUSE_REQUESTED,), (PAUSE_REQUESTED, FROZEN)], ids=["requested", "frozen"])
def test_a_lost_attempt_of_a_task_to_be_paused_leaves_it_paused_and_is_counted(history: tuple[EventData, ...]) -> None:
    [paused] = when(ExpireLease(1), SUBMITTED, STARTED, *history)
    assert paused == Paused(requested_by="eve", reason="machine needed", lost=True, confirmed_by="w1")
    task = given(SUBMITTED, STARTED, *history, paused)
    assert (task.status, task.in_hand, task.losses, task.lost) == (Status.PAUSED, False, 1, ("1:w1",))


def test_workers_lost_while_pausing_count_towards_poison() -> None:
    lost = Paused(requested_by="eve", lost=True, confirmed_by="w1")
    once = (STARTED, PAUSE_REQUESTED, lost, Queued(reason="resumed"))
    [failed] = when(ExpireLease(3), SUBMITTED, *once, STARTED, WORKER_LOST, STARTED, PAUSE_REQUESTED)
    assert isinstance(failed, Failed)
    assert (failed.reason, [each.attempt for each in failed.evidence]) == ("poison", [1, 2, 3])


# Cancel what is paused


def test_a_paused_task_is_cancelled_at_once() -> None:
    assert when(CancelTask("ada", "no longer needed"), SUBMITTED, PAUSED) == [CANCELLED]


def test_a_frozen_attempt_is_asked_to_stop_and_stays_in_its_worker_s_hands() -> None:
    frozen = (SUBMITTED, STARTED, PAUSE_REQUESTED, FROZEN)
    assert when(CancelTask("ada", "no longer needed"), *frozen) == [CANCEL_REQUESTED]
    stopping = given(*frozen, CANCEL_REQUESTED)
    assert (stopping.status, stopping.in_hand, stopping.cancel_requested_by) == (Status.PAUSED, True, "ada")
    confirmed = Cancelled(requested_by="ada", reason="no longer needed", confirmed_by="w1", steps=["SIGKILL"])
    assert decide(ConfirmCancel(1, ("SIGKILL",)), stopping) == [confirmed]
    assert decide(ExpireLease(1), stopping) == [confirmed.model_copy(update={"steps": []})]
    assert decide(InterruptAttempt(1), stopping) == [confirmed.model_copy(update={"steps": []})]


def test_an_attempt_that_ends_for_a_pause_is_cancelled_where_that_was_asked_for_since() -> None:
    """Nobody would be left to confirm the cancellation, and a resumed task would run."""
    asked = (SUBMITTED, STARTED, PAUSE_REQUESTED, CANCEL_REQUESTED)
    confirmed = Cancelled(requested_by="ada", reason="no longer needed", confirmed_by="w1")
    assert when(pause_confirmed(), *asked) == [confirmed]
    assert when(pause_confirmed(frozen=True), *asked) == [FROZEN]
    assert given(*asked, FROZEN).in_hand


# Update


def test_an_update_of_a_ready_task_is_itself_the_work_item_and_goes_where_it_says() -> None:
    wanted = submission(pool="gpu", queue="big", priority=9, max_retries=0, key="k", args=[1])
    assert when(update(wanted, "pool", "queue"), SUBMITTED) == [updated(wanted, "pool", "queue")]
    task = given(SUBMITTED, updated(wanted))
    assert (task.status, task.version, task.ready, task.spec) == (Status.PENDING, 2, 2, 2)
    assert (task.max_retries, task.key) == (0, "k")
    assert route_of(task) == Route("gpu", "big", 9)


def test_an_update_may_put_a_ready_task_off() -> None:
    wanted = submission(scheduled_at=LATER, queue_timeout_s=30.0)
    task = given(HURRIED, updated(wanted))
    assert (task.status, task.due_at, task.ready, task.start_by) == (Status.SCHEDULED, LATER, 0, None)
    assert route_of(task) is None


def test_an_update_may_make_a_scheduled_task_ready_now() -> None:
    task = given(SCHEDULED, updated(HURRIED))
    assert (task.status, task.due_at, task.ready, task.start_by) == (Status.PENDING, None, 2, STALE)


@pytest.mark.parametrize("scheduled_at", [None, LATER])
def test_an_updated_task_that_is_paused_stays_so(scheduled_at: Any) -> None:
    wanted = submission(scheduled_at=scheduled_at, priority=9, queue_timeout_s=30.0)
    task = given(SUBMITTED, PAUSED, updated(wanted))
    assert (task.status, task.ready, task.due_at, task.start_by) == (Status.PAUSED, 0, scheduled_at, None)
    assert (task.priority, task.pause_requested_by) == (9, "eve")
    expected = Queued(reason="resumed") if scheduled_at is None else RESUMED
    assert decide(ResumeTask("bob", NOW), task) == [expected]


def test_an_updated_task_that_is_held_stays_so() -> None:
    task = given(GATED, updated(submission(gated=True, priority=9)))
    assert (task.held, task.priority, route_of(task)) == (True, 9, None)


@pytest.mark.parametrize("before", [(SUBMITTED, HELD), (SUBMITTED, HELD, ADMITTED)], ids=["held", "admitted"])
def test_an_update_does_not_pass_by_the_gate_of_a_queue_that_got_its_limits_later(before: tuple[EventData, ...]) -> None:
    task = given(*before, updated(submission(priority=9)))
    assert (task.held, task.gated, route_of(task)) == (True, True, None)


def test_an_update_to_another_queue_leaves_the_gate_of_the_first() -> None:
    task = given(SUBMITTED, HELD, updated(submission(queue="free")))
    assert (task.held, task.gated, route_of(task)) == (False, False, Route("cpu", "free", 5))


@pytest.mark.parametrize("history", [(STARTED, INTERRUPTED), (STARTED, PAUSE_REQUESTED, PAUSED)], ids=["pending", "paused"])
def test_a_task_that_was_started_once_is_not_updated(history: tuple[EventData, ...]) -> None:
    with pytest.raises(IllegalTransition, match="cannot update a task that has been started"):
        when(update(SUBMITTED), SUBMITTED, *history)


# Time-outs


@pytest.mark.parametrize(
    ("history", "start_by"),
    [
        ((HURRIED,), STALE),
        ((submission(queue_timeout_s=30.0, scheduled_at=LATER),), None),
        ((submission(queue_timeout_s=30.0, scheduled_at=LATER), DUE), STALE),
        ((submission(queue_timeout_s=30.0, gated=True),), STALE),
        ((HURRIED, STARTED), None),
        ((HURRIED, PAUSED), None),
        ((HURRIED, STARTED, INTERRUPTED), None),
        ((HURRIED, STARTED, RETRYING, DUE), None),
    ],
    ids=["ready", "scheduled", "due", "held", "started", "paused", "interrupted", "retried"],
)
def test_the_wait_in_the_queue_begins_when_the_task_becomes_ready_and_ends_with_its_first_start(
    history: tuple[EventData, ...], start_by: Any
) -> None:
    assert given(*history).start_by == start_by


def later(*steps: tuple[int, EventData]) -> Task:
    """The task after these events, each written so many seconds after `NOW`."""
    return replay((f"e{n}", NOW + timedelta(seconds=after), data) for n, (after, data) in enumerate(steps, 1))


@pytest.mark.parametrize(
    "data",
    [HELD, Queued(reason="reconciled"), updated(submission(queue_timeout_s=30.0, priority=9))],
    ids=["held", "requeued", "updated"],
)
def test_the_wait_in_the_queue_is_not_begun_anew(data: EventData) -> None:
    assert later((0, HURRIED), (20, data)).start_by == STALE
    assert later((0, HURRIED), (20, HELD), (25, ADMITTED)).start_by == STALE


def test_a_wait_of_another_length_or_after_a_pause_begins_anew() -> None:
    assert later((0, HURRIED), (20, updated(submission(queue_timeout_s=60.0)))).start_by == NOW + timedelta(seconds=80)
    assert later((0, HURRIED), (20, PAUSED), (300, Queued(reason="resumed"))).start_by == NOW + timedelta(seconds=330)


@pytest.mark.parametrize("history", [(HURRIED,), (HURRIED, HELD)], ids=["ready", "held"])
def test_a_task_that_nobody_started_in_time_times_out(history: tuple[EventData, ...]) -> None:
    [timed_out] = when(ExpireQueueWait(STALE), *history)
    assert timed_out == TimedOut(reason="queue_timeout", after_s=30.0)
    task = given(*history, timed_out)
    assert (task.status, task.reason, task.failures, task.start_by) == (Status.TIMED_OUT, "queue_timeout", 0, None)


@pytest.mark.parametrize(
    ("history", "now"),
    [((HURRIED,), STALE - timedelta(microseconds=1)), ((SUBMITTED,), STALE), ((HURRIED, STARTED, INTERRUPTED), STALE)],
    ids=["early", "no limit", "started before"],
)
def test_a_wait_that_is_not_over_changes_nothing(history: tuple[EventData, ...], now: Any) -> None:
    then_nothing_happened(when(ExpireQueueWait(now), *history))


def test_an_attempt_that_said_nothing_for_too_long_is_retried_and_says_so() -> None:
    silent = TimeOutAttempt(1, 5.0, 300.0, NOW, reason="heartbeat_timeout", steps=("asked", "SIGTERM"))
    [retrying] = when(silent, SUBMITTED, STARTED)
    assert isinstance(retrying, Retrying)
    assert (retrying.reason, retrying.error.type, retrying.steps) == (
        "heartbeat_timeout",
        "HeartbeatTimeout",
        ["asked", "SIGTERM"],
    )
    assert when(silent, submission(max_retries=0), STARTED) == [
        TimedOut(reason="heartbeat_timeout", after_s=5.0, steps=["asked", "SIGTERM"])
    ]


# The gate


def test_a_task_of_a_gated_queue_is_held_and_no_work() -> None:
    held = given(GATED)
    assert (held.status, held.ready, held.held, route_of(held)) == (Status.PENDING, 0, True, None)
    with pytest.raises(IllegalTransition, match="cannot start a task that waits for its queue's admission"):
        decide(START, held)


def test_a_held_task_is_admitted_and_becomes_work() -> None:
    assert when(AdmitTask(1), GATED) == [ADMITTED]
    admitted = given(GATED, ADMITTED)
    assert (admitted.ready, admitted.held, route_of(admitted)) == (2, False, Route("cpu", "default", 5))


def test_a_ready_task_is_held_once_its_queue_has_limits() -> None:
    assert when(HoldTask(1), SUBMITTED) == [HELD]
    held = given(SUBMITTED, HELD)
    assert (held.held, held.gated, route_of(held)) == (True, True, None)


@pytest.mark.parametrize(
    ("command", "history"),
    [
        (AdmitTask(1), (GATED, updated(GATED))),
        (AdmitTask(1), (SUBMITTED,)),
        (HoldTask(1), (SUBMITTED, Queued(reason="reconciled"))),
        (HoldTask(2), (SUBMITTED, HELD)),
        (RequeueTask(1), (GATED,)),
        (RequeueTask(1), (GATED, ADMITTED)),
    ],
    ids=["admitted: changed since", "admitted: free", "held: ready anew", "held twice", "requeued: held", "requeued: admitted"],
)
def test_the_gate_does_nothing_on_an_outdated_view_or_where_it_is_done(
    command: Command, history: tuple[EventData, ...]
) -> None:
    then_nothing_happened(when(command, *history))


@pytest.mark.parametrize("history", [(submission(gated=True, scheduled_at=LATER),), (GATED, ADMITTED, STARTED, RETRYING)])
def test_a_task_of_a_gated_queue_whose_time_has_come_is_held(history: tuple[EventData, ...]) -> None:
    [queued] = when(PromoteTask(len(history), LATER), *history)
    assert isinstance(queued, Queued)
    assert queued.held
    assert given(*history, queued).held


@pytest.mark.parametrize("end", [InterruptAttempt(1), ExpireLease(1)], ids=["interrupted", "lost"])
def test_an_attempt_handed_back_needs_no_new_admission(end: Command) -> None:
    [queued] = when(end, GATED, ADMITTED, STARTED)
    assert not given(GATED, ADMITTED, STARTED, queued).held


# After the end


@pytest.mark.parametrize(
    "end", [COMPLETED, EXHAUSTED, TIMED_OUT, Cancelled(requested_by="ada")], ids=lambda end: type(end).__name__
)
def test_a_finished_task_is_cleaned_up_once_and_stays_what_it_was(end: EventData) -> None:
    finished = (SUBMITTED, STARTED, end)
    assert when(CleanTask("ada", "requested"), *finished) == [Cleaned(requested_by="ada", reason="requested")]
    cleaned = given(*finished, CLEANED)
    assert cleaned == given(*finished)._replace(version=4, event_id="e4", cleaned=True)
    then_nothing_happened(decide(CLEAN, cleaned))


def test_a_finished_task_is_erased_once_whether_cleaned_up_or_not() -> None:
    left = ErasedEvent(position=1, subject="tasks.t1.1.submitted", event={"version": 1})
    erase = EraseTask("ada", "asked by the customer", (left,), ("b1",))
    gone = Erased(requested_by="ada", reason="asked by the customer", events=[left], blobs=["b1"])
    assert when(erase, SUBMITTED, CANCELLED) == [gone]
    assert when(erase, SUBMITTED, CANCELLED, CLEANED) == [gone]
    erased = given(SUBMITTED, CANCELLED, gone)
    assert (erased.status, erased.erased, erased.version) == (Status.CANCELLED, True, 3)
    then_nothing_happened(decide(ERASE, erased))
    then_nothing_happened(decide(CLEAN, erased))


# The state


def test_a_pause_requested_is_a_fact_of_its_own() -> None:
    requested = given(SUBMITTED, STARTED, PauseRequested(requested_by="eve", reason=None))
    assert (requested.pause_requested_by, requested.version, requested.attempt) == ("eve", 3, 1)


@pytest.mark.parametrize("state", [{"status": "DREAMING"}, {"status": "PENDING", "colour": "red"}, {"due_at": "tomorrow"}])
def test_a_state_that_a_newer_program_wrote_is_unknown(state: dict[str, Any]) -> None:
    with pytest.raises(UnknownEvent, match="newer version"):
        from_summary(state)
