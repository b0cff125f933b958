"""The documents say what is true: their code runs, their commands exist, their drawings are today's."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eventq.events.data import EventData
from eventq.events.task import ABSENT, Task, evolve
from eventq.events.task_events import Submitted
from tests.support.poll import eventually

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
BASH = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines() if line and line[0] != "#"]
START_S = 60.0


@dataclass(frozen=True)
class Instance:
    """An `eventq up` in a folder of its own, with the README's task."""

    folder: Path
    environment: dict[str, str]
    api_url: str

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_tasks.py").write_text(PYTHON[0])
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "EVENTQ_API_PORT": "0"}
    (start,) = [line for line in BASH if line.startswith("eventq up ")]
    process = subprocess.Popen(
        start.split(), cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    run_file = folder / ".eventq" / "run.json"

    def started() -> bool:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        return run_file.exists()

    try:
        eventually_sync(started)
        api_url: str = json.loads(run_file.read_text())["api_url"]
        yield Instance(folder, environment, api_url)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_the_task_of_the_readme_runs(instance: Instance) -> None:
    (submit,) = [line for line in BASH if line.startswith("eventq submit ")]
    command = re.findall(r'[^\s"]*"[^"]*"|\S+', submit)
    done = instance.run(*(part.replace('"', "") for part in command), "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert answer["result"] == {"to": 2, "be": 2}


def test_the_client_of_the_readme_runs(instance: Instance) -> None:
    script = PYTHON[1].replace("http://127.0.0.1:8000", instance.api_url)
    done = instance.run(sys.executable, "-P", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["COMPLETED", "42"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_lines_of_the_readme_work(instance: Instance) -> None:
    (block,) = [code for language, code in BLOCKS if language == "bash" and "curl" in code]
    submit, timeline = block.replace("\\\n", " ").replace("localhost:8000", instance.api_url).splitlines()
    submitted = instance.run("bash", "-c", submit)
    task_id: str = json.loads(submitted.stdout)["task_id"]
    story = json.loads(instance.run("bash", "-c", timeline.replace("TASK_ID", task_id)).stdout)
    assert story["events"][0]["event_type"] == "submitted"


def test_every_command_of_the_readme_exists_and_every_command_is_in_it() -> None:
    import typer.main

    from eventq.services.cli import app

    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue,reportUnknownArgumentType]
    rows = re.findall(r"^\| (`eventq .*?) \| ", README, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`eventq ([\w-]+)", row)}
    assert named == known


def test_the_two_commands_stand_in_the_readme_once() -> None:
    set_up = [line for line in BASH if line.startswith("python3 -m venv .venv")]
    assert len(set_up) == 2
    assert set_up[0].endswith("eventq demo")
    assert set_up[1].endswith("pytest")


def test_the_lifecycle_page_is_drawn_from_the_rules() -> None:
    done = subprocess.run([sys.executable, "-P", "docs/draw_lifecycle.py", "--check"], cwd=ROOT, timeout=60)
    assert done.returncode == 0, "run: python docs/draw_lifecycle.py"


def test_the_lifecycle_page_shows_all_that_can_happen_and_nothing_else() -> None:
    """Every task that the rules can lead to is asked, not only the situations that the drawing names."""
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_lifecycle.py"))
    now: datetime = drawing["NOW"]
    options: list[dict[str, Any]] = [{}, {"gated": True}, {"queue_timeout_s": 60.0}]
    times = (None, now + timedelta(hours=1))
    beginnings = [Submitted(**FIELDS, **given, scheduled_at=time) for given in options for time in times]
    todo, seen = [ABSENT, *(evolved(ABSENT, now, data) for data in beginnings)], set[Task]()
    found: set[tuple[str, ...]] = set()
    while todo:
        task = todo.pop()
        if task in seen:
            continue
        seen.add(task)
        for who, does, data in drawing["moves"](task):
            after = evolved(task, now, data)
            found.add((str(task.status), str(after.status), who, does, type(data).__name__))
            todo.append(after)
    assert found == {key[:5] for key in drawing["arrows"]()}


FIELDS: dict[str, Any] = {"task_name": "t", "pool": "cpu", "queue": "default", "priority": 5, "max_retries": 1}


def evolved(task: Task, at: datetime, data: EventData) -> Task:
    """The task after its next event, with the numbers that the commands of the drawing name: there are few different ones."""
    after = evolve(task, "e", at, data)
    return after._replace(version=1, spec=1, ready=min(after.ready, 1), attempt=min(after.attempt, 1), lost=())


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def eventually_sync(condition: Any) -> None:
    import asyncio

    asyncio.run(eventually(condition, START_S))
