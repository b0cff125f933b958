"""One attempt at a time, in this process, on the real log: what becomes of work items that are not what they seem."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from eventq.events.blobs import BlobStore
from eventq.events.commands import CompleteAttempt, ExpireLease, PauseTask, PromoteTask, ResumeTask, StartAttempt
from eventq.events.data import BlobRef
from eventq.events.envelope import decode
from eventq.events.errors import LogUnavailable, Unavailable
from eventq.events.handle import handle, read_task
from eventq.events.log import EventLog
from eventq.events.retry import RetryPolicy
from eventq.events.subjects import EVENTS, work_consumer
from eventq.events.submitter import Submitter
from eventq.events.task import Status, Task
from eventq.events.task_events import Completed, Failed, Queued
from eventq.services.task_timers import utc_now
from eventq.workers.acks import Acks
from eventq.workers.attempt import Attempt, Workshop
from eventq.workers.config import Isolation
from eventq.workers.devices import CPU
from eventq.workers.execution import LoopHost
from eventq.workers.inputs import Inputs
from eventq.workers.outcome import StopReason
from eventq.workers.processes import ChildPool
from eventq.workers.puller import Delivery
from eventq.workers.registry import Registry, load_modules
from eventq.workers.spawning import Spawner
from tests.chaos.site import LEASE_S, ROUTE, TASKS, Control, Site
from tests.support.nats import NatsServer

US, OTHERS = "worker-1", "worker-2"


@pytest.fixture
async def control(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Control]:
    async with await Control.open(Site(own_nats_server, tmp_path)) as control:
        yield control


@dataclass(slots=True)
class Bench:
    """A workshop whose registry knows ``run``, and the broker it takes work items from by hand."""

    control: Control
    shop: Workshop
    entered: list[tuple[str, int]]

    async def take(self) -> Delivery:
        """The next work item, as the puller hands it over."""
        subscription = await self.control.broker.js.pull_subscribe_bind(work_consumer(ROUTE), stream=EVENTS)
        (message,) = await subscription.fetch(1, timeout=30)
        await subscription.unsubscribe()
        data = message.metadata
        event = decode(message.data, message.subject)
        return Delivery(event, message.data, data.sequence.stream, message.reply, data.num_delivered or 1)

    async def attempt(self) -> Attempt:
        return Attempt(await self.take(), self.shop)

    async def write(self, task_id: str, command: Any, worker_id: str = OTHERS) -> Task:
        """What another worker writes."""
        return (await handle(self.control.log, task_id, command, source=f"worker.{worker_id}")).state

    async def outstanding(self) -> int:
        info = await self.control.broker.js.consumer_info(EVENTS, work_consumer(ROUTE))
        return (info.num_ack_pending or 0) + (info.num_pending or 0)


@pytest.fixture
async def bench(control: Control, tmp_path: Path) -> AsyncIterator[Bench]:
    registry = Registry()
    entered: list[tuple[str, int]] = []
    blobs = BlobStore.open(tmp_path / "blobs")
    acks = Acks(control.broker)
    await acks.start()
    shop = Workshop(
        worker_id=US,
        log=control.log,
        registry=registry,
        blobs=blobs,
        acks=acks,
        spawner=Spawner(registry, blobs, Submitter(control.log, source=f"worker.{US}")),
        loop_host=LoopHost(blobs, Inputs(blobs, (), ())),
        children=ChildPool(Isolation(), []),
        device_label="cpu",
        isolate_async=False,
        lease_s=LEASE_S,
        stop_s=0.1,
    )

    @registry.task(name="run")
    async def run(size: int = 0) -> str:
        entered.append(("run", size))
        return "x" * size

    yield Bench(control, shop, entered)
    await acks.close()


async def settled(bench: Bench) -> None:
    """Return once the broker has no item left."""
    await bench.control.until_nothing_outstanding()


async def test_an_item_is_claimed_run_reported_and_acknowledged(bench: Bench) -> None:
    task_id = await bench.control.submit("run", 3)
    await (await bench.attempt()).run()
    end = await bench.control.ended(task_id)
    assert isinstance(end.data, Completed)
    assert end.data.result == "xxx"
    assert end.trace.causation_id == bench.control.events(task_id)[0].id
    await settled(bench)


async def test_an_item_of_a_finished_task_is_spent(bench: Bench) -> None:
    task_id = await bench.control.submit("run")
    attempt = await bench.attempt()
    await bench.write(task_id, StartAttempt(OTHERS, "host", "cpu"))
    await bench.write(task_id, CompleteAttempt(1, "theirs", None, 0.1))
    await attempt.run()
    assert bench.entered == []
    await settled(bench)
    await bench.control.until_ended(task_id)
    assert bench.control.types(task_id) == ["submitted", "started", "completed"]


async def test_an_item_of_a_cancelled_task_is_spent(bench: Bench) -> None:
    task_id = await bench.control.submit("run")
    attempt = await bench.attempt()
    await bench.control.cancel(task_id)
    await attempt.run()
    assert bench.entered == []
    await settled(bench)


async def test_an_item_that_somebody_runs_goes_back_when_it_comes_for_the_first_time(bench: Bench) -> None:
    """Its holder may well live: the consumer was made anew. If he does not, it comes again."""
    task_id = await bench.control.submit("run")
    attempt = await bench.attempt()
    await bench.write(task_id, StartAttempt(OTHERS, "host", "cpu"))
    await attempt.run()
    assert bench.entered == []
    assert await bench.outstanding() == 1
    assert (await bench.take()).count == 2
    await bench.control.until(lambda: bench.control.status(task_id) is Status.RUNNING, "it is left to its holder")


async def test_an_item_that_comes_again_ends_the_attempt_of_its_silent_holder(bench: Bench) -> None:
    task_id = await bench.control.submit("run")
    first = await bench.take()
    await bench.write(task_id, StartAttempt(OTHERS, "host", "cpu"))
    again = await bench.take()
    assert again.count == 2
    await Attempt(again, bench.shop).run()
    assert bench.entered == [], "nothing runs before the old attempt is ended in the log"
    await (await bench.attempt()).run()
    await bench.control.until_ended(task_id)
    assert bench.control.types(task_id) == ["submitted", "started", "queued", "started", "completed"]
    lost = bench.control.events(task_id)[2].data
    assert isinstance(lost, Queued)
    assert (lost.reason, lost.worker_id) == ("worker_lost", OTHERS)
    assert bench.shop.counts.leases_expired == 1
    assert first.event.id == again.event.id
    await settled(bench)


async def test_an_item_of_an_attempt_of_our_own_that_we_no_longer_hold_is_handed_back_uncounted(bench: Bench) -> None:
    """Its claim was stored and not answered, say: it never ran, and its worker is not lost."""
    task_id = await bench.control.submit("run")
    attempt = await bench.attempt()
    await bench.write(task_id, StartAttempt(US, "host", "cpu"), US)
    await attempt.run()
    await (await bench.attempt()).run()
    await bench.control.until_ended(task_id)
    back = bench.control.events(task_id)[2].data
    assert isinstance(back, Queued)
    assert back.reason == "interrupted"
    assert bench.control.task(task_id).losses == 0
    await settled(bench)


async def test_the_same_item_twice_at_once_runs_once(bench: Bench) -> None:
    task_id = await bench.control.submit("run")
    delivery = await bench.take()
    await asyncio.gather(*(Attempt(delivery, bench.shop).run() for _ in range(5)))
    await bench.control.until_ended(task_id)
    assert len(bench.entered) <= bench.control.types(task_id).count("started")
    assert bench.control.types(task_id).count("completed") == 1


async def test_an_attempt_stopped_before_it_began_never_completes(bench: Bench) -> None:
    task_id = await bench.control.submit("run")
    attempt = await bench.attempt()
    attempt.stop(StopReason.INTERRUPTED)
    await attempt.run()
    await bench.control.until(lambda: len(bench.control.types(task_id)) >= 3, "it is reported")
    assert bench.control.types(task_id)[-1] in {"queued", "completed"}


# Again


async def test_a_second_attempt_gets_what_was_submitted_not_what_the_first_made_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    @bench.shop.registry.task(name="spoils", retry=RetryPolicy(initial_s=0.0))
    async def spoils(items: Any) -> int:
        seen.append(list(items))
        items.append(99)
        if len(seen) < 3:
            raise ValueError("again")
        return len(items)

    async def never(*_: Any) -> None:
        pytest.fail("read back")

    monkeypatch.setattr(bench.control.log, "settled", never)
    task_id = await bench.control.submit("spoils", [1, 2], max_retries=2)
    for _ in range(3):
        await (await bench.attempt()).run()
        if len(seen) < 3:
            task = await read_task(bench.control.log, task_id, fresh=True)
            await bench.write(task_id, PromoteTask(task.version, utc_now()))
    end = await bench.control.ended(task_id)
    assert isinstance(end.data, Completed)
    assert seen == [[1, 2]] * 3


# Signals


async def test_a_signal_that_was_meant_for_an_earlier_attempt_is_ignored(bench: Bench) -> None:
    task_id = await bench.control.submit("run")
    first = await bench.attempt()
    await bench.write(task_id, StartAttempt(OTHERS, "host", "cpu"))
    await bench.write(task_id, PauseTask("ada"))
    await bench.write(task_id, ResumeTask("ada", utc_now()))
    await bench.write(task_id, ExpireLease(1))
    await first.run()  # its item is spent
    second = await bench.attempt()
    await second.steer("pause_requested", 3)
    await second.run()
    await bench.control.until_ended(task_id)
    types = ["submitted", "started", "pause_requested", "resumed", "queued", "started", "completed"]
    assert bench.control.types(task_id) == types


async def test_signals_that_are_read_twice_count_once(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or more often, and late: what a newer one said since stays."""
    monkeypatch.setenv("WITNESS", str(bench.control.site.witness))
    isolation = Isolation(modules=(str(TASKS),), blob_url=(tmp_path / "blobs").as_uri())
    shop = replace(bench.shop, registry=load_modules(isolation.modules), children=ChildPool(isolation, [CPU]))
    task_id = await bench.control.submit("chaos.gate_plain", str(bench.control.site.gate()))
    attempt = Attempt(await bench.take(), shop)
    running = asyncio.create_task(attempt.run())
    await bench.control.until_entered(task_id)
    await bench.write(task_id, PauseTask("ada"))
    for _ in range(2):
        await attempt.steer("pause_requested", 3)
        assert attempt.frozen
    await bench.write(task_id, ResumeTask("ada", utc_now()))
    for signal, version in (("resumed", 5), ("resumed", 5), ("pause_requested", 3)):
        await attempt.steer(signal, version)
        assert not attempt.frozen
    await bench.write(task_id, PauseTask("ada"))
    for signal, version in (("pause_requested", 6), ("resumed", 5), ("pause_requested", 6)):
        await attempt.steer(signal, version)
        assert attempt.frozen
    await bench.control.cancel(task_id)
    for _ in range(2):
        await attempt.steer("cancel_requested", 8)
    await running
    await shop.children.close()
    await bench.control.until_ended(task_id)
    steered = ["pause_requested", "paused", "resumed", "pause_requested", "paused", "cancel_requested"]
    assert bench.control.types(task_id) == ["submitted", "started", *steered, "cancelled"]


