"""The client's part for workers: ``client.workers``."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from eventq.services.client_part import Asks
from eventq.services.worker_models import CapacityAnswer, WorkerCommandAnswer, WorkerListAnswer, WorkerStatusAnswer


class WorkersClient:
    """Workers of the server that ``client`` speaks to. A process obeys within a second of the answer."""

    def __init__(self, client: Asks) -> None:
        self._client = client

    async def list(
        self, *, status: Sequence[str] = (), pool: str | None = None, limit: int = 50, offset: int = 0
    ) -> WorkerListAnswer:
        """A page of workers, newest first."""
        params = [("limit", str(limit)), ("offset", str(offset)), *(("status", name) for name in status)]
        if pool is not None:
            params.append(("pool", pool))
        return await self._client.ask(WorkerListAnswer, "GET", "/workers", params=params)

    async def get(self, worker_id: str) -> WorkerStatusAnswer:
        """The worker, and what it runs."""
        return await self._client.ask(WorkerStatusAnswer, "GET", f"{_path(worker_id)}/status")

    async def pause(self, worker_id: str) -> WorkerCommandAnswer:
        """Let it take no new tasks until it is resumed."""
        return await self._client.ask(WorkerCommandAnswer, "PATCH", f"{_path(worker_id)}/pause")

    async def resume(self, worker_id: str) -> WorkerCommandAnswer:
        """Let it take tasks again."""
        return await self._client.ask(WorkerCommandAnswer, "PATCH", f"{_path(worker_id)}/resume")

    async def drain(self, worker_id: str) -> WorkerCommandAnswer:
        """Let it finish what it runs, and end."""
        return await self._client.ask(WorkerCommandAnswer, "POST", f"{_path(worker_id)}/drain")

    async def set_capacity(self, worker_id: str, capacity: int) -> CapacityAnswer:
        """Let it run so many tasks at once."""
        body = {"capacity": capacity}
        return await self._client.ask(CapacityAnswer, "PATCH", f"{_path(worker_id)}/capacity", json=body)


def _path(worker_id: str) -> str:
    return f"/workers/{quote(worker_id, safe='')}"
