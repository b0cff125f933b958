"""Measure this machine: ``python bench/__main__.py [NAME ...]``, or ``eventq bench``. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.bed import Plan
    from bench.figures import Figure

BENCHES = {
    "submit": "submit",
    "bulk": "bulk",
    "drain": "drain",
    "latency": "latency",
    "rebuild": "rebuild",
    "lives": "lives",
    "control": "control",
    "priorities": "priorities",
    "timers": "timers",
    "memory": "memory",
    "cli": "cli_start",
}
"""Name and module of each, in the order in which they run."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="eventq bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run; all of them: {', '.join(BENCHES)}")
    parser.add_argument("--runs", type=int, default=3, help="how often to measure each figure; the median is stated")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    parser.add_argument("--markdown", action="store_true", help="a table in Markdown")
    parser.add_argument("--sync", choices=["always", "default", "both"], default="both", help="how the broker writes to disk")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHES]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


async def measure(plan: Plan, names: Sequence[str]) -> list[Figure]:
    """The figures of the benchmarks named, one after the other: two at once would measure each other."""
    figures: list[Figure] = []
    for name in names:
        bench: Callable[[Plan], Awaitable[list[Figure]]] = importlib.import_module(f"bench.{BENCHES[name]}").measure
        figures += await bench(plan)
    return figures


def run(arguments: Sequence[str]) -> None:
    """Measure and print."""
    options = parse(arguments)
    from bench.bed import Plan
    from bench.figures import figures_table, markdown
    from bench.machine import machine_facts

    plan = Plan(
        runs=options.runs,
        quick=options.quick,
        syncs=("default", "always") if options.sync == "both" else (options.sync,),
        note=lambda text: print(text, file=sys.stderr, flush=True),
    )
    machine = machine_facts()
    figures = asyncio.run(measure(plan, options.names or list(BENCHES)))
    if options.json:
        found: dict[str, Any] = {"machine": machine, "runs": plan.runs, "quick": plan.quick}
        print(json.dumps({**found, "figures": [figure.as_dict() for figure in figures]}))
        return
    if options.markdown:
        print(markdown(figures, machine))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 220)
    console.print(figures_table(figures, machine))


def _become_a_package() -> None:
    """This folder is importable as ``bench``, without its modules, or the checkout's, standing before installed ones."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    spec = importlib.util.spec_from_file_location("bench", here / "__init__.py", submodule_search_locations=[str(here)])
    assert spec is not None
    sys.modules["bench"] = importlib.util.module_from_spec(spec)


def main() -> None:
    """The benchmarks, or one of the processes that they start."""
    _become_a_package()
    from eventq.services.logs import configure_logs

    configure_logs("warning")
    if sys.argv[1:2] == ["--process"]:
        importlib.import_module(f"bench.{sys.argv[2]}").main(sys.argv[3:])
    else:
        run(sys.argv[1:])


if __name__ == "__main__":
    main()
