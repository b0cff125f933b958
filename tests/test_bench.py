"""Every benchmark runs, at sizes that measure nothing, and says what it found in JSON. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENTRY = Path(__file__).parent.parent / "bench" / "__main__.py"

FIGURES = {
    "submit": {f"{way}{of}" for way in ("submit_one_by_one", "submit_64_in_flight") for of in ("", "_p50", "_p99")},
    "bulk": {"submit_bulk"},
    "drain": {"drain_1_worker", "drain_2_workers", "drain_cpu_per_task"},
    "latency": {f"submit_to_{moment}_{of}" for moment in ("start", "visible", "listed", "completed") for of in ("p50", "p99")},
    "rebuild": {"rebuild", "rebuild_cpu_per_event", "rebuild_file_size"},
    "lives": {"life_scheduled", "life_retried", "life_workflow"},
    "control": {"cancel_running_p50", "cancel_running_p99", "worker_killed_to_running_elsewhere"},
    "priorities": {f"priority_{level}_share" for level in range(11)},
    "timers": {"timers_flood"},
    "memory": {"memory_broker_per_100k_tasks", "memory_api_per_100k_tasks"},
    "cli": {"cli_help"},
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ENTRY), *arguments], capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.parametrize("name", FIGURES)
def test_a_benchmark_states_its_figures_with_baselines(name: str) -> None:
    done = bench(name, "--quick", "--json", "--runs", "1", "--sync", "default")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {figure["figure"] for figure in found["figures"]} == FIGURES[name]
    for figure in found["figures"]:
        assert_complete(figure)


def test_the_machine_is_named_and_both_ways_of_syncing_are_measured() -> None:
    done = bench("drain", "--quick", "--json", "--runs", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"cpu", "cores", "python", "nats-server", "eventq"} <= found["machine"].keys()
    assert [figure["sync"] for figure in found["figures"]] == ["default"] * 3 + ["always"] * 3


def test_people_get_a_table() -> None:
    done = bench("cli", "--quick", "--runs", "2")
    assert done.returncode == 0, done.stderr
    assert "cli_help" in done.stdout
    assert "python -c pass" in done.stdout


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    done = bench("dream")
    assert done.returncode == 2
    assert "drain" in done.stderr


def assert_complete(figure: dict[str, Any]) -> None:
    """A figure says what was measured, how often, under which conditions, and against what."""
    assert len(figure["runs"]) == len(figure["baseline"]["runs"]) == 1
    assert figure["baseline"]["median"] > 0
    assert figure["ratio"] is not None
    assert all(figure[name] for name in ("unit", "conditions"))
    assert figure["baseline"]["what"]
