"""The events of a worker: a process of ours, or a program elsewhere that speaks HTTP."""

from __future__ import annotations

from typing import Literal

from eventq.events.data import JSON, EventData
from eventq.events.retry import RetryPolicy


class TaskDeclaration(EventData):
    """What a worker says of one task it can run: enough for any process to check a submission against it.

    ``parameters``: the order in which positional arguments are bound; ``arguments``: a JSON Schema of the named ones.
    """

    name: str
    pool: str
    queue: str
    priority: int
    max_retries: int
    timeout_s: float | None
    queue_timeout_s: float | None = None
    heartbeat_timeout_s: float | None = None
    result_ttl_s: float | None = None
    retry: RetryPolicy
    parameters: list[str]
    arguments: dict[str, JSON]
    doc: str = ""


class WorkerRegistered(EventData):
    """A worker began to take work. ``kind``: a process of ours, or one that leases its work over HTTP (``pid`` 0)."""

    hostname: str
    pid: int
    pool: str
    queues: list[str]
    capacity: int
    devices: list[str]
    tasks: list[TaskDeclaration]
    kind: Literal["process", "http"] = "process"


class WorkerPaused(EventData):
    """The worker takes no new work until it is resumed; what it runs goes on."""

    requested_by: str


class WorkerResumed(EventData):
    """The worker takes work again."""

    requested_by: str


class WorkerDraining(EventData):
    """The worker takes no new work, finishes what it has, and ends."""

    requested_by: str


class CapacityChanged(EventData):
    """How many attempts the worker may run at once from now on."""

    capacity: int
    requested_by: str


class WorkerStopped(EventData):
    """A worker ended of its own accord, its work finished or handed back."""

    reason: str


class WorkerLost(EventData):
    """A worker is gone without having stopped. ``evidence``: how that was found out; ``running``: tasks it had claimed to
    hold."""

    evidence: Literal["disconnected", "presence_lapsed"]
    running: list[str]
