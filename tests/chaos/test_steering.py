"""Running tasks that are paused, resumed and cancelled, in every order, on real workers; and those that fall silent."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from eventq.events.commands import CancelTask, Command, PauseTask, ResumeTask
from eventq.events.handle import handle, handle_any
from eventq.events.task import Status, Task
from eventq.events.task_events import Cancelled, Completed, Paused, Retrying
from eventq.events.worker import WORKERS, DrainWorker
from eventq.services.task_timers import utc_now
from tests.chaos.site import LEASE_S, Control, Site
from tests.support.poll import eventually
from tests.support.processes import dead


async def command(control: Control, task_id: str, wanted: Command) -> Task:
    return (await handle(control.log, task_id, wanted, source="test")).state


async def ticking(site: Site, control: Control) -> tuple[str, Path]:
    """A plain task that runs and writes to a file, as does a process that it started."""
    path = site.folder / "ticks"
    task_id = await control.submit("chaos.tick", str(path), str(site.gate()))
    await control.until_entered(task_id)
    await eventually(lambda: size(path) > 0 and size(child_of(path)) > 0, timeout=60, what="both processes write")
    return task_id, path


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def child_of(path: Path) -> Path:
    return path.with_name(path.name + ".child")


def child_pid(path: Path) -> int:
    return int(path.with_name(path.name + ".pid").read_text())


async def pause(control: Control, task_id: str) -> None:
    await command(control, task_id, PauseTask("ada", "lunch"))
    await control.until(lambda: control.status(task_id) is Status.PAUSED, "the task is paused")


async def stands_still(control: Control, path: Path) -> bool:
    """Whether neither process writes while a whole task is run beside it."""
    before = size(path), size(child_of(path))
    await control.run("chaos.plain")
    return (size(path), size(child_of(path))) == before


async def test_a_plain_function_stands_still_with_all_its_processes_and_goes_on(site: Site, control: Control) -> None:
    await site.workers(1)
    task_id, path = await ticking(site, control)
    await pause(control, task_id)
    assert control.task(task_id).frozen
    assert await stands_still(control, path)
    await command(control, task_id, ResumeTask("ada", utc_now()))
    before = size(path)
    await eventually(lambda: size(path) > before, timeout=60, what="it goes on")
    site.gate().touch()
    await control.until_ended(task_id)
    assert control.types(task_id) == ["submitted", "started", "pause_requested", "paused", "resumed", "completed"]
    assert control.task(task_id).attempt == 1
    await control.check()


async def test_a_frozen_task_outlives_its_lease_and_its_time_limit(site: Site, control: Control) -> None:
    await site.workers(2)
    path = site.folder / "ticks"
    task_id = await control.submit("chaos.tick", str(path), str(site.gate()), timeout_s=3)
    await control.until_entered(task_id)
    await pause(control, task_id)
    # A worker that is told nothing more for several leases, and a time limit that is long over by the clock.
    for _ in range(3):
        await control.run("chaos.work", 1.2)
    assert control.task(task_id).frozen
    await command(control, task_id, ResumeTask("ada", utc_now()))
    site.gate().touch()
    await control.until_ended(task_id)
    assert control.status(task_id) is Status.COMPLETED
    assert control.task(task_id).attempt == 1
    await control.check()


async def test_an_async_function_ends_at_its_next_await_and_begins_anew(site: Site, control: Control) -> None:
    await site.workers(1)
    task_id = await control.submit("chaos.gate", str(site.gate()))
    await control.until_entered(task_id)
    await pause(control, task_id)
    assert not control.task(task_id).frozen
    site.gate().touch()
    await command(control, task_id, ResumeTask("ada", utc_now()))
    end = await control.ended(task_id)
    assert isinstance(end.data, Completed)
    assert end.data.result == {"attempt": 2}
    assert control.types(task_id)[2:5] == ["pause_requested", "paused", "queued"]
    await control.check()


async def test_a_frozen_task_can_be_cancelled(site: Site, control: Control) -> None:
    await site.workers(1)
    task_id, path = await ticking(site, control)
    await pause(control, task_id)
    await command(control, task_id, CancelTask("bob", "enough"))
    end = await control.ended(task_id)
    assert isinstance(end.data, Cancelled)
    assert end.data.requested_by == "bob"
    assert end.data.steps[0] == "asked"
    assert await stands_still(control, path), "its processes are gone"
    await control.check()


@pytest.mark.parametrize("kind", ["chaos.deaf_plain", "chaos.grandchild"])
async def test_the_steps_that_were_needed_to_stop_an_attempt_stand_in_its_end(site: Site, control: Control, kind: str) -> None:
    """``visit.pid``: of the function's process, or of one that it started in a session of its own."""
    await site.workers(1, stop_s=0.2)
    task_id = await control.submit(kind)
    visit = await control.until_entered(task_id)
    await control.cancel(task_id)
    end = await control.ended(task_id)
    assert isinstance(end.data, Cancelled)
    assert end.data.steps == ["asked", "SIGTERM", "SIGKILL"]
    assert dead(visit.pid)


