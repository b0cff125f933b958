"""`eventq demo`: the whole product in half a minute, on real input, leaving nothing behind.

It starts the same processes as `eventq up`, on ports of their own and on nobody's settings, so that it works beside
anything. Every result is compared with what it must be; the tables are proven equal to the log at the end. A demo that
shows a wrong number fails.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventq.services.cli_exit import ExitCode
from eventq.services.cli_processes import running_view
from eventq.services.client import FINISHED, Client
from eventq.services.demo_jobs import Job, Verdict, make_jobs
from eventq.services.embedded import make_data_dir
from eventq.services.logs import configure_logs
from eventq.services.output import Output, span, status_text
from eventq.services.settings import Settings
from eventq.services.task_render import plain_table, progress_text, run_s, timeline_view
from eventq.services.task_watch import bar_position
from eventq.services.up import Instance, up

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

    from eventq.services.answers import SubmitAnswer

BUDGET_S = 45.0
"""For the tasks; starting, proving and stopping take some seconds more."""

POLL_S = 0.1
TASK_MODULE = "eventq.services.demo_tasks"

Json = Mapping[str, Any]


@dataclass(slots=True)
class Story:
    """What one demo has seen so far."""

    jobs: list[Job]
    tasks: dict[str, Json] = field(default_factory=dict[str, Json])
    """By task id, in the order of ``jobs``."""
    timeline: Json | None = None
    proof: Json | None = None
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether every task has ended, whichever way."""
        return len(self.tasks) == len(self.jobs) and all(task["status"] in FINISHED for task in self.tasks.values())

    @property
    def exit_code(self) -> ExitCode:
        """Done only where every result is right and the tables are the fold of the log."""
        if not self.finished:
            return ExitCode.WAIT_TIMED_OUT
        right = all(verdict_of(job, task).right for job, task in zip(self.jobs, self.tasks.values(), strict=True))
        return ExitCode.DONE if right and self.proof is not None and self.proof["equal"] else ExitCode.FAILED


def demo(output: Output, *, data_dir: Path | None = None, gpu: bool = False) -> ExitCode:
    """Run it. ``data_dir``: where to work and leave everything; ``None``: in a temporary directory that is deleted."""
    configure_logs("error")  # what happens is reported in words; each process has its own log
    with _folder(data_dir) as folder:
        story = Story(make_jobs(gpu=gpu))
        settings = demo_settings(folder)
        killed = asyncio.run(_run(settings, story, output, gpu))
        if killed or story.proof is None:
            return ExitCode.INTERRUPTED
    output.show(_answer(story), lambda: _what_next(data_dir))
    return story.exit_code


def demo_settings(folder: Path) -> Settings:
    """Defaults, and nothing from the environment or a file; what has no default is given, for children would look there."""
    wanted = {
        "data_dir": folder,
        "blob_url": (folder / "blobs").as_uri(),
        "task_modules": (TASK_MODULE,),
        "concurrency": os.cpu_count() or 1,
        "grace_s": 5.0,
    }
    return Settings.model_validate(wanted)


async def _run(settings: Settings, story: Story, output: Output, gpu: bool) -> bool:
    """Start, play, stop. True where a second signal made it kill."""
    output.note(f"starting broker, API, scheduler and worker in {settings.data_dir}", "dim")

    async def body(instance: Instance) -> None:
        if not output.as_json:
            output.stdout.print(running_view(instance))
        async with Client(instance.api_url) as client:
            await _play(client, story, output)

    return await up(settings, lambda line: output.note(line, "dim"), body, any_ports=True, gpu=gpu) != 0


async def _play(client: Client, story: Story, output: Output) -> None:
    began = time.monotonic()
    accepted = await asyncio.gather(*(_submit(client, job) for job in story.jobs))
    ids = [answer.task_id for answer in accepted]
    output.note(f"submitted {len(ids)} tasks, {sum(job.file is not None for job in story.jobs)} with a file of their own")
    with Board(output, story.jobs) as board:
        while not story.finished and time.monotonic() - began < BUDGET_S:
            page = (await client.list(limit=len(ids))).model_dump(mode="json")
            tasks = {task["task_id"]: task for task in page["tasks"]}
            story.tasks = {task_id: tasks[task_id] for task_id in ids if task_id in tasks}
            board.show(list(story.tasks.values()))
            await asyncio.sleep(POLL_S)
    story.seconds = time.monotonic() - began
    story.timeline = (await client.timeline(ids[_most_eventful(story)])).model_dump(mode="json")
    story.proof = (await client.verify_projection()).model_dump(mode="json")
    if not output.as_json:
        output.stdout.print(_findings(story))


