"""`eventq submit`: from text on a command line to a task, and on request to its result."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventq.events.errors import EventqError, InvalidInput, NotFound
from eventq.services.cli_exit import ExitCode, exit_code_of_task
from eventq.services.cli_instance import Instance
from eventq.services.cli_options import (
    ApiOption,
    ConfigOption,
    DataDirOption,
    JsonOption,
    WaitOption,
    WaitTimeoutOption,
    parse_array,
    parse_duration,
    parse_object,
    parse_pair,
    parse_text_pair,
    parse_time,
)
from eventq.services.output import Output

if TYPE_CHECKING:
    from eventq.services.client import Client


class FileMissing(NotFound):
    """A file that was to be uploaded does not exist."""

    code = "FILE_MISSING"


FILE_ARGUMENT = "blob"
"""The argument by which the built-in tasks take an uploaded file."""

TELL_EXTRA = {"allow_extra_args": True}
"""What stands after the name of the task comes to the command, which can say better what to do than the parser."""


def submit(
    context: typer.Context,
    task_name: Annotated[str, typer.Argument(metavar="TASK_NAME", help="The task, such as echo or csv_processing.")],
    kwargs: Annotated[str | None, typer.Option(metavar="JSON", help="Keyword arguments, as a JSON object.")] = None,
    args: Annotated[str | None, typer.Option(metavar="JSON", help="Positional arguments, as a JSON array.")] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("-k", metavar="NAME=VALUE", help="One keyword argument; JSON where it reads as JSON, else text."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help=f"Upload it; the task gets it as its argument `{FILE_ARGUMENT}`."),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Queue of the task's pool.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 10; larger is more urgent.")] = None,
    max_retries: Annotated[int | None, typer.Option(help="How often a failed attempt is repeated.")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="TIME", parser=parse_duration, help="For one attempt: seconds, or like 5m.")
    ] = None,
    at: Annotated[
        datetime | None, typer.Option(metavar="TIME", parser=parse_time, help="Not before this time (RFC 3339).")
    ] = None,
    delay: Annotated[
        float | None, typer.Option(metavar="TIME", parser=parse_duration, help="Not before so long from now: 30s, 5m, 1h.")
    ] = None,
    queue_timeout: Annotated[
        float | None, typer.Option(metavar="TIME", parser=parse_duration, help="To be started within, else it times out.")
    ] = None,
    heartbeat_timeout: Annotated[
        float | None, typer.Option(metavar="TIME", parser=parse_duration, help="The longest that an attempt may say nothing.")
    ] = None,
    result_ttl: Annotated[
        float | None, typer.Option(metavar="TIME", parser=parse_duration, help="For how long the result is kept.")
    ] = None,
    retry: Annotated[
        str | None, typer.Option(metavar="JSON", help="When to try again, as a JSON object such as '{\"initial_s\": 5}'.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Whose it is: limits for each key and fair sharing go by it.")] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="To find it by; repeat it.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--meta", metavar="NAME=TEXT", help="To be kept with it; repeat it.")
    ] = None,
    unique: Annotated[
        bool, typer.Option("--unique", help="Where a task with these arguments is unfinished, answer that one.")
    ] = False,
    unique_key: Annotated[str | None, typer.Option(help="As --unique, by this key instead of the arguments.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Sent again under the same key, it is accepted once.")
    ] = None,
    wait: WaitOption = False,
    wait_timeout: WaitTimeoutOption = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Submit a task; print its id, or with --wait its result.

    What is left out is as the task declares it.
    """
    if context.args:
        raise typer.BadParameter(_how_to_pass(context.args))
    if at is not None and delay is not None:
        raise typer.BadParameter("give --at or --delay, not both")
    options: dict[str, Any] = {
        "args": parse_array(args, "--args"),
        "priority": priority,
        "queue_name": queue,
        "max_retries": max_retries,
        "timeout_seconds": timeout,
        "scheduled_at": at if delay is None else datetime.now(UTC) + timedelta(seconds=delay),
        "queue_timeout_seconds": queue_timeout,
        "heartbeat_timeout_seconds": heartbeat_timeout,
        "result_ttl_seconds": result_ttl,
        "retry": parse_object(retry, "--retry") or None,
        "key": key,
        "tags": tags or None,
        "metadata": dict(map(parse_text_pair, metadata or [])) or None,
        "unique": unique or None,
        "unique_key": unique_key,
        "idempotency_key": idempotency_key,
    }
    given = _arguments(kwargs, pairs or [])
    if file is not None and not file.is_file():
        raise FileMissing(f"--file {file}: no such file", field="--file", found=str(file))
    output = Output(as_json=as_json)
    waits = wait or wait_timeout is not None

    async def run() -> ExitCode:
        async with Instance(api=api, config=config, data_dir=data_dir).client() as client:
            if file is not None:
                given.update(await _upload(client, file, given))
            accepted = (await client.submit(task_name, given, **options)).model_dump(mode="json")
            return await answer_new_task(client, accepted, output, waits, wait_timeout)

    raise typer.Exit(asyncio.run(run()))


