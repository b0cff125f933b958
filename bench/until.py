"""Wait until something is so, by asking, within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(reached: Callable[[], Awaitable[bool]], *, every_s: float, most_s: float) -> None:
    """Return once ``reached()`` says so, asked every ``every_s``. Raises ``TimeoutError`` after ``most_s``."""
    async with asyncio.timeout(most_s):
        while True:
            if await reached():
                return
            await asyncio.sleep(every_s)
