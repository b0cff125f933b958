"""How an attempt's end is written, whoever reports it: its worker, an HTTP worker, or who finds it lost."""

from __future__ import annotations

from datetime import datetime, timedelta

from eventq.events.commands import Command, FailAttempt, TimeOutAttempt
from eventq.events.envelope import NO_TRACE, Trace
from eventq.events.handle import Handled, handle
from eventq.events.log import EventLog
from eventq.events.task import Task
from eventq.events.timers import DUE, Hint, set_timer


async def end_attempt(
    log: EventLog, task_id: str, command: Command, *, source: str, task: Task, trace: Trace = NO_TRACE
) -> Handled[Task]:
    """Write the end. Where a retry may follow its timer is set first: dying in between leaves a timer that fires for nothing.
    Raises what the rules say, and ``LogUnavailable``."""
    due_at = _due_at(command) if task.failures < task.max_retries else None
    if due_at is not None:
        await set_timer(log.timers, Hint("tasks", task_id, DUE, task.version + 1), due_at)
    handled = await handle(log, task_id, command, source=source, trace=trace, task=task)
    if handled.state.due_at is not None and handled.state.version != task.version + 1:
        await set_timer(log.timers, Hint("tasks", task_id, DUE, handled.state.version), handled.state.due_at)
    return handled


def _due_at(command: Command) -> datetime | None:
    if isinstance(command, FailAttempt | TimeOutAttempt) and command.retry_in_s is not None:
        return command.now + timedelta(seconds=command.retry_in_s)
    return None