async def answer_new_task(
    client: Client, accepted: dict[str, Any], output: Output, wait: bool, wait_timeout_s: float | None
) -> ExitCode:
    """Print the id of a task that was just accepted, or wait and print what became of it."""
    from rich.text import Text

    from eventq.services.task_watch import watch_with_bar

    task_id = accepted["task_id"]
    if not wait:
        output.show(accepted, lambda: Text(task_id))
        output.note(f"{accepted['status']}; look with `eventq task show {task_id}`", style="dim")
        return ExitCode.DONE
    output.note(f"submitted {task_id}", style="dim")
    try:
        task = dict(await watch_with_bar(client, task_id, output, wait_timeout_s))
    except asyncio.CancelledError:
        output.note(f"{task_id} goes on; stop it with `eventq task cancel {task_id}`")
        raise
    except EventqError as error:
        error.fields["task_id"] = task_id  # it was accepted: whoever asked must be able to find it
        raise
    return print_outcome(task, output)


def print_outcome(task: dict[str, Any], output: Output) -> ExitCode:
    """Print a finished task's result, or its error; the code says which. An unfinished one: the wait was too short."""
    from rich.text import Text

    from eventq.services.client import FINISHED
    from eventq.services.task_render import error_text, result_text

    status = task["status"]
    if output.as_json:
        output.show(task, Text)
    elif status == "COMPLETED":
        output.stdout.print(Text(result_text(task)), soft_wrap=True)
    elif status in FINISHED:
        reason = f" ({task['reason']})" if task["reason"] else ""
        output.note(f"{status}{reason}", style="bold red")
        if task["error"] is not None:
            output.note(error_text(task["error"]), style="red")
    else:
        output.note(f"still {status}; look with `eventq task show {task['task_id']}`")
    return exit_code_of_task(status) if status in FINISHED else ExitCode.WAIT_TIMED_OUT


def _how_to_pass(extra: list[str]) -> str:
    """What to write instead of arguments that stand bare after the task's name."""
    if all(text.partition("=")[1] for text in extra):
        return f"arguments of the task are given with -k: {' '.join(f'-k {quote(text)}' for text in extra)}"
    values = [parse_pair(f"value={text}")[1] for text in extra]
    return f"arguments of the task are given as -k NAME=VALUE, or in their order: --args {quote(json.dumps(values))}"


def _arguments(kwargs: str | None, pairs: list[str]) -> dict[str, Any]:
    given = parse_object(kwargs, "--kwargs")
    for name, value in map(parse_pair, pairs):
        if name in given:
            raise InvalidInput("-k", "is given twice", found=name)
        given[name] = value
    return given


async def _upload(client: Client, file: Path, given: dict[str, Any]) -> dict[str, Any]:
    import mimetypes

    if FILE_ARGUMENT in given:
        raise InvalidInput("--file", f"becomes the argument `{FILE_ARGUMENT}`, which is given already")
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    blob = await client.upload(file, media_type=media_type)
    return {FILE_ARGUMENT: blob.key}
