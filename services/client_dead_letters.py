"""The client's part for dead letters: ``client.dead_letters``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from eventq.services.answers import AgainAnswer
from eventq.services.bulk_models import DeadLetterListAnswer, RedriveAnswer
from eventq.services.client_part import Asks


class DeadLettersClient:
    """Dead letters of the server that ``client`` speaks to."""

    def __init__(self, client: Asks) -> None:
        self._client = client

    async def list(self, *, tags: Sequence[str] = (), limit: int = 50, offset: int = 0, **wanted: Any) -> DeadLetterListAnswer:
        """A page of dead letters, newest first. ``wanted``: the other filters, such as ``queue_name`` or ``reason``."""
        params = [("limit", str(limit)), ("offset", str(offset)), *(("tag", tag) for tag in tags)]
        params += [(name, str(value)) for name, value in wanted.items() if value is not None]
        return await self._client.ask(DeadLetterListAnswer, "GET", "/dead-letters", params=params)

    async def redrive(self, task_id: str) -> AgainAnswer:
        """Run it again, as a new task that refers to it; asked for twice, that is one task."""
        return await self._client.ask(AgainAnswer, "POST", f"/dead-letters/{quote(task_id, safe='')}/redrive")

    async def redrive_many(
        self, task_ids: Sequence[str] | None = None, *, wanted: dict[str, Any] | None = None
    ) -> RedriveAnswer:
        """Run these again, or all that ``wanted`` selects; each is redriven or refused by itself."""
        body = {"task_ids": list(task_ids)} if task_ids is not None else {"filter": wanted or {}}
        return await self._client.ask(RedriveAnswer, "POST", "/dead-letters/redrive", json=body, timeout_s=None)
