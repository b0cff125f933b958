"""Options that several commands share, and the values that text on a command line stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

import typer

from eventq.events.errors import InvalidInput

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")
_SECONDS_OF = (86_400.0, 3_600.0, 60.0, 1.0)


def parse_duration(text: str) -> float:
    """Seconds: ``90``, ``1.5``, ``30s``, ``5m``, ``1h30m``, ``2d``."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not any(found.groups()):
        raise typer.BadParameter("should be seconds, or like 30s, 5m, 1h30m, 2d")
    return sum(float(part) * unit for part, unit in zip(found.groups(), _SECONDS_OF, strict=True) if part)


def parse_time(text: str) -> datetime:
    """An RFC 3339 time; one without an offset is UTC."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("should be a time like 2026-01-25T14:30:00Z") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def parse_moment(text: str) -> str:
    """A position of the log or a time: what ``as_of`` takes."""
    return text if text.isdecimal() else parse_time(text).isoformat()


def parse_url(text: str) -> str:
    """The base URL of an API."""
    try:
        url = urlsplit(text)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # brackets without an address, a port that is no number
        is_url = False
    if not is_url:
        raise typer.BadParameter(f"{text[:80]!r} is no URL like http://127.0.0.1:8000")
    return text


def parse_pair(text: str) -> tuple[str, Any]:
    """``name=value``; the value is JSON where it reads as JSON, else the text itself."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidInput("-k", "should be name=value", found=text[:80])
    try:
        return name, json.loads(value, parse_constant=_no_constant)
    except ValueError:
        return name, value


def parse_text_pair(text: str) -> tuple[str, str]:
    """``name=text``."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidInput("--meta", "should be name=text", found=text[:80])
    return name, value


def parse_object(text: str | None, option: str) -> dict[str, Any]:
    """A JSON object; nothing is an empty one."""
    value: Any = {} if text is None else _parse_json(text, option)
    if not isinstance(value, dict):
        raise InvalidInput(option, 'should be a JSON object like {"value": 1}', found=text)
    return cast("dict[str, Any]", value)


def parse_array(text: str | None, option: str) -> list[Any]:
    """A JSON array; nothing is an empty one."""
    value: Any = [] if text is None else _parse_json(text, option)
    if not isinstance(value, list):
        raise InvalidInput(option, "should be a JSON array like [1, 2]", found=text)
    return [*cast("Sequence[Any]", value)]


def _parse_json(text: str, option: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise InvalidInput(option, f"is not JSON: {error}", found=text[:80]) from None


def _no_constant(name: str) -> Any:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{name} is not JSON")


JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON: one object, or one a line when streaming.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file with settings. Default: ./eventq.toml where it exists."),
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Data directory of the instance. Default: .eventq")
]
ApiOption = Annotated[
    str | None,
    typer.Option(
        "--api",
        metavar="URL",
        parser=parse_url,
        help="The API's base URL. Default: that of the `eventq up` of the data directory.",
    ),
]
NatsOption = Annotated[
    str | None,
    typer.Option("--nats-url", metavar="URL", help="The broker. Default: that of the `eventq up` of the data directory."),
]
WaitOption = Annotated[bool, typer.Option("--wait", "-w", help="Wait for the result; the exit code tells it.")]
WaitTimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--wait-timeout",
        metavar="TIME",
        parser=parse_duration,
        help="Wait at most so long (seconds, or like 5m); then exit with 124. Means --wait.",
    ),
]
TaskIdArgument = Annotated[str, typer.Argument(metavar="TASK_ID", help="The task's id, as `submit` printed it.")]
