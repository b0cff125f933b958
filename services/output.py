"""What a command says, and where: data on stdout, everything else on stderr, JSON when asked for.

For people: tables and colours, but neither colour nor animation where the stream is not a terminal or ``NO_COLOR`` is
set. For programs (``--json``): one object a line, nothing else on stdout. Text from tasks may hold anything, so
control characters are made visible before a terminal could obey them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.text import Text

PIPE_WIDTH = 220
"""Columns of a table that no terminal limits: nothing is cut where a program may read it."""

STATUS_STYLES = {
    "COMPLETED": "green",
    "FAILED": "bold red",
    "TIMED_OUT": "bold red",
    "CANCELLED": "yellow",
    "RUNNING": "cyan",
    "RETRYING": "magenta",
    "OK": "green",
    "WARN": "yellow",
    "FAIL": "bold red",
}

# C0 without tab and newline, DEL, C1: what moves cursors, rings bells and renames windows.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


class Output:
    """The two streams of one command. Rich is imported when the first thing is drawn, never for JSON."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    @cached_property
    def stdout(self) -> Console:
        """For data."""
        return _console(sys.stdout)

    @cached_property
    def stderr(self) -> Console:
        """For everything that is not the answer."""
        return _console(sys.stderr)

    def show(self, value: Mapping[str, Any], render: Callable[[], RenderableType]) -> None:
        """The answer: ``value`` as one line of JSON, or what ``render`` makes of it."""
        if self.as_json:
            write_json(value)
        else:
            self.stdout.print(render())

    def note(self, text: str, style: str = "") -> None:
        """A remark for people; nothing with ``--json``."""
        if not self.as_json:
            self.stderr.print(clean(text), style=style, soft_wrap=True)

    def progress(self) -> Progress:
        """Live bars on stderr; they draw nothing with ``--json`` or without a terminal."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=self.stderr,
            disable=not self.animated,
        )

    @property
    def animated(self) -> bool:
        """Whether bars may move on stderr."""
        return not self.as_json and plain_reason(sys.stderr) is None


def plain_reason(stream: TextIO) -> str | None:
    """Why ``stream`` gets neither colour nor animation; ``None`` where it may have both."""
    if not stream.isatty():
        return "not a terminal"
    if os.environ.get("NO_COLOR"):
        return "NO_COLOR is set"
    return "the terminal is dumb" if os.environ.get("TERM") == "dumb" else None


def write_json(value: Mapping[str, Any]) -> None:
    """One object, on one line, at once."""
    import orjson

    sys.stdout.write(orjson.dumps(value, default=str).decode() + "\n")
    sys.stdout.flush()


def clean(text: str) -> str:
    """``text`` with its control characters written out."""
    return text.translate(_CONTROL)


def one_line(text: str, max_chars: int = 100) -> str:
    """The beginning of ``text``, cleaned, without line breaks."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= max_chars else flat[: max_chars - 1] + "…"


def moment(value: str | datetime | None) -> str:
    """A time as people read it: UTC, to the millisecond; empty for none."""
    if value is None:
        return ""
    at = (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)
    return at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03}Z"


def clock(value: str | None) -> str:
    """The time of day of a moment, in UTC; empty for none."""
    return moment(value).partition(" ")[2]


def span(seconds: float | None) -> str:
    """A duration in the unit that suits it; empty for none."""
    match seconds:
        case None:
            return ""
        case _ if seconds < 1:
            return f"{seconds * 1000:.0f} ms"
        case _ if seconds < 60:
            return f"{seconds:.2f} s"
        case _ if seconds < 3600:
            return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
        case _:
            return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def counted(count: int, noun: str) -> str:
    """So many of them: `1 task`, `2 tasks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(count_bytes: float) -> str:
    """A size in the binary unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count_bytes < 1024:
            return f"{count_bytes:.0f} {unit}" if unit == "B" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1024
    return f"{count_bytes:.1f} TiB"


def status_text(status: str) -> Text:
    """A status in its colour."""
    from rich.text import Text

    return Text(status, style=STATUS_STYLES.get(status, ""))


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    reason = plain_reason(stream)
    return Console(
        file=stream,
        force_terminal=reason is None,
        no_color=reason is not None,
        width=None if stream.isatty() else PIPE_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
    )
