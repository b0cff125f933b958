"""`eventq queues ...`: how deep queues are and who holds their slots; limit, pause and resume them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventq.events.errors import InvalidInput
from eventq.services.cli_instance import Instance
from eventq.services.cli_options import ApiOption, ConfigOption, DataDirOption, JsonOption, parse_duration
from eventq.services.output import Output, clean, moment, one_line, span

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from eventq.services.client import Client

Json = dict[str, Any]

app = typer.Typer(name="queues", help="Look at queues; limit, pause and resume them.", no_args_is_help=True)

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]
RATE_HELP = "LIMIT/TIME[:BURST], such as 10/1s or 100/1m:20: so many starts in so long, and so many of them at once."

_UNLIMITED = "none"


@app.command("list")
def list_queues(
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.")] = 50,
    offset: Annotated[int, typer.Option(help="Leave out so many first.")] = 0,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List queues: depth, oldest age, what moved in the last minute, limits."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    page = _ask(instance, lambda client: client.queues.list(limit=limit, offset=offset))
    output = Output(as_json=as_json)
    output.show(page, lambda: _table(page["queues"]))
    if not page["total"]:
        output.note("no queues yet: one is there as soon as a task names it")
    elif len(page["queues"]) < page["total"]:
        output.note(f"{len(page['queues'])} of {page['total']}", style="dim")


@app.command("show")
def show_queue(
    queue: QueueArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show a queue: its pools, its limits, and who holds its slots."""
    _show(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.queues.get(queue), as_json)


@app.command("set")
def set_limits(
    queue: QueueArgument,
    max_running: Annotated[str | None, typer.Option(metavar="N", help="Tasks in workers' hands at once, or none.")] = None,
    max_running_per_key: Annotated[str | None, typer.Option(metavar="N", help="The same for every key, or none.")] = None,
    rate: Annotated[str | None, typer.Option(metavar="RATE", help=f"{RATE_HELP} Or none.")] = None,
    rate_per_key: Annotated[str | None, typer.Option(metavar="RATE", help="The same for every key, or none.")] = None,
    fair: Annotated[bool | None, typer.Option(help="Keys take turns, whatever each has waiting.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Drop all limits that are not given here.")] = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Limit a queue. What is not given stays as it is."""
    changes: Json = {
        "max_running": _count(max_running, "--max-running"),
        "max_running_per_key": _count(max_running_per_key, "--max-running-per-key"),
        "rate": _rate(rate, "--rate"),
        "rate_per_key": _rate(rate_per_key, "--rate-per-key"),
        "fair": fair,
    }
    given = {name: None if value == _UNLIMITED else value for name, value in changes.items() if value is not None}
    if not (given or clear):
        raise typer.BadParameter("say which limit to set, or --clear")

    async def run(client: Client) -> BaseModel:
        present = {} if clear else await _present_limits(client, queue)
        return await client.queues.configure(queue, present | given)

    _show(Instance(api=api, config=config, data_dir=data_dir), run, as_json)


@app.command("pause")
def pause_queue(
    queue: QueueArgument,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the queue's history.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Start no task of a queue until it is resumed. What runs goes on."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    _show(instance, lambda client: client.queues.pause(queue, reason=reason), as_json)


@app.command("resume")
def resume_queue(
    queue: QueueArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Start tasks of a paused queue again."""
    _show(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.queues.resume(queue), as_json)


async def _present_limits(client: Client, queue: str) -> Json:
    from eventq.events.errors import QueueNotFound

    try:
        return (await client.queues.get(queue)).limits.model_dump(mode="json")
    except QueueNotFound:
        return {}


def _count(text: str | None, option: str) -> int | str | None:
    if text is None or text == _UNLIMITED:
        return text
    if not text.isdecimal():
        raise InvalidInput(option, f"should be a number or {_UNLIMITED}", found=text[:80])
    return int(text)


def _rate(text: str | None, option: str) -> Json | str | None:
    """``LIMIT/TIME[:BURST]``."""
    if text is None or text == _UNLIMITED:
        return text
    spaced, _, burst = text.partition(":")
    limit, _, period = spaced.partition("/")
    if not limit.isdecimal() or (burst and not burst.isdecimal()):
        raise InvalidInput(option, "should be like 10/1s or 100/1m:20", found=text[:80])
    return {"limit": int(limit), "per_seconds": parse_duration(period or "1s"), "burst": int(burst or 1)}


def _ask(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]]) -> Json:
    async def run() -> Json:
        async with instance.client() as client:
            return (await question(client)).model_dump(mode="json")

    return asyncio.run(run())


def _show(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]], as_json: bool) -> None:
    answer = _ask(instance, question)
    Output(as_json=as_json).show(answer, lambda: _view(answer))


def _table(queues: Iterable[Json]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("QUEUE", "PENDING", "HELD", "RUNNING", "LATER", "OLDEST", "STARTED/MIN", "LIMITS", "STATE"):
        table.add_column(column, justify="left" if column in {"QUEUE", "LIMITS", "STATE"} else "right")
    for queue in queues:
        depth = queue["depth"]
        later = sum(depth.get(status, 0) for status in ("SCHEDULED", "RETRYING", "PAUSED"))
        table.add_row(
            clean(queue["queue_name"]),
            *(str(number) for number in (depth.get("PENDING", 0), queue["held"], depth.get("RUNNING", 0), later)),
            span(queue["oldest_age_seconds"]),
            str(queue["rates"]["last_minute"]["started"]),
            _limits(queue["limits"]),
            "paused" if queue["paused"] else "open",
        )
    return table


def _view(queue: Json) -> RenderableType:
    from rich.text import Text

    lines = [f"queue     {queue['queue_name']}"]
    if queue["paused"]:
        reason = f": {one_line(queue['paused_reason'])}" if queue["paused_reason"] else ""
        lines.append(f"paused    by {queue['paused_by']} at {moment(queue['paused_at'])}{reason}")
    lines.append(f"limits    {_limits(queue['limits']) or 'none'}")
    for pool in queue["pools"]:
        depth = ", ".join(f"{number} {status}" for status, number in sorted(pool["depth"].items()))
        lines.append(f"pool      {pool['pool']}: {depth or 'empty'}; held {pool['held']}")
    if queue["oldest_pending_at"]:
        lines.append(f"oldest    {span(queue['oldest_age_seconds'])}, since {moment(queue['oldest_pending_at'])}")
    for name, moved in queue["rates"].items():
        told = ", ".join(f"{number} {what}" for what, number in moved.items())
        lines.append(f"{name.replace('_', ' '):<15} {told}")
    slots = queue["slots"]
    lines.append(f"slots     {slots['used']} taken" + (f" of {slots['maximum']}" if slots["maximum"] is not None else ""))
    for holder in slots["holders"]:
        where = holder["worker_id"] or "waits for a worker"
        lines.append(
            f"          {holder['task_id']} {holder['status']} {where}" + (f" key {holder['key']}" if holder["key"] else "")
        )
    return Text("\n".join(clean(line) for line in lines))


def _limits(limits: Json) -> str:
    found: list[str] = []
    for name, value in limits.items():
        if isinstance(value, dict):
            value = f"{value['limit']}/{value['per_seconds']:g}s:{value['burst']}"
        if value not in (None, False):
            found.append(name if value is True else f"{name}={value}")
    return " ".join(found)
