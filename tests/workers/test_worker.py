"""A worker process at work: slots, queues, progress, leases, losses, devices."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from importlib.util import find_spec

import pytest
from nats.aio.msg import Msg

from eventq.events.envelope import decode
from eventq.events.limits import LOSSES_MAX, PROGRESS_PER_SECOND_MAX
from eventq.events.reader import Tail
from eventq.events.report import Progress, Report, decode_report
from eventq.events.subjects import EVENTS, PROGRESS, Route, progress_subject, work_consumer
from eventq.events.task_events import Completed, Failed, Started
from eventq.events.worker_events import WorkerRegistered
from eventq.workers.lease_keeper import IN_PROGRESS
from tests.chaos.process import Process
from tests.chaos.site import PATIENCE_S, Control, Site
from tests.workers.conftest import CAPACITY

pytestmark = pytest.mark.usefixtures("good_history")


async def reports_of(control: Control, task_id: str) -> list[Report]:
    """All that is stored of a task's progress and log."""
    facts = await control.broker.stream_facts(PROGRESS)
    assert facts is not None
    found: list[Report] = []
    async with Tail(control.broker, PROGRESS, after=0) as tail:
        while tail.position < facts.last:
            batch = await tail.next(timeout_s=PATIENCE_S)
            found += [decode_report(m.payload, m.subject) for m in batch if m.subject == progress_subject(task_id)]
    return found


async def test_a_worker_says_who_it_is_and_what_it_can_do(control: Control, shared_worker: Process) -> None:
    messages = [m for m in await control.messages() if m.subject.startswith("workers.")]
    data = decode(messages[0].payload, messages[0].subject).data
    assert isinstance(data, WorkerRegistered)
    assert (data.pid, data.pool, data.capacity, data.devices) == (shared_worker.pid, "cpu", CAPACITY, ["cpu"])
    names = {declaration.name for declaration in data.tasks}
    assert {"chaos.quick", "chaos.plain", "echo", "csv_processing"} <= names
    assert "chaos.device" not in names, "a task of another pool"


@pytest.mark.parametrize("task_name", ["chaos.work", "chaos.work_plain"])
async def test_no_more_tasks_run_at_once_than_there_are_slots(
    site: Site, control: Control, shared_worker: Process, task_name: str
) -> None:
    task_ids = [await control.submit(task_name, 0.03) for _ in range(24)]
    await control.until_ended(*task_ids)
    inside, most = 0, 0
    for visit in site.visits():
        if visit.task_id in task_ids:
            inside += 1 if visit.step == "enter" else -1
            most = max(most, inside)
    assert most <= CAPACITY
    assert most > 1, "slots are there to be used"


async def test_urgent_work_goes_first_and_the_rest_is_not_starved(site: Site, control: Control, shared_worker: Process) -> None:
    busy = [await control.submit("chaos.gate", str(site.gate("first"))) for _ in range(CAPACITY)]
    for task_id in busy:
        await control.until_entered(task_id)
    low = [await control.submit("chaos.quick", priority=0) for _ in range(20)]
    high = [await control.submit("chaos.quick", priority=10) for _ in range(20)]
    site.gate("first").touch()
    await control.until_ended(*low, *high, *busy)
    entered = [visit.task_id for visit in site.visits() if visit.step == "enter"]
    rank = {task_id: entered.index(task_id) for task_id in [*low, *high]}
    assert sum(rank[task_id] for task_id in high) < sum(rank[task_id] for task_id in low)


async def test_a_queue_that_comes_into_being_later_is_served(site: Site, control: Control) -> None:
    await site.started("worker", queues="other,another")
    assert (await control.run("chaos.quick", queue="another", priority=9)).type == "completed"


# Progress


