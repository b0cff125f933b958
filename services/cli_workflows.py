"""`eventq workflows ...`: graphs of tasks that depend on each other."""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventq.services.cli_instance import Instance
from eventq.services.cli_options import ApiOption, ConfigOption, DataDirOption, JsonOption, parse_object
from eventq.services.output import Output

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from eventq.services.client import Client

Json = dict[str, Any]

app = typer.Typer(name="workflows", help="Run graphs of tasks that depend on each other.", no_args_is_help=True)

WorkflowIdArgument = Annotated[str, typer.Argument(metavar="WORKFLOW_ID", help="The workflow's id.")]


@app.command("submit")
def submit_workflow(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON: {name, nodes: [...]}, as the API takes it; - for stdin.")],
    key: Annotated[str | None, typer.Option("--idempotency-key", help="One key makes one workflow.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 1 unless it completed.")] = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Submit a workflow from a file; print its id, or with --wait what became of it."""
    body = _read(file)
    name, nodes = body.pop("name", ""), body.pop("nodes", [])
    output = Output(as_json=as_json)

    async def run(client: Client) -> BaseModel:
        accepted = await client.workflows.submit(name, nodes, idempotency_key=key, **body)
        if not wait:
            return accepted
        output.note(f"submitted {accepted.workflow_id}", style="dim")
        return await client.workflows.wait(accepted.workflow_id)

    workflow = _ask(Instance(api=api, config=config, data_dir=data_dir), run)
    if not wait:
        _print_id(output, workflow)
        return
    output.show(workflow, lambda: _view(workflow))
    if workflow["status"] != "COMPLETED":
        raise typer.Exit(1)


@app.command("list")
def list_workflows(
    status: Annotated[list[str] | None, typer.Option(help="Only of this status; may be repeated.")] = None,
    name: Annotated[str | None, typer.Option(help="Only of this name.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.")] = 50,
    offset: Annotated[int, typer.Option(help="Skip so many.")] = 0,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List workflows, newest first."""
    page = _ask(
        Instance(api=api, config=config, data_dir=data_dir),
        lambda client: client.workflows.list(status=status or (), name=name, limit=limit, offset=offset),
    )
    Output(as_json=as_json).show(page, lambda: _table(page["workflows"]))


@app.command("show")
def show_workflow(
    workflow_id: WorkflowIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show a workflow with its nodes."""
    _show(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.workflows.get(workflow_id), as_json)


@app.command("cancel")
def cancel_workflow(
    workflow_id: WorkflowIdArgument,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the workflow's history.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Cancel a workflow: what runs is cancelled, nothing new starts."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    _show(instance, lambda client: client.workflows.cancel(workflow_id, reason=reason), as_json)


@app.command("retry")
def retry_workflow(
    workflow_id: WorkflowIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run again what did not complete."""
    _show(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.workflows.retry(workflow_id), as_json)


@app.command("approve")
def approve_node(
    workflow_id: WorkflowIdArgument,
    node: Annotated[str, typer.Argument(help="The node that waits.")],
    reject: Annotated[bool, typer.Option("--reject", help="Reject it instead: it fails.")] = False,
    by: Annotated[str | None, typer.Option(help="Who says so. Default: the user's name.")] = None,
    comment: Annotated[str | None, typer.Option(help="Why; kept in the workflow's history.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Approve (or reject) a node that waits for it."""
    who = by or getpass.getuser()

    async def run(client: Client) -> BaseModel:
        answer = client.workflows.reject if reject else client.workflows.approve
        return await answer(workflow_id, node, by=who, comment=comment)

    _show(Instance(api=api, config=config, data_dir=data_dir), run, as_json)


@app.command("signal")
def signal_workflow(
    workflow_id: WorkflowIdArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal's name.")],
    payload: Annotated[str | None, typer.Option(metavar="JSON", help="What comes with it, as a JSON object.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Send a signal to the nodes that wait for it, now or later."""
    value = None if payload is None else parse_object(payload, "--payload")
    instance = Instance(api=api, config=config, data_dir=data_dir)
    _show(instance, lambda client: client.workflows.signal(workflow_id, name, value), as_json)


def _read(file: str) -> Json:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot be read: {error}", param_hint="FILE") from None
    return parse_object(text, "FILE")


def _ask(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]]) -> Json:
    """The JSON of one answer of the API, asked in an event loop of its own."""

    async def run() -> Json:
        async with instance.client() as client:
            return (await question(client)).model_dump(mode="json")

    return asyncio.run(run())


def _show(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]], as_json: bool) -> None:
    workflow = _ask(instance, question)
    Output(as_json=as_json).show(workflow, lambda: _view(workflow))


def _print_id(output: Output, workflow: Json) -> None:
    """The id alone on stdout, for a script to keep; the rest beside it."""
    from rich.text import Text

    from eventq.services.output import counted

    workflow_id = workflow["workflow_id"]
    output.show(workflow, lambda: Text(workflow_id))
    nodes = counted(workflow["nodes_total"], "node")
    output.note(f"{workflow['status']}, {nodes}; look with `eventq workflows show {workflow_id}`", style="dim")


def _table(workflows: Iterable[Json]) -> RenderableType:
    from eventq.services.output import clean, moment, status_text
    from eventq.services.task_render import plain_table

    table = plain_table("workflow", "name", "status", "run", "nodes", "created", "ended")
    for each in workflows:
        table.add_row(
            each["workflow_id"],
            clean(each["name"]),
            status_text(each["status"]),
            str(each["run"]),
            _progress(each),
            moment(each["created_at"]),
            moment(each["ended_at"]),
        )
    return table


def _progress(workflow: Json) -> str:
    return f"{workflow['counts'].get('COMPLETED', 0)} of {workflow['nodes_total']}"


def _view(workflow: Json) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    from eventq.services.output import clean, moment, status_text

    table = Table.grid(padding=(0, 2))
    table.add_row("workflow", workflow["workflow_id"])
    table.add_row("name", clean(workflow["name"]))
    table.add_row("status", status_text(workflow["status"]))
    table.add_row("completed", f"{_progress(workflow)} nodes")
    if workflow["because"] is not None:
        table.add_row("because of", workflow["because"])
    if workflow["approvals"]:
        table.add_row("waits for", f"approval of {', '.join(workflow['approvals'])}")
    table.add_row("created", moment(workflow["created_at"]))
    table.add_row("ended", moment(workflow["ended_at"]))
    return Group(table, "", _nodes(workflow["nodes"])) if "nodes" in workflow else table


def _nodes(nodes: Iterable[Json]) -> RenderableType:
    from eventq.services.output import clean, one_line, status_text
    from eventq.services.task_render import plain_table

    table = plain_table("node", "runs", "after", "status", "result or reason", "task")
    for node in nodes:
        said = node["reason"] or ("" if node["result"] is None else str(node["result"]))
        table.add_row(
            node["name"],
            node["task_name"] or node["kind"],
            one_line(", ".join(node["depends_on"]), 30),
            status_text(node["status"]),
            clean(one_line(said, 50)),
            node["task_id"] or "",
        )
    return table
