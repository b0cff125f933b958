"""Ending what runs: time-outs, cancellations, and the worker's own end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

import pytest

from eventq.events.envelope import decode
from eventq.events.errors import IllegalTransition
from eventq.events.limits import LOSSES_MAX
from eventq.events.task import Status
from eventq.events.task_events import Cancelled, Completed, Queued, Retrying, TimedOut
from eventq.events.worker_events import WorkerStopped
from tests.chaos.process import Process
from tests.chaos.site import Control, Site
from tests.support.poll import eventually
from tests.support.processes import dead
from tests.workers.conftest import CAPACITY, STOP_S
from tests.workers.lost import lose_workers

pytestmark = pytest.mark.usefixtures("good_history")

# Time-outs


@pytest.mark.parametrize("task_name", ["chaos.cooperative", "chaos.cooperative_plain", "chaos.deaf_plain"])
async def test_a_task_that_runs_too_long_is_stopped_whatever_it_does(
    control: Control, shared_worker: Process, task_name: str
) -> None:
    end = await control.run(task_name, timeout_s=0.3)
    assert isinstance(end.data, TimedOut)
    assert end.data.reason == "execution_timeout"
    assert end.data.after_s >= 0.3


async def test_a_time_out_is_retried_and_the_last_one_is_final(control: Control, shared_worker: Process) -> None:
    end = await control.run("chaos.deaf_plain", timeout_s=0.2, max_retries=1)
    assert isinstance(end.data, TimedOut)
    task_id = end.aggregate_id
    assert control.types(task_id) == ["submitted", "started", "retrying", "queued", "started", "timed_out"]
    retrying = control.events(task_id)[2].data
    assert isinstance(retrying, Retrying)
    assert retrying.reason == "execution_timeout"
    pids = {visit.pid for visit in control.site.visits() if visit.task_id == task_id}
    assert len(pids) == 2, "a child that had to be killed is replaced"
    assert all(map(dead, pids))


async def test_a_task_that_ends_in_time_is_not_disturbed_by_its_time_out(control: Control, shared_worker: Process) -> None:
    for task_name in ("chaos.work", "chaos.work_plain"):
        assert (await control.run(task_name, 0.05, timeout_s=30)).type == "completed"
    assert (await control.run("chaos.plain")).type == "completed"


async def test_a_result_that_came_in_answer_to_sigterm_counts_and_its_process_runs_nothing_more(
    site: Site, control: Control
) -> None:
    await started_worker(site, "tidy", concurrency=1)
    end = await control.run("chaos.tidy_plain", timeout_s=0.1, queue="tidy")
    assert end.type == "completed"
    after = await control.run("chaos.plain", queue="tidy")
    assert after.type == "completed"
    pids = [visit.pid for visit in site.visits() if visit.task_id in (end.aggregate_id, after.aggregate_id)]
    assert len(set(pids)) == 2
    assert dead(pids[0])


# Cancellations


@pytest.mark.parametrize("task_name", ["chaos.cooperative", "chaos.cooperative_plain", "chaos.deaf_plain", "chaos.gate"])
async def test_a_running_task_is_cancelled_whatever_it_does(
    site: Site, control: Control, shared_worker: Process, task_name: str
) -> None:
    args = [str(site.gate("never"))] if task_name == "chaos.gate" else []
    task_id = await control.submit(task_name, *args, max_retries=3)
    visit = await control.until_entered(task_id)
    assert (await control.cancel(task_id)).status is Status.RUNNING
    end = await control.ended(task_id)
    assert isinstance(end.data, Cancelled)
    assert (end.data.requested_by, end.data.reason) == ("test", "no longer wanted")
    assert f"worker.{end.data.confirmed_by}" == end.source
    assert control.types(task_id) == ["submitted", "started", "cancel_requested", "cancelled"]
    if task_name == "chaos.deaf_plain":
        assert dead(visit.pid)


async def test_a_task_cancelled_while_no_slot_is_free_never_starts(
    site: Site, control: Control, shared_worker: Process
) -> None:
    gate = site.gate("busy")
    busy = [await control.submit("chaos.gate", str(gate)) for _ in range(CAPACITY)]
    for task_id in busy:
        await control.until_entered(task_id)
    waiting = [await control.submit(kind) for kind in ("chaos.quick", "chaos.plain")]
    for task_id in waiting:
        assert (await control.cancel(task_id)).status is Status.CANCELLED
    gate.touch()
    last = await control.submit("chaos.quick")
    await control.until_ended(*busy, *waiting, last)
    await control.until_nothing_outstanding()
    assert all(control.types(task_id) == ["submitted", "cancelled"] for task_id in waiting)
    assert not any(visit.task_id in waiting for visit in site.visits())


async def test_of_cancel_and_start_one_comes_first(site: Site, control: Control, shared_worker: Process) -> None:
    """Cancelled while they are being claimed. Whoever wins, the log says so, and the witness agrees with it."""

    async def submit_and_cancel(number: int) -> str:
        task_id = await control.submit("chaos.quick" if number % 3 else "chaos.plain")
        for _ in range(number % 5):
            await asyncio.sleep(0)  # another turn of the loop, another moment of the claim
        with suppress(IllegalTransition):  # it has completed already
            await control.cancel(task_id)
        return task_id

    task_ids = await asyncio.gather(*(submit_and_cancel(number) for number in range(60)))
    await control.until_ended(*task_ids)
    await control.until_nothing_outstanding()
    ends = [control.types(task_id)[-1] for task_id in task_ids]
    assert set(ends) <= {"cancelled", "completed"}
    entered = {visit.task_id for visit in site.visits()}
    for task_id in task_ids:
        if "started" not in control.types(task_id):
            assert task_id not in entered


def retried(control: Control, task_id: str) -> bool:
    return control.task(task_id).attempt >= 2


async def test_a_cancelled_retry_stays_cancelled(control: Control, shared_worker: Process) -> None:
    """Stopped while the failure is reported, the task is cancelled, not retried."""
    task_ids = [await control.submit("chaos.fail", max_retries=100) for _ in range(4)]
    for task_id in task_ids:
        await control.until(partial(retried, control, task_id), "it is retried")
        await control.cancel(task_id)
    await control.until_ended(*task_ids)
    assert {control.status(task_id) for task_id in task_ids} == {Status.CANCELLED}


# The worker's end


async def started_worker(site: Site, queue: str, *, grace_s: float = 20, concurrency: int = CAPACITY) -> Process:
    """A worker of the test's own: nobody else serves its queue."""
    return await site.started("worker", stop_s=STOP_S, queues=queue, grace_s=grace_s, concurrency=concurrency)


