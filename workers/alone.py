"""Lets a task that may kill its worker run alone, so that none is condemned for what another did.

Whatever a worker had in hand when it was lost counts a loss, and only one of them may be to blame. So a task that has one
chance left runs with nothing beside it: if that costs a worker again, it was this task. From when it is delivered its worker
takes nothing else, and a second such task neither. It is not made to stand still for a pause, which would stop the worker
with it, but ends and begins anew.

| while it waits                                     | then                                                            |
|----------------------------------------------------|-----------------------------------------------------------------|
| the last of what runs beside it ends               | it runs                                                         |
| something beside it is paused and stands still     | that is not waited for: nobody knows until when                 |
| something beside it takes longer than ``PATIENCE`` | it runs beside that                                             |
| the worker is paused, drained, stopped, called lost| it is handed back, for others                                   |
| the worker has no place for it any more            | so it is at its turn: something beside it stands still          |
| it is cancelled, paused, changed                   | it begins, which its next version refuses: the item is spent    |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection

from eventq.events.limits import LOSSES_MAX
from eventq.events.task import Task

PATIENCE_S = 300.0

LOOK_S = 0.5
"""What nobody tells of is looked for so often."""


def on_last_chance(task: Task) -> bool:
    """Whether the next loss of its worker ends the task as ``poison``."""
    return task.losses + 1 >= LOSSES_MAX


async def until_alone(beside: Callable[[], Collection[asyncio.Task[None]]], given_up: Callable[[], Awaitable[bool]]) -> None:
    """Return once nothing of ``beside`` runs, or it is to be waited for no longer: given up, or out of patience."""
    deadline = time.monotonic() + PATIENCE_S
    while (running := beside()) and time.monotonic() < deadline and not await given_up():
        await asyncio.wait(running, timeout=LOOK_S)
