"""`eventq up`, `demo`, `api`, `worker`, `scheduler`: commands that are processes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventq.services.cli_instance import Instance
from eventq.services.cli_options import ConfigOption, DataDirOption, JsonOption, NatsOption
from eventq.services.output import Output, clean

if TYPE_CHECKING:
    from eventq.services.settings import Settings
    from eventq.services.up import Instance as Running

JsonLogOption = Annotated[bool, typer.Option("--json", help="Log in JSON, one object a line, on stderr.")]
GpuOption = Annotated[
    bool | None, typer.Option("--gpu/--no-gpu", help="A GPU worker as well. Default: when torch is installed.")
]


def start_up(
    gpu: GpuOption = None,
    port: Annotated[int | None, typer.Option(help="The API's port; 0 takes any. Default: 8000 when it is free")] = None,
    modules: Annotated[
        list[str] | None, typer.Option("--tasks", metavar="MODULE", help="Module or .py file with your tasks; repeat it.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Start everything on this machine and stay: broker, API, scheduler, workers. Ctrl-C stops.

    The processes' logs are in the data directory, under logs/.
    """
    from eventq.services.embedded import make_data_dir
    from eventq.services.logs import configure_logs
    from eventq.services.settings import load_settings
    from eventq.services.task_check import check_modules, served_and_not
    from eventq.services.up import up, worker_pools

    configure_logs("error")  # what happens is reported in words; each process has its own log
    output = Output(as_json=as_json)
    task_modules = tuple(modules) if modules else None
    loaded = load_settings(config, data_dir=data_dir, api_port=port, task_modules=task_modules)
    settings = loaded.settings
    make_data_dir(settings.data_dir)
    served, others = served_and_not(check_modules(settings.task_modules), worker_pools(gpu), settings.queues)

    async def stay(running: Running) -> None:
        output.show(running_facts(running), lambda: running_view(running))
        for pool, names in served.items():
            output.note(f"tasks of pool {pool}: {', '.join(names)}")
        for pool, names in others.items():
            output.note(f"no worker here runs {', '.join(names)}: start one with `eventq worker --pool {pool}`", "yellow")
        output.note("Ctrl-C stops it")
        await asyncio.Event().wait()

    def report(line: str) -> None:
        print(clean(line), file=sys.stderr)  # also with --json: that a process crashed must not be silent

    raise typer.Exit(asyncio.run(up(settings, report, stay, this_port="api_port" in loaded.origins, gpu=gpu)))


def run_demo(
    gpu: Annotated[bool, typer.Option("--gpu", help="A GPU worker as well; on the CPU where torch sees no GPU.")] = False,
    as_json: JsonOption = False,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Work here and keep it. Default: a temporary directory.")
    ] = None,
) -> None:
    """Start everything on free ports, run real CSV and image tasks, show what happened, stop. Under a minute."""
    from eventq.services.demo import demo

    raise typer.Exit(demo(Output(as_json=as_json), data_dir=data_dir, gpu=gpu))


def serve_api(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any. Default: 8000")] = None,
    as_json: JsonLogOption = False,
    nats_url: NatsOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Serve the HTTP API, with the projector that keeps its tables."""
    from eventq.services.processes import run_api

    instance = Instance(nats_url=nats_url, config=config, data_dir=data_dir)
    _run(run_api, instance, as_json, api_host=host, api_port=port)


def run_worker(
    pool: Annotated[str | None, typer.Option(help="Pool whose tasks it takes: cpu, gpu or your own. Default: cpu")] = None,
    queues: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Queues of the pool, comma-separated. Default: all")
    ] = None,
    modules: Annotated[
        list[str] | None, typer.Option("--tasks", metavar="MODULE", help="Module or .py file with your tasks; repeat it.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Tasks at a time. Default: the number of CPU cores")] = None,
    as_json: JsonLogOption = False,
    nats_url: NatsOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run tasks of one pool. SIGTERM or Ctrl-C: it finishes what runs, within the grace period, and hands back the rest."""
    from eventq.services.processes import run_worker as run

    instance = Instance(nats_url=nats_url, config=config, data_dir=data_dir)
    task_modules = tuple(modules) if modules else None
    _run(run, instance, as_json, pool=pool, queues=queues, task_modules=task_modules, concurrency=concurrency)


def run_scheduler(
    as_json: JsonLogOption = False,
    nats_url: NatsOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make delayed tasks and retries ready when they are due, and find tasks that nobody would run."""
    from eventq.services.processes import run_scheduler as run

    _run(run, Instance(nats_url=nats_url, config=config, data_dir=data_dir), as_json)


def running_facts(running: Running) -> dict[str, Any]:
    """Where a started instance is, for programs."""
    from eventq.services.run_file import read_run

    run = read_run(running.settings.data_dir)
    facts = {"api_url": running.api_url, "nats_url": running.settings.nats_url, "data_dir": str(running.settings.data_dir)}
    return facts if run is None else {**asdict(run), **facts}


def running_view(running: Running) -> Any:
    """Where a started instance is, for people."""
    from rich.text import Text

    from eventq.services.task_render import plain_table

    table = plain_table("", "")
    table.show_header = False
    for name, value in {
        "API": f"{running.api_url}/api/v1",
        "docs": f"{running.api_url}/docs",
        "NATS": running.settings.nats_url,
        "data": str(running.settings.data_dir),
    }.items():
        table.add_row(Text(name, "dim"), value)
    return table


def _run(process: Callable[[Settings], Coroutine[Any, Any, int]], instance: Instance, json_logs: bool, **options: Any) -> None:
    """Run one process with the settings, in which `options` come first, until it is told to stop."""
    from eventq.services.logs import configure_logs

    settings = instance.with_options(**options, log_format="json" if json_logs else None)
    form = {"auto": None, "json": True, "console": False}[settings.log_format]
    configure_logs(settings.log_level, json=form)
    raise typer.Exit(asyncio.run(process(settings)))
