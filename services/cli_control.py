"""`eventq task pause|resume|update|bulk`, `eventq dead-letters ...`, `eventq submit-batch`: steer tasks, and many at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from eventq.services.cli_exit import ExitCode
from eventq.services.cli_instance import Instance
from eventq.services.cli_options import (
    ApiOption,
    ConfigOption,
    DataDirOption,
    JsonOption,
    TaskIdArgument,
    parse_duration,
    parse_object,
    parse_text_pair,
    parse_time,
)
from eventq.services.cli_submit import FileMissing
from eventq.services.output import Output

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.text import Text

    from eventq.services.bulk_models import Action
    from eventq.services.client import Client

Json = dict[str, Any]

dead_letters = typer.Typer(
    name="dead-letters", help="Look at tasks that ended badly, and run them again.", no_args_is_help=True
)

QueueOption = Annotated[str | None, typer.Option(help="Only tasks of this queue.")]
NameOption = Annotated[str | None, typer.Option(help="Only tasks of this task name.")]
KeyOption = Annotated[str | None, typer.Option(help="Only tasks of this key.")]
TagOption = Annotated[list[str] | None, typer.Option("--tag", help="Only tasks with this tag; repeat it.")]
MetaOption = Annotated[
    list[str] | None, typer.Option("--meta", metavar="NAME=TEXT", help="Only tasks with this metadata; repeat it.")
]
ReasonFilterOption = Annotated[str | None, typer.Option("--ended-by", help="Only these, such as poison or queue_timeout.")]


class BulkAction(StrEnum):
    """What may be done with many tasks."""

    cancel = "cancel"
    retry = "retry"
    delete = "delete"
    pause = "pause"
    resume = "resume"


def pause_task(
    task_id: TaskIdArgument,
    reason: Annotated[str | None, typer.Option(help="Why; kept in the task's history.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Pause a task: one that waits leaves its line, one that runs stands still."""
    answer = _ask(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.pause(task_id, reason=reason))
    Output(as_json=as_json).show(answer, lambda: _sentence(answer))


