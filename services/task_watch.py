"""Wait for tasks while showing how far they are: bars where a terminal can show them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from eventq.services.client import FINISHED, Client
from eventq.services.output import Output
from eventq.services.task_render import progress_text

POLL_FIRST_S, POLL_MAX_S = 0.02, 0.25

Json = Mapping[str, Any]


async def watch_task(client: Client, task_id: str, show: Callable[[Json], None], timeout_s: float | None) -> Json:
    """The task once it has finished, or as it is after ``timeout_s`` seconds. ``show`` sees every state in between."""
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    pause_s = POLL_FIRST_S
    while True:
        task = (await client.get(task_id)).model_dump(mode="json")
        show(task)
        left_s = deadline - time.monotonic()
        if task["status"] in FINISHED or left_s <= 0:
            return task
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, POLL_MAX_S)


async def watch_with_bar(client: Client, task_id: str, output: Output, timeout_s: float | None) -> Json:
    """:func:`watch_task` with one live bar on stderr; without a terminal, a line for each change of status."""
    with output.progress() as bars:
        bar = bars.add_task(task_id, total=None, state="")
        told = ""

        def show(task: Json) -> None:
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

        return await watch_task(client, task_id, show, timeout_s)


def bar_position(task: Json) -> tuple[float, float | None]:
    """How far a task's bar is, of how much; no total, which moves without a percentage, where none is known."""
    progress = task["progress"]
    if task["status"] in FINISHED:
        return 1, 1
    if progress is None or progress["total"] is None or task["status"] != "RUNNING":
        return 0, None
    return progress["done"], max(progress["total"], progress["done"])
