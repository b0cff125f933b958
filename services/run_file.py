"""`run.json` in the data directory: how the other commands find the running instance without flags."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class Run:
    """A running `eventq up`. `started_ticks` tells its process from a later one that got the same pid."""

    pid: int
    started_ticks: int
    api_url: str
    nats_url: str
    nats_monitor_url: str
    processes: dict[str, int]
    """Process ids by name; they change when a crashed process is started again."""


def write_run(data_dir: Path, run: Run) -> None:
    """Replace the file in one step, so that a reader sees the old or the new one. Only its owner may read it."""
    partial = data_dir / f"{RUN_FILE}.partial"
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(run), file, indent=2)
    partial.replace(data_dir / RUN_FILE)


def read_run(data_dir: Path) -> Run | None:
    """The instance that runs on this data directory; None where there is none (any more)."""
    try:
        run = Run(**json.loads((data_dir / RUN_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return run if started_ticks(run.pid) == run.started_ticks != 0 else None


def remove_run(data_dir: Path) -> None:
    """Forget this process's instance; the file of another one, or none, is left as it is."""
    run = read_run(data_dir)
    if run is not None and run.pid == os.getpid():
        (data_dir / RUN_FILE).unlink(missing_ok=True)


def started_ticks(pid: int) -> int:
    """When the live process `pid` started, in clock ticks since boot (1 where only its life can be seen); 0: not alive."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0 if Path("/proc/self/stat").exists() else _alive(pid)
    return 0 if state in "ZX" else int(fields[18])


def _alive(pid: int) -> int:
    with suppress(OSError):
        os.kill(pid, 0)
        return 1
    return 0
