"""Wait for tasks while showing how far they are: bars where a terminal can show them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from eventq.events.errors import EventqError
from eventq.services.client import FINISHED, Client
from eventq.services.output import Output, one_line
from eventq.services.task_render import progress_text

POLL_FIRST_S, POLL_MAX_S = 0.02, 0.25

WHY_AFTER_S = 3.0
"""For how long a task may wait before somebody who waits for it is told why, and how often the reason is looked at again."""

WHY_MAX_CHARS = 500

Json = Mapping[str, Any]


async def watch_task(client: Client, task_id: str, show: Callable[[Json], Awaitable[None]], timeout_s: float | None) -> Json:
    """The task once it has finished, or as it is after ``timeout_s`` seconds. ``show`` sees every state in between."""
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    pause_s = POLL_FIRST_S
    while True:
        task = (await client.get(task_id)).model_dump(mode="json")
        await show(task)
        left_s = deadline - time.monotonic()
        if task["status"] in FINISHED or left_s <= 0:
            return task
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, POLL_MAX_S)


async def watch_with_bar(client: Client, task_id: str, output: Output, timeout_s: float | None) -> Json:
    """:func:`watch_task` with one live bar on stderr; without a terminal, a line for each change of status. A line says why it
    waits, where it does so for long."""
    reasons = WaitReasons(client, output)
    with output.progress() as bars:
        bar = bars.add_task(task_id, total=None, state="")
        told = ""

        async def show(task: Json) -> None:
            nonlocal told
            completed, total = bar_position(task)
            bars.update(
                bar,
                description=f"{task['task_name']} {task['status']}",
                state=progress_text(task["progress"]),
                completed=completed,
                total=total,
            )
            if task["status"] != told and not output.animated:
                output.note(f"{task_id} {task['status']}")
            told = task["status"]
            await reasons.look(task)

        return await watch_task(client, task_id, show, timeout_s)


class WaitReasons:
    """Says on stderr why a task waits, once it has waited for a while, and again only when the reason is another one."""

    def __init__(self, client: Client, output: Output) -> None:
        self._client = client
        self._output = output
        self._look_at: float | None = None
        self._told: list[str] = []

    async def look(self, task: Json) -> None:
        """Say why, if it is time to."""
        if self._output.as_json:
            return
        if task["status"] == "RUNNING" or task["status"] in FINISHED:
            self._look_at, self._told = None, []
            return
        now = time.monotonic()
        if self._look_at is not None and now >= self._look_at:
            await self._say(task["task_id"])
        if self._look_at is None or now >= self._look_at:
            self._look_at = now + WHY_AFTER_S

    async def _say(self, task_id: str) -> None:
        try:
            found = await self._client.explain(task_id)
        except EventqError:
            return  # only a remark: an API that does not answer is told by the wait itself
        codes = [reason.code for reason in found.reasons]
        if found.waiting and codes != self._told:
            self._told = [*codes]
            why = "; ".join(reason.message for reason in found.reasons)
            self._output.note(one_line(f"{task_id} waits: {why}", WHY_MAX_CHARS), style="yellow")


def bar_position(task: Json) -> tuple[float, float | None]:
    """How far a task's bar is, of how much; no total, which moves without a percentage, where none is known."""
    progress = task["progress"]
    if task["status"] in FINISHED:
        return 1, 1
    if progress is None or progress["total"] is None or task["status"] != "RUNNING":
        return 0, None
    return progress["done"], max(progress["total"], progress["done"])
