"""Ends of attempts that no worker process of ours reports: those of HTTP workers, by themselves or by who watches them.

The same order as in a worker process (``workers/attempt.py``): where a retry may follow, its timer is set before the event.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from eventq.events.commands import Command, FailAttempt, TimeOutAttempt
from eventq.events.envelope import NO_TRACE, Trace
from eventq.events.errors import LogDamaged
from eventq.events.handle import Handled, handle
from eventq.events.log import EventLog
from eventq.events.retry import RetryPolicy, retry_in_s
from eventq.events.task import Task
from eventq.events.task_events import Submitted, Updated
from eventq.events.timers import DUE, Hint, set_timer


async def submission_of(log: EventLog, task_id: str, task: Task) -> Submitted:
    """The submission that holds. Raises ``LogDamaged`` where the log has none, ``LogUnavailable``."""
    stored = await log.at("tasks", task_id, task.spec)
    match None if stored is None else stored.event.data:
        case Submitted() as submitted:
            return submitted
        case Updated() as updated:
            return updated.submission
        case _:
            raise LogDamaged(f"task {task_id} has no submission", task_id=task_id)


def draw_retry_s(
    submitted: Submitted, declared: RetryPolicy | None, task: Task, error: str, asked_s: float | None = None
) -> float | None:
    """Seconds until the attempt after the one that fails now, by the submission's policy, else the declared, else the usual;
    ``None``: there is to be none. ``error``: the name of its class, the only one that is known of an error from elsewhere."""
    policy = submitted.retry or declared or RetryPolicy()
    return retry_in_s(policy, task.failures + 1, random.random(), errors=(error,), asked_s=asked_s)


async def end_attempt(
    log: EventLog, task_id: str, command: Command, *, source: str, task: Task, trace: Trace = NO_TRACE
) -> Handled[Task]:
    """Write how an attempt ended. Dying between the timer and the event leaves a timer that fires for nothing. Raises what
    the rules say, and ``LogUnavailable``."""
    due_at = _due_at(command) if task.failures < task.max_retries else None
    if due_at is not None:
        await set_timer(log.broker, Hint("tasks", task_id, DUE, task.version + 1), due_at)
    handled = await handle(log, task_id, command, source=source, trace=trace, task=task)
    if handled.state.due_at is not None and handled.state.version != task.version + 1:
        await set_timer(log.broker, Hint("tasks", task_id, DUE, handled.state.version), handled.state.due_at)
    return handled


def _due_at(command: Command) -> datetime | None:
    if isinstance(command, FailAttempt | TimeOutAttempt) and command.retry_in_s is not None:
        return command.now + timedelta(seconds=command.retry_in_s)
    return None
