"""The client's part for schedules: ``client.schedules``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from eventq.services.answers import Answer
from eventq.services.client_part import Asks
from eventq.services.schedule_models import ScheduleAnswer, ScheduleListAnswer, TriggerAnswer


class SchedulesClient:
    """Schedules of the server that ``client`` speaks to. Reads see what was written through the same server before."""

    def __init__(self, client: Asks) -> None:
        self._client = client

    async def create(self, cron: str, task_name: str, kwargs: dict[str, Any] | None = None, **options: Any) -> ScheduleAnswer:
        """Create a schedule. ``options``: the other fields of the request, such as ``time_zone`` or ``schedule_id``."""
        body = {"cron": cron, "task_name": task_name, "task_kwargs": kwargs or {}, **options}
        return await self._client.ask(ScheduleAnswer, "POST", "/schedules", json=body)

    async def list(
        self, *, status: Sequence[str] = (), task_name: str | None = None, limit: int = 50, offset: int = 0
    ) -> ScheduleListAnswer:
        """A page of schedules, newest first; deleted ones only where ``status`` says so."""
        params = [("limit", str(limit)), ("offset", str(offset)), *(("status", name) for name in status)]
        if task_name is not None:
            params.append(("task_name", task_name))
        return await self._client.ask(ScheduleListAnswer, "GET", "/schedules", params=params)

    async def get(self, schedule_id: str) -> ScheduleAnswer:
        """The schedule, with the next times it is due."""
        return await self._client.ask(ScheduleAnswer, "GET", _path(schedule_id))

    async def update(self, schedule_id: str, changes: dict[str, Any], *, version: int | None = None) -> ScheduleAnswer:
        """Change these fields of it. ``version``: only if that is the present one."""
        return await self._client.ask(ScheduleAnswer, "PATCH", _path(schedule_id), json=changes, headers=_if_match(version))

    async def pause(self, schedule_id: str, *, reason: str | None = None) -> ScheduleAnswer:
        """Let it make no tasks until it is resumed."""
        return await self._client.ask(ScheduleAnswer, "POST", f"{_path(schedule_id)}/pause", json={"reason": reason})

    async def resume(self, schedule_id: str) -> ScheduleAnswer:
        """Let it go on; what was missed is caught up with as the schedule says."""
        return await self._client.ask(ScheduleAnswer, "POST", f"{_path(schedule_id)}/resume")

    async def trigger(self, schedule_id: str, *, idempotency_key: str | None = None) -> TriggerAnswer:
        """Make its task now. One ``idempotency_key`` makes one task."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return await self._client.ask(TriggerAnswer, "POST", f"{_path(schedule_id)}/trigger", headers=headers)

    async def delete(self, schedule_id: str, *, version: int | None = None) -> None:
        """Delete it for good; its id stays taken. ``version``: only if that is the present one."""
        await self._client.ask(Answer, "DELETE", _path(schedule_id), headers=_if_match(version))


def _path(schedule_id: str) -> str:
    return f"/schedules/{quote(schedule_id, safe='')}"


def _if_match(version: int | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}
