"""Runs one process of eventq for a test: ``python -P run_process.py worker|scheduler|api``, configured by ``EVENTQ_*``.

What the command line cannot say: ``CHAOS_STOP_S`` shortens the steps that end an attempt, and ``CHAOS_BUG`` plants a bug that
the checker must find. Each bug is one that a reasonable implementation could have.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from uuid import uuid4

from nats.aio.msg import Msg

from eventq.events import handle as handle_module
from eventq.events import log as log_module
from eventq.events import workflow as workflow_module
from eventq.events.data import EventData
from eventq.events.ids import new_id
from eventq.events.subjects import Route
from eventq.events.submitter import Submitter
from eventq.events.task import TASKS, Task, decide
from eventq.services import processes
from eventq.services.gate import Gate
from eventq.services.logs import configure_logs
from eventq.services.promoter import Promoter
from eventq.services.reconciler import Reconciler
from eventq.services.settings import load_settings
from eventq.workers import config as config_module
from eventq.workers import puller as puller_module
from eventq.workers.attempt import Attempt


def publish_without_check() -> None:
    """Events are stored whatever stands in the log already."""

    def no_check(*_: object) -> dict[str, str]:
        return {}

    setattr(log_module, "version_check", no_check)  # noqa: B010


def acknowledge_first() -> None:
    """The work item is acknowledged when the attempt starts, not when its outcome is stored."""
    claim = _method("_claim")

    async def claim_and_acknowledge(attempt: Any) -> bool:
        claimed: bool = await claim(attempt)
        if claimed:
            await attempt._shop.acks.ack(attempt.delivery.lease)
        return claimed

    setattr(Attempt, "_claim", claim_and_acknowledge)  # noqa: B010


def start_afterwards() -> None:
    """User code runs first; that it started is written together with its outcome."""
    claim, report = _method("_claim"), _method("_report")

    async def assume(attempt: Any) -> bool:
        attempt.task = attempt.task._replace(attempt=attempt.task.attempt + 1)
        return True

    async def claim_and_report(attempt: Any, *outcome: Any) -> None:
        attempt.task = attempt.task._replace(attempt=attempt.task.attempt - 1)
        if await claim(attempt):
            await report(attempt, *outcome)

    setattr(Attempt, "_claim", assume)  # noqa: B010
    setattr(Attempt, "_report", claim_and_report)  # noqa: B010


def mind_the_status_alone() -> None:
    """Whoever reports of a running task is taken to have it in hand, whichever attempt the report names."""

    def unfenced(command: Any, task: Task) -> list[EventData]:
        return decide(replace(command, attempt=task.attempt) if hasattr(command, "attempt") else command, task)

    setattr(handle_module, "TASKS", replace(TASKS, decide=unfenced))  # noqa: B010


def urgent_first() -> None:
    """Free slots go to the most urgent work, always."""

    def deal(slots: int, routes: Iterable[Route]) -> Counter[Route]:
        return Counter({max(routes, key=lambda route: route.priority): slots})

    setattr(puller_module, "deal", deal)  # noqa: B010


def acknowledge_hints_first() -> None:
    """A timer's hint is acknowledged before its event is appended, and nobody looks for what is overdue."""
    settle: Callable[..., Any] = getattr(Promoter, "_settle")  # noqa: B009

    async def acknowledge_and_settle(promoter: Promoter, message: Msg) -> None:
        await copy.copy(message).ack_sync()  # the copy: this one may be acknowledged once more
        await settle(promoter, message)

    async def find_nothing(_: Reconciler) -> int:
        return 0

    setattr(Promoter, "_settle", acknowledge_and_settle)  # noqa: B010
    setattr(Reconciler, "sweep", find_nothing)  # noqa: B010


def draw_ids_of_tasks() -> None:
    """What a tick decided is made under ids that are drawn when it is made."""
    submit = Submitter.submit

    async def submit_under_another(submitter: Submitter, _: str, *args: Any, **options: Any) -> Any:
        return await submit(submitter, new_id(), *args, **options)

    setattr(Submitter, "submit", submit_under_another)  # noqa: B010


def derive_ids_from_a_secret() -> None:
    """The ids of a workflow's tasks follow from its steps and from something that only this process knows."""
    setattr(workflow_module, "_IDS", uuid4())  # noqa: B010


def leave_admitted_tasks_to_their_gate() -> None:
    """A gate makes ready what it admitted itself, and nothing that another had admitted."""

    async def complete_nothing(*_: object) -> None:
        return

    setattr(Gate, "_complete", complete_nothing)  # noqa: B010


def _method(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(Attempt, name)
    return found


IN_WORKERS = (publish_without_check, acknowledge_first, start_afterwards, mind_the_status_alone, urgent_first)
IN_SCHEDULERS = (
    acknowledge_hints_first,
    draw_ids_of_tasks,
    derive_ids_from_a_secret,
    leave_admitted_tasks_to_their_gate,
)
BUGS = {bug.__name__: bug for bug in (*IN_WORKERS, *IN_SCHEDULERS)}


def main(role: str) -> int:
    configure_logs("info", json=True)
    if stop_s := os.environ.get("CHAOS_STOP_S"):
        impatient = functools.partial(config_module.WorkerConfig, stop_s=float(stop_s))
        setattr(config_module, "WorkerConfig", impatient)  # noqa: B010
    if bug := os.environ.get("CHAOS_BUG"):
        BUGS[bug]()
    run = {"api": processes.run_api, "scheduler": processes.run_scheduler, "worker": processes.run_worker}[role]
    return asyncio.run(run(load_settings().settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
