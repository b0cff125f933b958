"""The command line without an instance: help, values, exit codes, streams."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from eventq.events.errors import EventqError, InvalidInput
from eventq.services.cli import app
from eventq.services.cli_exit import ExitCode, exit_code_of
from eventq.services.cli_options import parse_array, parse_duration, parse_moment, parse_object, parse_pair, parse_time
from eventq.services.embedded import free_port
from eventq.services.output import clean, moment, one_line, plain_reason, size, span
from tests.services.command import environment, eventq

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
HEAVY = {"aiohttp", "duckdb", "nats", "PIL", "pydantic", "structlog", "torch"}


def commands(group: Any = None, path: str = "eventq") -> Iterator[tuple[str, Any]]:
    """Every command with its full name."""
    group = typer.main.get_command(app) if group is None else group
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


@pytest.mark.parametrize(("path", "command"), [pytest.param(path, command, id=path) for path, command in commands()])
def test_every_command_and_option_says_what_it_does(path: str, command: Any) -> None:
    assert command.help, path
    for parameter in command.params:
        assert parameter.help, f"{path} {parameter.name}"


def test_every_command_and_exit_code_is_documented() -> None:
    text = DOCS.read_text()
    assert [path for path, _ in commands() if f"`{path}" not in text] == []
    assert [code for code in ExitCode if f"| {int(code)} |" not in text] == []


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['eventq', '--help']\n"
        "from eventq.services.cli import main\n"
        "try: main()\n"
        f"except SystemExit as end: print(end.code, *({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, env=environment(), check=True)
    assert done.stderr.split() == ["0"]
    assert "submit" in done.stdout


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5", 1.5), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("0", 0)]
)
def test_a_duration_reads_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "5 m", "m", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_duration(text)


def test_a_time_without_an_offset_is_utc() -> None:
    assert parse_time("2026-01-25T14:30:00") == datetime(2026, 1, 25, 14, 30, tzinfo=UTC)
    east = timezone(timedelta(hours=2))
    assert parse_time("2026-01-25T14:30:00+02:00") == datetime(2026, 1, 25, 14, 30, tzinfo=east)
    assert parse_moment("17") == "17"
    with pytest.raises(typer.BadParameter):
        parse_moment("yesterday")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n=1", 1),
        ("n=true", True),
        ("n=to be", "to be"),
        ('n=[1, "a"]', [1, "a"]),
        ("n=", ""),
        ("n=a=b", "a=b"),
        ("n=NaN", "NaN"),
    ],
)
def test_a_pair_is_json_where_it_reads_as_json(text: str, value: object) -> None:
    assert parse_pair(text) == ("n", value)


def test_arguments_of_the_wrong_shape_are_named() -> None:
    for wrong in ("[1]", "nonsense", '{"a": NaN}'):
        with pytest.raises(InvalidInput, match="--kwargs"):
            parse_object(wrong, "--kwargs")
    with pytest.raises(InvalidInput, match="--args"):
        parse_array('{"a": 1}', "--args")
    with pytest.raises(InvalidInput, match="-k"):
        parse_pair("no-equals-sign")


def test_every_error_has_an_exit_code() -> None:
    for room in ("settings", "embedded", "http_errors", "cli_instance"):  # each defines errors of its own
        import_module(f"eventq.services.{room}")
    codes = {kind.code: exit_code_of(kind.__new__(kind)) for kind in _kinds(EventqError)}
    assert codes["INVALID_INPUT"] == codes["UNKNOWN_TASK"] == codes["INVALID_SETTINGS"] == ExitCode.USAGE
    assert codes["TASK_NOT_FOUND"] == codes["BLOB_NOT_FOUND"] == ExitCode.NOT_FOUND
    assert codes["ILLEGAL_TRANSITION"] == codes["DATA_DIR_IN_USE"] == ExitCode.CONFLICT
    assert codes["LOG_UNAVAILABLE"] == codes["NO_INSTANCE"] == codes["BROKER_UNFIT"] == ExitCode.UNREACHABLE
    assert codes["LOG_DAMAGED"] == ExitCode.FAILED


def _kinds(kind: type[EventqError]) -> Iterator[type[EventqError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


def test_text_from_tasks_cannot_drive_the_terminal() -> None:
    assert clean("a\x1b[2Jb\x07\x9bc\td\n") == "a\\x1b[2Jb\\x07\\x9bc\td\n"
    assert one_line("two\nlines  and\x1b more", 12) == "two lines a…"


def test_numbers_read_as_people_read_them() -> None:
    assert [span(0.0123), span(2), span(61), span(7260), span(None)] == ["12 ms", "2.00 s", "1 min 1 s", "2 h 1 min", ""]
    assert [size(12), size(2048), size(3 * 1024**3)] == ["12 B", "2.0 KiB", "3.0 GiB"]
    assert moment("2026-01-25T15:30:00.123456+01:00") == "2026-01-25 14:30:00.123Z"


def test_colour_needs_a_terminal_and_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert plain_reason(io.StringIO()) is not None
    assert plain_reason(Terminal()) is None
    monkeypatch.setenv("NO_COLOR", "1")
    assert plain_reason(Terminal()) is not None


def test_a_pipe_gets_no_colour_even_when_it_is_forced(tmp_path: Path) -> None:
    done = eventq("settings", cwd=tmp_path, FORCE_COLOR="1")
    assert done.code == ExitCode.DONE
    assert "EVENTQ_NATS_URL" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_settings_tell_their_origin_and_no_password(tmp_path: Path) -> None:
    url = "nats://me:secret@broker:4222"
    rows = eventq("settings", "--json", cwd=tmp_path, EVENTQ_NATS_URL=url).json["settings"]
    row = next(row for row in rows if row["name"] == "nats_url")
    assert row["origin"] == "EVENTQ_NATS_URL"
    assert "secret" not in json.dumps(rows)


def test_without_an_instance_a_command_says_how_to_start_one(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = eventq("task", "list", "--api", nowhere, "--json", cwd=tmp_path)
    assert done.code == ExitCode.UNREACHABLE
    assert done.stdout == ""
    error = json.loads(done.stderr)
    assert (error["code"], error["exit_code"]) == ("NO_INSTANCE", 3)
    assert "eventq up" in error["hint"]


@pytest.mark.parametrize("text", ["nonsense", "http://", "localhost:8000", "http://x:port", "http://[", "ftp://x"])
def test_an_address_that_is_no_url_is_refused_as_that(tmp_path: Path, text: str) -> None:
    done = eventq("task", "list", "--api", text, "--json", cwd=tmp_path)
    error = json.loads(done.stderr)
    assert done.code == ExitCode.USAGE
    assert f"{text!r} is no URL like http://127.0.0.1:8000" in error["detail"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("Complete", "did you mean completed"), ("nonsense", "known: admitted, advanced, answered, approved, cancel")],
)
def test_an_event_of_no_known_type_is_refused_with_the_near_ones(tmp_path: Path, name: str, said: str) -> None:
    done = eventq("events", "tail", "--type", "failed", "--type", name, "--no-follow", "--json", cwd=tmp_path)
    assert done.code == ExitCode.USAGE
    assert f"{name.lower()!r} is no type of event; {said}" in json.loads(done.stderr)["detail"]


def test_wrong_usage_and_wrong_settings_exit_with_2(tmp_path: Path) -> None:
    both = eventq("submit", "echo", "--at", "2026-01-25T14:30:00Z", "--delay", "5m", cwd=tmp_path)
    misspelt = eventq("task", "list", cwd=tmp_path, EVENTQ_NATS_ULR="nats://x:1")
    assert (both.code, misspelt.code) == (ExitCode.USAGE, ExitCode.USAGE)
    assert "did you mean EVENTQ_NATS_URL?" in misspelt.stderr
    assert "Traceback" not in both.stderr + misspelt.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [(["5", "to be"], """--args '[5, "to be"]'"""), (["value=to be", "n=3"], "-k 'value=to be' -k n=3")],
)
def test_bare_arguments_of_a_task_are_refused_with_how_to_pass_them(tmp_path: Path, given: list[str], said: str) -> None:
    done = eventq("submit", "echo", *given, "--json", cwd=tmp_path)
    assert done.code == ExitCode.USAGE
    assert said in json.loads(done.stderr)["detail"]


def test_doctor_before_the_first_start_warns_and_changes_nothing(tmp_path: Path) -> None:
    done = eventq("doctor", "--json", "--data-dir", tmp_path / "new", "--api", f"http://127.0.0.1:{free_port()}", cwd=tmp_path)
    findings = {finding["name"]: finding for finding in done.json["findings"]}
    assert findings["python"]["status"] == findings["data directory"]["status"] == "OK"
    assert all(finding["fix"] for finding in findings.values() if finding["status"] != "OK")
    assert not (tmp_path / "new").exists()


def test_doctor_fails_on_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = eventq("doctor", "--json", "--data-dir", tmp_path / "file" / "data", cwd=tmp_path)
    finding = next(finding for finding in done.json["findings"] if finding["name"] == "data directory")
    assert (done.code, finding["status"]) == (ExitCode.FAILED, "FAIL")
    assert "EVENTQ_DATA_DIR" in finding["fix"]


def test_without_a_broker_a_command_ends_at_once(tmp_path: Path) -> None:
    done = eventq("events", "tail", "--nats-url", f"nats://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert (done.code, done.stdout) == (ExitCode.UNREACHABLE, "")
    assert "no broker listens" in done.stderr
    assert "eventq up" in done.stderr


def test_wrong_usage_is_one_object_for_programs(tmp_path: Path) -> None:
    for arguments in (["submit", "echo", "--delay", "5q"], ["submit"], ["task", "show", "x", "--nonsense"]):
        done = eventq(*arguments, "--json", cwd=tmp_path)
        error = json.loads(done.stderr)
        assert (done.code, done.stdout, error["code"], error["exit_code"]) == (ExitCode.USAGE, "", "USAGE", 2)
        assert error["detail"]
    assert eventq("version", "--json", cwd=tmp_path).code == ExitCode.DONE


@pytest.mark.parametrize("command", ["up", "demo"])
@pytest.mark.parametrize("folder", ["a-file", "/proc/nope"])
def test_an_unusable_data_directory_is_one_clear_error(tmp_path: Path, command: str, folder: str) -> None:
    (tmp_path / "a-file").write_text("")
    done = eventq(command, "--json", "--data-dir", folder, cwd=tmp_path)
    error = json.loads(done.stderr.splitlines()[-1])
    assert (done.code, done.stdout, error["code"]) == (ExitCode.USAGE, "", "DATA_DIR_UNUSABLE")
    assert "Traceback" not in done.stderr


def test_a_directory_without_an_instance_leads_to_no_other_one(tmp_path: Path) -> None:
    for command in (["task", "list"], ["events", "tail"]):
        done = eventq(*command, "--data-dir", tmp_path / "empty", "--json", cwd=tmp_path)
        error = json.loads(done.stderr)
        assert (done.code, error["code"]) == (ExitCode.UNREACHABLE, "NO_INSTANCE")
        assert str(tmp_path / "empty") in error["detail"]
