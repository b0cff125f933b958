"""Task modules looked at before anything is started: what they declare, or what is wrong with them.

They are imported in a child process, which is this very file run as a program: whatever user code does when it is
imported, it does not do it to the supervisor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventq.events.errors import EventqError, NotFound

if TYPE_CHECKING:
    from eventq.workers.registry import Registry

CHECK_S = 60.0
LAST_LINES = 4
OURS = "eventq."


class TasksUnusable(EventqError):
    """A module with tasks cannot be imported, or holds no task that could be run."""

    code = "TASKS_UNUSABLE"


class TaskFileMissing(NotFound):
    """A file named as a module with tasks does not exist."""

    code = "TASK_FILE_MISSING"


@dataclass(frozen=True, slots=True)
class FoundTask:
    """A task that a worker will know. ``own``: from a module of the user's, not built in."""

    name: str
    pool: str
    queue: str
    own: bool


def check_modules(modules: Sequence[str]) -> list[FoundTask]:
    """The built-in tasks and those of ``modules``. Raises :class:`TaskFileMissing`, :class:`TasksUnusable`."""
    command = [sys.executable, "-P", "-m", "eventq.services.task_check", *modules]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=CHECK_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise TasksUnusable(f"importing {', '.join(modules)} took over {CHECK_S:g} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = "\n".join(done.stderr.splitlines()[-LAST_LINES:])
        raise TasksUnusable(f"importing {', '.join(modules)} ended the process\n{last}", exit_code=done.returncode) from None
    if "code" in answer:
        kind = TaskFileMissing if answer["code"] == TaskFileMissing.code else TasksUnusable
        raise kind(answer["detail"], module=answer["module"])
    return [FoundTask(**found) for found in answer["tasks"]]


def served_and_not(
    tasks: Iterable[FoundTask], pools: Iterable[str], queues: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names of tasks by pool: those that workers of ``pools`` and ``queues`` (none: all) run, and the user's others."""
    served: dict[str, list[str]] = {pool: [] for pool in pools}
    others: dict[str, list[str]] = {}
    for found in tasks:
        if found.pool in served and (not queues or found.queue in queues):
            served[found.pool].append(found.name)
        elif found.own:
            others.setdefault(found.pool, []).append(found.name)
    return served, others


def load_tasks(modules: Sequence[str]) -> Registry:
    """The built-in tasks and those of ``modules``, loaded into this process. Raises as :func:`check_modules` does."""
    from eventq.workers.registry import load_modules

    registry = load_modules()
    for module in modules:
        try:
            load_modules([module])
        except FileNotFoundError as error:
            path = Path(module)
            if path.exists() or module != str(path):
                raise TasksUnusable(f"{module}: {_last_lines(error)}", module=module) from error
            raise TaskFileMissing(f"{module}: no such file", module=module) from None
        except (Exception, SystemExit) as error:  # user code may raise anything
            raise TasksUnusable(f"{module}: {_last_lines(error)}", module=module) from error
    return registry


def _examine(modules: Sequence[str]) -> Mapping[str, Any]:
    registry = load_tasks(())
    for module in modules:
        before = len(registry)
        try:
            load_tasks([module])
        except (TaskFileMissing, TasksUnusable) as error:
            return {"code": error.code, "detail": error.detail, "module": module}
        name = Path(module).stem if module.endswith(".py") or os.sep in module else module
        if len(registry) == before and not any(found.module == name for found in registry):
            wrong = "holds no function decorated with @task"
            return {"code": TasksUnusable.code, "detail": f"{module}: {wrong}", "module": module}
    return {
        "tasks": [
            {
                "name": found.name,
                "pool": found.declaration.pool,
                "queue": found.declaration.queue,
                "own": not found.module.startswith(OURS),
            }
            for found in registry
        ]
    }


def _last_lines(error: BaseException) -> str:
    """The error itself, after the last line of the user's that led to it."""
    lines = [line.rstrip() for line in traceback.format_exception_only(error)]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    place = [f'File "{frames[-1].filename}", line {frames[-1].lineno}'] if frames else []
    return "\n".join(place + lines[-LAST_LINES:])


def _is_users(filename: str) -> bool:
    return not filename.startswith(("<", sys.prefix, sys.base_prefix)) and not _is_ours(filename)


def _is_ours(filename: str) -> bool:
    from eventq import services, workers

    roots = [Path(str(file)).resolve().parent for file in (services.__file__, workers.__file__)]
    return any(Path(filename).resolve().is_relative_to(root) for root in roots)


def _main() -> None:
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what a module prints is no part of the answer
        json.dump(_examine(sys.argv[1:]), answer)


if __name__ == "__main__":
    _main()
