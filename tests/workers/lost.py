"""Tasks that have cost workers their lives already."""

from __future__ import annotations

from contextlib import suppress

from eventq.events.commands import ExpireLease, StartAttempt
from eventq.events.errors import Conflict
from eventq.events.handle import handle, read_task
from tests.chaos.site import Control


async def lose_workers(control: Control, task_id: str, losses: int) -> None:
    """So many workers were lost while they ran the task, which is ready again. Nobody serves its queue yet."""
    while (task := await read_task(control.log, task_id, fresh=True)).losses < losses:
        with suppress(Conflict):  # a scheduler may find out first that nobody has ever heard of this worker
            await handle(control.log, task_id, StartAttempt("gone", "host", "cpu"), source="test")
            await handle(control.log, task_id, ExpireLease(task.attempt + 1), source="test")
