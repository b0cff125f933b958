"""What a task's code is given: who it is, where it runs, and a way to say how far it got.

The same :class:`Context` serves an ``async def`` on the worker's loop and a plain function in a child
process. What differs is only the :class:`ContextHost` behind it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import orjson

from eventq.events.blob_keys import output_key
from eventq.events.blobs import BlobStore
from eventq.events.data import BlobRef
from eventq.events.errors import InvalidInput, PayloadTooLarge
from eventq.events.limits import LOG_MESSAGE_MAX_CHARS, PROGRESS_PER_SECOND_MAX, SPAWNED_MAX
from eventq.events.report import LogLine, Progress
from eventq.workers.inputs import Inputs
from eventq.workers.outcome import StopReason
from eventq.workers.progress import checked_progress
from eventq.workers.text import clean, text_of

FIELD_MAX_CHARS = 1_000
FIELD_NAME_MAX_CHARS = 100
FIELDS_MAX = 50
"""Fields of one log line; further ones are left out."""

SPAWN_INPUT_MAX_BYTES = 16 * 1024 * 1024
"""Arguments of one spawned task. A larger input belongs into a file: ``ctx.put_output``, and its key as the argument."""

SPAWN_KEY_MAX_CHARS = 200

_INTEGERS = range(-(2**63), 2**64)
"""What JSON readers, and the log, can hold as an integer."""

LOG_LEVELS = ("debug", "info", "warning", "error")


class TaskCancelled(BaseException):
    """Raised by :meth:`Context.check` once the task's cancellation was requested.

    Not an ``Exception``, for the reason that ``asyncio.CancelledError`` is none: the ``except Exception``
    with which task code keeps going after a bad row or a failed download must not also keep going after a
    cancel. ``finally`` and ``with`` run as for any other exception. Code that catches it must raise it
    again.
    """


class TaskPaused(BaseException):
    """Raised by :meth:`Context.check` in an ``async def`` once its task is to be paused: this attempt ends, and another begins
    anew when the task is resumed. Treat it as :class:`TaskCancelled`. Plain functions stand still instead, and notice
    nothing."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life and nothing else."""


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """A task that a running task wants to have run. ``key``: which of its children it is, at every attempt."""

    task_name: str
    args: list[Any]
    kwargs: dict[str, Any]
    key: str
    options: dict[str, Any]


Report = Progress | LogLine | Beat


class ContextHost(Protocol):
    """What a context needs of the process that runs the task. All but spawning return at once and never raise."""

    def report(self, report: Report) -> None:
        """Take a report; pacing is the host's affair."""
        ...

    def stop_reason(self) -> StopReason | None:
        """Why this attempt should stop: cancelled, paused, timed out, or its lease lost; ``None`` while it should not."""
        ...

    def spawn(self, request: SpawnRequest) -> str:
        """The id of the task that was stored. Blocks until it is."""
        ...

    async def spawn_async(self, request: SpawnRequest) -> str:
        """As :meth:`spawn`, on the worker's loop."""
        ...


