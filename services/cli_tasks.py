"""`eventq task ...`: look at tasks, and cancel or repeat them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventq.events.errors import Conflict, InvalidInput
from eventq.services.cli_exit import ExitCode
from eventq.services.cli_instance import Instance
from eventq.services.cli_options import (
    ApiOption,
    ConfigOption,
    DataDirOption,
    JsonOption,
    TaskIdArgument,
    WaitOption,
    WaitTimeoutOption,
    parse_moment,
)
from eventq.services.cli_submit import answer_new_task
from eventq.services.output import Output

if TYPE_CHECKING:
    from pydantic import BaseModel

    from eventq.services.client import Client

app = typer.Typer(name="task", help="Look at tasks, cancel and repeat them.", no_args_is_help=True)


class SortBy(StrEnum):
    """What a list of tasks may be sorted by."""

    created_at = "created_at"
    started_at = "started_at"
    completed_at = "completed_at"
    updated_at = "updated_at"
    priority = "priority"
    status = "status"
    task_name = "task_name"


@app.command("show")
def show_task(
    task_id: TaskIdArgument,
    as_of: Annotated[
        str | None,
        typer.Option(metavar="MOMENT", parser=parse_moment, help="As it was at a position of the log, or at a time."),
    ] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show a task: status, attempts, progress, result or error."""
    from eventq.services.task_render import task_view

    moment = None if as_of is None else int(as_of) if as_of.isdecimal() else datetime.fromisoformat(as_of)
    task = _ask(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.get(task_id, as_of=moment))
    Output(as_json=as_json).show(task, lambda: task_view(task))


@app.command("list")
def list_tasks(
    status: Annotated[list[str] | None, typer.Option(metavar="STATUS", help="Only these, such as RUNNING; repeat it.")] = None,
    name: Annotated[str | None, typer.Option(help="Only tasks of this task name.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only tasks of this queue.")] = None,
    priority: Annotated[int | None, typer.Option(help="Only tasks of this priority.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.")] = 20,
    offset: Annotated[int, typer.Option(help="Leave out so many first.")] = 0,
    sort: Annotated[SortBy, typer.Option(help="What to sort by.")] = SortBy.created_at,
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest or oldest first.")] = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List tasks, newest first."""
    from eventq.services.task_render import task_table

    options: dict[str, Any] = {
        "status": _statuses(status or []),
        "task_name": name,
        "queue_name": queue,
        "priority": priority,
        "limit": limit,
        "offset": offset,
        "sort_by": sort.value,
        "sort_order": "asc" if ascending else "desc",
    }
    page = _ask(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.list(**options))
    output = Output(as_json=as_json)
    if not (page["tasks"] or as_json):
        output.note("no tasks; submit one with `eventq submit echo -k value=1`" if page["total"] == 0 else "no more tasks")
        return
    output.show(page, lambda: task_table(page["tasks"]))
    output.note(f"{len(page['tasks'])} of {page['total']}", style="dim")


@app.command("result")
def fetch_result(
    task_id: TaskIdArgument,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it here. Default: to stdout.")
    ] = None,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Fetch a completed task's result as JSON, also one that is too large to be shown."""
    import orjson

    async def run() -> None:
        async with Instance(api=api, config=config, data_dir=data_dir).client() as client:
            task = await client.get(task_id)
            if task.status != "COMPLETED":
                hint = f"see `eventq task show {task_id}`"
                raise Conflict(f"the task has no result: it is {task.status}", task_id=task_id, hint=hint)
            if task.cleaned or task.erased:
                raise Conflict(f"the task's result was {'erased' if task.erased else 'given up'}", task_id=task_id)
            if task.output is None:
                _put(target, orjson.dumps(task.result) + b"\n")
            elif target is not None:
                await client.download(task.output, target)
            else:
                async for chunk in client.stream(task.output.key):
                    sys.stdout.buffer.write(chunk)

    try:
        asyncio.run(run())
    except OSError as error:
        raise InvalidInput("--output", f"cannot be written: {error.strerror or error}", found=str(target)) from None


def _put(target: Path | None, data: bytes) -> None:
    if target is None:
        sys.stdout.buffer.write(data)
    else:
        target.write_bytes(data)


@app.command("timeline")
def show_timeline(
    task_id: TaskIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Tell a task's whole story: every event, and what its code logged."""
    from eventq.services.task_render import timeline_view

    timeline = _ask(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.timeline(task_id))
    Output(as_json=as_json).show(timeline, lambda: timeline_view(timeline))


@app.command("explain")
def explain_task(
    task_id: TaskIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Say why a task waits, and when it will probably start."""
    from rich.text import Text

    from eventq.services.output import clean, moment

    answer = _ask(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.explain(task_id))

    def sentences() -> Text:
        start = answer["predicted_start"]
        lines = [f"{answer['status']}", *(f"{reason['code']}: {reason['message']}" for reason in answer["reasons"])]
        if start is not None:
            lines.append(f"will probably start between {moment(start['earliest'])} and {moment(start['latest'])}")
        elif answer["waiting"]:
            lines.append(f"no start can be predicted: {answer['no_prediction']}")
        return Text("\n".join(clean(line) for line in lines))

    Output(as_json=as_json).show(answer, sentences)


@app.command("cancel")
def cancel_task(
    task_id: TaskIdArgument,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the task's history.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Cancel a task: one that waits never starts, one that runs is stopped."""
    from rich.text import Text

    from eventq.services.output import clean

    instance = Instance(api=api, config=config, data_dir=data_dir)
    answer = _ask(instance, lambda client: client.cancel(task_id, reason=reason))
    Output(as_json=as_json).show(answer, lambda: Text(clean(f"{answer['status']}: {answer['message']}")))


@app.command("retry")
def retry_task(
    task_id: TaskIdArgument,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run a failed, timed-out or cancelled task again, as a new task; print the new id."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    _again(instance, lambda client: client.retry(task_id), Output(as_json=as_json), wait, wait_timeout)


@app.command("replay")
def replay_task(
    task_id: TaskIdArgument,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run any finished task again with the same arguments, as a new task; print the new id."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    _again(instance, lambda client: client.replay(task_id), Output(as_json=as_json), wait, wait_timeout)


def _statuses(names: list[str]) -> list[str]:
    from eventq.events.task import Status  # brings pydantic, which --help must not wait for

    known = [str(status) for status in Status if status is not Status.ABSENT]
    found = [name.upper().replace("-", "_") for name in names]
    if unknown := [name for name in found if name not in known]:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(known)}", param_hint="--status")
    return found


def _ask(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]]) -> dict[str, Any]:
    """The JSON of one answer of the API, asked in an event loop of its own."""

    async def run() -> dict[str, Any]:
        async with instance.client() as client:
            return (await question(client)).model_dump(mode="json")

    return asyncio.run(run())


def _again(
    instance: Instance,
    repeat: Callable[[Client], Awaitable[BaseModel]],
    output: Output,
    wait: bool,
    wait_timeout_s: float | None,
) -> None:
    async def run() -> ExitCode:
        async with instance.client() as client:
            accepted = (await repeat(client)).model_dump(mode="json")
            return await answer_new_task(client, accepted, output, wait or wait_timeout_s is not None, wait_timeout_s)

    raise typer.Exit(asyncio.run(run()))
