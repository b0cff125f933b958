"""The task that the benchmarks run: it does nothing, and says when it began."""

from __future__ import annotations

import time

from eventq import task


@task(max_retries=0)
async def noop() -> int:
    """Answers when it was entered, in nanoseconds of the machine's clock."""
    return time.time_ns()
