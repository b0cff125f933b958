"""Structured logs: one event name a line, JSON for machines, readable on a terminal, always to stderr.

Whoever works on a request or a task binds ``request_id`` or ``task_id`` once (:func:`bound`); every line
written below carries them. Payloads are never logged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO

import orjson
import structlog

LINE_VALUE_MAX_CHARS = 8_000


def configure_logs(level: str = "INFO", *, json: bool | None = None, stream: TextIO | None = None) -> None:
    """Set up logging for this process. ``json=None``: JSON unless ``stream`` (default stderr) is a
    terminal."""
    out = stream or sys.stderr
    as_json = not out.isatty() if json is None else json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _shorten,
    ]
    structlog.configure(
        processors=[*shared, *_renderers(as_json)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    _route_stdlib(out, level, [*shared, *_renderers(as_json)])


@contextmanager
def bound(**names: Any) -> Generator[None]:
    """Within the block every log line of this context carries ``names``, such as ``task_id=...``."""
    with structlog.contextvars.bound_contextvars(**names):
        yield


def _renderers(as_json: bool) -> list[Any]:
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_dumps)]
    # Not the default formatter: it shows local variables, and with them payloads.
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]


def _dumps(line: Any, **_: Any) -> str:
    return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def _shorten(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """No value fills the disk: texts above the limit are cut and say so."""
    for name, value in line.items():
        if isinstance(value, str) and len(value) > LINE_VALUE_MAX_CHARS:
            line[name] = f"{value[:LINE_VALUE_MAX_CHARS]}... ({len(value)} characters)"
    return line


def _route_stdlib(out: TextIO, level: str, processors: list[Any]) -> None:
    """Libraries that log through ``logging`` come out in the same shape."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors[:-1],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, processors[-1]],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.getLevelNamesMapping()[level.upper()], logging.WARNING))
