"""The demo: it shows right results, notices wrong ones, and leaves nothing behind."""

from __future__ import annotations

import signal
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from eventq.services.cli_exit import ExitCode
from eventq.services.demo import Story, demo_settings, verdict_of
from eventq.services.demo_jobs import CSV_ROWS, make_csv, make_jobs
from tests.services.command import eventq, start_eventq


def test_the_demo_is_right_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = eventq("demo", "--json", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert done.code == ExitCode.DONE, done.stderr
    story = done.json
    assert story["ok"]
    assert [job["label"] for job in story["jobs"] if not job["right"]] == []
    kinds = [event["event_type"] for event in story["timeline"]["events"]]
    assert kinds.count("retrying") == 2
    assert kinds[-1] == "completed"
    assert story["projection"]["equal"]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_demo_stops_everything(tmp_path: Path) -> None:
    running = start_eventq("demo", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert running.stderr is not None
    told = list(takewhile(lambda line: not line.startswith("submitted"), running.stderr))
    assert running.poll() is None, "".join(told)
    running.send_signal(signal.SIGINT)
    _, rest = running.communicate(timeout=30)
    assert running.returncode == ExitCode.INTERRUPTED
    assert "broker: exited normally" in rest
    assert list(tmp_path.iterdir()) == []


def _finished(status: str, result: Any = None) -> dict[str, Any]:
    return {"status": status, "result": result, "error": None, "version": 3}


def test_a_wrong_result_is_noticed() -> None:
    job = next(job for job in make_jobs(gpu=False) if job.file is not None)
    _, total = make_csv(",", "utf-8", seed=1)
    right = {"total_rows": CSV_ROWS, "delimiter": ",", "statistics": {"sum": total}}
    assert verdict_of(job, _finished("COMPLETED", right)).right
    assert not verdict_of(job, _finished("COMPLETED", {**right, "statistics": {"sum": total + 1}})).right
    assert not verdict_of(job, _finished("FAILED")).right


@pytest.mark.parametrize(
    ("status", "result", "equal", "code"),
    [
        ("COMPLETED", 42, True, ExitCode.DONE),
        ("COMPLETED", 41, True, ExitCode.FAILED),
        ("COMPLETED", 42, False, ExitCode.FAILED),
        ("FAILED", None, True, ExitCode.FAILED),
        ("RUNNING", None, True, ExitCode.WAIT_TIMED_OUT),
    ],
)
def test_only_right_results_and_equal_tables_are_a_success(status: str, result: Any, equal: bool, code: ExitCode) -> None:
    echo = next(job for job in make_jobs(gpu=False) if job.task_name == "echo")
    story = Story([echo], {"id": _finished(status, result)}, proof={"equal": equal})
    assert story.exit_code == code


def test_nobody_s_settings_reach_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVENTQ_NATS_URL", "nats://production:4222")
    (tmp_path / "eventq.toml").write_text('blob_url = "s3://production/blobs"\n')
    settings = demo_settings(tmp_path)
    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert settings.blobs == (tmp_path / "blobs").as_uri()
