"""Do something to many things, some at once, and let none keep the others from it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import nats.errors
from nats.js.errors import APIError

from eventq.events.errors import EventqError

T = TypeVar("T")

AT_ONCE = 64


async def side_by_side(items: Sequence[T], do: Callable[[T], Awaitable[None]]) -> list[tuple[T, Exception]]:
    """Do something to each item, up to ``AT_ONCE`` at a time; answers those that a dependency's failure kept from it."""
    failed: list[tuple[T, Exception]] = []
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            try:
                await do(item)
            except (EventqError, nats.errors.Error, APIError, TimeoutError) as error:
                failed.append((item, error))

    if len(items) <= 1:
        await work()
    else:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(items))):
                group.create_task(work())
    return failed
