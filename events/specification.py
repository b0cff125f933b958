"""The submission that holds for a task: of its first event, or of the newest that changed it. ``Task.spec`` says which."""

from __future__ import annotations

from eventq.events.envelope import Event
from eventq.events.errors import LogDamaged, TaskErased
from eventq.events.log import EventLog
from eventq.events.task import Task
from eventq.events.task_events import Submitted, Updated


def submission_in(event: Event) -> Submitted:
    """The submission that an event holds. Raises ``LogDamaged`` where it is none that could."""
    match event.data:
        case Submitted() as submitted:
            return submitted
        case Updated(submission=submission):
            return submission
        case _:
            task_id = event.aggregate_id
            raise LogDamaged(f"version {event.version} of task {task_id} is no submission", task_id=task_id)


async def submission_of(log: EventLog, task_id: str, task: Task) -> Submitted:
    """The submission that holds, read from the log. Raises ``TaskErased`` where it was destroyed, ``LogDamaged`` where there is
    none, and ``LogUnavailable``."""
    stored = await log.settled("tasks", task_id, task.spec)
    if stored is not None and isinstance(stored.event.data, Submitted | Updated):
        return submission_in(stored.event)
    if task.erased:
        raise TaskErased(task_id)
    raise LogDamaged(f"task {task_id} has no submission at version {task.spec}", task_id=task_id)