async def _submit(client: Client, job: Job) -> SubmitAnswer:
    kwargs = dict(job.kwargs)
    if job.file is not None:
        kwargs["blob"] = (await client.upload(job.file, media_type=job.media_type)).key
    at = datetime.now(UTC) + timedelta(seconds=job.delay_s) if job.delay_s else None
    return await client.submit(job.task_name, kwargs, scheduled_at=at)


def verdict_of(job: Job, task: Json) -> Verdict:
    """What a task's end is worth; one that did not complete is never right."""
    if task["status"] != "COMPLETED":
        error = task["error"]
        return Verdict(f"{error['type']}: {error['message']}" if error else "", False)
    return job.judge(task["result"])


class Board:
    """Every task with a live bar; where bars cannot move, a line for each change of status."""

    def __init__(self, output: Output, jobs: list[Job]) -> None:
        self._output = output
        self._jobs = jobs
        self._bars = output.progress()
        self._rows: list[TaskID] = []
        self._told: list[str] = ["" for _ in jobs]

    def __enter__(self) -> Board:
        self._bars.start()
        self._rows = [self._bars.add_task(f"{job.label:<34}", total=None, state="") for job in self._jobs]
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, tasks: list[Json]) -> None:
        """Draw the newest state of each task."""
        for number, task in enumerate(tasks):
            status = task["status"]
            text = f"{status:<10} {progress_text(task['progress'])}"
            completed, total = bar_position(task)
            self._bars.update(self._rows[number], state=text, completed=completed, total=total)
            if status != self._told[number] and not self._output.animated:
                self._output.note(f"{self._jobs[number].label}: {text.strip()}")
            if status in FINISHED and self._told[number] != status:
                self._bars.stop_task(self._rows[number])
            self._told[number] = status


def _most_eventful(story: Story) -> int:
    """The task with the longest story: the one that was retried."""
    versions = [task["version"] for task in story.tasks.values()]
    return versions.index(max(versions)) if versions else 0


def _findings(story: Story) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text("\nResults, each compared with what was put in", "bold"), _results(story)]
    if story.timeline is not None:
        parts += [Text(f"\nThe story of one task, {story.timeline['task_id']}", "bold"), timeline_view(story.timeline)]
    if story.proof is not None:
        parts += [Text("\nThe tables, folded again from the log and compared", "bold"), _proof(story.proof)]
    return Group(*parts)


def _results(story: Story) -> RenderableType:
    from rich.text import Text

    table = plain_table("job", "status", "attempt", "took", "result", "right")
    for job, task in zip(story.jobs, story.tasks.values(), strict=False):
        verdict = verdict_of(job, task)
        mark = Text("yes", "green") if verdict.right else Text("NO", "bold red")
        table.add_row(job.label, status_text(task["status"]), str(task["attempt"]), span(run_s(task)), verdict.text, mark)
    return table


def _proof(proof: Json) -> RenderableType:
    from rich.text import Text

    tables = ", ".join(f"{name} {facts['rows']}" for name, facts in proof["tables"].items())
    if proof["equal"]:
        return Text(f"equal, over {proof['position']} events in {span(proof['seconds'])}: {tables} rows", "green")
    return Text(f"DIFFERENT: {'; '.join(each['description'] for each in proof['differences'])}", "bold red")


def _what_next(data_dir: Path | None) -> RenderableType:
    from rich.text import Text

    here = "" if data_dir is None else f" --data-dir {data_dir}"
    lines = {
        f"eventq up{here}": "start the same and stay" + ("" if data_dir is None else ", with this very history"),
        "open http://127.0.0.1:8000/docs": "try every request in the browser",
        "eventq submit csv_processing --file YOUR.csv --wait": "your own file",
        """curl -s localhost:8000/api/v1/tasks -H 'Content-Type: application/json' -d '{"task_name": "echo"}'""": "",
        "eventq task list; eventq task timeline TASK_ID": "what happened, and why",
        "nats sub 'tap.tasks.>'": "every event as it is stored, with the NATS command line",
        "eventq doctor": "is this machine fit for it?",
    }
    text = Text("\nTry next\n", "bold")
    for command, meaning in lines.items():
        text.append(f"  {command:<52}", "cyan").append(f" {meaning}\n", "dim")
    return text


def _answer(story: Story) -> dict[str, Any]:
    """The whole story for programs."""
    jobs: list[dict[str, Any]] = []
    for job, task in zip(story.jobs, story.tasks.values(), strict=False):
        verdict = verdict_of(job, task)
        jobs.append({"label": job.label, "right": verdict.right, "found": verdict.text, "task": task})
    return {
        "ok": story.exit_code == ExitCode.DONE,
        "seconds": story.seconds,
        "jobs": jobs,
        "timeline": story.timeline,
        "projection": story.proof,
    }


@contextmanager
def _folder(given: Path | None) -> Generator[Path]:
    if given is not None:
        yield make_data_dir(given)
        return
    with tempfile.TemporaryDirectory(prefix="eventq-demo-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
