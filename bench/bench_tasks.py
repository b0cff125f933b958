"""The tasks that the benchmarks run."""

from __future__ import annotations

import asyncio
import time

from eventq import Context, RetryPolicy, task


@task(max_retries=0)
async def noop() -> int:
    """Answers when it was entered, in nanoseconds of the machine's clock."""
    return time.time_ns()


@task(max_retries=1, retry=RetryPolicy(initial_s=0, jitter=0))
async def fails_once(ctx: Context) -> None:
    """Does nothing, at the second attempt."""
    if ctx.attempt == 1:
        raise ValueError("the first attempt")


@task(max_retries=0)
async def patient() -> None:
    """Waits for longer than anybody measures."""
    await asyncio.sleep(3600)
