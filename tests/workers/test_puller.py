"""The puller on the real broker: as much as there is room for, from the queues it serves, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eventq.events.routes import Routes
from eventq.events.subjects import EVENTS, QUEUE_CREATED, Route, work_consumer
from eventq.workers import puller as module
from eventq.workers.acks import ACK
from eventq.workers.puller import Delivery, Puller, deal
from tests.chaos.site import LEASE_S, ROUTE, Control, Site
from tests.support.nats import NatsServer
from tests.support.poll import eventually


@pytest.fixture
async def control(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Control]:
    async with await Control.open(Site(own_nats_server, tmp_path)) as control:
        yield control


class Slots:
    """What a worker is to its puller: so many free slots, and a place for what comes."""

    def __init__(self, control: Control, free: int) -> None:
        self.free = free
        self.taken: list[Delivery] = []
        self.leases: list[float] = []
        self.overrun = False
        self._control = control

    def take(self, delivery: Delivery) -> None:
        self.overrun = self.overrun or self.free <= 0
        self.free -= 1
        self.taken.append(delivery)

    @property
    def task_ids(self) -> list[str]:
        return [delivery.event.aggregate_id for delivery in self.taken]

    async def finish(self, delivery: Delivery, puller: Puller) -> None:
        """Acknowledge an item and free its slot."""
        await self._control.broker.nc.publish(delivery.lease, ACK)
        self.free += 1
        puller.slot_freed()


@asynccontextmanager
async def pulling(control: Control, slots: Slots, *queues: str) -> AsyncGenerator[Puller]:
    routes = Routes(control.broker, lease_s=LEASE_S)
    puller = Puller(
        control.broker,
        routes,
        pool="cpu",
        queues=queues,
        free=lambda: slots.free,
        deliver=slots.take,
        on_lease=slots.leases.append,
    )
    running = asyncio.create_task(puller.run())
    try:
        yield puller
    finally:
        assert not running.done(), running.exception()
        puller.stop()
        async with asyncio.timeout(30):
            await running
        assert not slots.overrun, "more was taken than there was room for"


async def until(condition: object, what: str) -> None:
    assert callable(condition)
    await eventually(condition, timeout=60, what=what)


async def parked(control: Control, route: Route = ROUTE) -> bool:
    """Whether a request waits at the route's consumer."""
    return bool((await control.broker.js.consumer_info(EVENTS, work_consumer(route))).num_waiting)


async def test_it_takes_what_there_is_room_for_and_leaves_the_rest(control: Control) -> None:
    task_ids = [await control.submit("chaos.quick") for _ in range(7)]
    slots = Slots(control, free=3)
    async with pulling(control, slots) as puller:
        await until(lambda: len(slots.taken) == 3, "the slots are full")
        assert slots.task_ids == task_ids[:3]
        info = await control.broker.js.consumer_info(EVENTS, work_consumer(ROUTE))
        assert (info.num_ack_pending, info.num_pending) == (3, 4)
        for number in range(7):
            await until(lambda number=number: len(slots.taken) > number, "the next item")
            await slots.finish(slots.taken[number], puller)
    assert slots.task_ids == task_ids
    await control.until_nothing_outstanding()


async def test_work_that_comes_later_wakes_it(control: Control) -> None:
    await control.submit("chaos.quick")
    slots = Slots(control, free=5)
    async with pulling(control, slots):
        await until(lambda: len(slots.taken) == 1, "the first item")
        await until(lambda: parked(control), "a request waits")
        await control.submit("chaos.quick")
        await until(lambda: len(slots.taken) == 2, "the second item")
        await until(lambda: parked(control), "a request waits again")


@pytest.mark.parametrize("hinted", [True, False])
async def test_new_queues_are_found_by_hint_and_without(
    control: Control, monkeypatch: pytest.MonkeyPatch, hinted: bool
) -> None:
    monkeypatch.setattr(module, "LOOK_FOR_QUEUES_S", 3600.0 if hinted else 0.1)
    if not hinted:
        monkeypatch.setattr(module, "QUEUE_CREATED", f"{QUEUE_CREATED}.never")
    slots = Slots(control, free=5)
    async with pulling(control, slots):
        await until(lambda: control.broker.nc.is_connected, "connected")
        task_id = await control.submit("chaos.quick", queue="new", priority=3)
        await until(lambda: slots.task_ids == [task_id], "the new queue's item")


