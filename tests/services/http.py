"""aiohttp's test server, but with the guarded connections that the product serves with."""

from __future__ import annotations

from typing import Any

from aiohttp.test_utils import TestServer

from eventq.services.http_guard import GuardedRunner
from eventq.services.http_limits import HttpLimits


class GuardedTestServer(TestServer):
    """Serves an app on a free loopback port with ``limits``."""

    def __init__(self, app: Any, limits: HttpLimits | None = None) -> None:
        super().__init__(app, host="127.0.0.1")
        self._limits = limits

    async def _make_runner(self, **_: Any) -> GuardedRunner:
        return GuardedRunner(self.app, self._limits, shutdown_s=0.5)