@pytest.mark.parametrize("task_name", ["chaos.report_progress", "chaos.report_progress_plain"])
async def test_progress_is_stored_four_times_a_second_at_most_and_the_last_always(
    control: Control, shared_worker: Process, task_name: str
) -> None:
    end = await control.run(task_name, 300, 0.004)
    assert isinstance(end.data, Completed)
    reports = await reports_of(control, end.aggregate_id)
    done = [report.data.done for report in reports if isinstance(report.data, Progress)]
    assert done == sorted(done)
    assert done[-1] == 300
    assert len(done) <= end.data.duration_s * PROGRESS_PER_SECOND_MAX + 2
    assert {report.attempt for report in reports} == {1}


async def test_what_was_done_to_end_a_task_stands_in_its_log(control: Control, shared_worker: Process) -> None:
    end = await control.run("chaos.deaf_plain", timeout_s=0.2)
    told = str(await reports_of(control, end.aggregate_id))
    assert "asked to stop: timed_out" in told
    assert "SIGTERM: timed_out" in told


# Leases and losses


@pytest.mark.parametrize(
    ("task_name", "lease_s"),
    [
        pytest.param("chaos.block_loop", 1, id="the task blocks the worker's event loop"),
        pytest.param("chaos.gate", 60, id="the consumer was made when the setting was another"),
    ],
)
async def test_a_living_worker_keeps_its_leases(site: Site, control: Control, task_name: str, lease_s: float) -> None:
    queue = task_name.partition(".")[2]
    route, gate = Route("cpu", queue, 5), site.gate(f"keeps-{queue}")
    task_id = await control.submit(task_name, str(gate), queue=queue)  # makes the consumer, with leases of a second
    await site.workers(2, queues=queue, lease_s=lease_s)
    await control.until_entered(task_id)
    renewals = asyncio.Semaphore(0)

    async def count(message: Msg) -> None:
        if message.data == IN_PROGRESS:
            renewals.release()

    await control.broker.nc.subscribe(f"$JS.ACK.{EVENTS}.{work_consumer(route)}.>", cb=count)
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(10):  # three times in each lease: it would have lapsed three times
            await renewals.acquire()
    gate.touch()
    await control.until_ended(task_id)
    assert control.types(task_id) == ["submitted", "started", "completed"]


async def test_a_task_that_kills_its_workers_is_stopped_after_the_third(site: Site, control: Control) -> None:
    workers = await site.workers(LOSSES_MAX + 1, queues="poison", concurrency=2)
    poison = await control.submit("chaos.kill_worker", queue="poison", max_retries=50)
    others = [await control.submit("chaos.quick", queue="poison") for _ in range(10)]
    await control.until_ended(poison, *others)
    end = control.events(poison)[-1]
    assert isinstance(end.data, Failed)
    assert (end.data.reason, end.data.error.type) == ("poison", "WorkerLost")
    assert control.types(poison) == ["submitted", *["started", "queued"] * (LOSSES_MAX - 1), "started", "failed"]
    assert (control.task(poison).losses, control.task(poison).failures) == (LOSSES_MAX, 0)
    holders = [event.data.worker_id for event in control.events(poison) if isinstance(event.data, Started)]
    assert len(set(holders)) == LOSSES_MAX
    assert Counter(worker.running for worker in workers) == {False: LOSSES_MAX, True: 1}
    assert all(control.types(task_id)[-1] == "completed" for task_id in others)


# Devices


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed: pip install eventq[torch]")
async def test_a_gpu_worker_runs_its_tasks_on_a_device_and_says_on_which(site: Site, control: Control) -> None:
    import torch

    label = "cuda:0" if torch.cuda.is_available() else "cpu-stand-in"
    worker = await site.started("worker", pool="gpu")
    end = await control.run("chaos.device", pool="gpu")
    assert isinstance(end.data, Completed)
    assert end.data.result == {"device": "cuda:0" if torch.cuda.is_available() else "cpu", "sum": 3.0}
    started = control.events(end.aggregate_id)[1].data
    assert isinstance(started, Started)
    assert started.device == label
    assert worker.stop() == 0


async def test_a_gpu_worker_without_torch_says_what_to_install(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = site.folder / "without-torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    worker = site.start("worker", pool="gpu")
    assert worker.wait() not in (0, -signal.SIGKILL)
    assert "install eventq[torch]" in worker.last_words()
