"""Tasks and their events for people: what the API's answers look like on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from eventq.services.output import clean, clock, moment, one_line, span, status_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

Json = Mapping[str, Any]

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{6}([0-9a-f]{6})")

_OUR_FILE = re.compile(r'  File ".*/eventq/(?:workers|services|events)/[a-z_/]+\.py", line \d+, in ')
ERROR_MAX_CHARS = 1_000
FRAME_LINES = 12

EVENT_STYLES = {
    "submitted": "blue",
    "queued": "blue",
    "started": "cyan",
    "retrying": "magenta",
    "completed": "green",
    "failed": "bold red",
    "timed_out": "bold red",
    "cancel_requested": "yellow",
    "cancelled": "yellow",
}
FINAL_EVENTS = frozenset({"completed", "failed", "timed_out", "cancelled"})


def task_view(task: Json) -> RenderableType:
    """One task: its facts, then its result or error."""
    from rich.console import Group
    from rich.text import Text

    facts = _table(header=False)
    for name, value in _facts(task):
        facts.add_row(Text(name, style="dim"), value if isinstance(value, Text) else clean(value))
    parts: list[RenderableType] = [facts]
    if task["status"] == "COMPLETED":
        parts += [Text("\nresult", style="dim"), Text(result_text(task))]
    elif task["error"] is not None:
        parts += [Text("\nerror", style="dim"), Text(error_text(task["error"]), style="red")]
    return Group(*parts)


def task_table(tasks: Iterable[Json]) -> Table:
    """Many tasks, one a row."""
    table = _table("task", "name", "status", "queue", "priority", "attempt", "created", "took")
    for task in tasks:
        table.add_row(
            task["task_id"],
            task["task_name"],
            status_text(task["status"]),
            f"{task['pool']}/{task['queue_name']}",
            str(task["priority"]),
            str(task["attempt"]),
            moment(task["created_at"]),
            span(run_s(task)),
        )
    return table


def timeline_view(timeline: Json) -> RenderableType:
    """A task's story: every event and every line that its code logged, in the order of time."""
    table = _table("time", "after", "what", "attempt", "by", "details")
    events = [(line["timestamp"], _event_cells(line)) for line in timeline["events"]]
    logs = [(line["timestamp"], _log_cells(line)) for line in timeline["logs"]]
    began = datetime.fromisoformat(timeline["created_at"])
    day = ""
    for at, cells in sorted(events + logs, key=lambda row: datetime.fromisoformat(row[0])):
        after_s = (datetime.fromisoformat(at) - began).total_seconds()
        table.add_row(clock(at) if at[:10] == day else moment(at), f"+{span(max(0.0, after_s))}", *cells)
        day = at[:10]
    return table


def event_line(position: int, event: Json) -> Text:
    """One event of the log, on one line."""
    from rich.text import Text

    kind = str(event.get("type"))
    return Text.assemble(
        (f"{position:>8}  ", "dim"),
        (f"{moment(event.get('time'))}  ", "dim"),
        (f"{clean(str(event.get('subject')))}  ", ""),
        (f"{event.get('version')} ", "dim"),
        (f"{kind:<16}", EVENT_STYLES.get(kind, "")),
        event_details(kind, event.get("data") or {}),
    )


def event_details(kind: str, data: Json) -> str:
    """What matters of an event's data, in a few words."""
    match kind:
        case "submitted":
            when = f", not before {moment(data['scheduled_at'])}" if data.get("scheduled_at") else ""
            return f"{data.get('task_name')} to {data.get('pool')}/{data.get('queue')}, priority {data.get('priority')}{when}"
        case "started":
            return f"on {data.get('hostname')}, {data.get('device')}"
        case "completed":
            return f"after {span(data.get('duration_s'))}"
        case "retrying":
            return f"{one_line(_message(data), 80)}; again at {clock(data.get('due_at'))}"
        case "failed":
            return one_line(_message(data), 100)
        case "queued":
            return str(data.get("reason"))
        case "registered":
            return f"pool {data.get('pool')}, {data.get('capacity')} at a time, {len(data.get('tasks') or [])} tasks"
        case _:
            return one_line(", ".join(f"{name}={value}" for name, value in data.items() if value is not None), 100)


def short_source(source: str) -> str:
    """Who wrote an event, with the id inside shortened to its end; the full one is in the JSON."""
    return clean(_ID.sub(r"…\1", source))


def result_text(task: Json) -> str:
    """The result as indented JSON, or where it lies when it is a file."""
    output = task["output"]
    if output is not None:
        return f"{output['size_bytes']} bytes; fetch them with `eventq task result {task['task_id']} -o FILE`"
    return clean(json.dumps(task["result"], indent=2, ensure_ascii=False))


