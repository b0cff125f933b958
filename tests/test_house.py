"""How the house is built: who may import whom, one name for each thing, everything shipped, nothing slept through."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]

MAY_IMPORT = {
    "events": {"events"},
    "projections": {"projections", "events"},
    "workers": {"workers", "events"},
    "services": {"services", "projections", "workers", "events"},
}
ROOMS = sorted(MAY_IMPORT)

NATS_OUTSIDE_EVENTS = {"nats.errors", "nats.js.errors", "nats.aio.msg", "nats.aio.subscription"}
"""What others may name of the client library: what the broker's connection hands out and raises. They open nothing."""

FILES = [path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
TESTS = [path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("*.py"))]


def tracked() -> list[Path]:
    """Every file of the repository; the modules where git does not know."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return FILES + TESTS
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: say eventq.{path.parts[0]}, not a relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_inward(path: Path) -> None:
    rooms = {name.split(".")[1] for name in imported_modules(path) if name.startswith("eventq.")}
    assert rooms <= MAY_IMPORT[path.parts[0]]


def test_one_file_knows_duckdb() -> None:
    assert {str(path) for path in FILES if "duckdb" in set(imported_modules(path))} == {"projections/store.py"}


def test_one_room_opens_connections_to_nats() -> None:
    for path in FILES:
        if path.parts[0] != "events":
            names = {name for name in imported_modules(path) if name.partition(".")[0] == "nats"}
            assert names <= NATS_OUTSIDE_EVENTS, path


def test_every_package_is_shipped() -> None:
    folders = {str(path.parent) for path in FILES if path.name == "__init__.py"} | {"eventq"}
    assert folders == set(SETUPTOOLS["package-dir"].values())
    assert set(SETUPTOOLS["packages"]) == set(SETUPTOOLS["package-dir"])
    assert {str(path.parent) for path in FILES} <= folders, "a folder with modules but without __init__.py"


def test_every_data_file_is_shipped() -> None:
    patterns: list[str] = SETUPTOOLS["package-data"]["*"]
    folders = sorted(SETUPTOOLS["package-dir"].values(), key=len, reverse=True)
    for path in tracked():
        package = next((folder for folder in folders if path.is_relative_to(folder)), None)
        if package is not None and path.suffix != ".py":
            name = str(path.relative_to(package))
            assert any(fnmatch(name, pattern) for pattern in patterns), path


@pytest.mark.parametrize("folder", sorted(SETUPTOOLS["package-dir"].values()))
def test_every_package_ships_its_types(folder: str) -> None:
    assert (ROOT / folder / "py.typed").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_one_name(room: str) -> None:
    assert room not in sys.modules, f"import eventq.{room}, not {room}: two names would mean two classes"


def loaded_by(module: str) -> set[str]:
    """Top-level names of what a fresh process has loaded after importing `module`."""
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["eventq.services.app", "eventq.services.processes", "eventq.services.up"])
def test_the_api_loads_no_library_of_tasks(module: str) -> None:
    assert loaded_by(module).isdisjoint({"torch", "PIL", "numpy"})


def test_the_command_line_starts_light() -> None:
    assert loaded_by("eventq.services.cli").isdisjoint({"torch", "PIL", "numpy", "duckdb", "nats", "aiohttp"})


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert path.name in ("__init__.py",) or ast.get_docstring(ast.parse((ROOT / path).read_text()))


def test_nothing_is_left_for_later_or_tied_to_one_machine() -> None:
    unwanted = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|/work/|/root/|/home/(?!eventq)")
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".conf", ".sql") and path != Path("tests/test_house.py"):
            found = unwanted.search((ROOT / path).read_text())
            assert found is None, f"{path}: {found}"


def test_the_tests_wait_for_conditions_and_never_for_a_guessed_time() -> None:
    """Programs that tests run may take their time; the tests themselves poll (`tests.support.poll`) or wait for an event."""
    sleeps = [
        f"{path}:{call.lineno}"
        for path in TESTS
        for function in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name.startswith("test_")
        for call in own_calls(function)
        if is_sleep(call)
    ]
    assert sleeps == []


def own_calls(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.Call]:
    """Calls in the body of a function, but for those in functions defined within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def is_sleep(call: ast.Call) -> bool:
    """`time.sleep(...)` and `asyncio.sleep(...)`, but for `sleep(0)`, which only lets others run."""
    named = ast.unparse(call.func) in ("time.sleep", "asyncio.sleep")
    return named and not (len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0)


def test_the_readmes_test_command_is_the_one_that_ci_runs() -> None:
    """`.ci/run --print` shows what it takes from the README instead of running it."""
    shown = subprocess.run(["bash", str(ROOT / ".ci" / "run"), "--print"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() in (ROOT / "README.md").read_text().splitlines()
    assert shown.stdout.rstrip().endswith("pytest")
