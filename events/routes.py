"""Work consumers: one durable for each (pool, queue, priority) in use. The broker's list of them is the list of queues.

A route's consumer exists before the first event is written to it, because the log's append makes sure of it. So it can
be created with ``deliver new``, which costs a millisecond; replaying filters over a large stream would block every
writer for its duration. What falls through (a consumer deleted by hand, an event published past eventq) is found by the
reconciler, which makes the task ready again.

A queue is paused by pausing its consumers: the broker hands out nothing more of them, to no worker, also after it was
restarted. That is the effect of a fact, the queue's ``paused``; whoever stores it brings the effect about, whoever creates a
consumer looks whether it is to be paused, and the gate makes sure of both.
"""

from __future__ import annotations

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from eventq.events.broker import Broker
from eventq.events.envelope import decode
from eventq.events.queue import QUEUES
from eventq.events.subjects import (
    EVENTS,
    QUEUE_CREATED,
    Route,
    aggregate_filter,
    route_of_consumer,
    work_consumer,
    work_filter,
)

LEASE_DEFAULT_S = 10.0
"""How long a worker may be silent before its attempt is given to another. Renewed every third of it."""

MAX_WAITING = 4_096
"""Pull requests that may be parked on one consumer: above the number of idle workers."""

MAX_ACK_PENDING = 20_000
"""Attempts that may run at once on one route."""

PAUSED_UNTIL = "2999-01-01T00:00:00Z"
"""How the broker is told that a pause ends when somebody says so."""


class Routes:
    """Knows which work consumers exist and creates missing ones. One per process."""

    def __init__(self, broker: Broker, *, lease_s: float = LEASE_DEFAULT_S) -> None:
        self._broker = broker
        self._lease_s = lease_s
        self._known: set[Route] = set()

    async def ensure(self, route: Route) -> None:
        """Create the route's consumer where it is missing. Remembered: costs nothing from the second call on."""
        if route in self._known:
            return
        try:
            await self._broker.js.consumer_info(EVENTS, work_consumer(route))
        except NotFoundError:
            await self.create(route)
        self._known.add(route)

    async def create(self, route: Route) -> None:
        """Create the consumer and tell workers. Of two that create at once, both succeed: the configuration is the same, and
        one that was paused meanwhile stays so."""
        paused = await self._queue_paused(route.queue)
        await self._broker.js.add_consumer(
            EVENTS,
            ConsumerConfig(
                durable_name=work_consumer(route),
                filter_subject=work_filter(route),
                ack_policy=AckPolicy.EXPLICIT,
                deliver_policy=DeliverPolicy.NEW,
                ack_wait=self._lease_s,
                max_deliver=-1,
                max_ack_pending=MAX_ACK_PENDING,
                max_waiting=MAX_WAITING,
                pause_until=PAUSED_UNTIL if paused else None,
            ),
        )
        await self._broker.nc.publish(QUEUE_CREATED, work_consumer(route).encode())

    async def set_paused(self, queue: str, paused: bool) -> int:
        """Let the broker hand out work of the queue, or not, whatever its pool and priority. Answers how many consumers were
        not so before; doing it again changes nothing."""
        changed = 0
        for route in await self.existing():
            if route.queue == queue:
                changed += await self._set_paused(route, paused)
        return changed

    async def _set_paused(self, route: Route, paused: bool) -> bool:
        js, consumer = self._broker.js, work_consumer(route)
        try:
            info = await js.consumer_info(EVENTS, consumer)
            if bool(info.paused) == paused:
                return False
            if paused:
                await js.pause_consumer(EVENTS, consumer, PAUSED_UNTIL)
            else:
                await js.resume_consumer(EVENTS, consumer)
                # Requests that were parked on it meanwhile are not served when it goes on: let workers ask anew.
                await self._broker.nc.publish(QUEUE_CREATED, consumer.encode())
        except NotFoundError:
            return False
        return True

    async def _queue_paused(self, queue: str) -> bool:
        """What the queue's last event says, asked of the leader."""
        try:
            found = await self._broker.js.get_last_msg(EVENTS, aggregate_filter(QUEUES.name, queue))
        except NotFoundError:
            return False
        assert found.subject is not None
        return QUEUES.from_summary(decode(found.data or b"", found.subject).state).paused

    async def lease_s(self, route: Route) -> float | None:
        """How long a lease of this route lasts: its consumer says so, whatever the settings were since it was made.
        ``None`` where there is no consumer."""
        try:
            info = await self._broker.js.consumer_info(EVENTS, work_consumer(route))
        except NotFoundError:
            return None
        lease_s: float | None = info.config.ack_wait
        return lease_s

    async def existing(self) -> list[Route]:
        """Every route that has a consumer."""
        routes: list[Route] = []
        offset = 0
        while True:
            page = await self._broker.request(f"$JS.API.CONSUMER.NAMES.{EVENTS}", {"offset": offset})
            names: list[str] = page.get("consumers") or []
            routes += filter(None, map(route_of_consumer, names))
            offset += len(names)
            if not names or offset >= page["total"]:
                return routes
