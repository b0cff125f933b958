"""Keeps the worker's leases, in a thread and on a connection of its own.

An ``async def`` task that blocks the worker's loop must not cost the worker its leases: other queues fail exactly there.
So renewals and heartbeats come from a thread with an event loop of its own, which only the worker's death stops.

A lease is the broker's promise not to hand a work item to anybody else for ``lease_s``. It is renewed every third of that.
It is no fence: whoever holds a stale one is refused by the version check when he reports.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import nats.errors
import structlog

from eventq.events.bootstrap import PRESENCE_TTL_S
from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.presence import Heartbeat, beat, leave, listen

log = structlog.get_logger("eventq.lease_keeper")

IN_PROGRESS = b"+WPI"


class LeaseKeeper:
    """Started with the worker, stopped last. ``hold``, ``shorten`` and ``release`` are called from the worker's loop.

    ``on_lapse`` is called, in this thread, when renewing was impossible for a whole lease (the broker was away, or this
    process stood still), or when the thread itself ended with ``failure``: the worker must then look whether its attempts
    are still its own, or end.
    """

    def __init__(
        self, nats_url: str, describe: Callable[[], Heartbeat], *, lease_s: float, on_lapse: Callable[[], None]
    ) -> None:
        self._nats_url = nats_url
        self._describe = describe
        self._lease_s = lease_s
        self._on_lapse = on_lapse
        self._held: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._news = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Connect and begin; raises what connecting raised."""
        self._thread.start()
        self._started.wait()
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Withdraw the worker's presence and end the thread. Leases still held lapse by themselves."""
        self._stopping.set()
        self._thread.join(timeout=10)

    def hold(self, lease: str) -> None:
        """Renew this lease (the work item's reply subject) from now on."""
        with self._lock:
            self._held[lease] = time.monotonic()

    def shorten(self, lease_s: float) -> None:
        """Some leases last only ``lease_s``: renew all of them in time for that. Longer than now changes nothing."""
        self._lease_s = min(self._lease_s, lease_s)

    def release(self, lease: str) -> None:
        """Renew it no more."""
        with self._lock:
            self._held.pop(lease, None)

    def tell(self) -> None:
        """What the worker says of itself has changed: send a heartbeat at the next round, within half a second."""
        self._news.set()

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except BaseException as error:
            self.failure = error
            self._started.set()
            self._on_lapse()

    async def _keep(self) -> None:
        heartbeat = self._describe()
        async with await Broker.connect(self._nats_url, name=f"lease-keeper {heartbeat.worker_id}") as broker:
            await listen(broker, heartbeat.worker_id)
            hurry = asyncio.Event()
            broker.on_reconnect.append(hurry.set)
            self._started.set()
            renewed = beaten = time.monotonic()
            await self._beat(broker)
            while not self._stopping.is_set():
                await asyncio.sleep(min(self._lease_s / 6, 0.5))
                now = time.monotonic()
                if hurry.is_set() or self._news.is_set():  # after the broker was away others ask first of all who lives
                    hurry.clear()
                    self._news.clear()
                    await self._beat(broker)
                    beaten = now
                    overdue = True
                else:
                    overdue = now - renewed >= self._lease_s / 3
                if overdue and await self._renew(broker, now):
                    if now - renewed > self._lease_s:
                        self._on_lapse()
                    renewed = now
                if now - beaten >= min(PRESENCE_TTL_S, self._lease_s) / 3:
                    await self._beat(broker)
                    beaten = now
            await self._leave(broker)

    async def _renew(self, broker: Broker, now: float) -> bool:
        """Renew what was taken before the last round; what is younger still has its first lease."""
        with self._lock:
            due = [lease for lease, taken in self._held.items() if now - taken >= self._lease_s / 6]
        try:
            for lease in due:
                await broker.nc.publish(lease, IN_PROGRESS)
            await broker.nc.flush(timeout=2)
        except (nats.errors.Error, TimeoutError, OSError):
            return False
        return True

    async def _beat(self, broker: Broker) -> None:
        try:
            await beat(broker, self._describe())
        except LogUnavailable as error:
            log.warning("worker.heartbeat_failed", error=error.detail)

    async def _leave(self, broker: Broker) -> None:
        try:
            await leave(broker, self._describe().worker_id)
        except (nats.errors.Error, TimeoutError):
            return  # it lapses by itself
