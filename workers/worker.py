"""A worker process: registers, takes work while it has free slots, and stops without losing any.

Stopping: no new work; running attempts get ``grace_s`` to finish; what still runs is stopped and handed back as
``queued (interrupted)``, which costs the task nothing; then the worker says in the log that it stopped.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from eventq.events.blobs import BlobStore
from eventq.events.broker import Broker
from eventq.events.ending import end
from eventq.events.envelope import next_event
from eventq.events.errors import EventqError, LogDamaged, Unavailable
from eventq.events.failpoints import failpoint
from eventq.events.handle import read_task
from eventq.events.log import EventLog
from eventq.events.presence import Heartbeat
from eventq.events.reader import Tail
from eventq.events.subjects import CANCEL_REQUESTS, EVENTS
from eventq.events.worker import NO_WORKER, WORKERS
from eventq.events.worker import Worker as WorkerState
from eventq.events.worker_events import WorkerRegistered, WorkerStopped
from eventq.workers.acks import Acks
from eventq.workers.attempt import HOSTNAME, Attempt, Counts, Workshop
from eventq.workers.config import WorkerConfig
from eventq.workers.devices import CPU, Device, gpu_devices
from eventq.workers.execution import LoopHost
from eventq.workers.inputs import Inputs
from eventq.workers.lease_keeper import LeaseKeeper
from eventq.workers.outcome import StopReason
from eventq.workers.processes import ChildPool
from eventq.workers.puller import Delivery, Puller
from eventq.workers.registry import Registry

log = structlog.get_logger("eventq.worker")

GPU_POOL = "gpu"


class Worker:
    """One worker. Make it with :meth:`create`, then :meth:`run` until ``stop`` is set."""

    def __init__(
        self, config: WorkerConfig, broker: Broker, event_log: EventLog, registry: Registry, devices: Sequence[Device]
    ) -> None:
        blobs = BlobStore.open(config.isolation.blob_url)
        on_device = config.pool == GPU_POOL
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
            loop_host=LoopHost(blobs, Inputs(blobs, config.isolation.input_dirs, config.isolation.fetch_allow)),
            children=ChildPool(config.isolation, devices if on_device else [CPU] * config.concurrency),
            device_label=devices[0].label,
            isolate_async=on_device,
            lease_s=config.lease_s,
            stop_s=config.stop_s,
        )
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._state: WorkerState = NO_WORKER
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
            free=lambda: self.capacity - len(self._running),
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
        await self._register()
        await asyncio.to_thread(self._keeper.start)
        background = [
            asyncio.create_task(self._puller.run(), name="puller"),
            asyncio.create_task(self._watch_cancels(facts.last), name="cancels"),
            asyncio.create_task(self._watch_lapses(), name="lapses"),
            asyncio.create_task(self._broker.closed.wait(), name="connection"),
        ]
        stopping = asyncio.create_task(stop.wait())
        if on_ready is not None:
            on_ready.set()
        log.info("worker.ready", worker_id=self.config.worker_id, pool=self.config.pool, capacity=self.capacity)
        done, _ = await asyncio.wait([stopping, *background], return_when=asyncio.FIRST_COMPLETED)
        try:
            if stopping not in done:
                for task in done:
                    task.result()
                raise EventqError("the worker lost its connection to the broker for good")
            await self._drain()
        finally:
            await end(stopping, *background)

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
        task = asyncio.create_task(attempt.run())
        self._running.add(task)
        task.add_done_callback(lambda done: self._ended(done, key))

    def _ended(self, done: asyncio.Task[None], key: tuple[str, int]) -> None:
        self._running.discard(done)
        self._keeper.release(self._attempts.pop(key).delivery.lease)
        if not self._running:
            self._idle.set()
        self._puller.slot_freed()

    # Signals

    async def _watch_cancels(self, after: int) -> None:
        """Cancellation requests are events, read by position: none is lost to a reconnect."""
        async with Tail(self._broker, EVENTS, after=after, subject=CANCEL_REQUESTS, batch=200) as tail:
            async for batch in tail:
                asked = {message.subject.split(".")[1] for message in batch}
                for attempt in list(self._attempts.values()):
                    if attempt.task_id in asked:
                        attempt.stop(StopReason.CANCELLED)

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

    async def _register(self) -> None:
        data = WorkerRegistered(
            hostname=HOSTNAME,
            pid=os.getpid(),
            pool=self.config.pool,
            queues=list(self.config.queues),
            capacity=self.capacity,
            devices=[device.label for device in self._devices],
            tasks=[d for d in self._registry.declarations() if d.pool == self.config.pool],
        )
        await self._append(data)

    async def _append(self, data: WorkerRegistered | WorkerStopped) -> None:
        event, after = next_event(
            WORKERS, self.config.worker_id, self._state, data, source=self._shop.source, at=datetime.now(UTC)
        )
        await self._log.append(event)
        self._state = after

    async def _drain(self) -> None:
        log.info("worker.stopping", worker_id=self.config.worker_id, running=len(self._running))
        self._puller.stop()
        failpoint("worker.draining")
        await self._wait_idle(self.config.grace_s)
        for attempt in list(self._attempts.values()):
            attempt.stop(StopReason.INTERRUPTED)
        await self._wait_idle(3 * self.config.stop_s)
        await self._shop.children.close()
        await self._acks.close()
        await self._append(WorkerStopped(reason="asked to stop"))
        await asyncio.to_thread(self._keeper.stop)
        log.info("worker.stopped", worker_id=self.config.worker_id)

    async def _wait_idle(self, patience_s: float) -> None:
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
        )
