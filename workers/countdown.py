"""Time that runs out while an attempt runs, and stands still while the attempt does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Countdown:
    """Calls ``over`` once ``seconds`` have passed since the start or the last :meth:`restart`, without the time in between in
    which it was paused. ``None`` seconds: never. For one event loop."""

    def __init__(self, seconds: float | None, over: Callable[[], None]) -> None:
        self._seconds = seconds
        self._left_s = seconds
        self._over = over
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Run, from the beginning or from where it was paused."""
        if self._left_s is not None and self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(self._left_s, self._over)

    def restart(self) -> None:
        """Have the whole time again. Nothing while it does not run."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle, self._left_s = None, self._seconds
            self.start()

    def pause(self) -> None:
        """Stand still until :meth:`start`."""
        if self._handle is not None:
            self._left_s = max(0.0, self._handle.when() - asyncio.get_running_loop().time())
            self._handle.cancel()
            self._handle = None
