"""`eventq schedules ...`: make tasks at the times that a cron expression means."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventq.services.cli_instance import Instance
from eventq.services.cli_options import (
    ApiOption,
    ConfigOption,
    DataDirOption,
    JsonOption,
    parse_array,
    parse_duration,
    parse_object,
    parse_time,
)
from eventq.services.output import Output

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from eventq.services.client import Client

Json = dict[str, Any]

app = typer.Typer(name="schedules", help="Make tasks at the times of a cron expression.", no_args_is_help=True)


class CatchUpChoice(StrEnum):
    """What becomes of due times that were missed."""

    skip = "skip"
    latest = "latest"
    all = "all"


class OverlapChoice(StrEnum):
    """Whether a task is made while the one before is unfinished."""

    allow = "allow"
    skip = "skip"


ScheduleIdArgument = Annotated[str, typer.Argument(metavar="SCHEDULE_ID", help="The schedule's id.")]
ZoneOption = Annotated[str | None, typer.Option("--time-zone", metavar="ZONE", help="IANA name. Default: UTC.")]
KwargsOption = Annotated[str | None, typer.Option(metavar="JSON", help="Keyword arguments, as a JSON object.")]
ArgsOption = Annotated[str | None, typer.Option(metavar="JSON", help="Positional arguments, as a JSON array.")]
QueueOption = Annotated[str | None, typer.Option(help="Queue of the task's pool.")]
PriorityOption = Annotated[int | None, typer.Option(help="0 to 10; larger is more urgent.")]
RetriesOption = Annotated[int | None, typer.Option(help="How often a failed attempt is repeated.")]
TimeoutOption = Annotated[
    float | None, typer.Option(metavar="TIME", parser=parse_duration, help="For one attempt: seconds, or like 5m.")
]
CatchUpOption = Annotated[
    CatchUpChoice | None, typer.Option(help="Of missed times: none, one task for the newest, or one for each. Default: latest.")
]
OverlapOption = Annotated[
    OverlapChoice | None, typer.Option(help="skip: no task while the one before is unfinished. Default: allow.")
]
StartsOption = Annotated[datetime | None, typer.Option(metavar="TIME", parser=parse_time, help="Not before (RFC 3339).")]
EndsOption = Annotated[datetime | None, typer.Option(metavar="TIME", parser=parse_time, help="Not after (RFC 3339).")]
VersionOption = Annotated[int | None, typer.Option("--if-version", help="Only if the schedule is at this version.")]


@app.command("create")
def create_schedule(
    cron: Annotated[str, typer.Argument(metavar="CRON", help="Five fields, quoted: '30 2 * * MON-FRI'.")],
    task_name: Annotated[str, typer.Argument(metavar="TASK_NAME", help="The task, such as echo.")],
    schedule_id: Annotated[str | None, typer.Option("--id", help="Yours to choose. Default: a new one.")] = None,
    time_zone: ZoneOption = None,
    kwargs: KwargsOption = None,
    args: ArgsOption = None,
    queue: QueueOption = None,
    priority: PriorityOption = None,
    max_retries: RetriesOption = None,
    timeout: TimeoutOption = None,
    catch_up: CatchUpOption = None,
    overlap: OverlapOption = None,
    starts_at: StartsOption = None,
    ends_at: EndsOption = None,
    paused: Annotated[bool, typer.Option("--paused", help="It waits to be resumed.")] = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Create a schedule: exactly one task at each of its times; print its id."""
    given = _given(time_zone, args, queue, priority, max_retries, timeout, catch_up, overlap, starts_at, ends_at) | (
        {"schedule_id": schedule_id} if schedule_id is not None else {}
    )
    arguments = parse_object(kwargs, "--kwargs")
    schedule = _ask(
        Instance(api=api, config=config, data_dir=data_dir),
        lambda client: client.schedules.create(cron, task_name, arguments, enabled=not paused, **given),
    )
    _print_id(Output(as_json=as_json), schedule)


