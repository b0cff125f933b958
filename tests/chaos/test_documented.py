"""``docs/reliability.md`` names tests, failpoints and files: all of them exist, and no chaos test is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
PLACES = (
    *("submit", "project", "attempt", "worker", "promote", "control", "queue", "clean", "erase", "lease", "gate", "schedule"),
    *("workflow", "watch", "expire"),
)
"""Where failpoints are: the first part of their names."""

ROOMS = ("events", "projections", "workers", "services")


def names_in(path: Path) -> set[str]:
    """Names of the test functions of a file."""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize(("file", "name"), sorted(set(re.findall(r"`(tests/[\w/.]+)::(\w+)`", PAGE))))
def test_a_promise_is_shown_by_a_test_that_exists(file: str, name: str) -> None:
    assert name in names_in(ROOT / file)


def test_every_file_that_is_named_exists() -> None:
    missing = [file for file in re.findall(r"`(tests/[\w/.]+)`", PAGE) if not (ROOT / file).exists()]
    assert missing == []


def test_every_failpoint_is_documented_and_every_documented_one_exists() -> None:
    sources = [path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    placed = {name for source in sources for name in re.findall(r'\bfailpoint\("([\w.]+)"\)', source)}
    assert placed == set(re.findall(r"`((?:" + "|".join(PLACES) + r")\.[a-z_]+)`", PAGE))


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("test_kill_*.py")), ids=lambda path: path.name)
def test_every_way_to_kill_something_is_in_the_table(path: Path) -> None:
    assert f"tests/chaos/{path.name}" in PAGE
