"""Tasks that running tasks spawn: checked and stored by the worker, under ids that every attempt of the parent comes to."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

import orjson

from eventq.events.blobs import BlobStore
from eventq.events.data import BlobRef
from eventq.events.envelope import Trace
from eventq.events.errors import IllegalTransition, InvalidInput, UnknownTask
from eventq.events.ids import check_name
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES, PRIORITY_MAX, PRIORITY_MIN, RETRIES_MAX, TIMEOUT_MAX_S
from eventq.events.submitter import Submitter
from eventq.events.task import Task
from eventq.events.task_events import Submitted
from eventq.workers.context import SpawnRequest
from eventq.workers.registry import Registry, TaskFunction

_OPTIONS = ("queue", "priority", "max_retries", "timeout_s")

KNOWN_TOLD_MAX = 20
"""Names of known tasks that the refusal of an unknown one tells."""


class Spawner:
    """Stores children of this worker's attempts. What it does not know as a task of its own it refuses."""

    def __init__(self, registry: Registry, blobs: BlobStore, submitter: Submitter) -> None:
        self._registry = registry
        self._blobs = blobs
        self._submitter = submitter

    async def spawn(self, parent_id: str, parent: Task, request: SpawnRequest, trace: Trace) -> str:
        """The id of the child, once the log holds it: stored now, or by an earlier attempt of its parent.

        Raises ``InvalidInput`` with nothing stored, and ``Unavailable``.
        """
        function = self._function(request.task_name)
        function.bind(request.args, request.kwargs)
        options = _checked(request.options)
        child_id = child_id_of(parent_id, request.key)
        try:
            await self._submitter.submit(
                child_id, await self._submitted(parent_id, parent, function, request, options), trace=trace
            )
        except IllegalTransition:
            return child_id
        return child_id

    def _function(self, task_name: str) -> TaskFunction:
        if task_name in self._registry:
            return self._registry.get(task_name)
        known = ", ".join(sorted(declared.name for declared in self._registry.declarations())[:KNOWN_TOLD_MAX])
        raise UnknownTask("task_name", f"is unknown to this worker, which knows: {known}", found=task_name[:128])

    async def _submitted(
        self, parent_id: str, parent: Task, function: TaskFunction, request: SpawnRequest, options: dict[str, Any]
    ) -> Submitted:
        declared = function.declaration
        encoded = orjson.dumps({"args": request.args, "kwargs": request.kwargs})
        stored: BlobRef | None = None
        if len(encoded) > INLINE_PAYLOAD_MAX_BYTES:
            stored = await self._blobs.put_async(encoded, media_type="application/json")
        fields: dict[str, Any] = {
            "task_name": declared.name,
            "args": [] if stored else request.args,
            "kwargs": {} if stored else request.kwargs,
            "input": stored,
            "pool": declared.pool,
            "queue": declared.queue,
            "priority": declared.priority,
            "max_retries": declared.max_retries,
            "timeout_s": declared.timeout_s,
            "queue_timeout_s": declared.queue_timeout_s,
            "heartbeat_timeout_s": declared.heartbeat_timeout_s,
            "result_ttl_s": declared.result_ttl_s,
            "key": parent.key,
            "parent_task_id": parent_id,
            "workflow_id": parent.workflow_id,
            "requested_by": f"task {parent_id}",
        }
        return Submitted(**fields | options)


def child_id_of(parent_id: str, key: str) -> str:
    """The id of one child: the same at every attempt of the parent."""
    digest = hashlib.sha256(f"{parent_id}\n{key}".encode()).digest()
    return str(UUID(bytes=digest[:16], version=5))


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """Options as ``Submitted`` takes them, without those that are ``None``. Raises ``InvalidInput`` for the first that is
    wrong."""
    if unknown := next((name for name in options if name not in _OPTIONS), None):
        raise InvalidInput(unknown, "is not an option of a spawned task", hint=f"there are {', '.join(_OPTIONS)}")
    given = {name: value for name, value in options.items() if value is not None}
    if "queue" in given:
        check_name(str(given["queue"]), "queue")
    _within(given, "priority", PRIORITY_MIN, PRIORITY_MAX)
    _within(given, "max_retries", 0, RETRIES_MAX)
    _within(given, "timeout_s", 0.001, TIMEOUT_MAX_S, whole=False)
    return given


def _within(given: dict[str, Any], name: str, low: float, high: float, *, whole: bool = True) -> None:
    value: Any = given.get(name, low)
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        raise InvalidInput(name, f"must be {what} from {low:g} to {high:g}", limit=(low, high), found=repr(value)[:80])
