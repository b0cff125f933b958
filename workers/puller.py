"""Takes work from the broker: as much as there are free slots for, urgent queues more often, none starved.

Each (pool, queue, priority) in use is a durable consumer on the broker. While slots are free the puller goes in rounds:
it deals the free slots out over the routes by weighted chance and asks each route for its share without waiting. Routes
that had less than was asked of them drop out; the rest are dealt the remaining slots. When all are empty it parks one
waiting request on each, and the first message of any wakes it.

A parked request cannot be withdrawn without risking a message that is on its way. So a message that arrives when no slot
is free is handed straight back (``nak``): at most one for each route and park, never lost, never kept waiting here.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js.errors import APIError

from eventq.events.broker import Broker
from eventq.events.envelope import Event, decode
from eventq.events.errors import Damaged
from eventq.events.limits import WEIGHT_PER_PRIORITY
from eventq.events.routes import Routes
from eventq.events.subjects import EVENTS, QUEUE_CREATED, Route, route_of_consumer, work_consumer

log = structlog.get_logger("eventq.puller")

PARK_S = 5.0
LOOK_FOR_QUEUES_S = 5.0
GATHER_S = 0.002
"""After a slot became free, wait this long for others to join it: one request for ten slots costs what one for one does."""

ANSWER_S = 2.0
NAK = b"-NAK"
NAK_UNREADABLE = b'-NAK {"delay": 30000000000}'


@dataclass(frozen=True, slots=True)
class Delivery:
    """One work item handed to this worker. ``payload``: the event as it is stored; ``lease``: the subject to renew and
    acknowledge it on; ``count``: how often it was delivered in all, 1 the first time."""

    event: Event
    payload: bytes
    position: int
    lease: str
    count: int


@dataclass(slots=True)
class _Request:
    """One request of a round. ``missing``: messages it may still bring."""

    missing: int
    answered: asyncio.Event


class Puller:
    """Calls ``deliver`` for every message while ``free()`` says that there are slots."""

    def __init__(
        self,
        broker: Broker,
        routes: Routes,
        *,
        pool: str,
        queues: Sequence[str],
        free: Callable[[], int],
        deliver: Callable[[Delivery], None],
        on_lease: Callable[[float], None],
    ) -> None:
        """``on_lease`` is told how many seconds the leases of a route last, before anything comes from it."""
        self._broker = broker
        self._routes = routes
        self._pool = pool
        self._queues = frozenset(queues)
        self._free = free
        self._deliver = deliver
        self._on_lease = on_lease
        self._serving: set[Route] = set()
        self._asked: dict[Route, _Request] = {}
        self._parked: dict[Route, float] = {}
        self._round_inbox = broker.nc.new_inbox()
        self._park_inbox = broker.nc.new_inbox()
        self._wake = asyncio.Event()
        self._looked = 0.0
        self._stopped = False
        self.handed_back = 0

    def slot_freed(self) -> None:
        """Tell the puller that there is room again."""
        self._wake.set()

    def stop(self) -> None:
        """Take no more work; :meth:`run` ends."""
        self._stopped = True
        self._wake.set()

    async def run(self) -> None:
        """Pull until :meth:`stop`."""
        nc = self._broker.nc
        subscriptions = [
            await nc.subscribe(f"{self._round_inbox}.*", cb=self._on_round, pending_msgs_limit=0, pending_bytes_limit=0),
            await nc.subscribe(f"{self._park_inbox}.*", cb=self._on_park, pending_msgs_limit=0, pending_bytes_limit=0),
            await nc.subscribe(QUEUE_CREATED, cb=self._on_hint),
        ]
        self._broker.on_reconnect.append(self._forget_requests)
        try:
            while not self._stopped:
                await self._turn()
        finally:
            self._broker.on_reconnect.remove(self._forget_requests)
            if not nc.is_closed:
                await asyncio.gather(*(subscription.unsubscribe() for subscription in subscriptions))

    async def _turn(self) -> None:
        self._wake.clear()
        try:
            if time.monotonic() - self._looked > LOOK_FOR_QUEUES_S:
                await self._look_for_queues()
            if self._free() and not await self._round():
                await self._park()
                await self._rest(LOOK_FOR_QUEUES_S)
            elif not self._free():
                await self._rest(LOOK_FOR_QUEUES_S)
                await asyncio.sleep(GATHER_S)
        except (nats.errors.Error, APIError, TimeoutError) as error:
            log.warning("puller.waiting_for_broker", error=repr(error))
            await self._rest(0.5)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _look_for_queues(self) -> None:
        found = await self._routes.existing()
        self._looked = time.monotonic()
        serving = {r for r in found if r.pool == self._pool and (not self._queues or r.queue in self._queues)}
        for route in serving - self._serving:
            if (lease_s := await self._routes.lease_s(route)) is not None:
                self._on_lease(lease_s)
        self._serving = serving

    async def _round(self) -> int:
        """Ask until the slots are full or every route is empty; answers how many messages came."""
        came = 0
        candidates = set(self._serving)
        while candidates and (free := self._free()) > 0 and not self._stopped:
            shares = deal(free, candidates)
            self._asked = {route: _Request(share, asyncio.Event()) for route, share in shares.items()}
            for route, share in shares.items():
                await self._ask(route, f"{self._round_inbox}.{work_consumer(route)}", {"batch": share, "no_wait": True})
            await asyncio.gather(*(_answered(request) for request in self._asked.values()))
            came += sum(shares[route] - request.missing for route, request in self._asked.items())
            candidates -= {route for route, request in self._asked.items() if request.missing > 0}
        return came

    async def _park(self) -> None:
        """One waiting request on each route that has none."""
        now = time.monotonic()
        for route in self._serving:
            if self._parked.get(route, 0) < now:
                self._parked[route] = now + PARK_S + 1
                body: dict[str, int | bool] = {"batch": 1, "expires": int(PARK_S * 1e9)}
                await self._ask(route, f"{self._park_inbox}.{work_consumer(route)}", body)

    async def _ask(self, route: Route, inbox: str, body: dict[str, int | bool]) -> None:
        consumer = f"{EVENTS}.{work_consumer(route)}"
        await self._broker.nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{consumer}", json.dumps(body).encode(), inbox)

    async def _on_round(self, message: Msg) -> None:
        if message.reply:
            await self._take(message)
            if (request := self._asked.get(_route_of(message.subject))) is not None:
                request.missing -= 1
                if request.missing == 0:
                    request.answered.set()
        elif (route := _answering(message)) is not None and route in self._asked:
            self._asked[route].answered.set()  # with what is still missing: the route has no more

    async def _on_park(self, message: Msg) -> None:
        if message.reply:
            self._parked.pop(_route_of(message.subject), None)
            await self._take(message)
            self._wake.set()
        elif (route := _answering(message)) is not None:
            self._parked.pop(route, None)
            if (message.headers or {}).get("Status") == "408":
                self._wake.set()  # waited in vain: park again
            else:
                self._looked = 0.0  # the consumer is gone or has no leader: look again before asking again

    async def _take(self, message: Msg) -> None:
        """Deliver the message, or hand it back where there is no slot for it or its event cannot be read."""
        if self._stopped or self._free() <= 0:
            self.handed_back += 1
            await self._broker.nc.publish(message.reply, NAK)
            return
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>.<stored ns>.<pending>
        tokens = message.reply.split(".")
        try:
            event = decode(message.data, message.subject)
        except Damaged as error:
            # Never run, never acknowledged: it stays visible as pending, and the projector stops at it too.
            log.error("puller.unreadable_event", subject=message.subject, error=error.detail)
            await self._broker.nc.publish(message.reply, NAK_UNREADABLE)
            return
        self._deliver(Delivery(event, message.data, int(tokens[5]), message.reply, int(tokens[4])))

    async def _on_hint(self, _: Msg) -> None:
        self._looked = 0.0
        self._wake.set()

    def _forget_requests(self) -> None:
        """After a reconnect the broker knows nothing of what was asked before."""
        for request in self._asked.values():
            request.answered.set()
        self._parked.clear()
        self._wake.set()


async def _answered(request: _Request) -> None:
    try:
        async with asyncio.timeout(ANSWER_S):
            await request.answered.wait()
    except TimeoutError:
        return


def _route_of(subject: str) -> Route:
    """The route of a work message: the last three tokens of the event's subject."""
    _, pool, queue, priority = subject.rsplit(".", 3)
    return Route(pool, queue, int(priority))


def _answering(message: Msg) -> Route | None:
    """The route whose request a status message is about; ``None`` for heartbeats."""
    if (message.headers or {}).get("Status") == "100":
        return None
    return route_of_consumer(message.subject.rpartition(".")[2])


def deal(slots: int, routes: Iterable[Route]) -> Counter[Route]:
    """Deal ``slots`` out over ``routes`` by chance, each weighted by its priority."""
    candidates = list(routes)
    weights = [WEIGHT_PER_PRIORITY**route.priority for route in candidates]
    return Counter(random.choices(candidates, weights, k=slots))
