"""End asyncio tasks for sure.

Cancelling once is not enough on Python 3.11: its ``asyncio.wait_for`` forgets a cancellation that comes in the same turn of
the loop as the answer it waits for, and the task goes on as if nobody had asked. The client library waits like that in every
request, so a process that cancels once sometimes never ends.
"""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 2.0
"""After so long a task that still runs is cancelled again: long enough for what an orderly end has to do."""


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Return once all of ``tasks`` have ended, cancelled as often as it takes. What they ended with is not raised."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at: asyncio complains of those that nobody ever looked at