async def test_a_task_that_waits_to_run_alone_is_handed_back_by_a_worker_that_stops(site: Site, control: Control) -> None:
    running = await control.submit("chaos.gate", str(site.gate("alone")), queue="alone")
    suspect = await control.submit("chaos.quick", queue="alone")
    await lose_workers(control, suspect, LOSSES_MAX - 1)
    worker = await started_worker(site, "alone", grace_s=60)
    await control.until_entered(running)
    worker.signal_stop()
    site.gate("alone").touch()
    assert await asyncio.to_thread(worker.wait) == 0
    assert control.types(suspect).count("started") == LOSSES_MAX - 1
    await started_worker(site, "alone")
    await control.until_ended(running, suspect)
    assert control.types(suspect)[-2:] == ["started", "completed"]


async def test_a_worker_asked_to_stop_finishes_what_runs_and_takes_no_more(site: Site, control: Control) -> None:
    worker = await started_worker(site, "graceful", grace_s=60)
    running = [
        await control.submit(kind, str(site.gate("graceful")), queue="graceful") for kind in ("chaos.gate", "chaos.gate_plain")
    ]
    for task_id in running:
        await control.until_entered(task_id)
    worker.signal_stop()
    await eventually(lambda: worker.logged("worker.stopping"), timeout=60, what="the worker says that it stops")
    late = await control.submit("chaos.quick", queue="graceful")
    site.gate("graceful").touch()
    await control.until_ended(*running)
    assert worker.wait() == 0
    assert [control.types(task_id) for task_id in running] == [["submitted", "started", "completed"]] * 2
    assert control.types(late) == ["submitted"]
    messages = [m for m in await control.messages() if m.subject.startswith("workers.")]
    assert isinstance(decode(messages[-1].payload, messages[-1].subject).data, WorkerStopped)
    # What was left is there for the next, at once: its first delivery is still to come.
    await started_worker(site, "graceful")
    assert (await control.ended(late)).type == "completed"


@pytest.mark.parametrize("task_name", ["chaos.gate", "chaos.gate_plain", "chaos.cooperative_plain"])
async def test_what_does_not_finish_in_the_grace_time_is_handed_back_uncounted(
    site: Site, control: Control, task_name: str
) -> None:
    queue = f"hasty-{task_name[6:]}"
    worker = await started_worker(site, queue, grace_s=0)
    args = [] if task_name == "chaos.cooperative_plain" else [str(site.gate("never"))]
    task_id = await control.submit(task_name, *args, queue=queue)
    await control.until_entered(task_id)
    assert worker.stop() == 0
    await control.until(lambda: "queued" in control.types(task_id), "the task is handed back")
    back = control.events(task_id)[-1]
    assert isinstance(back.data, Queued)
    assert back.data.reason == "interrupted"
    assert (control.task(task_id).failures, control.task(task_id).losses) == (0, 0)
    if args:
        await started_worker(site, queue)
        end = await control.ended(task_id)
        assert isinstance(end.data, Completed)
        assert end.data.result == {"attempt": 2}
    else:
        await control.cancel(task_id)


async def test_a_worker_with_nothing_to_do_stops_at_once(site: Site) -> None:
    worker = await started_worker(site, "idle")
    assert worker.stop() == 0


async def test_a_coroutine_that_ignores_its_cancellation_holds_up_neither_its_slot_nor_the_worker(
    site: Site, control: Control
) -> None:
    """It cannot be killed. It is recorded as stopped, lives on as a ghost, and ends with the worker."""
    worker = await started_worker(site, "deaf", concurrency=1)
    task_id = await control.submit("chaos.deaf", queue="deaf", timeout_s=0.2)
    assert (await control.ended(task_id)).type == "timed_out"
    assert (await control.run("chaos.quick", queue="deaf")).type == "completed"
    assert worker.stop() == 0
