"""The event log as the rest of the program sees it: append events, read an aggregate's last or one of its versions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Self

import nats.errors
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from eventq.events.appender import Appender, PipelinedAppender, PlainAppender
from eventq.events.atomic import store_together
from eventq.events.broker import Broker
from eventq.events.echoes import Echoes
from eventq.events.envelope import Event, Stored, decode, encode
from eventq.events.erasure import placeholders
from eventq.events.errors import EventqError, LogUnavailable, PayloadTooLarge, VersionConflict
from eventq.events.ingest import Outgoing, Refused
from eventq.events.routes import LEASE_DEFAULT_S, Routes
from eventq.events.subjects import EVENTS, TIMERS, Route, aggregate_filter, version_check, version_filter
from eventq.events.task_events import Erased, Gone

TRUST_S = 10.0
"""How long an append waits for a lost connection to be back and the broker to be the same."""

REFUSALS_MAX = 5
"""How often an event is sent again that was refused although nobody holds its version: a rival's write was in flight and
failed. Replicated streams do that."""


class EventLog:
    """One per process. ``pipelined=False`` publishes one by one, which tells positions and costs more."""

    def __init__(self, broker: Broker, appender: Appender, timers: Appender, routes: Routes) -> None:
        self.broker = broker
        self.timers = timers
        """Takes the timers that events wait for (``timers.py``)."""
        self.routes = routes
        self.echoes: Echoes | None = None
        """Set where the process follows the log as well."""
        self._appender = appender

    @classmethod
    async def open(cls, broker: Broker, *, lease_s: float = LEASE_DEFAULT_S, pipelined: bool = True) -> Self:
        """Open the log on a connection whose broker was bootstrapped. From then on no other log is written to over it."""
        await broker.guard(EVENTS)
        routes = Routes(broker, lease_s=lease_s)
        if not pipelined:
            return cls(broker, PlainAppender(broker, EVENTS), PlainAppender(broker, TIMERS), routes)
        events, timers = PipelinedAppender(broker, EVENTS), PipelinedAppender(broker, TIMERS)
        await events.start()
        await timers.start()
        return cls(broker, events, timers, routes)

    async def close(self) -> None:
        """Stop appending. The connection stays open: it is not the log's."""
        try:
            await self._appender.close()
        finally:
            await self.timers.close()

    async def append(self, event: Event) -> int | None:
        """Store the event as its version. Answers its position where the path tells it, else ``None``.

        Raises ``VersionConflict`` when somebody else wrote that version, ``LogFull`` when nothing was stored for lack of
        space, ``LogUnavailable`` when the outcome is unknown, ``PayloadTooLarge`` above 256 KiB.
        """
        try:
            message = await self._outgoing(event)
            await self._until_trusted()
            return await self._store(event, message)
        except EventqError:
            self._forget(event)
            raise

    async def append_all(self, events: Sequence[Event]) -> list[BaseException | None]:
        """Store events of different histories together. Answers, of each, what :meth:`append` would have raised."""
        outcomes: dict[int, BaseException | None] = dict.fromkeys(range(len(events)), None)
        no_route = await self._missing_routes(events)
        messages: dict[int, Outgoing] = {}
        for number, event in enumerate(events):
            if (problem := no_route.get(event.route)) is not None:
                outcomes[number] = problem
                continue
            try:
                messages[number] = self._encoded(event)
            except PayloadTooLarge as error:
                outcomes[number] = error
        outcomes |= zip(messages, await self._send_all([*messages.values()]), strict=True)
        refused = [number for number, outcome in outcomes.items() if isinstance(outcome, Refused)]
        looking = (self._outcome(events[n], messages[n]) for n in refused)
        outcomes |= zip(refused, await asyncio.gather(*looking, return_exceptions=True), strict=True)
        for number, outcome in outcomes.items():
            if outcome is not None:
                self._forget(events[number])
        return [*outcomes.values()]

    async def _missing_routes(self, events: Sequence[Event]) -> dict[Route | None, BaseException]:
        """The routes of these events whose consumers cannot be made, and why. Each is asked for once."""
        routes = list(dict.fromkeys(event.route for event in events if event.route is not None))
        outcomes = await asyncio.gather(*map(self._ensure, routes), return_exceptions=True)
        return {route: error for route, error in zip(routes, outcomes, strict=True) if error is not None}

    async def _ensure(self, route: Route) -> None:
        try:
            await self.routes.ensure(route)
        except (APIError, nats.errors.Error, TimeoutError) as error:
            raise LogUnavailable(f"nothing was stored: the queue's consumer cannot be made: {error!r}") from error

    async def _outgoing(self, event: Event) -> Outgoing:
        message = self._encoded(event)
        if event.route is not None:
            await self._ensure(event.route)
        return message

    def _encoded(self, event: Event) -> Outgoing:
        check = version_check(event.aggregate, event.aggregate_id, event.version)
        message = Outgoing(event.subject, encode(event), check)
        if self.echoes is not None:
            self.echoes.expect(event, message)
        return message

    def _forget(self, event: Event) -> None:
        if self.echoes is not None:
            self.echoes.forget(event)

    async def _send_all(self, messages: Sequence[Outgoing]) -> list[BaseException | None]:
        try:
            await self._until_trusted()
        except LogUnavailable as error:
            return [error] * len(messages)
        return await self._appender.append_all(messages)

    async def _outcome(self, event: Event, message: Outgoing) -> EventqError | None:
        """What became of an event whose version is taken, by itself or by another."""
        try:
            if await self._written(event) is None:
                await self._store(event, message)
        except EventqError as error:
            return error
        return None

    async def _store(self, event: Event, message: Outgoing) -> int | None:
        for _ in range(REFUSALS_MAX):
            try:
                return await self._send(event, message)
            except Refused:
                if (position := await self._written(event)) is not None:
                    return position
                await asyncio.sleep(0.02)
                await self._until_trusted()
        raise LogUnavailable(f"version {event.version} of {event.aggregate_id} is refused and yet free")

    async def _send(self, event: Event, message: Outgoing) -> int | None:
        """What ``erased`` makes free is taken in the same instant: never again may anybody write there."""
        if not isinstance(event.data, Erased) or not event.data.events:
            return await self._appender.append(message)
        taken = [Outgoing(each.subject, encode(each), {}) for each in placeholders(event)]
        return await store_together(self.broker.nc, [*taken, message])

    async def _written(self, event: Event) -> int | None:
        """Where the event stands; ``None`` where nothing has its version. Raises ``VersionConflict`` where another has."""
        found = await self._held(event.aggregate, event.aggregate_id, event.version)
        if found is None and event.version == 1:  # an earlier build erased it; what came after it was not
            found = await self.last(event.aggregate, event.aggregate_id, fresh=True)
        if found is None:
            return None
        if found.event.id != event.id:
            raise VersionConflict(event.aggregate_id, event.version) from None
        return found.position

    async def _until_trusted(self) -> None:
        if self.broker.trusted.is_set():
            return
        try:
            async with asyncio.timeout(TRUST_S):
                await self.broker.trusted.wait()
        except TimeoutError:
            raise LogUnavailable(f"nothing was stored: no connection to the broker for {TRUST_S:g} s") from None

    async def last(self, aggregate: str, aggregate_id: str, *, fresh: bool = False) -> Stored | None:
        """The aggregate's newest event, ``None`` if it has none.

        Any replica may answer, an instant behind; ``fresh`` asks the leader, as a writer must who lost a race.
        """
        found = await self._get(aggregate_filter(aggregate, aggregate_id), fresh=fresh)
        if found is not None and isinstance(found.event.data, Gone):  # of an erasure that was stored in part
            return await self.at(aggregate, aggregate_id, found.event.data.newest)
        return found

    async def at(self, aggregate: str, aggregate_id: str, version: int) -> Stored | None:
        """The event that holds one version, asked of the leader; ``None`` where there is none, or none any more."""
        return await self._replaced(await self._held(aggregate, aggregate_id, version))

    async def _held(self, aggregate: str, aggregate_id: str, version: int) -> Stored | None:
        """What holds one version, be it a placeholder, asked of the leader."""
        return await self._get(version_filter(aggregate, aggregate_id, version), fresh=True)

    async def settled(self, aggregate: str, aggregate_id: str, version: int) -> Stored | None:
        """:meth:`at` of a version that later ones follow. It never changes, so any replica that has it may answer."""
        found = await self._replaced(await self._get(version_filter(aggregate, aggregate_id, version), fresh=False))
        return found or await self.at(aggregate, aggregate_id, version)

    async def _replaced(self, found: Stored | None) -> Stored | None:
        """What a placeholder holds the place of, while that is still there; anything else as it is."""
        if found is None or not isinstance(found.event.data, Gone):
            return found
        position = found.event.data.position
        return await self._answered(self.broker.js.get_msg(EVENTS, position))

    async def _get(self, subject: str, *, fresh: bool) -> Stored | None:
        return await self._answered(self.broker.js.get_last_msg(EVENTS, subject, direct=not fresh))

    async def _answered(self, read: Awaitable[RawStreamMsg]) -> Stored | None:
        try:
            found = await read
        except NotFoundError:
            return None
        except (APIError, nats.errors.Error, TimeoutError) as error:
            raise LogUnavailable(f"the broker does not answer reads: {error!r}") from error
        assert found.subject is not None
        assert found.seq is not None
        return Stored(found.seq, decode(found.data or b"", found.subject))
