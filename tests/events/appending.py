"""Appending, as the tests of its contract need it: other writers, loads and what became of them, logs that are full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from eventq.events.appender import PipelinedAppender
from eventq.events.broker import Broker
from eventq.events.envelope import Event
from eventq.events.errors import LogFull, LogUnavailable
from eventq.events.log import EventLog
from eventq.events.subjects import EVENTS
from tests.events.given import ready_event, small_event
from tests.support.poll import eventually
from tests.support.proxy import Proxy


@asynccontextmanager
async def opened(url: str, *, pipelined: bool = True) -> AsyncGenerator[EventLog]:
    async with await Broker.connect(url, name="another writer") as broker:
        log = await EventLog.open(broker, pipelined=pipelined)
        try:
            yield log
        finally:
            await log.close()


def the_appender(log: EventLog) -> PipelinedAppender:
    found = log._appender  # pyright: ignore[reportPrivateUsage]
    assert isinstance(found, PipelinedAppender)
    return found


async def stored_is(broker: Broker, count: int) -> bool:
    facts = await broker.stream_facts(EVENTS)
    return facts is not None and facts.last == count


async def answers_get_lost(proxy: Proxy, appending: asyncio.Task[Any], broker: Broker, stored: int) -> None:
    """Everything comes to be stored, `stored` in all, whoever appends hears nothing of it, and the connection is reset. The
    proxy swallows the answers already."""
    await eventually(lambda: stored_is(broker, stored))
    assert not appending.done()
    proxy.heal()
    proxy.reset()


@dataclass
class Tally:
    """What became of the appends of a load. `unknown`: those that raised `LogUnavailable`."""

    attempted: set[str] = field(default_factory=set[str])
    acknowledged: set[str] = field(default_factory=set[str])
    unknown: set[str] = field(default_factory=set[str])
    errors: list[Exception] = field(default_factory=list[Exception])

    def check(self, found: dict[str, int]) -> None:
        """Acknowledged is stored, stored was attempted, and nothing is stored twice."""
        assert self.errors == []
        assert self.acknowledged - set(found) == set(), "acknowledged and lost"
        assert set(found) - self.attempted == set(), "stored and never sent"
        assert max(found.values()) == 1, "stored twice"
        assert self.acknowledged | self.unknown == self.attempted, "neither acknowledged nor refused"


@asynccontextmanager
async def load(log: EventLog, writers: int) -> AsyncGenerator[Tally]:
    """`writers` loops that append, each waiting for its answer, until the block ends."""
    tally, stop = Tally(), asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            event = small_event()
            tally.attempted.add(event.id)
            try:
                await log.append(event)
                tally.acknowledged.add(event.id)
            except LogUnavailable:
                tally.unknown.add(event.id)
            except Exception as error:
                tally.errors.append(error)
                return

    loops = [asyncio.create_task(write()) for _ in range(writers)]
    try:
        yield tally
    finally:
        stop.set()
        await asyncio.gather(*loops)


async def fill(log: EventLog) -> tuple[list[Event], Event]:
    """Append until the log is full: what it took, and what it refused."""
    accepted: list[Event] = []
    while len(accepted) < 10:
        event = ready_event(args=["x" * 60_000])
        try:
            await log.append(event)
        except LogFull:
            return accepted, event
        accepted.append(event)
    pytest.fail("the log is never full")


async def grow(broker: Broker) -> None:
    """What an operator does about a full log."""
    info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}", {})
    await broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**info["config"], "max_bytes": 64 * 1024 * 1024})
