"""`eventq workers ...`: look at workers, and pause, resume, drain and resize them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventq.events.limits import WORKER_CAPACITY_MAX
from eventq.services.cli_instance import Instance
from eventq.services.cli_options import ApiOption, ConfigOption, DataDirOption, JsonOption
from eventq.services.output import Output

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from eventq.services.client import Client

Json = dict[str, Any]

app = typer.Typer(name="workers", help="Look at workers, pause, drain and resize them.", no_args_is_help=True)

WorkerIdArgument = Annotated[str, typer.Argument(metavar="WORKER_ID", help="The worker's id, as `workers list` prints it.")]


class StatusChoice(StrEnum):
    """What a worker may be."""

    active = "ACTIVE"
    paused = "PAUSED"
    draining = "DRAINING"
    stopped = "STOPPED"
    lost = "LOST"


@app.command("list")
def list_workers(
    status: Annotated[
        list[StatusChoice] | None, typer.Option(case_sensitive=False, help="Only these; repeat it. Default: all.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Only workers of this pool.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.")] = 20,
    offset: Annotated[int, typer.Option(help="Leave out so many first.")] = 0,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List workers, newest first."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    names = [each.value for each in status or []]
    page = _ask(instance, lambda client: client.workers.list(status=names, pool=pool, limit=limit, offset=offset))
    output = Output(as_json=as_json)
    if not (page["workers"] or as_json):
        output.note("no workers; start one with `eventq worker`" if page["total"] == 0 else "no more workers")
        return
    output.show(page, lambda: _table(page["workers"]))
    output.note(f"{len(page['workers'])} of {page['total']}", style="dim")


@app.command("show")
def show_worker(
    worker_id: WorkerIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show a worker: status, capacity, heartbeat, what it runs."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    worker = _ask(instance, lambda client: client.workers.get(worker_id))
    Output(as_json=as_json).show(worker, lambda: _view(worker))


@app.command("pause")
def pause_worker(
    worker_id: WorkerIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let a worker take no new tasks until it is resumed."""
    _tell(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.workers.pause(worker_id), as_json)


@app.command("resume")
def resume_worker(
    worker_id: WorkerIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let a paused worker take tasks again."""
    _tell(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.workers.resume(worker_id), as_json)


@app.command("drain")
def drain_worker(
    worker_id: WorkerIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let a worker finish what it runs, however long that takes, and end."""
    _tell(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.workers.drain(worker_id), as_json)


@app.command("capacity")
def set_worker_capacity(
    worker_id: WorkerIdArgument,
    capacity: Annotated[int, typer.Argument(min=1, max=WORKER_CAPACITY_MAX, help="Tasks that it may run at once.")],
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let a worker run more or fewer tasks at once; nothing that runs is stopped."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    _tell(instance, lambda client: client.workers.set_capacity(worker_id, capacity), as_json)


def _ask(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]]) -> Json:
    """The JSON of one answer of the API, asked in an event loop of its own."""

    async def run() -> Json:
        async with instance.client() as client:
            return (await question(client)).model_dump(mode="json")

    return asyncio.run(run())


def _tell(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]], as_json: bool) -> None:
    from rich.text import Text

    answer = _ask(instance, question)
    became = answer.get("status") or f"capacity {answer['capacity']}"
    Output(as_json=as_json).show(answer, lambda: Text(f"{answer['worker_id']}: {became}"))


def _table(workers: Iterable[Json]) -> RenderableType:
    from eventq.services.output import clean, moment, status_text
    from eventq.services.task_render import plain_table

    table = plain_table("worker", "status", "kind", "pool", "host", "load", "registered")
    for each in workers:
        table.add_row(
            each["worker_id"],
            status_text(each["status"]),
            each["kind"],
            each["pool"],
            clean(each["hostname"]),
            f"{each['current_load']}/{each['capacity']}",
            moment(each["registered_at"]),
        )
    return table


def _view(worker: Json) -> RenderableType:
    from rich.table import Table

    from eventq.services.output import clean, moment, status_text

    table = Table.grid(padding=(0, 2))
    table.add_row("worker", worker["worker_id"])
    table.add_row("status", status_text(worker["status"]))
    table.add_row("kind", worker["kind"])
    table.add_row("host", clean(worker["hostname"]))
    table.add_row("serves", f"{worker['pool']}: {', '.join(worker['queues']) or 'all queues'}")
    table.add_row("load", f"{worker['current_load']} of {worker['capacity']}")
    table.add_row("heartbeat", moment(worker["last_heartbeat"]))
    table.add_row("registered", moment(worker["registered_at"]))
    if worker["ended_at"] is not None:
        table.add_row("ended", f"{moment(worker['ended_at'])}: {clean(worker['end_reason'] or '')}")
    for number, task_id in enumerate(worker["running"]):
        table.add_row("runs" if number == 0 else "", task_id)
    return table