async def test_only_its_own_pool_and_queues_are_served(control: Control) -> None:
    await control.submit("chaos.quick", pool="gpu")
    await control.submit("chaos.quick", queue="other")
    slots = Slots(control, free=5)
    async with pulling(control, slots, "mine", "mine-too"):
        mine = [await control.submit("chaos.quick", queue=queue, priority=p) for queue in ("mine", "mine-too") for p in (0, 9)]
        await until(lambda: set(slots.task_ids) == set(mine), "the items of its own queues")


async def test_an_item_that_comes_when_no_slot_is_free_is_handed_straight_back(control: Control) -> None:
    await control.log.routes.ensure(ROUTE)
    slots = Slots(control, free=1)
    async with pulling(control, slots) as puller:
        await until(lambda: parked(control), "a request waits")
        slots.free = 0
        task_id = await control.submit("chaos.quick")
        await until(lambda: puller.handed_back, "it is handed back")
        slots.free = 1
        puller.slot_freed()
        await until(lambda: slots.task_ids == [task_id], "it comes again")
        assert slots.taken[0].count >= 2


async def test_what_cannot_be_read_is_neither_run_nor_acknowledged_nor_in_the_way(control: Control) -> None:
    before = await control.submit("chaos.quick")
    await control.until(lambda: control.events(before), "the first event is seen")
    subject = control.events(before)[0].subject.replace(before, "unreadable")
    await control.stop_watching()
    await control.broker.js.publish(subject, b"not an event")
    after = await control.submit("chaos.quick")
    slots = Slots(control, free=5)
    async with pulling(control, slots):
        await until(lambda: slots.task_ids == [before, after], "the readable items")
        info = await control.broker.js.consumer_info(EVENTS, work_consumer(ROUTE))
        assert (info.num_ack_pending, info.num_pending) == (3, 0)


async def test_a_stopped_puller_takes_nothing_more(control: Control) -> None:
    await control.log.routes.ensure(ROUTE)
    slots = Slots(control, free=5)
    async with pulling(control, slots):
        await until(lambda: parked(control), "a request waits")
    task_id = await control.submit("chaos.quick")
    other = Slots(control, free=1)
    async with pulling(control, other):
        await until(lambda: other.task_ids == [task_id], "another takes it")
    assert slots.taken == []


async def test_it_goes_on_after_a_crash_of_the_broker(control: Control) -> None:
    await control.log.routes.ensure(ROUTE)
    slots = Slots(control, free=5)
    async with pulling(control, slots):
        await until(lambda: parked(control), "a request waits")
        await asyncio.to_thread(control.site.server.restart, crash=True)
        await control.until(lambda: control.broker.nc.is_connected, "connected again")
        task_id = await control.submit("chaos.quick")
        await until(lambda: slots.task_ids == [task_id], "the item")


async def test_it_goes_on_when_its_consumer_was_deleted_and_made_anew(control: Control) -> None:
    await control.log.routes.ensure(ROUTE)
    slots = Slots(control, free=5)
    async with pulling(control, slots):
        await until(lambda: parked(control), "a request waits")
        await control.broker.js.delete_consumer(EVENTS, work_consumer(ROUTE))
        await control.log.routes.create(ROUTE)
        task_id = await control.submit("chaos.quick")
        await until(lambda: slots.task_ids == [task_id], "the item")


async def test_it_tells_how_long_the_leases_of_a_route_last_before_it_takes_from_it(control: Control) -> None:
    task_id = await control.submit("chaos.quick")
    slots = Slots(control, free=1)
    async with pulling(control, slots):
        await until(lambda: slots.task_ids == [task_id], "the item")
        assert slots.leases == [LEASE_S]


def test_slots_are_dealt_by_priority_and_none_is_left_out() -> None:
    routes = [Route("cpu", "a", priority) for priority in (0, 5, 10)]
    dealt = deal(50_000, routes)
    assert sum(dealt.values()) == 50_000
    assert 0 < dealt[routes[0]] < dealt[routes[1]] < dealt[routes[2]]
    assert dealt[routes[2]] > 4 * dealt[routes[1]]
