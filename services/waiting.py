"""Waiting for what becomes of a task: the projection's news wake, the log decides."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from eventq.events.data import JSON, BlobRef, ErrorInfo
from eventq.events.errors import InvalidInput, ProjectionLagging
from eventq.events.handle import read_task
from eventq.events.task import Task, timeout_error
from eventq.events.task_events import Completed, Failed, TimedOut
from eventq.services.api import Api

PREFER = "Prefer"
_WAIT = re.compile(r'wait\s*=\s*("?)(\d{1,9})\1', re.ASCII)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended, or how it was when the wait was over. ``result``, ``output``, ``error``: as in the last event."""

    task: Task
    result: JSON = None
    output: BlobRef | None = None
    error: ErrorInfo | None = None


def wait_asked_for(request: web.Request, *, asynchronous: bool, most_s: float) -> float | None:
    """For how many seconds the request wants to wait: ``Prefer: wait=N`` (RFC 7240), or the longest where it says
    ``async=false``; ``None``: not at all. Raises ``InvalidInput`` above ``most_s``."""
    for preference in ",".join(request.headers.getall(PREFER, [])).split(","):
        if (found := _WAIT.fullmatch(preference.strip().lower())) is not None:
            seconds = int(found[2])
            if seconds > most_s:
                raise InvalidInput(PREFER, f"cannot wait for more than {most_s:g} s", limit=most_s, found=seconds)
            return float(seconds)
    return None if asynchronous else most_s


def applied(wait_s: float) -> dict[str, str]:
    """The header that says that the answer waited."""
    return {"Preference-Applied": f"wait={wait_s:g}"}


async def wait_until(api: Api, task_id: str, task: Task, reached: Callable[[Task], bool], wait_s: float) -> Task:
    """The task once ``reached`` is true of it, or as it is when the time is over."""
    deadline = time.monotonic() + wait_s
    while not reached(task):
        left_s = deadline - time.monotonic()
        try:
            await api.freshness.wait_for_version(task_id, task.version + 1, max(0.0, left_s))
        except ProjectionLagging:
            return await read_task(api.log, task_id, fresh=True)
        task = await read_task(api.log, task_id, fresh=True)
    return task


async def outcome_of(api: Api, task_id: str, task: Task, wait_s: float) -> Outcome:
    """What became of the task within ``wait_s`` seconds."""
    task = await wait_until(api, task_id, task, lambda each: each.finished, wait_s)
    stored = await api.log.last("tasks", task_id, fresh=True) if task.finished else None
    match None if stored is None else stored.event.data:
        case Completed(result=result, output=output):
            return Outcome(task, result=result, output=output)
        case Failed(error=error):
            return Outcome(task, error=error)
        case TimedOut(reason=reason, after_s=after_s):
            return Outcome(task, error=timeout_error(reason, after_s))
        case _:
            return Outcome(task)