@app.command("update")
def update_schedule(
    schedule_id: ScheduleIdArgument,
    cron: Annotated[str | None, typer.Option(metavar="CRON", help="Five fields, quoted.")] = None,
    task_name: Annotated[str | None, typer.Option(help="Another task.")] = None,
    time_zone: ZoneOption = None,
    kwargs: KwargsOption = None,
    args: ArgsOption = None,
    queue: QueueOption = None,
    priority: PriorityOption = None,
    max_retries: RetriesOption = None,
    timeout: TimeoutOption = None,
    catch_up: CatchUpOption = None,
    overlap: OverlapOption = None,
    starts_at: StartsOption = None,
    ends_at: EndsOption = None,
    version: VersionOption = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Change what is named; the rest stays."""
    changes = _given(time_zone, args, queue, priority, max_retries, timeout, catch_up, overlap, starts_at, ends_at)
    changes |= {name: value for name, value in (("cron", cron), ("task_name", task_name)) if value is not None}
    if kwargs is not None:
        changes["task_kwargs"] = parse_object(kwargs, "--kwargs")
    _show(
        Instance(api=api, config=config, data_dir=data_dir),
        lambda client: client.schedules.update(schedule_id, changes, version=version),
        as_json=as_json,
    )


@app.command("list")
def list_schedules(
    status: Annotated[list[str] | None, typer.Option(metavar="STATUS", help="Such as PAUSED or DELETED; repeat it.")] = None,
    name: Annotated[str | None, typer.Option(help="Only of this task name.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.")] = 20,
    offset: Annotated[int, typer.Option(help="Leave out so many first.")] = 0,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List schedules, newest first; deleted ones only on request."""
    statuses = [each.upper() for each in status or []]
    page = _ask(
        Instance(api=api, config=config, data_dir=data_dir),
        lambda client: client.schedules.list(status=statuses, task_name=name, limit=limit, offset=offset),
    )
    output = Output(as_json=as_json)
    if not (page["schedules"] or as_json):
        output.note("no schedules; create one with `eventq schedules create '0 * * * *' echo`")
        return
    output.show(page, lambda: _table(page["schedules"]))
    output.note(f"{len(page['schedules'])} of {page['total']}", style="dim")


@app.command("show")
def show_schedule(
    schedule_id: ScheduleIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show a schedule, and when it is due next."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    _show(instance, lambda client: client.schedules.get(schedule_id), as_json=as_json)


@app.command("pause")
def pause_schedule(
    schedule_id: ScheduleIdArgument,
    reason: Annotated[str | None, typer.Option(help="Why; kept in its history.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let a schedule make no tasks until it is resumed."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    _show(instance, lambda client: client.schedules.pause(schedule_id, reason=reason), as_json=as_json)


@app.command("resume")
def resume_schedule(
    schedule_id: ScheduleIdArgument,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let a paused schedule go on, and catch up with what it missed as it says."""
    instance = Instance(api=api, config=config, data_dir=data_dir)
    _show(instance, lambda client: client.schedules.resume(schedule_id), as_json=as_json)


@app.command("trigger")
def trigger_schedule(
    schedule_id: ScheduleIdArgument,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="One key makes one task.")] = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make the schedule's task now; print the task's id."""
    from rich.text import Text

    instance = Instance(api=api, config=config, data_dir=data_dir)
    answer = _ask(instance, lambda client: client.schedules.trigger(schedule_id, idempotency_key=key))
    Output(as_json=as_json).show(answer, lambda: Text(answer["task_id"]))


@app.command("delete")
def delete_schedule(
    schedule_id: ScheduleIdArgument,
    version: VersionOption = None,
    as_json: JsonOption = False,
    api: ApiOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Delete a schedule for good. Tasks that it made stay as they are."""
    from rich.text import Text

    async def run() -> None:
        async with Instance(api=api, config=config, data_dir=data_dir).client() as client:
            await client.schedules.delete(schedule_id, version=version)

    asyncio.run(run())
    answer = {"schedule_id": schedule_id, "status": "DELETED"}
    Output(as_json=as_json).show(answer, lambda: Text(f"{schedule_id} is deleted"))


def _given(
    time_zone: str | None,
    args: str | None,
    queue: str | None,
    priority: int | None,
    max_retries: int | None,
    timeout: float | None,
    catch_up: CatchUpChoice | None,
    overlap: OverlapChoice | None,
    starts_at: datetime | None,
    ends_at: datetime | None,
) -> Json:
    """The fields of a request that these options stand for, where they are given."""
    fields: Json = {
        "time_zone": time_zone,
        "task_args": None if args is None else parse_array(args, "--args"),
        "queue_name": queue,
        "priority": priority,
        "max_retries": max_retries,
        "timeout_seconds": timeout,
        "catch_up": None if catch_up is None else catch_up.value,
        "overlap": None if overlap is None else overlap.value,
        "starts_at": None if starts_at is None else starts_at.isoformat(),
        "ends_at": None if ends_at is None else ends_at.isoformat(),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _ask(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]]) -> Json:
    """The JSON of one answer of the API, asked in an event loop of its own."""

    async def run() -> Json:
        async with instance.client() as client:
            return (await question(client)).model_dump(mode="json")

    return asyncio.run(run())


def _show(instance: Instance, question: Callable[[Client], Awaitable[BaseModel]], *, as_json: bool) -> None:
    schedule = _ask(instance, question)
    Output(as_json=as_json).show(schedule, lambda: _view(schedule))


def _print_id(output: Output, schedule: Json) -> None:
    """The id alone on stdout, for a script to keep; the rest beside it."""
    from rich.text import Text

    from eventq.services.output import moment

    schedule_id = schedule["schedule_id"]
    output.show(schedule, lambda: Text(schedule_id))
    due = "" if schedule["next_at"] is None else f", next at {moment(schedule['next_at'])}"
    means = f"{schedule['explain']} ({schedule['time_zone']})"
    output.note(f"{schedule['status']}: {means}{due}; look with `eventq schedules show {schedule_id}`", style="dim")


def _table(schedules: Iterable[Json]) -> RenderableType:
    from eventq.services.output import clean, moment, status_text
    from eventq.services.task_render import plain_table

    table = plain_table("schedule", "task", "status", "cron", "zone", "next", "last", "tasks", "dropped")
    for each in schedules:
        table.add_row(
            each["schedule_id"],
            each["task_name"],
            status_text(each["status"]),
            clean(each["cron"]),
            each["time_zone"],
            moment(each["next_at"]),
            moment(each["last_at"]),
            str(each["tasks_made"]),
            str(each["dropped_ticks"]),
        )
    return table


def _view(schedule: Json) -> RenderableType:
    from rich.table import Table

    from eventq.services.output import clean, moment, status_text
    from eventq.services.task_render import arguments_text

    table = Table.grid(padding=(0, 2))
    table.add_row("schedule", schedule["schedule_id"])
    table.add_row("status", status_text(schedule["status"]))
    table.add_row("cron", clean(f"{schedule['cron']} ({schedule['explain']}, {schedule['time_zone']})"))
    table.add_row("policies", f"catch up {schedule['catch_up']}, overlap {schedule['overlap']}")
    table.add_row("task", schedule["task_name"])
    table.add_row("arguments", arguments_text(schedule))
    for number, time in enumerate(schedule["upcoming"]):
        table.add_row("next" if number == 0 else "then", moment(time))
    table.add_row("last", moment(schedule["last_at"]))
    counts = f"{schedule['tasks_made']} tasks, {schedule['dropped_ticks']} dropped, {schedule['times_triggered']} triggered"
    table.add_row("so far", counts)
    table.add_row("version", str(schedule["version"]))
    return table