class Unanswered(EventLog):
    """The real log, on a day when answers to appends get lost. ``lost``: which appends (1, 2, ...), and whether they were
    stored all the same."""

    def __init__(self, log: EventLog, lost: dict[int, bool]) -> None:
        self.__dict__.update(log.__dict__)
        self._lost = lost
        self._appends = 0

    async def append(self, event: Any) -> int | None:
        self._appends += 1
        stored = self._lost.get(self._appends)
        if stored is None or stored:
            position = await super().append(event)
            if stored is None:
                return position
        raise LogUnavailable("no answer")


def unanswered(bench: Bench, **lost: bool) -> Workshop:
    """The workshop on such a day: ``first=True`` loses the answer to the first append, which is stored."""
    numbers = {"first": 1, "second": 2}
    return replace(bench.shop, log=Unanswered(bench.control.log, {numbers[name]: stored for name, stored in lost.items()}))


@pytest.mark.parametrize("stored", [True, False])
async def test_a_claim_without_answer_runs_nothing(bench: Bench, stored: bool) -> None:
    task_id = await bench.control.submit("run")
    await Attempt(await bench.take(), unanswered(bench, first=stored)).run()
    assert bench.entered == []
    # The lease lapses; whoever is given the item next finds out what is true.
    await (await bench.attempt()).run()
    if stored:
        await (await bench.attempt()).run()
    await bench.control.until_ended(task_id)
    middle = ["started", "queued"] if stored else []
    assert bench.control.types(task_id) == ["submitted", *middle, "started", "completed"]
    assert len(bench.entered) == 1


