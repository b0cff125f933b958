"""Workers that are killed, or stand still, at every step of an attempt. A second worker lives on."""

from __future__ import annotations

import signal

import pytest

from eventq.events.task import Status
from eventq.events.task_events import Completed
from eventq.workers.process_tree import descendants
from tests.chaos.checker import violations
from tests.chaos.process import Process
from tests.chaos.site import Control, Site
from tests.support.poll import eventually
from tests.support.processes import dead

STEPS = ["attempt.before_start", "attempt.after_start", "attempt.before_outcome", "attempt.after_outcome", "attempt.after_ack"]
ROUNDS_MAX = 20


async def submit_until_dead(control: Control, doomed: Process) -> list[str]:
    """Submit tasks, a few at a time, until the worker has met its end; their ids."""
    task_ids: list[str] = []

    def idle() -> bool:
        return not doomed.running or not control.unfinished(task_ids)

    for _ in range(ROUNDS_MAX):
        kinds = ["chaos.quick", "chaos.plain", "chaos.quick", "chaos.quick", "chaos.plain", "chaos.quick"]
        task_ids += [await control.submit(kind) for kind in kinds]
        await control.until(idle, "the worker dies, or has nothing to do")
        if not doomed.running and len(task_ids) >= 24:
            return task_ids
    raise AssertionError(f"the worker lived through {len(task_ids)} tasks:\n{doomed.last_words()}")


@pytest.mark.parametrize("step", STEPS)
async def test_a_worker_killed_at_any_step_loses_nothing(site: Site, control: Control, step: str) -> None:
    doomed = site.start("worker", failpoints=f"{step}=kill@3")
    await site.workers(1)
    task_ids = await submit_until_dead(control, doomed)
    assert doomed.wait() == -signal.SIGKILL
    await control.until_ended(*task_ids)
    assert {control.status(task_id) for task_id in task_ids} == {Status.COMPLETED}
    attempts = [control.task(task_id).attempt for task_id in task_ids]
    assert max(attempts) <= 2
    assert attempts.count(2) <= 4, "more attempts were lost than the dead worker had slots"
    await control.check()


async def test_a_worker_killed_while_it_drains_loses_nothing(site: Site, control: Control) -> None:
    doomed = await site.started("worker", failpoints="worker.draining=kill")
    gates = [await control.submit(kind, str(site.gate())) for kind in ("chaos.gate", "chaos.gate_plain")]
    for task_id in gates:
        await control.until_entered(task_id)
    await site.workers(1)
    others = [await control.submit("chaos.quick") for _ in range(10)]
    assert doomed.stop() == -signal.SIGKILL
    await control.until_ended(*gates, *others)
    assert [control.task(task_id).attempt for task_id in gates] == [2, 2]
    await control.check()


async def test_a_result_that_comes_after_the_lease_was_taken_over_is_rejected(site: Site, control: Control) -> None:
    slow = await site.started("worker", failpoints="attempt.before_outcome=stop")
    task_id = await control.submit("chaos.quick")
    await eventually(lambda: slow.paused, timeout=60, what="the worker stands still with its result in hand")
    await site.workers(1)
    await control.until_ended(task_id)
    slow.resume()
    await eventually(lambda: slow.logged("attempt.stale_result_rejected"), timeout=60, what="the late result is rejected")
    assert control.types(task_id) == ["submitted", "started", "queued", "started", "completed"]
    data = control.events(task_id)[-1].data
    assert isinstance(data, Completed)
    assert data.result == {"attempt": 2}
    assert slow.stop() == 0
    await control.check()


async def report_to_the_next_attempt(site: Site, control: Control, *, bug: str = "") -> tuple[Process, str]:
    """A worker comes with its result of attempt 1 while attempt 2 runs elsewhere, held at a gate. That worker, and the task."""
    site.gate("gate1").touch()
    slow = await site.started("worker", bug=bug, failpoints="attempt.before_outcome=stop")
    task_id = await control.submit("chaos.gates", str(site.gate()))
    await eventually(lambda: slow.paused, timeout=60, what="the worker stands still with its result in hand")
    await site.workers(1)
    await control.until_entered(task_id, attempt=2)
    slow.resume()
    return slow, task_id


