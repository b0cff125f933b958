"""The rules of a task's life, one by one: given a history, when a command comes, then these events follow, or none."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

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
from eventq.events.data import ErrorInfo, EventData
from eventq.events.errors import IllegalTransition, StaleAttempt
from eventq.events.limits import LOSSES_MAX
from eventq.events.task import ABSENT, ACCEPTS, TERMINAL, Status, Task, decide, evolve, from_summary, makes_ready, summary
from eventq.events.task_events import Cancelled, CancelRequested, Completed, Failed, Queued, Retrying, Started, TimedOut
from eventq.events.worker_events import WorkerStopped
from tests.events.given import (
    CANCEL_REQUESTED,
    DUE,
    ERROR,
    INTERRUPTED,
    LATER,
    NOW,
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

TASKS: dict[str, Task] = {
    "ABSENT": ABSENT,
    "SCHEDULED": given(SCHEDULED),
    "PENDING": given(SUBMITTED),
    "RUNNING": given(SUBMITTED, STARTED),
    "RUNNING, cancel requested": given(SUBMITTED, STARTED, CANCEL_REQUESTED),
    "RETRYING": given(SUBMITTED, STARTED, RETRYING),
    "COMPLETED": given(SUBMITTED, STARTED, COMPLETED),
    "FAILED": given(SUBMITTED, STARTED, EXHAUSTED),
    "TIMED_OUT": given(SUBMITTED, STARTED, TIMED_OUT),
    "CANCELLED": given(SUBMITTED, CANCELLED),
}

START = StartAttempt(worker_id="w2", hostname="other", device="cuda:0")


def complete(attempt: int = 1) -> CompleteAttempt:
    return CompleteAttempt(attempt=attempt, result={"rows": 3}, output=None, duration_s=0.5)


def fail(attempt: int = 1, retry_in_s: float | None = 300.0) -> FailAttempt:
    return FailAttempt(attempt=attempt, error=ERROR, retry_in_s=retry_in_s, now=NOW)


def time_out(attempt: int = 1, retry_in_s: float | None = 300.0) -> TimeOutAttempt:
    return TimeOutAttempt(attempt=attempt, after_s=60.0, retry_in_s=retry_in_s, now=NOW)


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
        CancelTask(requested_by="ada"),
        ConfirmCancel(attempt=task.attempt),
    ]


# Written out by hand: a table derived from ACCEPTS would agree with whatever ACCEPTS says.
REPORTS = {"CompleteAttempt", "FailAttempt", "TimeOutAttempt", "InterruptAttempt", "ExpireLease", "ConfirmCancel"}
ADMITTED: dict[str, set[str]] = {
    "ABSENT": {"SubmitTask"},
    "SCHEDULED": {"PromoteTask", "CancelTask"},
    "PENDING": {"StartAttempt", "RequeueTask", "CancelTask"},
    "RUNNING": REPORTS | {"CancelTask"},
    "RUNNING, cancel requested": REPORTS | {"CancelTask"},
    "RETRYING": {"PromoteTask", "CancelTask"},
    "COMPLETED": set(),
    "FAILED": set(),
    "TIMED_OUT": set(),
    "CANCELLED": set(),
}
CELLS = [(where, command) for where, task in TASKS.items() for command in commands_for(task)]


@pytest.mark.parametrize(("where", "command"), CELLS, ids=[f"{where}-{type(command).__name__}" for where, command in CELLS])
def test_each_status_admits_these_commands_and_no_others(where: str, command: Command) -> None:
    task = TASKS[where]
    before = replace(task)

    if type(command).__name__ in ADMITTED[where]:
        decide(command, task)
    else:
        with pytest.raises(IllegalTransition) as refused:
            decide(command, task)
        assert refused.value.fields == {"status": str(task.status)}

    assert task == before


def test_the_table_covers_every_command_and_every_status() -> None:
    assert set(ACCEPTS) == {type(command) for command in commands_for(ABSENT)}
    assert {task.status for task in TASKS.values()} == set(Status)
    assert not any(TERMINAL & statuses for statuses in ACCEPTS.values())


@pytest.mark.parametrize("attempt", [0, 1, 3, 99])
@pytest.mark.parametrize("report", [complete, fail, time_out, InterruptAttempt, ExpireLease, ConfirmCancel])
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
    assert makes_ready(late, NOW)
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