@pytest.mark.parametrize("stored", [True, False])
async def test_an_outcome_without_answer_is_stored_once(bench: Bench, monkeypatch: pytest.MonkeyPatch, stored: bool) -> None:
    monkeypatch.setattr("eventq.workers.attempt.REPORT_PAUSES_S", (0.01, 0.01))
    task_id = await bench.control.submit("run")
    await Attempt(await bench.take(), unanswered(bench, second=stored)).run()
    await bench.control.until_ended(task_id)
    assert bench.control.types(task_id) == ["submitted", "started", "completed"]
    assert len(bench.entered) == 1
    await settled(bench)


def put_that_fails(bench: Bench, times: int) -> Callable[..., Any]:
    """A blob store that is away for the first ``times`` tries."""
    put, tries = bench.shop.blobs.put_async, 0

    async def put_async(*args: Any, **options: Any) -> BlobRef:
        nonlocal tries
        tries += 1
        if tries <= times:
            raise Unavailable("the blob store failed: No space left on device")
        return await put(*args, **options)

    return put_async


async def test_a_large_result_waits_for_the_blob_store(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventq.workers.attempt.REPORT_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(bench.shop.blobs, "put_async", put_that_fails(bench, 2))
    task_id = await bench.control.submit("run", 100_000)
    await (await bench.attempt()).run()
    end = await bench.control.ended(task_id)
    assert isinstance(end.data, Completed)
    assert end.data.output is not None
    assert len(bench.entered) == 1


async def test_a_large_result_that_cannot_be_stored_at_all_fails_the_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to the lease it would be computed again and again, for as long as the disk is full."""
    monkeypatch.setattr("eventq.workers.attempt.REPORT_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(bench.shop.blobs, "put_async", put_that_fails(bench, 1_000))
    task_id = await bench.control.submit("run", 100_000)
    await (await bench.attempt()).run()
    end = await bench.control.ended(task_id)
    assert isinstance(end.data, Failed)
    assert end.data.error.type == "Unavailable"
    assert "No space left" in end.data.error.message
    assert len(bench.entered) == 1
    await settled(bench)
