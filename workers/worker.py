"""A worker process: registers, takes work while it has free slots, and stops without losing any.

Stopping: no new work; running attempts get ``grace_s`` to finish; what still runs is stopped and handed back as
``queued (interrupted)``, which costs the task nothing; then the worker says in the log that it stopped.

Drained (somebody wrote so into its history) it stops in the same way, but lets running attempts take as long as they need.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog

from eventq.events.blobs import BlobStore
from eventq.events.broker import Broker
from eventq.events.ending import end
from eventq.events.errors import EventqError, LogDamaged, Unavailable
from eventq.events.failpoints import failpoint
from eventq.events.handle import read_task
from eventq.events.log import EventLog
from eventq.events.presence import Heartbeat, listen
from eventq.events.reader import Tail
from eventq.events.subjects import EVENTS, STEERING
from eventq.events.submitter import Submitter
from eventq.events.worker import Worker as WorkerState
from eventq.events.worker import WorkerStatus
from eventq.events.worker_events import WorkerRegistered
from eventq.workers.acks import Acks
from eventq.workers.alone import until_alone
from eventq.workers.attempt import HOSTNAME, Attempt, Counts, Workshop
from eventq.workers.config import WorkerConfig
from eventq.workers.devices import CPU, Device, gpu_devices
from eventq.workers.execution import LoopHost
from eventq.workers.inputs import Inputs
from eventq.workers.lease_keeper import LeaseKeeper
from eventq.workers.membership import Membership
from eventq.workers.outcome import StopReason
from eventq.workers.processes import ChildPool
from eventq.workers.puller import Delivery, Puller
from eventq.workers.registry import Registry
from eventq.workers.spawning import Spawner

log = structlog.get_logger("eventq.worker")

GPU_POOL = "gpu"


class Worker:
    """One worker. Make it with :meth:`create`, then :meth:`run` until ``stop`` is set."""

    def __init__(
        self, config: WorkerConfig, broker: Broker, event_log: EventLog, registry: Registry, devices: Sequence[Device]
    ) -> None:
        blobs = BlobStore.open(config.isolation.blob_url)
        on_device = self._on_device = config.pool == GPU_POOL
        self.config = config
        self.capacity = len(devices) if on_device else config.concurrency
        self._devices = list(devices)
        self._broker = broker
        self._log = event_log
        self._registry = registry
        self._acks = Acks(broker)
        self._shop = Workshop(
            worker_id=config.worker_id,
            log=event_log,
            registry=registry,
            blobs=blobs,
            acks=self._acks,
            spawner=Spawner(registry, blobs, Submitter(event_log, source=f"worker.{config.worker_id}")),
            loop_host=LoopHost(blobs, Inputs(blobs, config.isolation.input_dirs, config.isolation.fetch_allow)),
            children=ChildPool(config.isolation, devices if on_device else [CPU] * config.concurrency),
            device_label=devices[0].label,
            isolate_async=on_device,
            lease_s=config.lease_s,
            stop_s=config.stop_s,
        )
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._running: dict[asyncio.Task[None], Attempt] = {}
        self._lone: Attempt | None = None
        """What runs alone, or waits for that."""
        self._steering: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._drained = asyncio.Event()
        self._membership = Membership(
            event_log,
            config.worker_id,
            registration=self._registration,
            on_change=self._obey,
            on_lost=self._give_up_attempts,
        )
        self._loop = asyncio.get_running_loop()
        self._lapsed = asyncio.Event()
        self._keeper = LeaseKeeper(
            config.nats_url,
            self._heartbeat,
            lease_s=config.lease_s,
            on_lapse=self._on_lapse,
        )
        self._puller = Puller(
            broker,
            event_log.routes,
            pool=config.pool,
            queues=config.queues,
            free=self._free_slots,
            deliver=self._deliver,
            on_lease=self._keeper.shorten,
        )

    @classmethod
    async def create(cls, config: WorkerConfig, broker: Broker, event_log: EventLog, registry: Registry) -> Worker:
        """A worker with its devices found. Raises ``NoTorch`` for a gpu pool without PyTorch."""
        devices = await gpu_devices() if config.pool == GPU_POOL else [CPU]
        return cls(config, broker, event_log, registry, devices)

    @property
    def counts(self) -> Counts:
        """What was done so far."""
        return self._shop.counts

    @property
    def drained(self) -> bool:
        """Whether it was told to finish what it has and end."""
        return self._drained.is_set()

    @property
    def ghosts(self) -> int:
        """How many coroutines ignored their cancellation and still run: the event loop will not end by itself."""
        return len(self._shop.loop_host.ghosts)

    async def run(self, stop: asyncio.Event, on_ready: asyncio.Event | None = None) -> None:
        """Work until ``stop`` is set, then stop gracefully. ``on_ready`` is set once work is taken.

        Raises when the connection is lost for good or the lease keeper died: the process should end and be restarted.
        """
        await self._acks.start()
        facts = await self._broker.stream_facts(EVENTS)
        if facts is None:
            raise LogDamaged("the stream of events does not exist: was the broker bootstrapped?", stream=EVENTS)
        await listen(self._broker, self.config.worker_id)
        await self._membership.register()
        await asyncio.to_thread(self._keeper.start)
        background = [
            asyncio.create_task(self._puller.run(), name="puller"),
            asyncio.create_task(self._watch_steering(facts.last), name="steering"),
            asyncio.create_task(self._membership.follow(facts.last), name="membership"),
            asyncio.create_task(self._watch_lapses(), name="lapses"),
            asyncio.create_task(self._broker.closed.wait(), name="connection"),
        ]
        stopping = asyncio.create_task(stop.wait(), name="stopping")
        draining = asyncio.create_task(self._drained.wait(), name="draining")
        if on_ready is not None:
            on_ready.set()
        log.info("worker.ready", worker_id=self.config.worker_id, pool=self.config.pool, capacity=self.capacity)
        try:
            ended = await self._first_to_end(stopping, draining, *background)
            if ended is draining:
                ended = await self._finish(stopping, *background)
            if ended not in (stopping, draining):
                ended.result()
                raise EventqError("the worker lost its connection to the broker for good")
            await self._stop()
        finally:
            await end(stopping, draining, *background)

    async def _first_to_end(self, *tasks: asyncio.Task[Any]) -> asyncio.Task[Any]:
        """The first of these tasks that ended; the earlier one in their order where several have."""
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done)

    async def _finish(self, stopping: asyncio.Task[Any], *background: asyncio.Task[Any]) -> asyncio.Task[Any]:
        """Drained: take nothing new and let what runs take as long as it needs, unless somebody asks to stop meanwhile.
        Answers what ended first; ``stopping`` where nothing runs any more."""
        log.info("worker.draining", worker_id=self.config.worker_id, running=len(self._running))
        self._puller.stop()
        self._hand_back_frozen()
        idle = asyncio.create_task(self._wait_idle(None), name="idle")
        try:
            ended = await self._first_to_end(idle, stopping, *(task for task in background if task.get_name() != "puller"))
        finally:
            await end(idle)
        return stopping if ended is idle else ended

    def _deliver(self, delivery: Delivery) -> None:
        """A work item came: hold its lease and begin. Called only while there is a free slot."""
        key = (delivery.event.aggregate_id, delivery.event.version)
        if (running := self._attempts.get(key)) is not None:
            # Our own item again: its lease lapsed while the broker was away. It is still ours; go on under the new lease.
            self._keeper.release(running.delivery.lease)
            self._keeper.hold(delivery.lease)
            running.delivery = delivery
            return
        attempt = self._attempts[key] = Attempt(delivery, self._shop)
        self._keeper.hold(delivery.lease)
        if attempt.on_last_chance and attempt.task.task_name in self._registry:
            self._lone = attempt
        task = asyncio.create_task(attempt.run() if self._lone is not attempt else self._run_alone(attempt))
        self._running[task] = attempt
        task.add_done_callback(lambda done: self._ended(done, key))

    async def _run_alone(self, attempt: Attempt) -> None:
        """See ``alone.py``."""
        try:
            await until_alone(self._beside_lone, self._lone_given_up)
            if self._takes_work() and not attempt.stopped_early and len(self._running) <= self.capacity:
                await attempt.run()
            else:
                await self._acks.nak(attempt.delivery.lease, 0)
        finally:
            self._lone = None

    def _beside_lone(self) -> list[asyncio.Task[None]]:
        return [task for task, each in self._running.items() if each is not self._lone and not each.frozen]

    async def _lone_given_up(self) -> bool:
        lone = self._lone
        return lone is None or lone.stopped_early or not self._takes_work() or not await lone.is_next()

    def _takes_work(self) -> bool:
        return self._membership.state.status is WorkerStatus.ACTIVE and not self._shop.leaving

    def _ended(self, done: asyncio.Task[None], key: tuple[str, int]) -> None:
        del self._running[done]
        self._keeper.release(self._attempts.pop(key).delivery.lease)
        if not self._running:
            self._idle.set()
        self._puller.slot_freed()

    def _free_slots(self) -> int:
        """How much more may be taken: nothing while paused or draining, nor beside what is to run alone, nor while too much
        runs for a lowered capacity."""
        if self._lone is not None or self._membership.state.status is not WorkerStatus.ACTIVE:
            return 0
        return max(0, self.capacity - len(self._running))

    # What others write into its history

    def _obey(self, state: WorkerState) -> None:
        """The worker is to be as ``state`` says from now on. What runs goes on, whatever it says."""
        if state.capacity != self.capacity:
            # A device runs one task at a time: more than there are devices is a wish that cannot be fulfilled here.
            self.capacity = min(state.capacity, len(self._devices)) if self._on_device else state.capacity
            if not self._on_device:
                self._shop.children.resize(self.capacity)
            log.info("worker.capacity", worker_id=self.config.worker_id, capacity=self.capacity)
        if state.status is WorkerStatus.DRAINING:
            self._drained.set()
        self._keeper.tell()
        self._puller.slot_freed()

    def _give_up_attempts(self) -> None:
        """It was called lost: its attempts are ended in the log, or about to be. What of them is not goes back by itself."""
        for attempt in list(self._attempts.values()):
            attempt.stop(StopReason.INTERRUPTED)

    # Signals

    async def _watch_steering(self, after: int) -> None:
        """Requests to cancel, pause and resume are events, read by position: none is lost to a reconnect."""
        async with Tail(self._broker, EVENTS, after=after, subject=STEERING, batch=200) as tail:
            async for batch in tail:
                for message in batch:
                    _, task_id, version, signal = message.subject.split(".", 3)
                    for attempt in [each for each in self._attempts.values() if each.task_id == task_id]:
                        steering = asyncio.create_task(attempt.steer(signal, int(version)))
                        self._steering.add(steering)
                        steering.add_done_callback(self._steering.discard)

    def _on_lapse(self) -> None:
        """Called in the lease keeper's thread."""
        self._loop.call_soon_threadsafe(self._lapsed.set)

    async def _watch_lapses(self) -> None:
        """After a time without renewals somebody may have taken attempts over: end those that are no longer ours."""
        while True:
            await self._lapsed.wait()
            self._lapsed.clear()
            if self._keeper.failure is not None:
                raise self._keeper.failure
            for attempt in list(self._attempts.values()):
                with suppress(Unavailable):
                    if not attempt.is_current(await read_task(self._log, attempt.task_id, fresh=True)):
                        attempt.stop(StopReason.LEASE_LOST)

    # Beginning and end

    def _registration(self) -> WorkerRegistered:
        return WorkerRegistered(
            hostname=HOSTNAME,
            pid=os.getpid(),
            pool=self.config.pool,
            queues=list(self.config.queues),
            capacity=self.capacity,
            devices=[device.label for device in self._devices],
            tasks=[d for d in self._registry.declarations() if d.pool == self.config.pool],
        )

    async def _stop(self) -> None:
        log.info("worker.stopping", worker_id=self.config.worker_id, running=len(self._running))
        self._puller.stop()
        self._hand_back_frozen()
        failpoint("worker.draining")
        await self._wait_idle(self.config.grace_s)
        for attempt in list(self._attempts.values()):
            attempt.stop(StopReason.INTERRUPTED)
        await self._wait_idle(3 * self.config.stop_s)
        await self._shop.children.close()
        await self._acks.close()
        await self._membership.stop("drained" if self.drained else "asked to stop")
        await asyncio.to_thread(self._keeper.stop)
        log.info("worker.stopped", worker_id=self.config.worker_id)

    def _hand_back_frozen(self) -> None:
        """Attempts that stand still would not end by themselves: their tasks stay paused, without them. From here on none is
        made to stand still."""
        self._shop.leaving = True
        for attempt in [each for each in self._attempts.values() if each.frozen]:
            attempt.stop(StopReason.INTERRUPTED)

    async def _wait_idle(self, patience_s: float | None) -> None:
        """Return once nothing runs, or after ``patience_s``, where there is a bound."""
        self._idle.clear()
        if not self._running:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._idle.wait()

    def _heartbeat(self) -> Heartbeat:
        """Called in the lease keeper's thread: reads only what may be read from there."""
        return Heartbeat(
            worker_id=self.config.worker_id,
            hostname=HOSTNAME,
            pool=self.config.pool,
            capacity=self.capacity,
            running=[task_id for task_id, _ in list(self._attempts)],
            at=datetime.now(UTC),
            status=str(self._membership.state.status),
        )
