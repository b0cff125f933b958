"""``echo``: the smallest task, and the probe that shows whether the queue runs at all."""

from __future__ import annotations

from typing import Any

from eventq.workers.registry import task


@task
async def echo(value: Any = None) -> Any:
    """Answer ``value``, any JSON, as it came."""
    return value