async def test_a_worker_killed_with_a_frozen_attempt_leaves_a_paused_task_without_one(site: Site, control: Control) -> None:
    doomed = await site.started("worker")
    task_id, path = await ticking(site, control)
    await pause(control, task_id)
    await site.workers(1)
    doomed.kill()
    await eventually(lambda: dead(child_pid(path)), timeout=60, what="the process that the task had started is dead")
    await control.until(lambda: control.types(task_id)[-2:] == ["paused", "paused"], "somebody finds the attempt lost")
    task = control.task(task_id)
    assert (task.status, task.frozen, task.losses) == (Status.PAUSED, False, 1)
    site.gate().touch()
    await command(control, task_id, ResumeTask("ada", utc_now()))
    await control.until_ended(task_id)
    assert control.task(task_id).attempt == 2
    await control.check()


async def test_a_killed_worker_leaves_nothing_running(site: Site, control: Control) -> None:
    doomed = await site.started("worker")
    task_id, path = await ticking(site, control)
    doomed.kill()
    await eventually(lambda: dead(child_pid(path)), timeout=60, what="the process that the task had started is dead")
    site.gate().touch()
    await site.workers(1)
    await control.until_ended(task_id)
    assert control.task(task_id).attempt == 2
    await control.check()


async def test_a_worker_that_stops_hands_a_frozen_attempt_back_and_the_task_stays_paused(site: Site, control: Control) -> None:
    worker = await site.started("worker")
    task_id, _ = await ticking(site, control)
    await pause(control, task_id)
    assert worker.stop() == 0
    await control.until(lambda: control.types(task_id)[-2:] == ["paused", "paused"], "the attempt is handed back")
    assert (control.status(task_id), control.task(task_id).frozen) == (Status.PAUSED, False)
    assert control.task(task_id).losses == 0


@pytest.mark.parametrize("leave", ["drained", "asked to stop"])
async def test_a_frozen_attempt_runs_no_step_more_when_its_worker_leaves(site: Site, control: Control, leave: str) -> None:
    """The gate is open by then: let go, it would return, and what a paused task returns counts."""
    worker = await site.started("worker", stop_s=2.0)
    task_id, path = await ticking(site, control)
    worker_id = await control.worker_of(task_id)
    await pause(control, task_id)
    written = size(path), size(child_of(path))
    site.gate().touch()
    if leave == "drained":
        await handle_any(control.log, WORKERS, worker_id, DrainWorker("test"), source="test")
    else:
        worker.signal_stop()
    assert worker.wait() == 0
    await control.until(lambda: control.types(task_id)[-2:] == ["paused", "paused"], "the attempt is handed back")
    assert (size(path), size(child_of(path))) == written
    assert dead(child_pid(path))
    await site.workers(1)
    await command(control, task_id, ResumeTask("ada", utc_now()))
    end = await control.ended(task_id)
    assert isinstance(end.data, Completed)
    assert end.data.result == {"attempt": 2}
    await control.check()