async def test_a_late_result_does_not_end_the_attempt_that_runs_now(site: Site, control: Control) -> None:
    slow, task_id = await report_to_the_next_attempt(site, control)

    def answered() -> object:
        return slow.logged("attempt.stale_result_rejected") or control.status(task_id) is not Status.RUNNING

    await control.until(answered, "the late result is rejected, or ends the task")
    assert control.status(task_id) is Status.RUNNING, "the late result ended it, or its status alone would have rejected it"
    site.gate("gate2").touch()
    data = (await control.ended(task_id)).data
    assert isinstance(data, Completed)
    assert data.result == {"attempt": 2}
    await control.check()


@pytest.mark.parametrize("kind", ["chaos.gate", "chaos.gate_plain"])
async def test_a_worker_that_stood_still_in_user_code_never_overwrites_the_result(
    site: Site, control: Control, kind: str
) -> None:
    slow = await site.started("worker")
    task_id = await control.submit(kind, str(site.gate()))
    await control.until_entered(task_id)
    slow.pause()
    await site.workers(1)
    result = await control.ended(task_id)
    site.gate().touch()
    slow.resume()
    # It takes work again, so it has learnt of what happened; then it stops in good order.
    after = [await control.submit("chaos.quick") for _ in range(20)]
    await control.until_ended(*after)
    assert slow.stop() == 0
    assert isinstance(result.data, Completed)
    assert result.data.result == {"attempt": 2}
    assert control.events(task_id)[-1].id == result.id
    await control.check()


async def test_the_children_of_a_killed_worker_die_with_it(site: Site, control: Control) -> None:
    doomed = await site.started("worker")
    task_id = await control.submit("chaos.deaf_plain", timeout_s=600)
    visit = await control.until_entered(task_id)
    below = descendants(doomed.pid)
    assert visit.pid in below
    doomed.kill()
    await eventually(lambda: all(map(dead, below)), what=f"the processes {below} are dead")


# Negative controls: the same trials, with a bug planted, must be found out.


async def test_the_checker_finds_results_published_without_the_version_check(site: Site, control: Control) -> None:
    slow = await site.started("worker", bug="publish_without_check", failpoints="attempt.before_outcome=stop")
    task_id = await control.submit("chaos.quick")
    await eventually(lambda: slow.paused, timeout=60, what="the worker stands still with its result in hand")
    await site.workers(1)
    await control.until_ended(task_id)
    slow.resume()
    await control.until(lambda: control.types(task_id).count("completed") == 2, "the late result is stored")
    found = "\n".join(violations(await control.history()))
    assert "versions are not contiguous" in found
    assert "more than one terminal event" in found
    assert "while the attempt is held by None" in found


async def test_the_checker_finds_a_late_result_that_ends_the_attempt_that_runs_now(site: Site, control: Control) -> None:
    _, task_id = await report_to_the_next_attempt(site, control, bug="mind_the_status_alone")
    data = (await control.ended(task_id)).data
    assert isinstance(data, Completed)
    assert data.result == {"attempt": 1}
    with pytest.raises(AssertionError, match=r"completed at version 5 by worker\.\S+, while the attempt is held by") as found:
        await control.check()
    assert "completed by attempt 2, whose code never returned" in str(found.value)


async def test_the_checker_finds_work_acknowledged_before_its_outcome_was_stored(site: Site, control: Control) -> None:
    doomed = await site.started("worker", bug="acknowledge_first", failpoints="attempt.before_outcome=kill")
    task_id = await control.submit("chaos.quick")
    assert doomed.wait() == -signal.SIGKILL
    await site.workers(1)
    await control.until_nothing_outstanding()
    assert violations(await control.history()) == [f"task {task_id}: never came to its end: ['submitted', 'started']"]


async def test_the_checker_finds_user_code_that_runs_before_its_start_is_recorded(site: Site, control: Control) -> None:
    await site.started("worker", bug="start_afterwards")
    task_id = await control.submit("chaos.gate", str(site.gate()))
    await control.until_entered(task_id)
    assert (await control.cancel(task_id)).status is Status.CANCELLED
    site.gate().touch()
    await control.until_nothing_outstanding()
    assert violations(await control.history()) == [
        f"task {task_id}: user code was entered for attempt 1 of a task that was cancelled first, which was never started"
    ]
