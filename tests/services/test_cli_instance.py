"""The command line against a real `eventq up`: every command as a process, as a user would type it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventq.services.cli_exit import ExitCode
from tests.services.command import Up
from tests.support.poll import eventually_sync
from tests.support.processes import dead

CSV = "city;cents\nKöln;5\nMálaga;37\n"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up.begin(tmp_path_factory.mktemp("up"))
    yield up
    code = up.end()
    assert code == ExitCode.DONE
    assert all(dead(pid) for pid in up.facts["processes"].values())


def test_a_task_is_submitted_awaited_and_explained(up: Up) -> None:
    submitted = up("submit", "echo", "-k", 'value={"a": [1, "ü"]}', "--queue", "default", "--priority", "7")
    task_id = submitted.stdout.strip()
    assert (submitted.code, len(task_id.split())) == (ExitCode.DONE, 1)
    again = up("task", "replay", task_id, "--wait", "--json")
    assert again.code == ExitCode.DONE
    assert again.json["result"] == {"a": [1, "ü"]}
    assert again.json["original_task_id"] == task_id
    shown = up("task", "show", task_id)
    assert "COMPLETED" in shown.stdout
    assert "priority 7" in shown.stdout
    timeline = up("task", "timeline", task_id, "--json").json
    events = up("events", "tail", "--task", task_id, "--json").lines
    assert [event["type"] for event in events] == ["submitted", "started", "completed"]
    assert [event["position"] for event in events] == [event["position"] for event in timeline["events"]]


def test_a_file_becomes_the_input_of_a_task(up: Up) -> None:
    (up.folder / "cities.csv").write_bytes(CSV.encode("cp1252"))
    done = up("submit", "csv_processing", "--file", "cities.csv", "--wait")
    assert done.code == ExitCode.DONE
    assert json.loads(done.stdout)["statistics"]["sum"] == 42


def test_a_failed_task_exits_with_1_and_shows_why(up: Up) -> None:
    done = up("submit", "csv_processing", "-k", "blob=no/such/blob", "--max-retries", "0", "--wait-timeout", "30s")
    assert (done.code, done.stdout) == (ExitCode.FAILED, "")
    assert "FAILED" in done.stderr


def test_a_delayed_task_times_out_the_wait_and_can_be_cancelled_once(up: Up) -> None:
    waited = up("submit", "echo", "--delay", "1h", "--wait-timeout", "0.2", "--json")
    assert waited.code == ExitCode.WAIT_TIMED_OUT
    assert waited.json["status"] == "SCHEDULED"
    task_id = waited.json["task_id"]
    cancelled = up("task", "cancel", task_id, "--reason", "not needed", "--json")
    assert (cancelled.code, cancelled.json["status"]) == (ExitCode.DONE, "CANCELLED")
    assert up("task", "cancel", task_id).code == ExitCode.CONFLICT
    listed = up("task", "list", "--status", "cancelled", "--name", "echo", "--json").json
    assert [task["task_id"] for task in listed["tasks"]] == [task_id]


def test_what_does_not_exist_is_told_apart_from_what_is_wrong(up: Up) -> None:
    missing = up("task", "show", "no-such-task", "--json")
    assert (missing.code, json.loads(missing.stderr)["code"]) == (ExitCode.NOT_FOUND, "TASK_NOT_FOUND")
    assert up("events", "tail", "--task", "no-such-task").code == ExitCode.NOT_FOUND
    wrong = up("submit", "ecko")
    assert wrong.code == ExitCode.USAGE
    assert "did you mean 'echo'?" in wrong.stderr


def test_an_interrupted_wait_leaves_the_task_running(up: Up) -> None:
    waiting = up.start("submit", "echo", "--delay", "1h", "--wait")
    assert waiting.stderr is not None
    task_id = waiting.stderr.readline().split()[-1]
    waiting.stderr.readline()  # the status: it waits now
    waiting.send_signal(signal.SIGINT)
    _, rest = waiting.communicate(timeout=20)
    assert waiting.returncode == ExitCode.INTERRUPTED
    assert f"eventq task cancel {task_id}" in rest
    assert up("task", "cancel", task_id).code == ExitCode.DONE


def test_events_are_tailed_live(up: Up) -> None:
    tail = up.start("events", "tail", "--type", "completed", "--limit", "1", "--json")
    eventually_sync(lambda: up("submit", "echo", "--wait") and tail.poll() is not None, timeout=30)
    out, _ = tail.communicate(timeout=20)
    assert json.loads(out)["type"] == "completed"


def test_the_tables_are_verified_and_rebuilt_by_the_api_that_owns_them(up: Up) -> None:
    verified = up("projection", "verify", "--json")
    assert (verified.code, verified.json["equal"]) == (ExitCode.DONE, True)
    rebuilt = up("projection", "rebuild", "--json").json
    assert rebuilt["position"] >= verified.json["position"]
    assert up("projection", "verify", "--offline").code == ExitCode.UNREACHABLE


def test_doctor_finds_a_running_instance_well(up: Up) -> None:
    done = up("doctor", "--json")
    found = {finding["name"]: finding for finding in done.json["findings"]}
    assert done.json["ok"]
    assert {name for name, finding in found.items() if finding["status"] == "FAIL"} == set()
    for name in ("broker", "durability", "clock", "streams", "workers", "queues", "API"):
        assert found[name]["status"] == "OK", found[name]


def test_a_second_instance_on_the_same_directory_is_refused(up: Up, tmp_path: Path) -> None:
    second = up("up", "--no-gpu", "--port", "0")
    assert second.code == ExitCode.CONFLICT
    assert "is in use" in second.stderr
    assert up("task", "list", "--limit", "1").code == ExitCode.DONE


def test_a_result_of_any_size_is_fetched(up: Up) -> None:
    large = json.dumps(["x" * 1000] * 100)
    for value in ("[1, 2]", large):
        task_id = up("submit", "echo", "-k", f"value={value}", "--wait", "--json").json["task_id"]
        assert json.loads(up("task", "result", task_id).stdout) == json.loads(value)
        assert up("task", "result", task_id, "-o", "result.json").code == ExitCode.DONE
        assert json.loads((up.folder / "result.json").read_text()) == json.loads(value)
    assert f"eventq task result {task_id}" in up("task", "show", task_id).stdout
    assert up("task", "result", task_id, "-o", "no/such/folder/x").code == ExitCode.USAGE
    assert up("task", "delete", task_id).code == ExitCode.DONE
    gone = up("task", "result", task_id)
    assert (gone.code, gone.stdout) == (ExitCode.CONFLICT, "")
    assert "given up" in gone.stderr


def test_a_missing_file_is_not_found(up: Up) -> None:
    missing = up("submit", "csv_processing", "--file", "nowhere.csv", "--json")
    assert (missing.code, json.loads(missing.stderr)["code"]) == (ExitCode.NOT_FOUND, "FILE_MISSING")


def test_a_failed_task_says_the_error_first_and_no_code_of_ours(up: Up) -> None:
    done = up("submit", "csv_processing", "-k", "blob=no/such/blob", "--max-retries", "0", "--wait")
    lines = done.stderr.splitlines()
    after = lines[next(number for number, line in enumerate(lines) if line.startswith("FAILED (")) + 1]
    assert after.startswith(("BlobNotFound: ", "InvalidInput: "))
    assert "/eventq/workers/" not in done.stderr
