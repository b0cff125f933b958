"""The demo's own task: one that fails before it works, because a queue shows what it is worth when things go wrong."""

from __future__ import annotations

from eventq.events.retry import RetryPolicy
from eventq.workers.context import Context
from eventq.workers.registry import task


@task(max_retries=3, retry=RetryPolicy(initial_s=0.5, factor=2, jitter=0))
async def stumble(ctx: Context, failures: int = 2) -> str:
    """Fail the first ``failures`` attempts, then succeed."""
    if ctx.attempt <= failures:
        ctx.log("stumbling on purpose", level="warning", attempt=ctx.attempt)
        raise RuntimeError(f"attempt {ctx.attempt} of a task that fails {failures} times")
    return f"succeeded at attempt {ctx.attempt}"