def error_text(error: Json) -> str:
    """The error in one sentence, then where in the task's own code it was raised."""
    sentence = cut_middle(f"{error['type']}: {error['message']}", ERROR_MAX_CHARS)
    frames = _own_frames(str(error.get("traceback") or ""))
    return clean("\n".join([sentence, *frames[-FRAME_LINES:]]))


def cut_middle(text: str, max_chars: int) -> str:
    """`text`; of a long one the beginning and the end."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]} … {text[-half:]}"


def _own_frames(trace: str) -> list[str]:
    """Lines of a traceback's frames, without those of eventq's own files and without the exception itself."""
    kept: list[str] = []
    own = False
    for line in trace.splitlines():
        if line.startswith('  File "'):
            own = not _OUR_FILE.match(line)
        elif not line.startswith("    "):
            own = False
        if own:
            kept.append(line)
    return kept


def progress_text(progress: Json | None) -> str:
    """How far a task is, in words; empty where it has not said."""
    if progress is None:
        return ""
    done, total, unit = progress["done"], progress["total"], progress["unit"] or ""
    amount = f"{done:,.0f}" if total is None else f"{done:,.0f}/{total:,.0f}"
    return " ".join(filter(None, [amount, one_line(unit, 20), one_line(progress["message"] or "", 40)]))


def run_s(task: Json) -> float | None:
    """Seconds of the last attempt, once the task has finished."""
    if task["started_at"] is None or task["completed_at"] is None:
        return None
    began, ended = (datetime.fromisoformat(task[name]) for name in ("started_at", "completed_at"))
    return max(0.0, (ended - began).total_seconds())


def plain_table(*columns: str) -> Table:
    """A table without lines, for any rows."""
    return _table(*columns)


def _facts(task: Json) -> Iterable[tuple[str, str | Text]]:
    yield "task", task["task_id"]
    yield "name", task["task_name"]
    yield "status", status_text(task["status"])
    asked = "(cancel requested)" if task["cancel_requested"] and not task["completed_at"] else ""
    reason = " ".join(filter(None, [task["reason"], asked]))
    rows = {
        "reason": reason,
        "queue": f"{task['pool']}/{task['queue_name']}, priority {task['priority']}",
        "attempt": f"{task['attempt']} ({task['retry_count']} failed, {task['max_retries']} retries allowed)",
        "worker": task["worker_id"] or "",
        "arguments": arguments_text(task),
        "progress": progress_text(task["progress"]),
        "created": moment(task["created_at"]),
        "scheduled": moment(task["scheduled_at"]),
        "due": moment(task["due_at"]),
        "started": moment(task["started_at"]),
        "finished": moment(task["completed_at"]),
        "took": span(run_s(task)),
        "repeats": f"{task['original_task_id']} ({task['origin']})" if task["original_task_id"] else "",
        "version": str(task["version"]),
    }
    yield from ((name, value) for name, value in rows.items() if value)


def arguments_text(task: Json) -> str:
    """The arguments of a task, or of one that a schedule makes, on one line."""
    if task["input"] is not None:
        return f"{task['input']['size_bytes']} bytes in blob {task['input']['key']}"
    args: list[Any] = task["task_args"] or []
    kwargs: dict[str, Any] = task["task_kwargs"] or {}
    parts = [json.dumps(value, ensure_ascii=False) for value in args]
    parts += [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in kwargs.items()]
    return one_line(" ".join(parts), 200)


def _event_cells(line: Json) -> tuple[Any, ...]:
    from rich.text import Text

    kind = line["event_type"]
    attempt = str(line["attempt"] or "")
    return Text(kind, EVENT_STYLES.get(kind, "")), attempt, short_source(line["source"]), event_details(kind, line["details"])


def _log_cells(line: Json) -> tuple[Any, ...]:
    from rich.text import Text

    fields = "".join(f" {name}={value}" for name, value in line["fields"].items())
    level = line["level"]
    style = {"warning": "yellow", "error": "red"}.get(level, "dim")
    return Text(f"log {level}", style), str(line["attempt"]), "", one_line(line["message"] + fields, 100)


def _message(data: Json) -> str:
    error, reason = data.get("error"), data.get("reason")
    if not error:
        return str(reason)
    text = f"{error.get('type')}: {error.get('message')}"
    return text if reason in (None, "error") else f"{reason}: {text}"


def _table(*columns: str, header: bool = True) -> Table:
    from rich.table import Table

    table = Table(box=None, show_header=header, header_style="dim", pad_edge=False)
    for name in columns:
        right = name in {"time", "priority", "attempt", "took", "after"}
        identity = name in {"task", "time", "status", "what"}
        table.add_column(name, justify="right" if right else "left", no_wrap=identity, overflow="fold")
    return table
