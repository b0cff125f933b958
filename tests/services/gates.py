"""Gates, and hands that work like workers, over a real broker: what tests of queues are made of."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import nats.errors

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.commands import CompleteAttempt, StartAttempt
from eventq.events.ending import end
from eventq.events.envelope import Event, decode
from eventq.events.errors import Conflict
from eventq.events.handle import handle, handle_any
from eventq.events.ids import new_id
from eventq.events.log import EventLog
from eventq.events.queue import QUEUES, ConfigureQueue, PauseQueue, Queue, ResumeQueue
from eventq.events.queue_events import QueueLimits
from eventq.events.reader import Tail
from eventq.events.subjects import EVENTS, Route, work_consumer
from eventq.events.submitter import Submitter
from eventq.events.task import Task, from_summary
from eventq.events.task_events import Submitted
from eventq.services.follower import Follower
from eventq.services.gate import Gate

ROUTE = Route("cpu", "narrow", 5)


class Floor:
    """A connection and a log, and what a test does with them."""

    def __init__(self, broker: Broker, log: EventLog) -> None:
        self.broker = broker
        self.log = log
        self.submitter = Submitter(log, source="test")

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncGenerator[Self]:
        async with await Broker.connect(url, name="test") as broker:
            await bootstrap(broker, BrokerConfig(accept_lazy_sync=True, events_max_bytes=64 * 1024 * 1024))
            log = await EventLog.open(broker)
            try:
                yield cls(broker, log)
            finally:
                await log.close()

    async def configure(self, queue: str = ROUTE.queue, **limits: Any) -> Queue:
        command = ConfigureQueue(QueueLimits.model_validate(limits), "test")
        self.submitter.queues.forget(queue)
        return (await handle_any(self.log, QUEUES, queue, command, source="test")).state

    async def pause(self, queue: str = ROUTE.queue) -> None:
        await handle_any(self.log, QUEUES, queue, PauseQueue("ada", "maintenance"), source="test")

    async def resume(self, queue: str = ROUTE.queue) -> None:
        await handle_any(self.log, QUEUES, queue, ResumeQueue("ada"), source="test")

    async def submit(self, count: int = 1, **fields: Any) -> list[str]:
        """Submit tasks as the API does; their ids."""
        given = {"task_name": "x", "pool": ROUTE.pool, "queue": ROUTE.queue, "priority": ROUTE.priority, "max_retries": 1}
        submitted = Submitted.model_validate({**given, **fields})
        task_ids = [new_id() for _ in range(count)]
        await asyncio.gather(*(self.submitter.submit(task_id, submitted) for task_id in task_ids))
        return task_ids

    async def task(self, task_id: str) -> Task:
        stored = await self.log.last("tasks", task_id, fresh=True)
        assert stored is not None
        return from_summary(stored.event.state)

    async def history(self) -> list[Event]:
        """Every event of the log, in order."""
        return await history_of(self.broker)

    @asynccontextmanager
    async def gate(self) -> AsyncGenerator[Gate]:
        """A gate at work, with a follower of its own, as in a scheduler."""
        gate = Gate(self.log)
        follower = Follower(self.broker, [gate])
        running = [asyncio.create_task(follower.run()), asyncio.create_task(gate.run(follower))]
        try:
            yield gate
        finally:
            for task in running:
                assert not task.done(), task.exception()
            await end(*running)

    @asynccontextmanager
    async def hands(self, count: int, *, work_s: float = 0.001, route: Route = ROUTE) -> AsyncGenerator[list[str]]:
        """So many workers of the route, each with one slot; yields the ids of what they completed, in order."""
        await self.log.routes.ensure(route)
        done: list[str] = []
        workers = [asyncio.create_task(self._work(f"w{n}", route, work_s, done)) for n in range(count)]
        try:
            yield done
        finally:
            for task in workers:
                assert not task.done(), task.exception()
            await end(*workers)

    async def _work(self, worker_id: str, route: Route, work_s: float, done: list[str]) -> None:
        pull = await self.broker.js.pull_subscribe_bind(work_consumer(route), EVENTS)
        while True:
            try:
                (message,) = await pull.fetch(1, timeout=1)
            except (nats.errors.Error, TimeoutError):
                await asyncio.sleep(0.05)
                continue
            event = decode(message.data, message.subject)
            try:
                known = from_summary(event.state)
                task = await self.start(event.aggregate_id, worker_id, known)
                if task is not None:
                    await asyncio.sleep(work_s)
                    finished = CompleteAttempt(task.attempt, None, None, work_s)
                    await handle(self.log, event.aggregate_id, finished, source=worker_id, task=task)
                    done.append(event.aggregate_id)
            except Conflict:
                pass
            await message.ack()

    async def start(self, task_id: str, worker_id: str, known: Task) -> Task | None:
        """What a worker does with a work item: only a first attempt at the item's own version is made."""
        task = await self.task(task_id)
        if task.ready != known.version or task.version != known.version:
            return None
        command = StartAttempt(worker_id=worker_id, hostname="host", device="cpu")
        return (await handle(self.log, task_id, command, source=worker_id, task=known)).state


async def history_of(broker: Broker) -> list[Event]:
    """Every event of the log, in order."""
    facts = await broker.stream_facts(EVENTS)
    assert facts is not None
    found: list[Event] = []
    async with Tail(broker, EVENTS, after=0) as tail:
        position = 0
        while position < facts.last:
            for message in await tail.next(timeout_s=1):
                found.append(decode(message.payload, message.subject))
                position = message.position
    return found


def most_holders(history: Sequence[Event], queue: str = ROUTE.queue) -> int:
    """How many tasks of the queue had a work item or an attempt at once, at most, by the order of the log."""
    return max(_holders(history, queue, by_key=False).values(), default=0)


def most_holders_of_a_key(history: Sequence[Event], queue: str = ROUTE.queue) -> dict[str, int]:
    """The same of each key."""
    return _holders(history, queue, by_key=True)


def _holders(history: Sequence[Event], queue: str, *, by_key: bool) -> dict[str, int]:
    holding: dict[str, str] = {}
    most: Counter[str] = Counter()
    for event in history:
        if event.aggregate != "tasks":
            continue
        task = from_summary(event.state)
        holding.pop(event.aggregate_id, None)
        if task.queue == queue and (task.in_hand or (task.status == "PENDING" and task.ready)):
            group = (task.key or "none") if by_key else "all"
            holding[event.aggregate_id] = group
            most[group] = max(most[group], Counter(holding.values())[group])
    return dict(most)
