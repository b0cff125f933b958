"""The client's part for queues: ``client.queues``."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from eventq.services.client_part import Asks
from eventq.services.queue_models import QueueAnswer, QueueListAnswer


class QueuesClient:
    """Queues of the server that ``client`` speaks to. Reads see what was written through the same server before."""

    def __init__(self, client: Asks) -> None:
        self._client = client

    async def list(self, *, limit: int = 50, offset: int = 0) -> QueueListAnswer:
        """A page of the queues that have tasks, limits, a pause, or workers' attention, by name."""
        params = [("limit", str(limit)), ("offset", str(offset))]
        return await self._client.ask(QueueListAnswer, "GET", "/queues", params=params)

    async def get(self, queue_name: str) -> QueueAnswer:
        """One queue, with who holds its slots."""
        return await self._client.ask(QueueAnswer, "GET", _path(queue_name))

    async def configure(self, queue_name: str, limits: dict[str, Any]) -> QueueAnswer:
        """Set all limits of the queue; what ``limits`` leaves out is without limit."""
        return await self._client.ask(QueueAnswer, "PUT", _path(queue_name), json={"limits": limits})

    async def pause(self, queue_name: str, *, reason: str | None = None) -> QueueAnswer:
        """Start no task of the queue until it is resumed."""
        return await self._client.ask(QueueAnswer, "POST", f"{_path(queue_name)}/pause", json={"reason": reason})

    async def resume(self, queue_name: str) -> QueueAnswer:
        """Start its tasks again."""
        return await self._client.ask(QueueAnswer, "POST", f"{_path(queue_name)}/resume")


def _path(queue_name: str) -> str:
    return f"/queues/{quote(queue_name, safe='')}"
