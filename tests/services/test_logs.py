"""Log lines: JSON with the bound ids, bounded, the same for libraries that use ``logging``."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from eventq.services.logs import LINE_VALUE_MAX_CHARS, bound, configure_logs


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    stream = io.StringIO()
    configure_logs("info", stream=stream)
    yield stream
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def test_a_line_is_json_with_what_is_bound(out: io.StringIO) -> None:
    with bound(task_id="t-1", request_id="r-1"):
        structlog.get_logger().info("task.completed", duration_s=1.5)
    structlog.get_logger().info("after")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["event"], first["task_id"], first["request_id"], first["level"]) == ("task.completed", "t-1", "r-1", "info")
    assert first["timestamp"].endswith("Z")
    assert "task_id" not in second


def test_less_than_the_level_is_not_written(out: io.StringIO) -> None:
    structlog.get_logger().debug("hidden")
    assert out.getvalue() == ""


def test_newlines_and_escapes_cannot_forge_a_line(out: io.StringIO) -> None:
    structlog.get_logger().info("x", found="a\nb\x1b[31m")
    assert len(out.getvalue().splitlines()) == 1
    assert "\x1b" not in out.getvalue()


def test_long_values_are_cut(out: io.StringIO) -> None:
    structlog.get_logger().info("x", text="y" * 100_000)
    line = json.loads(out.getvalue())
    assert len(line["text"]) < LINE_VALUE_MAX_CHARS + 50


def test_exceptions_come_with_their_traceback(out: io.StringIO) -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "ValueError: boom" in json.loads(out.getvalue())["exception"]


def test_libraries_log_in_the_same_shape(out: io.StringIO) -> None:
    logging.getLogger("some.library").warning("careful %s", 5)
    line = json.loads(out.getvalue())
    assert (line["event"], line["level"]) == ("careful 5", "warning")


def test_a_terminal_gets_readable_lines(out: io.StringIO) -> None:
    stream = io.StringIO()
    configure_logs("info", json=False, stream=stream)
    structlog.get_logger().info("task.completed", task_id="t-1")
    secret = "payload"  # a local variable: must not be shown
    try:
        raise ValueError(len(secret))
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "task.completed" in stream.getvalue()
    assert "ValueError: 7" in stream.getvalue()
    assert "'payload'" not in stream.getvalue()
    assert not stream.getvalue().startswith("{")
