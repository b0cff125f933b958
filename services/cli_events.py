"""`eventq events ...`: read the log itself, straight from the broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventq.services.cli_instance import Instance
from eventq.services.cli_options import ConfigOption, DataDirOption, JsonOption, NatsOption
from eventq.services.output import Output, write_json

if TYPE_CHECKING:
    from eventq.events.broker import Broker
    from eventq.events.reader import Message

app = typer.Typer(name="events", help="Read the log of events.", no_args_is_help=True)
app.callback()(lambda: None)  # with one command only, typer would take the group for that command


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events: from a position on (``None``: what comes from now on), of one task, of some types, at most so many."""

    start: int | None
    task_id: str | None
    types: frozenset[str]
    limit: int | None
    follow: bool


@app.command("tail")
def tail_events(
    start: Annotated[
        int | None, typer.Option("--from", min=1, metavar="POSITION", help="Begin at this position of the log; 1 is its start.")
    ] = None,
    task_id: Annotated[
        str | None, typer.Option("--task", metavar="TASK_ID", help="Only this task, from its first event to its last.")
    ] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="EVENT", help="Only events such as failed; repeat it.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Stop after so many.")] = None,
    follow: Annotated[bool, typer.Option(help="Go on with what comes; else stop where the log ends now.")] = True,
    as_json: JsonOption = False,
    nats_url: NatsOption = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print events as they are stored, one a line; with --from or --task, the past first.

    No event is left out or printed twice, also when the connection breaks.
    """
    wanted = Wanted(start, task_id, _known(types or []), limit, follow)
    output = Output(as_json=as_json)

    async def run() -> None:
        async with Instance(nats_url=nats_url, config=config, data_dir=data_dir).broker("events tail") as broker:
            async for position, event in read_events(broker, wanted):
                _print(output, position, event)

    asyncio.run(run())


def _known(types: list[str]) -> frozenset[str]:
    """The types as the log has them. One that no event has would wait for ever, and look like a quiet log."""
    from difflib import get_close_matches

    from eventq.events.catalogue import CATALOGUE  # brings pydantic, which --help must not wait for
    from eventq.events.subjects import PLACEHOLDER

    known = sorted({name for _, name in CATALOGUE} - {PLACEHOLDER})
    found = frozenset(name.lower().replace("-", "_") for name in types)
    for name in sorted(found.difference(known)):
        near = get_close_matches(name, known)
        said = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise typer.BadParameter(f"{name[:80]!r} is no type of event; {said}", param_hint="--type")
    return found


async def read_events(broker: Broker, wanted: Wanted) -> AsyncGenerator[tuple[int, Mapping[str, Any]]]:
    """Positions and events as they stand in the log, undecoded: what this version cannot read is shown as well. What holds the
    place of an erased event is not.

    Raises ``TaskNotFound`` for a task that has no event, ``LogDamaged`` where there is no log at all.
    """
    from eventq.events.reader import Tail
    from eventq.events.subjects import EVENTS, PLACEHOLDER, aggregate_filter
    from eventq.services.task_render import FINAL_EVENTS

    subject = None if wanted.task_id is None else aggregate_filter("tasks", wanted.task_id)
    last = await _last_position(broker, wanted.task_id)
    begin = 1 if wanted.task_id is not None and wanted.start is None else wanted.start
    count = 0
    if not wanted.follow and last < (begin or last + 1):
        return
    async with Tail(broker, EVENTS, after=last if begin is None else begin - 1, subject=subject) as tail:
        async for batch in tail:
            for message in batch:
                event = _event(message)
                if event.get("type") != PLACEHOLDER and (not wanted.types or event.get("type") in wanted.types):
                    yield message.position, event
                    count += 1
                finished = wanted.task_id is not None and event.get("type") in (*FINAL_EVENTS, "erased")
                if finished or count == wanted.limit or not (wanted.follow or message.position < last):
                    return


async def _last_position(broker: Broker, task_id: str | None) -> int:
    from nats.js.errors import NotFoundError

    from eventq.events.errors import LogDamaged, TaskNotFound
    from eventq.events.ids import check_id
    from eventq.events.subjects import EVENTS, aggregate_filter

    facts = await broker.stream_facts(EVENTS)
    if facts is None:
        raise LogDamaged("the broker has no stream of events: no eventq process ever started on it", stream=EVENTS)
    if task_id is None:
        return facts.last
    try:
        found = await broker.js.get_last_msg(EVENTS, aggregate_filter("tasks", check_id(task_id, "--task")))
    except NotFoundError:
        raise TaskNotFound(task_id) from None
    return found.seq or 0


def _event(message: Message) -> Mapping[str, Any]:
    import orjson

    try:
        event: Any = orjson.loads(message.payload)
    except ValueError:
        event = None
    return event if isinstance(event, dict) else {"subject": message.subject, "type": "(not an event)"}  # pyright: ignore


def _print(output: Output, position: int, event: Mapping[str, Any]) -> None:
    from eventq.services.task_render import event_line

    if output.as_json:
        write_json({"position": position, **event})
    else:
        output.stdout.print(event_line(position, event), soft_wrap=True)
