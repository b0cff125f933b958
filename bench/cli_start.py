"""How long the command line takes to say anything: `eventq --help` against an interpreter that does nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.bed import Plan
from bench.figures import Aim, Baseline, Figure

HELP_MAX_MS = 300


async def measure(plan: Plan) -> list[Figure]:
    """Wall time of both, in turn; of each run the median of several starts."""
    return [await asyncio.to_thread(_measure, plan)]


def _measure(plan: Plan) -> Figure:
    starts = plan.size(9, 2)
    found: tuple[list[float], list[float]] = ([], [])
    for run in range(plan.runs):
        plan.note(f"cli, run {run + 1}")
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(starts):
            for into, command in zip(times, (_help_command(), [sys.executable, "-c", "pass"]), strict=True):
                into.append(_time_ms(command))
        for into, values in zip(found, times, strict=True):
            into.append(sorted(values)[len(values) // 2])
    return Figure(
        name="cli_help",
        unit="ms",
        values=found[0],
        baseline=Baseline("python -c pass", found[1]),
        conditions=f"median of {starts} starts a run, files in the page cache",
        aim=None if plan.quick else Aim(most=HELP_MAX_MS),
    )


def _help_command() -> list[str]:
    script = Path(sys.executable).parent / "eventq"
    return [str(script), "--help"] if script.exists() else [sys.executable, "-P", "-m", "eventq.services.cli", "--help"]


def _time_ms(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - began)