async def test_a_frozen_attempt_that_was_lost_meanwhile_runs_no_step_more(site: Site, control: Control) -> None:
    stalled = await site.started("worker", stop_s=2.0)
    task_id, path = await ticking(site, control)
    await pause(control, task_id)
    written = size(path), size(child_of(path))
    stalled.pause()
    await site.workers(1)
    await control.until(lambda: control.types(task_id)[-2:] == ["paused", "paused"], "somebody finds the attempt lost")
    stalled.resume()
    await eventually(lambda: dead(child_pid(path)), timeout=60, what="what stood still is gone")
    assert (size(path), size(child_of(path))) == written
    await control.run("chaos.plain")
    assert (control.status(task_id), control.types(task_id)[-1]) == (Status.PAUSED, "paused")
    site.gate().touch()
    await command(control, task_id, ResumeTask("ada", utc_now()))
    await control.until_ended(task_id)
    await control.check()


async def test_a_worker_killed_before_it_can_say_that_it_froze_loses_neither_task_nor_pause(
    site: Site, control: Control
) -> None:
    doomed = await site.started("worker", failpoints="attempt.frozen=kill")
    task_id, path = await ticking(site, control)
    await command(control, task_id, PauseTask("ada"))
    assert doomed.wait() == -signal.SIGKILL
    await eventually(lambda: dead(child_pid(path)), timeout=60, what="the process that the task had started is dead")
    await site.workers(1)
    await control.until(lambda: control.status(task_id) is Status.PAUSED, "the pause is kept")
    assert isinstance(control.events(task_id)[-1].data, Paused)


async def test_pauses_and_resumptions_in_a_row_are_all_obeyed_in_their_order(site: Site, control: Control) -> None:
    await site.workers(1)
    task_id, path = await ticking(site, control)
    for _ in range(5):
        await command(control, task_id, PauseTask("ada"))
        await command(control, task_id, ResumeTask("ada", utc_now()))
    await pause(control, task_id)
    assert await stands_still(control, path)
    await command(control, task_id, ResumeTask("ada", utc_now()))
    site.gate().touch()
    await control.until_ended(task_id)
    assert control.status(task_id) is Status.COMPLETED
    await control.check()


@pytest.mark.parametrize("kind", ["chaos.silent", "chaos.silent_plain"])
async def test_a_silent_attempt_is_stopped_and_one_that_gives_signs_of_life_is_not(
    site: Site, control: Control, kind: str
) -> None:
    await site.started("scheduler")
    await site.workers(1, stop_s=0.2)
    task_id = await control.submit(kind, max_retries=1, heartbeat_timeout_s=0.3)
    await control.until_ended(task_id)
    retried = control.events(task_id)[2].data
    assert isinstance(retried, Retrying)
    assert (retried.reason, retried.error.type) == ("heartbeat_timeout", "HeartbeatTimeout")
    assert retried.steps[0] == "asked"
    assert (control.status(task_id), control.task(task_id).attempt) == (Status.COMPLETED, 2)


# Blocked event loops


async def test_silence_that_a_blocked_loop_kept_from_being_noticed_is_no_silence(site: Site, control: Control) -> None:
    """Nothing can stop a coroutine that blocks. One that returns has a result; those beside it gave their signs unheard."""
    blocking_gate, gate = site.gate("blocking"), site.gate()
    await site.workers(1)
    await site.workers(1, queues="another")
    beside = await control.submit("chaos.beat", str(gate), heartbeat_timeout_s=0.5)
    await control.until_entered(beside)
    blocking = await control.submit("chaos.block_loop", str(blocking_gate), heartbeat_timeout_s=0.1)
    await control.until_entered(blocking)
    await control.run("chaos.work", 1.0, queue="another")  # both have said nothing for much longer than they may
    blocking_gate.touch()
    await control.until_ended(blocking)
    await control.run("chaos.work", 1.0)  # by then it would have been judged
    gate.touch()
    await control.until_ended(beside)
    for task_id in (blocking, beside):
        assert control.types(task_id) == ["submitted", "started", "completed"]
    await control.check()