def resume_task(
    task_id: TaskIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let a paused task go on."""
    answer = _ask(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.resume(task_id))
    Output(as_json=as_json).show(answer, lambda: _sentence(answer))


def delete_task(
    task_id: TaskIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give up the result, files and progress of a finished task; its history stays."""
    answer = _ask(Instance(api=api, config=config, data_dir=data_dir), lambda client: client.delete(task_id))
    Output(as_json=as_json).show(answer, lambda: _sentence(answer))


def erase_task(
    task_id: TaskIdArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: it cannot be undone.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; kept in what is left of the task's history.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Destroy all that a finished task carried, in the log, the files and the tables, for good."""
    if not yes:
        raise typer.BadParameter("erasing cannot be undone: say --yes to do it")
    instance = Instance(api=api, config=config, data_dir=data_dir)
    answer = _ask(instance, lambda client: client.erase(task_id, reason=reason))
    Output(as_json=as_json).show(answer, lambda: _sentence(answer))


def update_task(
    task_id: TaskIdArgument,
    kwargs: Annotated[str | None, typer.Option(metavar="JSON", help="New keyword arguments, all of them.")] = None,
    queue: Annotated[str | None, typer.Option(help="New queue.")] = None,
    priority: Annotated[int | None, typer.Option(help="New priority, 0 to 10.")] = None,
    max_retries: Annotated[int | None, typer.Option(help="How often a failed attempt is repeated.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="TIME", parser=parse_duration, help="For one attempt.")] = None,
    queue_timeout: Annotated[
        float | None, typer.Option(metavar="TIME", parser=parse_duration, help="To be started within.")
    ] = None,
    at: Annotated[
        datetime | None, typer.Option(metavar="TIME", parser=parse_time, help="Not before this time (RFC 3339).")
    ] = None,
    key: Annotated[str | None, typer.Option(help="New key.")] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="New tags, all of them; repeat it.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--meta", metavar="NAME=TEXT", help="New metadata, all of it; repeat it.")
    ] = None,
    version: Annotated[int | None, typer.Option("--if-version", help="Only if the task is at this version.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Change a task that has not been started; what is left out stays as it is."""
    changes: Json = {
        "task_kwargs": None if kwargs is None else parse_object(kwargs, "--kwargs"),
        "queue_name": queue,
        "priority": priority,
        "max_retries": max_retries,
        "timeout_seconds": timeout,
        "queue_timeout_seconds": queue_timeout,
        "scheduled_at": None if at is None else at.isoformat(),
        "key": key,
        "tags": tags,
        "metadata": None if metadata is None else dict(map(parse_text_pair, metadata)),
    }
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise typer.BadParameter("say what to change; see --help")
    instance = Instance(api=api, config=config, data_dir=data_dir)
    answer = _ask(instance, lambda client: client.update(task_id, given, version=version))
    Output(as_json=as_json).show(answer, lambda: _sentence(answer))


def bulk(
    action: Annotated[BulkAction, typer.Argument(help="What to do with the tasks.")],
    status: Annotated[list[str] | None, typer.Option(metavar="STATUS", help="Only these, such as FAILED; repeat it.")] = None,
    name: NameOption = None,
    queue: QueueOption = None,
    key: KeyOption = None,
    tags: TagOption = None,
    metadata: MetaOption = None,
    ended_by: ReasonFilterOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every task: needed where no filter is given.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why; kept in each task's history.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it. Without: only say what would be done.")] = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Cancel, retry, delete, pause or resume all tasks that a filter selects.

    Only a preview, unless --yes is given; and that is refused if the selection changes in between.
    """
    from rich.text import Text

    from eventq.services.output import clean, counted

    selector = _selector(name, queue, key, tags, metadata, ended_by)
    selector |= {"status": [each.upper().replace("-", "_") for each in status]} if status else {}
    wanted: Json = selector | ({"all": True} if everything else {})
    chosen: Action = action.value

    async def run() -> Json:
        async with Instance(api=api, config=config, data_dir=data_dir).client() as client:
            preview = await client.bulk(chosen, wanted, reason=reason)
            answer = preview if not yes else await client.bulk(chosen, wanted, reason=reason, expected=preview)
            return answer.model_dump(mode="json")

    answer = asyncio.run(run())

    def told() -> Text:
        if not answer["executed"]:
            do = "does" if answer["excluded"] == 1 else "do"
            left_out = f"; {answer['excluded']} more {do} not admit it" if answer["excluded"] else ""
            return Text(f"would {action.value} {counted(answer['count'], 'task')}{left_out}; add --yes to do it")
        lines = [f"{task['task_id']}: {task['error']}" for task in answer["tasks"] if task["error"]]
        return Text("\n".join(clean(line) for line in (f"{answer['done']} done, {answer['refused']} refused", *lines)))

    Output(as_json=as_json).show(answer, told)
    raise typer.Exit(ExitCode.CONFLICT if answer["refused"] else ExitCode.DONE)


@dead_letters.command("list")
def list_dead_letters(
    name: NameOption = None,
    queue: QueueOption = None,
    key: KeyOption = None,
    tags: TagOption = None,
    ended_by: ReasonFilterOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.")] = 20,
    offset: Annotated[int, typer.Option(help="Leave out so many first.")] = 0,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List tasks that failed or timed out for good and that nobody has run again, newest first."""
    from rich.text import Text

    from eventq.services.output import clean

    options: Json = {"task_name": name, "queue_name": queue, "key": key, "reason": ended_by}
    page = _ask(
        Instance(api=api, config=config, data_dir=data_dir),
        lambda client: client.dead_letters.list(tags=tags or (), limit=limit, offset=offset, **options),
    )

    def told() -> Text:
        return Text("\n".join(clean(_dead_letter(letter)) for letter in page["dead_letters"]))

    output = Output(as_json=as_json)
    if page["dead_letters"] or as_json:
        output.show(page, told)
    output.note(f"{len(page['dead_letters'])} of {page['total']}", style="dim")


@dead_letters.command("redrive")
def redrive_dead_letters(
    task_ids: Annotated[list[str] | None, typer.Argument(metavar="[TASK_ID]...", help="Which; or give a filter.")] = None,
    name: NameOption = None,
    queue: QueueOption = None,
    key: KeyOption = None,
    tags: TagOption = None,
    metadata: MetaOption = None,
    ended_by: ReasonFilterOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run dead letters again, each as one new task however often this is said."""
    from rich.text import Text

    from eventq.services.output import clean

    wanted = _selector(name, queue, key, tags, metadata, ended_by) | ({"all": True} if everything else {})
    if bool(task_ids) == bool(wanted):
        raise typer.BadParameter("name tasks, or give a filter or --all")
    answer = _ask(
        Instance(api=api, config=config, data_dir=data_dir),
        lambda client: client.dead_letters.redrive_many(task_ids or None, wanted=wanted),
    )

    def told() -> Text:
        lines = [f"{task['task_id']}: {task['error'] or 'runs again as ' + task['new_task_id']}" for task in answer["tasks"]]
        return Text("\n".join(clean(line) for line in (*lines, f"{answer['redriven']} redriven, {answer['refused']} refused")))

    Output(as_json=as_json).show(answer, told)
    raise typer.Exit(ExitCode.CONFLICT if answer["refused"] else ExitCode.DONE)


def submit_batch(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Tasks as JSON objects, one a line; - for stdin.")],
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Sent again under the same key, each task is accepted once.")
    ] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Submit many tasks; print the id of each, in order. What is refused is told on stderr, and makes the exit code 1."""
    import orjson

    from eventq.services.output import clean

    if source != "-" and not Path(source).is_file():
        raise FileMissing(f"{source}: no such file", field="FILE", found=source)
    output = Output(as_json=as_json)
    numbers: list[int] = []

    async def run(file: BinaryIO) -> Json:
        summary: Json = {}
        cut_short = False
        async with Instance(api=api, config=config, data_dir=data_dir).client() as client:
            async for line in client.submit_batch(_tasks_of(file, numbers), idempotency_key=idempotency_key):
                summary = line
                cut_short |= "error" in line and "index" not in line
                if as_json:
                    sys.stdout.write(orjson.dumps(line).decode() + "\n")
                elif "task_id" in line:
                    sys.stdout.write(line["task_id"] + "\n")
                elif "error" in line:
                    place = f"line {numbers[line['index']]}" if "index" in line else "the rest is not read"
                    output.note(clean(f"{place}: {line['error']['detail']}"), style="red")
        return {**summary, "cut_short": cut_short}

    if source == "-":
        summary = asyncio.run(run(sys.stdin.buffer))
    else:
        with Path(source).open("rb") as opened:
            summary = asyncio.run(run(opened))
    output.note(f"{summary.get('accepted', 0)} accepted, {summary.get('refused', 0)} refused", style="dim")
    raise typer.Exit(ExitCode.FAILED if summary.get("refused") or summary["cut_short"] else ExitCode.DONE)


async def _tasks_of(file: BinaryIO, numbers: list[int]) -> AsyncIterator[bytes]:
    """The lines of a file that are not blank, as it is read: not all at once. ``numbers``: takes the number of each."""
    number = 0
    while line := await asyncio.to_thread(file.readline):
        number += 1
        if text := line.strip():
            numbers.append(number)
            yield text


def _selector(
    name: str | None,
    queue: str | None,
    key: str | None,
    tags: list[str] | None,
    metadata: list[str] | None,
    ended_by: str | None,
) -> Json:
    options: Json = {
        "task_name": name,
        "queue_name": queue,
        "key": key,
        "tags": tags,
        "metadata": dict(map(parse_text_pair, metadata or [])),
        "reason": ended_by,
    }
    return {option: value for option, value in options.items() if value}


def _dead_letter(letter: Json) -> str:
    error = letter["error"] or {"type": letter["reason"], "message": ""}
    what = f"{letter['task_id']}  {letter['task_name']}  {letter['status']} ({letter['reason']})"
    text = f"{what}  {error['type']}: {error['message']}"
    lost = ", ".join(each["worker_id"] for each in letter["evidence"])
    return f"{text}  lost workers: {lost}" if lost else text


def _sentence(answer: Json) -> Text:
    from rich.text import Text

    from eventq.services.output import clean

    return Text(clean(f"{answer['status']}: {answer['message']}"))


def _ask(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]]) -> Json:
    """The JSON of one answer of the API, asked in an event loop of its own."""

    async def run() -> Json:
        async with instance.client() as client:
            return (await question(client)).model_dump(mode="json")

    return asyncio.run(run())
