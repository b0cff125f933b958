"""A task ends when it is told to, also where its first cancellation gets lost."""

from __future__ import annotations

import asyncio

import pytest

from eventq.events import ending
from eventq.events.broker import Broker
from eventq.events.ending import end
from tests.support.nats import NatsServer


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_cancellation_that_the_task_never_saw_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer and the cancellation come in the same turn: Python 3.11 forgets the cancellation."""
    monkeypatch.setattr(ending, "AGAIN_S", 0.05)
    answer = asyncio.get_running_loop().create_future()

    async def ask_and_wait() -> None:
        await asyncio.wait_for(answer, timeout=60)
        await wait_for_ever()

    task = asyncio.create_task(ask_and_wait())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answer.set_result(None)
    async with asyncio.timeout(30):
        await end(task)
    assert task.cancelled()


async def test_all_have_ended_whatever_they_ended_with() -> None:
    async def fail() -> None:
        raise RuntimeError("no")

    async def finish() -> None:
        return

    tasks = [asyncio.create_task(body()) for body in (fail, finish, wait_for_ever)]
    await asyncio.sleep(0)
    await end(*tasks)
    assert [task.done() for task in tasks] == [True] * 3
    await end(*tasks)
    await end()


async def test_a_connection_that_is_closed_while_it_reconnects_leaves_nothing_running(
    own_nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the client's own cancellation is forgotten: then it would look for a broker for ever."""
    asked, forgotten = asyncio.Event(), list[bool]()
    broker = await Broker.connect(own_nats_server.url, name="test")

    async def refuses(_: object) -> None:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if forgotten:
                raise
            forgotten.append(True)
            raise ConnectionRefusedError from None

    monkeypatch.setattr(broker.nc, "_connect_to_server", refuses)
    own_nats_server.kill()
    async with asyncio.timeout(30):
        await asked.wait()
    before = asyncio.all_tasks()
    await broker.close()
    assert forgotten
    left = [task.get_name() for task in asyncio.all_tasks() & before if task is not asyncio.current_task()]
    assert left == []
