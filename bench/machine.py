"""On what machine a figure was measured, and what the system says about a process."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eventq.services.embedded import find_nats_server


def machine_facts() -> dict[str, Any]:
    """Facts without which a figure means nothing."""
    broker = subprocess.run([find_nats_server(), "--version"], capture_output=True, text=True, check=True)
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "nats-server": broker.stdout.rpartition(" v")[2].strip(),
        **{name: version(name) for name in ("eventq", "nats-py", "duckdb", "aiohttp")},
        "load_1min": round(os.getloadavg()[0], 2),
    }


def rss_mib(pid: int) -> float:
    """Memory of a process that is in RAM now, in MiB. Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has no memory: it has ended")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far, all its threads. Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
