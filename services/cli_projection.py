"""`eventq projection ...`: make the tables anew from the log, or prove that they are what the log says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventq.services.cli_exit import ExitCode
from eventq.services.cli_instance import Instance, NoInstance
from eventq.services.cli_options import ApiOption, ConfigOption, DataDirOption, JsonOption, NatsOption
from eventq.services.output import Output, clean, span

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from eventq.services.client import Client

Json = dict[str, Any]

app = typer.Typer(name="projection", help="Rebuild or verify the tables that answer reads.", no_args_is_help=True)

OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Work on the file itself, without asking for an API; none may be running on it.")
]


@app.command("rebuild")
def rebuild_projection(
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    nats_url: NatsOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Fold the whole log anew and use the result. Reads go on meanwhile."""
    instance = Instance(api=api, nats_url=nats_url, config=config, data_dir=data_dir)
    output = Output(as_json=as_json)
    done = asyncio.run(_do(instance, output, offline, lambda client: client.rebuild_projection(), _rebuild_here))
    output.show(done, lambda: _rebuilt(done))


@app.command("verify")
def verify_projection(
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    nats_url: NatsOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Fold the log anew, aside, and compare every table; the first difference is named, and exits with 1."""
    instance = Instance(api=api, nats_url=nats_url, config=config, data_dir=data_dir)
    output = Output(as_json=as_json)
    found = asyncio.run(_do(instance, output, offline, lambda client: client.verify_projection(), _verify_here))
    output.show(found, lambda: _verified(found))
    if not found["equal"]:
        output.note("make it anew with `eventq projection rebuild`, and please report this", style="yellow")
        raise typer.Exit(ExitCode.FAILED)


async def _do(
    instance: Instance,
    output: Output,
    offline: bool,
    through_api: Callable[[Client], Awaitable[BaseModel]],
    on_file: Callable[[Instance], Awaitable[Json]],
) -> Json:
    """Through the API where one answers, for it owns the file; else on the file."""
    if not offline:
        try:
            async with instance.client() as client:
                return (await through_api(client)).model_dump(mode="json")
        except NoInstance as error:
            if instance.api is not None:
                raise
            output.note(f"{error.detail}: working on the file itself", style="dim")
    return await on_file(instance)


async def _rebuild_here(instance: Instance) -> Json:
    from eventq.projections.rebuild import rebuild_offline

    async with instance.broker("projection rebuild") as broker:
        done = await rebuild_offline(instance.settings.projection_dir, broker)
    return {"position": done.position, "messages": done.messages, "seconds": done.seconds}


async def _verify_here(instance: Instance) -> Json:
    from eventq.projections.rebuild import verify
    from eventq.projections.store import Store

    async with instance.broker("projection verify") as broker:
        store = Store.open(instance.settings.projection_dir)
        try:
            found = await verify(store, broker)
        finally:
            store.close()
    return {
        "equal": found.equal,
        "position": found.position,
        "seconds": found.seconds,
        "tables": {name: {"rows": rows, "sha256": digest} for name, (rows, digest) in found.tables.items()},
        "differences": [{"description": str(difference)} for difference in found.differences],
    }


def _rebuilt(done: Json) -> RenderableType:
    from rich.text import Text

    rate = done["messages"] / done["seconds"] if done["seconds"] else 0
    return Text(
        f"rebuilt up to position {done['position']}: {done['messages']:,} messages in {span(done['seconds'])} ({rate:,.0f}/s)"
    )


def _verified(found: Json) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from eventq.services.task_render import plain_table

    table = plain_table("table", "rows", "sha256")
    for name, facts in found["tables"].items():
        table.add_row(name, f"{facts['rows']:,}", str(facts["sha256"])[:16])
    if found["equal"]:
        verdict = f"equal to the fold of the log up to position {found['position']}, in {span(found['seconds'])}"
    else:
        verdict = "\n".join(["not the fold of the log:", *(clean(each["description"]) for each in found["differences"])])
    return Group(table, Text(verdict, "green" if found["equal"] else "bold red"))
