"""What a worker process must be told. Plain values: the services read settings, workers do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Isolation:
    """What a child process that runs task code needs in order to do so: sent to it as JSON when it starts."""

    modules: tuple[str, ...] = ()
    blob_url: str = ".eventq/blobs"
    input_dirs: tuple[Path, ...] = ()
    fetch_allow: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One worker process. ``queues``: empty means every queue of the pool, also those that come into being
    later.

    ``concurrency``: attempts at once. Times in seconds: ``lease_s`` until a silent worker's attempt is given
    to another; ``grace_s`` for running attempts when the worker is asked to stop; ``stop_s`` between each of
    the steps that end an attempt: asking, SIGTERM, SIGKILL.
    """

    worker_id: str
    nats_url: str
    pool: str = "cpu"
    queues: tuple[str, ...] = ()
    concurrency: int = 4
    lease_s: float = 10.0
    grace_s: float = 20.0
    stop_s: float = 5.0
    isolation: Isolation = field(default_factory=Isolation)