async def test_an_attempt_that_is_silent_after_it_blocked_the_loop_is_stopped(site: Site, control: Control) -> None:
    await site.started("scheduler")
    await site.workers(1)
    task_id = await control.submit("chaos.block_loop", str(site.gate()), True, heartbeat_timeout_s=0.1, max_retries=1)
    await control.until_entered(task_id)
    site.gate().touch()
    await control.until_ended(task_id)
    retried = control.events(task_id)[2].data
    assert isinstance(retried, Retrying)
    assert (retried.reason, control.status(task_id)) == ("heartbeat_timeout", Status.COMPLETED)
    await control.check()


# Pauses that their workers do not confirm, or confirm in another way


async def test_a_pause_that_a_blocked_worker_does_not_hear_of_waits_and_a_result_goes_before(
    site: Site, control: Control
) -> None:
    await site.workers(2)
    task_id = await control.submit("chaos.block_loop", str(site.gate()))
    await control.until_entered(task_id)
    await command(control, task_id, PauseTask("ada"))
    for _ in range(3):  # a whole lease each
        await control.run("chaos.work", LEASE_S)
    assert (control.status(task_id), control.task(task_id).pause_requested_by) == (Status.RUNNING, "ada")
    site.gate().touch()
    await control.until_ended(task_id)
    assert control.types(task_id) == ["submitted", "started", "pause_requested", "completed"]
    await control.check()


async def test_a_pause_whose_worker_dies_unconfirmed_is_kept_by_who_finds_the_attempt_lost(
    site: Site, control: Control
) -> None:
    doomed = await site.started("worker")
    task_id = await control.submit("chaos.block_loop", str(site.gate()))
    await control.until_entered(task_id)
    await command(control, task_id, PauseTask("ada", "lunch"))
    doomed.kill()
    await site.workers(1)
    await control.until(lambda: control.status(task_id) is Status.PAUSED, "the pause is kept")
    task = control.task(task_id)
    assert (task.frozen, task.losses, task.pause_requested_by, task.pause_reason) == (False, 1, "ada", "lunch")
    site.gate().touch()
    await control.run("chaos.quick")
    assert control.types(task_id)[2:] == ["pause_requested", "paused"], "it waits for who resumes it"
    await command(control, task_id, ResumeTask("ada", utc_now()))
    await control.until_ended(task_id)
    assert (control.status(task_id), control.task(task_id).attempt) == (Status.COMPLETED, 2)
    await control.check()


@pytest.mark.parametrize("kind", ["chaos.gate", "chaos.gate_plain"])
async def test_a_draining_worker_ends_an_attempt_for_a_pause_and_drains(site: Site, control: Control, kind: str) -> None:
    """It lets what runs take as long as it needs: an attempt that stood still in it would keep it for ever."""
    worker = await site.started("worker", stop_s=0.2)
    task_id = await control.submit(kind, str(site.gate()))
    worker_id = await control.worker_of(task_id)
    await control.until_entered(task_id)
    await handle_any(control.log, WORKERS, worker_id, DrainWorker("test"), source="test")
    await eventually(lambda: worker.logged("worker.draining"), timeout=60, what="the worker drains")
    assert worker.running, "it waits for its attempt"
    await command(control, task_id, PauseTask("ada"))
    assert worker.wait() == 0
    await control.until(lambda: control.status(task_id) is Status.PAUSED, "the task is paused")
    assert (control.task(task_id).frozen, control.task(task_id).losses) == (False, 0)
    await site.workers(1)
    await command(control, task_id, ResumeTask("ada", utc_now()))
    await control.until_ended(task_id)
    assert control.types(task_id) == ["submitted", "started", "pause_requested", "paused", "queued", "started", "completed"]
    await control.check()
