"""Gates over a real broker: limits hold with several at once, and whatever was set when."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace

import nats.errors
import pytest
from structlog.testing import capture_logs

from eventq.events import admission
from eventq.events.commands import AdmitTask, CancelTask, CompleteAttempt, ExpireLease, FailAttempt, PromoteTask, StartAttempt
from eventq.events.data import ErrorInfo
from eventq.events.envelope import encode, next_event
from eventq.events.errors import Conflict
from eventq.events.handle import handle, handle_any, read_state
from eventq.events.ids import new_id
from eventq.events.queue import QUEUES, AdmitTasks, ConfigureQueue
from eventq.events.queue_events import Admission, QueueAdmitted, QueueLimits
from eventq.events.subjects import EVENTS, Route, work_consumer
from eventq.events.task import ABSENT, TASKS, Status
from eventq.events.task_events import Queued, Submitted
from eventq.services import gate as module
from eventq.services.follower import Follower
from eventq.services.reconciler import Reconciler
from tests.services.gates import ROUTE, Floor, most_holders, most_holders_of_a_key
from tests.support.nats import NatsServer
from tests.support.poll import eventually


@pytest.fixture
async def floor(own_nats_server: NatsServer) -> AsyncIterator[Floor]:
    async with Floor.open(own_nats_server.url) as floor:
        yield floor


async def start(floor: Floor, task_id: str) -> None:
    await handle(floor.log, task_id, StartAttempt(worker_id="w", hostname="h", device="cpu"), source="w")


async def admitted_ids(floor: Floor) -> list[str]:
    return [a.task_id for e in await floor.history() if isinstance(e.data, QueueAdmitted) for a in e.data.tasks]


async def test_a_queue_without_limits_needs_no_gate(floor: Floor) -> None:
    (task_id,) = await floor.submit()
    assert not (await floor.task(task_id)).held


async def test_two_gates_and_ten_workers_never_exceed_the_limit_with_five_hundred_tasks(floor: Floor) -> None:
    await floor.configure(max_running=4)
    async with floor.gate() as one, floor.gate() as other, floor.hands(10) as done:
        await floor.submit(500)
        await eventually(lambda: len(done) == 500, timeout=90, what="all are done")
        assert one.admitted + other.admitted == 500
    history = await floor.history()
    assert most_holders(history) == 4
    queued = Counter(e.aggregate_id for e in history if isinstance(e.data, Queued))
    assert set(queued.values()) == {1}, "each was queued once"


async def test_a_gate_that_does_not_mind_the_version_it_counted_at_exceeds_the_limit(floor: Floor) -> None:
    """The negative control: what the version check prevents, and that the judge of these tests sees it."""
    counted = await floor.configure(max_running=4)
    task_ids = await floor.submit(8)
    for chosen in (task_ids[:4], task_ids[4:]):  # by two gates, each on the count of an empty queue
        queue = await read_state(floor.log, QUEUES, ROUTE.queue, fresh=True)
        assert chosen == task_ids[:4] or queue.version > counted.version
        tasks = tuple(Admission(task_id=task_id, version=1) for task_id in chosen)
        await handle_any(floor.log, QUEUES, ROUTE.queue, AdmitTasks(queue.version, tasks), source="gate")
        for task_id in chosen:
            await handle(floor.log, task_id, AdmitTask(1), source="gate")
    assert most_holders(await floor.history()) == 8


async def test_an_admission_that_was_counted_on_an_older_version_is_refused(floor: Floor) -> None:
    queue = await floor.configure(max_running=1)
    first, second = await floor.submit(2)
    admit = [AdmitTasks(queue.version, (Admission(task_id=task_id, version=1),)) for task_id in (first, second)]
    found = await asyncio.gather(
        *(handle_any(floor.log, QUEUES, ROUTE.queue, one, source="gate", state=queue) for one in admit),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in found) == ["Handled", "IllegalTransition"]


async def test_limits_set_while_tasks_wait_and_run_count_those_and_call_back_the_rest(floor: Floor) -> None:
    task_ids = await floor.submit(10)
    for task_id in task_ids[:3]:
        await start(floor, task_id)
    async with floor.gate():
        await floor.configure(max_running=4)

        async def called_back() -> bool:
            tasks = [await floor.task(task_id) for task_id in task_ids]
            return sum(task.held for task in tasks) == 6 and sum(task.status is Status.RUNNING for task in tasks) == 3

        await eventually(called_back, what="three run, one may start, six wait")
        for task_id in task_ids[:3]:
            await handle(floor.log, task_id, CompleteAttempt(1, None, None, 0.1), source="w")
        async with floor.hands(2) as done:
            await eventually(lambda: len(done) == 7, timeout=30, what="the others follow")


async def test_tasks_that_slip_past_a_gate_nobody_knew_of_yet_are_called_back(floor: Floor) -> None:
    await floor.submit(queue="other")
    (first,) = await floor.submit()  # from now on this process believes for a second that the queue has no limits
    await handle_any(floor.log, QUEUES, ROUTE.queue, ConfigureQueue(QueueLimits(max_running=1), "ada"), source="elsewhere")
    slipped = await floor.submit(5)
    async with floor.gate():

        async def called_back() -> bool:
            return sorted([(await floor.task(task_id)).held for task_id in (first, *slipped)]) == [False] + [True] * 5

        await eventually(called_back, what="one may start, five wait")
        async with floor.hands(3) as done:
            await eventually(lambda: len(done) == 6, timeout=30, what="all are done, one at a time")


async def test_limits_lifted_admit_all(floor: Floor) -> None:
    await floor.configure(max_running=1)
    async with floor.gate() as gate:
        task_ids = await floor.submit(1_200)
        await eventually(lambda: gate.admitted == 1, what="one is admitted")
        await floor.configure()
        await eventually(lambda: gate.admitted == 1_200, timeout=30, what="all are admitted")

        async def ready() -> bool:
            return not any([(await floor.task(task_id)).held for task_id in (*task_ids[:3], task_ids[-1])])

        await eventually(ready, what="all are ready")


async def test_a_slot_is_kept_over_a_lost_worker_and_given_up_for_a_retry(floor: Floor) -> None:
    await floor.configure(max_running=1)
    async with floor.gate() as gate:
        first, second = await floor.submit(), await floor.submit()
        await eventually(lambda: gate.admitted == 1, what="the first is admitted")
        await eventually(lambda: _ready(floor, first[0]), what="the first is queued")
        await start(floor, first[0])
        await handle(floor.log, first[0], ExpireLease(1), source="test")
        await start(floor, first[0])
        assert (await floor.task(second[0])).held
        error = ErrorInfo(type="E", message="no")
        await handle(floor.log, first[0], FailAttempt(2, error, 0.0, datetime.now(UTC)), source="w")
        await eventually(lambda: _ready(floor, second[0]), what="the second has the slot")
        retrying = await floor.task(first[0])
        await handle(floor.log, first[0], PromoteTask(retrying.version, datetime.now(UTC)), source="test")
        assert (await floor.task(first[0])).held, "the retry waits for its turn"
        await handle(floor.log, second[0], CancelTask("ada"), source="test")
        await eventually(lambda: _ready(floor, first[0]), what="the retry has the slot")


def _at_least(done: list[str], wanted: int) -> bool:
    return len(done) >= wanted


async def _ready(floor: Floor, task_id: str) -> bool:
    task = await floor.task(task_id)
    return task.status is Status.PENDING and not task.held


async def test_no_key_has_more_than_its_limit(floor: Floor) -> None:
    await floor.configure(max_running_per_key=2)
    async with floor.gate(), floor.gate(), floor.hands(8) as done:
        await asyncio.gather(*(floor.submit(30, key=key) for key in "abc"))
        await eventually(lambda: len(done) == 90, timeout=60, what="all are done")
    most = most_holders_of_a_key(await floor.history())
    assert set(most) == {"a", "b", "c"}
    assert max(most.values()) == 2


async def test_starts_keep_the_rate_over_a_change_of_gates(floor: Floor) -> None:
    await floor.configure(rate={"limit": 20, "per_s": 1.0, "burst": 3})
    async with floor.hands(4) as done:
        await floor.submit(30)
        for wanted in (8, 16, 30):  # each gate begins where the one before left off, by the log
            async with floor.gate():
                await eventually(partial(_at_least, done, wanted), timeout=30, what=f"{wanted} are done")
    times = [e.time.timestamp() for e in await floor.history() if isinstance(e.data, QueueAdmitted) for _ in e.data.tasks]
    assert len(times) == 30
    for first in times:
        assert sum(first <= at <= first + 0.5 for at in times) <= 3 + 0.5 * 20 + 1e-6


async def test_a_gate_whose_clock_is_set_back_an_hour_goes_on(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    back_s = 0.0
    clock = SimpleNamespace(time=lambda: time.time() - back_s, monotonic=time.monotonic)
    monkeypatch.setattr(module, "time", clock)
    await floor.configure(rate={"limit": 2, "per_s": 1.0})
    async with floor.gate() as gate:
        await floor.submit(2)
        await eventually(lambda: gate.admitted == 1, what="the first is admitted")
        back_s = 3600.0
        await eventually(lambda: gate.admitted == 2, what="the next is admitted half a second later")
        task_id = (await floor.submit())[0]
        queue = await read_state(floor.log, QUEUES, ROUTE.queue, fresh=True)
        tasks = (Admission(task_id=task_id, version=1),)
        with suppress(Conflict):  # the gate may have been quicker
            await handle_any(floor.log, QUEUES, ROUTE.queue, AdmitTasks(queue.version, tasks), source="gate")
        await eventually(lambda: _ready(floor, task_id), what="what another gate admitted and did not queue is completed")


async def test_a_task_that_only_a_newer_program_can_read_is_left_to_it(floor: Floor) -> None:
    """It keeps the slot that it was admitted to; those beside it pass all the same."""
    await floor.configure(max_running=2)
    held = Submitted(task_name="x", pool=ROUTE.pool, queue=ROUTE.queue, priority=ROUTE.priority, max_retries=0, gated=True)
    event, _ = next_event(TASKS, new_id(), ABSENT, held, source="test", at=datetime.now(UTC))
    newer = event._replace(state=event.state | {"colour": "red"})
    await floor.broker.js.publish(newer.subject, encode(newer))
    task_ids = await floor.submit(3)
    async with floor.gate(), floor.hands(1) as done:
        await eventually(lambda: set(task_ids) <= set(done), what="the others are done")
        began = time.monotonic()
        with capture_logs() as told:
            await eventually(lambda: [entry["event"] for entry in told].count("gate.unreadable") >= 3, what="it is tried again")
        assert time.monotonic() - began > module.OWED_PATIENCE_S, "but not all the time"
        more = await floor.submit()
        await eventually(lambda: set(more) <= set(done), what="one that came later is done")


async def test_one_task_beside_ten_thousand_of_another_tenant_is_admitted_next(floor: Floor) -> None:
    await floor.configure(fair=True)
    async with floor.gate() as gate:
        await asyncio.gather(*(floor.submit(2_500, key="flood") for _ in range(4)))
        await eventually(lambda: gate.admitted == admission.FAIR_WINDOW, timeout=30, what="the window is full")
        few = await floor.submit(3, key="few")
        async with floor.hands(8) as done:
            await eventually(lambda: set(few) <= set(done), timeout=90, what="the few are done")
    order = await admitted_ids(floor)
    last = max(order.index(task_id) for task_id in few)
    # Turn by turn with the flood, behind what was admitted before they came.
    assert last <= admission.FAIR_WINDOW + 2 * len(few) + 8


async def test_a_pool_without_workers_holds_up_no_other_pool_of_a_fair_queue(floor: Floor) -> None:
    await floor.configure(fair=True)
    async with floor.gate() as gate, floor.hands(1) as done:
        await floor.submit(admission.FAIR_WINDOW + 50, pool="gpu", key="a")
        await eventually(lambda: gate.admitted == admission.FAIR_WINDOW, timeout=30, what="the window is full")
        task_ids = await floor.submit(2, key="b")
        await eventually(lambda: sorted(done) == sorted(task_ids), timeout=30, what="what has a worker is done")
        assert gate.admitted == admission.FAIR_WINDOW + 2


async def test_what_another_gate_admitted_and_did_not_queue_is_completed(floor: Floor) -> None:
    queue = await floor.configure(max_running=3)
    task_ids = await floor.submit(5)
    tasks = tuple(Admission(task_id=task_id, version=1) for task_id in task_ids[:3])
    await handle_any(floor.log, QUEUES, ROUTE.queue, AdmitTasks(queue.version, tasks), source="gate")
    await handle(floor.log, task_ids[1], AdmitTask(1), source="gate")
    async with floor.gate() as gate:
        for task_id in task_ids[:3]:
            await eventually(partial(_ready, floor, task_id), what="it is queued")
        assert gate.admitted == 0
        await handle(floor.log, task_ids[0], CancelTask("ada"), source="test")
        await eventually(lambda: gate.admitted == 1, what="another follows")
    assert most_holders(await floor.history()) == 3


async def test_a_paused_queue_hands_out_nothing_to_anybody_until_it_is_resumed(
    floor: Floor, own_nats_server: NatsServer
) -> None:
    await floor.log.routes.ensure(ROUTE)
    async with floor.gate():
        await floor.pause()
        await eventually(lambda: _paused(floor, ROUTE), what="its consumer is paused")
        other = Route("gpu", ROUTE.queue, 9)
        await floor.submit(3)
        await floor.submit(1, pool=other.pool, priority=other.priority)
        assert await _paused(floor, other), "a new consumer of a paused queue is created paused"
        own_nats_server.kill()
        own_nats_server.start()
        async with floor.hands(2) as done, floor.hands(1, route=other) as others:
            assert await eventually(lambda: _paused(floor, ROUTE), what="it is paused after the broker's restart")
            assert done == others == []
            await floor.resume()
            await eventually(lambda: len(done) == 3 and len(others) == 1, timeout=30, what="all are done")


async def _paused(floor: Floor, route: Route) -> bool:
    try:
        return bool((await floor.broker.js.consumer_info(EVENTS, work_consumer(route), timeout=0.5)).paused)
    except (nats.errors.Error, TimeoutError):
        return False  # the broker is being restarted


async def test_held_tasks_are_not_admitted_while_their_queue_is_paused(floor: Floor) -> None:
    await floor.configure(max_running=5)
    await floor.pause()
    held = await floor.submit(3)
    await floor.configure("free", max_running=1)
    async with floor.gate() as gate:
        await floor.submit(1, queue="free")
        await eventually(lambda: gate.admitted == 1, what="the gate works")
        assert all([(await floor.task(task_id)).held for task_id in held])
        await floor.resume()
        await eventually(lambda: gate.admitted == 4, what="they are admitted")


async def test_a_pause_whose_effect_was_undone_by_hand_is_made_sure_of(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.1)
    await floor.log.routes.ensure(ROUTE)
    await floor.pause()
    async with floor.gate():
        await eventually(lambda: _paused(floor, ROUTE), what="it is paused at boot: nobody had brought that about")
        await floor.broker.js.resume_consumer(EVENTS, work_consumer(ROUTE))
        await eventually(lambda: _paused(floor, ROUTE), what="it is paused again")


async def test_the_reconciler_takes_no_work_of_a_paused_queue_for_lost(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    from eventq.services import reconciler as reconciling

    monkeypatch.setattr(reconciling, "GRACE_S", 0.0)
    await floor.log.routes.ensure(ROUTE)
    before = await floor.submit(3)
    pull = await floor.broker.js.pull_subscribe_bind(work_consumer(ROUTE), EVENTS)
    (handed_out,) = await pull.fetch(1)
    await floor.log.routes.set_paused(ROUTE.queue, True)
    await handed_out.nak()
    after = await floor.submit(3)
    reconciler = Reconciler(floor.log, lease_s=1.0)
    follower = Follower(floor.broker, [reconciler])
    following = asyncio.create_task(follower.run())
    await follower.until_caught_up()
    for _ in range(3):
        assert await reconciler.sweep() == 0
    following.cancel()
    assert all([(await floor.task(task_id)).version == 1 for task_id in (*before, *after)])
