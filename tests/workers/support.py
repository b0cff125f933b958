"""A context for task code under test: a real blob store, and a host that writes down what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventq.events.blobs import BlobStore
from eventq.events.report import LogLine, Progress
from eventq.workers.context import Context, Report, SpawnRequest
from eventq.workers.fetch_policy import Network
from eventq.workers.inputs import Inputs
from eventq.workers.outcome import StopReason


@dataclass
class RecordingHost:
    """Cancels itself once ``cancel_after`` progress updates were seen (``None``: never)."""

    cancel_after: int | None = None
    spawned: list[SpawnRequest] = field(default_factory=list[SpawnRequest])
    updates: list[Progress] = field(default_factory=list[Progress])
    lines: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list[tuple[str, str, dict[str, Any]]])

    def report(self, report: Report) -> None:
        if isinstance(report, Progress):
            self.updates.append(report)
        elif isinstance(report, LogLine):
            self.lines.append((report.level, report.message, report.fields))

    def stop_reason(self) -> StopReason | None:
        over = self.cancel_after is not None and len(self.updates) >= self.cancel_after
        return StopReason.CANCELLED if over else None

    def spawn(self, request: SpawnRequest) -> str:
        self.spawned.append(request)
        return f"child-{len(self.spawned)}"

    async def spawn_async(self, request: SpawnRequest) -> str:
        return self.spawn(request)


def make_context(
    directory: Path,
    host: RecordingHost | None = None,
    *,
    input_dirs: Sequence[Path] = (),
    fetch_allow: Sequence[Network] = (),
    device: str = "cpu",
) -> Context:
    """A context of task ``task-1``, attempt 1, whose blobs lie in ``directory``."""
    blobs = BlobStore.open(directory / "blobs")
    return Context(
        host or RecordingHost(),
        task_id="task-1",
        attempt=1,
        worker_id="worker-1",
        device=device,
        blobs=blobs,
        inputs=Inputs(blobs, input_dirs, fetch_allow),
    )
