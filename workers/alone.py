"""Lets a task that may kill its worker run alone, so that none is condemned for what another did.

Whatever a worker had in hand when it was lost counts a loss, and only one of them may be to blame. So a task that has one
chance left runs with nothing beside it: if that costs a worker again, it was this task. Meanwhile its worker takes nothing
new. Attempts that stand still are not waited for, since nobody knows until when, and others not for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from eventq.events.limits import LOSSES_MAX
from eventq.events.task import Task

PATIENCE_S = 300.0
"""After so long what runs beside it is not waited for any more."""

LOOK_S = 1.0
"""Something that runs may come to stand still, which nobody tells: so often it is looked."""


def on_last_chance(task: Task) -> bool:
    """Whether the next loss of its worker ends the task as ``poison``."""
    return task.losses + 1 >= LOSSES_MAX


class Alone:
    """The turns of such tasks in one worker. ``others``: what runs beside them, now."""

    def __init__(self, others: Callable[[], Collection[asyncio.Task[None]]]) -> None:
        self._others = others
        self._turn = asyncio.Lock()
        self._wanted = 0

    @property
    def wanted(self) -> bool:
        """Whether something runs alone, or waits for it."""
        return self._wanted > 0

    def run(self, begin: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Begin once nothing else runs; from now on nothing should be taken."""
        self._wanted += 1
        task = asyncio.create_task(self._run(begin))
        task.add_done_callback(self._done)
        return task

    async def _run(self, begin: Callable[[], Awaitable[None]]) -> None:
        async with self._turn:
            deadline = asyncio.get_running_loop().time() + PATIENCE_S
            while (others := self._others()) and (left_s := deadline - asyncio.get_running_loop().time()) > 0:
                await asyncio.wait(others, timeout=min(LOOK_S, left_s))
            await begin()

    def _done(self, _: asyncio.Task[None]) -> None:
        self._wanted -= 1
