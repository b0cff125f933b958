"""Which tasks exist: the ``@task`` decorator, the checks it makes, and the arguments it lets through.

A task is a function under a name. What a worker needs to run it, and what an API needs to check a submission
for it, is read once from its signature, at registration, where a mistake still has an author to tell. The
decorated function stays itself: it can be called, tested and type-checked as if the decorator were not
there.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from eventq.events.errors import InvalidInput, UnknownTask
from eventq.events.ids import check_name, check_pool, check_task_name
from eventq.events.limits import (
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    PRIORITY_MIN,
    QUEUE_TIMEOUT_MAX_S,
    RESULT_TTL_MAX_S,
    RETRIES_MAX,
    TIMEOUT_MAX_S,
)
from eventq.events.retry import RetryPolicy
from eventq.events.worker_events import TaskDeclaration
from eventq.workers.context import Context
from eventq.workers.signature import Signature, TaskDefinitionError

__all__ = ["Registry", "TaskDefinitionError", "TaskFunction", "default_registry", "load_modules", "task"]

F = TypeVar("F", bound=Callable[..., Any])

DOC_MAX_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class TaskFunction:
    """A registered task. ``is_async`` decides where it runs: on the worker's loop, or in a child process.

    ``place`` (module, file and line) is for messages; ``module`` is what a child process imports to find it
    again.
    """

    function: Callable[..., Any]
    is_async: bool
    declaration: TaskDeclaration
    module: str
    place: str
    signature: Signature

    @property
    def name(self) -> str:
        return self.declaration.name

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The named arguments, converted to the annotated types. Raises ``InvalidInput`` naming the first
        bad one.
        """
        return self.signature.bind(args, kwargs)

    def call(self, context: Context, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Bind and call: the result of a plain function, the coroutine of an async one."""
        arguments = self.bind(args, kwargs)
        if self.signature.context_parameter is not None:
            arguments[self.signature.context_parameter] = context
        return self.function(**arguments)


class Registry:
    """Tasks by name. Two functions under one name are refused; the same function again (a reload) replaces
    itself.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, TaskFunction] = {}

    def __iter__(self) -> Iterator[TaskFunction]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def get(self, name: str) -> TaskFunction:
        """The task of that name. Raises :class:`UnknownTask`."""
        try:
            return self._tasks[name]
        except KeyError:
            raise UnknownTask("task_name", "is unknown to this worker", found=name[:128]) from None

    def declarations(self) -> list[TaskDeclaration]:
        """What this process can run, in the order of registration: a worker publishes it when it starts."""
        return [registered.declaration for registered in self]

    def register(self, function: Callable[..., Any], declaration: TaskDeclaration, signature: Signature) -> None:
        """The function is known under the declaration's name. Raises :class:`TaskDefinitionError` if it is
        taken.
        """
        place = _place(function)
        known = self._tasks.get(declaration.name)
        if known is not None and known.place != place:
            raise TaskDefinitionError(
                f"two tasks are named {declaration.name!r}: {known.place} and {place}; give one another name="
            )
        self._tasks[declaration.name] = TaskFunction(
            function=function,
            is_async=inspect.iscoroutinefunction(function),
            declaration=declaration,
            module=function.__module__,
            place=place,
            signature=signature,
        )

    @overload
    def task(self, function: F, /) -> F: ...

    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        pool: str = "cpu",
        queue: str = "default",
        priority: int = PRIORITY_DEFAULT,
        max_retries: int = 3,
        timeout_s: float | None = None,
        queue_timeout_s: float | None = None,
        heartbeat_timeout_s: float | None = None,
        result_ttl_s: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Callable[[F], F]: ...

    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        pool: str = "cpu",
        queue: str = "default",
        priority: int = PRIORITY_DEFAULT,
        max_retries: int = 3,
        timeout_s: float | None = None,
        queue_timeout_s: float | None = None,
        heartbeat_timeout_s: float | None = None,
        result_ttl_s: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Any:
        """Make a function a task; answers the function itself.

        ``name`` is the function's unless given. ``pool`` says which workers may run it (``cpu``, ``gpu``,
        your own); ``queue`` is its line there, ``priority`` 0 to 10, larger first: all three are defaults
        that a submission may override. After a failure it runs again up to ``max_retries`` times, spaced by
        ``retry``. An attempt that takes longer than ``timeout_s`` seconds is stopped, and one that for
        ``heartbeat_timeout_s`` reports neither progress nor a log line nor a heartbeat; a task that nobody
        starts within ``queue_timeout_s`` has timed out; its result is given up ``result_ttl_s`` after its end
        (``None``: no limit).

        ``async def`` runs on the worker's event loop; a plain function runs in a child process, where it may
        compute and block, and where it can be killed. A parameter annotated ``Context`` receives the
        context; all others need a type that pydantic can check. Raises :class:`TaskDefinitionError` for
        anything else.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            signature = Signature.of(function)
            try:
                declaration = TaskDeclaration(
                    name=check_task_name(name if name is not None else function.__name__, "name"),
                    pool=check_pool(pool),
                    queue=check_name(queue, "queue"),
                    priority=_within("priority", priority, PRIORITY_MIN, PRIORITY_MAX),
                    max_retries=_within("max_retries", max_retries, 0, RETRIES_MAX),
                    timeout_s=_seconds("timeout_s", timeout_s, TIMEOUT_MAX_S),
                    queue_timeout_s=_seconds("queue_timeout_s", queue_timeout_s, QUEUE_TIMEOUT_MAX_S),
                    heartbeat_timeout_s=_seconds("heartbeat_timeout_s", heartbeat_timeout_s, TIMEOUT_MAX_S),
                    result_ttl_s=_seconds("result_ttl_s", result_ttl_s, RESULT_TTL_MAX_S),
                    retry=retry or RetryPolicy(),
                    parameters=signature.positional,
                    arguments=signature.json_schema,
                    doc=(inspect.getdoc(function) or "")[:DOC_MAX_CHARS],
                )
            except InvalidInput as error:
                raise TaskDefinitionError(f"{_place(function)}: {error.detail}") from None
            self.register(function, declaration, signature)
            return function

        return decorate if function is None else decorate(function)


N = TypeVar("N", int, float)


def _within(option: str, value: N, low: float, high: float) -> N:
    if not low <= value <= high:
        raise InvalidInput(option, f"must be from {low} to {high}", limit=(low, high), found=value)
    return value


def _seconds(option: str, value: float | None, most_s: float) -> float | None:
    return None if value is None else _within(option, value, 0.001, most_s)


def _place(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{function.__module__}.{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


default_registry = Registry()
"""What the module-level :func:`task` fills and a worker serves."""

task = default_registry.task

BUILTIN_MODULES = (
    "eventq.workers.builtin.echo",
    "eventq.workers.builtin.csv_processing",
    "eventq.workers.builtin.image_processing",
    "eventq.workers.builtin.gpu_check",
)


def load_modules(names: Iterable[str] = ()) -> Registry:
    """The default registry, filled by the built-in tasks and the modules named: ``my_tasks``,
    ``shop.tasks``, ``my_tasks.py``.

    A path is imported under its file's name, its folder put on ``sys.path`` as Python does for a script. A
    name is looked for in the working directory last, so that nothing there can stand before an installed
    package. Loading a module again does nothing. Raises ``ModuleNotFoundError``, or whatever the module
    raises.
    """
    for name in (*BUILTIN_MODULES, *names):
        if name.endswith(".py") or os.sep in name:
            _import_path(Path(name).resolve(strict=True))
        else:
            _import_name(name)
    return default_registry


def _import_name(name: str) -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    importlib.import_module(name)


def _import_path(path: Path) -> None:
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.import_module(path.stem)
    if module.__file__ is None or Path(module.__file__).resolve() != path:
        raise ImportError(f"{path} cannot be loaded: {path.stem!r} is already the name of {module.__file__}")