class Context:
    """One attempt, seen from inside. Every method is synchronous and cheap, in plain and async functions
    alike.

    ``task_id``, ``attempt`` (from 1) and ``worker_id`` say who runs; ``device`` is ``cpu`` or ``cuda:<n>``.
    ``blobs`` and ``inputs`` block on disk or network: in an ``async def`` use the ``_async`` methods of
    ``blobs``, and ``await asyncio.to_thread(...)`` for ``inputs``.
    """

    def __init__(
        self,
        host: ContextHost,
        *,
        task_id: str,
        attempt: int,
        worker_id: str,
        device: str,
        blobs: BlobStore,
        inputs: Inputs,
    ) -> None:
        self._host = host
        self.task_id = task_id
        self.attempt = attempt
        self.worker_id = worker_id
        self.device = device
        self.blobs = blobs
        self.inputs = inputs
        self._unnamed = 0
        self._children: set[str] = set()
        self._beaten_at = -math.inf

    def progress(self, done: float, total: float | None = None, unit: str | None = None, message: str | None = None) -> None:
        """Say that ``done`` of ``total`` (``None``: unknown) is behind us, in ``unit``. Call as often as you
        like.

        The newest value is published at most four times a second, the last one always. Raises
        :class:`InvalidInput` for a number that is negative or not finite.
        """
        self._host.report(checked_progress(done, total, unit, message))

    def log(self, message: str, level: str = "info", **fields: Any) -> None:
        """Add a line to the task's log, ``fields`` (JSON values) beside it. Text over 4,000 characters is
        cut, and what cannot be stored (NUL, lone surrogates) is replaced.
        """
        if level not in LOG_LEVELS:
            raise InvalidInput("level", f"must be one of {', '.join(LOG_LEVELS)}", found=level)
        self._host.report(LogLine(clean(str(message), LOG_MESSAGE_MAX_CHARS), level, _plain(fields)))

    def heartbeat(self) -> None:
        """Say that the code still runs, for a task with a heartbeat time-out; progress and log lines say so, too. Call it as
        often as you like.
        """
        now = time.monotonic()
        if now - self._beaten_at >= 1 / PROGRESS_PER_SECOND_MAX:
            self._beaten_at = now
            self._host.report(Beat())

    @property
    def cancelled(self) -> bool:
        """Whether this attempt was asked to stop. Code that can end early with a clean-up asks this."""
        return self._host.stop_reason() is not None

    def check(self) -> None:
        """Return if the attempt may go on, else raise :class:`TaskCancelled` or :class:`TaskPaused`. Call it in every long
        loop.
        """
        reason = self._host.stop_reason()
        if reason is StopReason.PAUSED:
            raise TaskPaused(f"task {self.task_id} is to be paused")
        if reason is not None:
            raise TaskCancelled(f"task {self.task_id} was asked to stop")

    def spawn(
        self,
        task_name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        **options: Any,
    ) -> str:
        """Submit another task as a child of this one; its id, once it is stored. In an ``async def`` await
        :meth:`spawn_async`.

        A later attempt of this task that spawns again gets the same children: told apart by ``key``, or by the order of the
        calls where none is given. ``options``: ``queue``, ``priority``, ``max_retries`` and others of a submission. Raises
        :class:`InvalidInput` for a task that this worker does not know, wrong arguments, and the thousand-and-first child.
        """
        return self._host.spawn(self._request(task_name, args, kwargs, key, options))

    async def spawn_async(
        self,
        task_name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        **options: Any,
    ) -> str:
        """As :meth:`spawn`, for an ``async def`` on the worker's loop."""
        return await self._host.spawn_async(self._request(task_name, args, kwargs, key, options))

    def _request(
        self, task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None, key: str | None, options: dict[str, Any]
    ) -> SpawnRequest:
        if key is not None and not (isinstance(key, str) and 0 < len(key) <= SPAWN_KEY_MAX_CHARS):  # pyright: ignore[reportUnnecessaryIsInstance]  # task code may pass anything
            raise InvalidInput("key", f"must be a text of 1 to {SPAWN_KEY_MAX_CHARS} characters", limit=SPAWN_KEY_MAX_CHARS)
        if key is None:
            self._unnamed += 1
        which = f"call {self._unnamed}" if key is None else f"key {key}"
        if which not in self._children and len(self._children) >= SPAWNED_MAX:
            raise InvalidInput("spawn", f"more than {SPAWNED_MAX} children", limit=SPAWNED_MAX, found=len(self._children) + 1)
        self._children.add(which)
        return SpawnRequest(task_name, *_plain_arguments(list(args), dict(kwargs or {})), which, options)

    def put_output(self, name: str, data: bytes, media_type: str = "application/octet-stream") -> BlobRef:
        """``data`` is stored as a file of this attempt; put the answer (``.model_dump()``) into the result."""
        return self.blobs.put(data, key=output_key(self.task_id, self.attempt, name), media_type=media_type)


def _plain_arguments(args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments as JSON values. Raises :class:`InvalidInput` for what is none, or too much."""
    try:
        encoded = orjson.dumps({"args": args, "kwargs": kwargs})
    except TypeError as error:
        raise InvalidInput("args", f"cannot be stored as JSON: {error}") from None
    if len(encoded) > SPAWN_INPUT_MAX_BYTES:
        raise PayloadTooLarge("args", "are too large", limit=SPAWN_INPUT_MAX_BYTES, found=len(encoded))
    plain = orjson.loads(encoded)
    return plain["args"], plain["kwargs"]


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a log line as JSON values, each cut to its limit; whatever is no JSON value becomes its text."""
    return {clean(name, FIELD_NAME_MAX_CHARS): _plain_value(value) for name, value in islice(fields.items(), FIELDS_MAX)}


def _plain_value(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)  # subclasses, such as NumPy's, are none that can be stored
    if isinstance(value, int) and int(value) in _INTEGERS:
        return int(value)
    return clean(text_of(value), FIELD_MAX_CHARS)
