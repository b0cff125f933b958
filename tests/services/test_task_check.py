"""Task modules are looked at before anything starts: what is wrong is told in a line or two, what is found by pool."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from eventq.services.cli_exit import ExitCode
from eventq.services.task_check import TaskFileMissing, TasksUnusable, check_modules, served_and_not
from tests.services.command import eventq, start_eventq

HEAD = "from eventq import task\n"
WRONG = {
    "unannotated": (HEAD + "@task\ndef work(a): pass\n", "annotate it"),
    "argument": (HEAD + "@task(retries=3)\ndef work(a: int): pass\n", "unexpected keyword argument 'retries'"),
    "syntax": ("def work(:\n", "SyntaxError"),
    "no_task": ("print('hello')\n", "no function decorated with @task"),
    "leaves": ("import os\nos._exit(3)\n", "ended the process"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_module_starts_nothing(tmp_path: Path, name: str) -> None:
    code, said = WRONG[name]
    (tmp_path / f"{name}.py").write_text(code)
    with pytest.raises(TasksUnusable, match=said) as caught:
        check_modules([str(tmp_path / f"{name}.py")])
    assert len(caught.value.detail.splitlines()) < 6


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(TaskFileMissing):
        check_modules([str(tmp_path / "none.py")])
    done = eventq("up", "--tasks", "none.py", "--data-dir", "data", cwd=tmp_path)
    assert (done.code, "Traceback" in done.stderr) == (ExitCode.NOT_FOUND, False)
    assert not (tmp_path / "data" / "nats").exists()


def test_a_worker_tells_of_a_module_that_it_cannot_load_as_up_does(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_at_all\n")
    address = ("--nats-url", "nats://127.0.0.1:1", "--data-dir", "data")
    missing = eventq("worker", "--tasks", "none.py", *address, cwd=tmp_path)
    assert (missing.code, "Traceback" in missing.stderr) == (ExitCode.NOT_FOUND, False)
    broken = eventq("worker", "--tasks", "broken.py", *address, cwd=tmp_path)
    assert (broken.code, "Traceback" in broken.stderr) == (ExitCode.USAGE, False)
    assert "nowhere_at_all" in broken.stderr
    assert f'File "{tmp_path / "broken.py"}", line 1' in broken.stderr


def test_tasks_that_nobody_here_would_run_are_told_apart(tmp_path: Path) -> None:
    code = HEAD + "@task(pool='special')\ndef one(): pass\n@task\ndef two(): pass\n@task(queue='slow')\ndef three(): pass\n"
    (tmp_path / "my_found_tasks.py").write_text(code + "print('not part of the answer')\n")
    found = check_modules([str(tmp_path / "my_found_tasks.py")])
    served, others = served_and_not(found, ["cpu"], ())
    assert {"echo", "two", "three"} <= set(served["cpu"])
    assert others == {"special": ["one"]}
    assert served_and_not(found, ["cpu"], ("default",))[1] == {"special": ["one"], "cpu": ["three"]}


def test_a_port_that_was_asked_for_and_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = eventq("up", "--no-gpu", "--port", str(port), "--data-dir", "data", cwd=tmp_path)
    assert done.code == ExitCode.CONFLICT
    assert f"port {port} is taken" in done.stderr


def test_up_names_what_it_loaded(tmp_path: Path) -> None:
    (tmp_path / "my_up_tasks.py").write_text(HEAD + "@task(pool='special')\ndef one(): pass\n@task\ndef two(): pass\n")
    process = start_eventq("up", "--no-gpu", "--port", "0", "--tasks", "my_up_tasks.py", "--data-dir", "data", cwd=tmp_path)
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("Ctrl-C"):
            break
    process.terminate()
    process.communicate(timeout=60)
    text = "".join(said)
    assert "tasks of pool cpu: echo" in text
    assert "two" in text
    assert "eventq worker --pool special" in text
