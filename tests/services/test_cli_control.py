"""`eventq task pause|resume|update|bulk`, `eventq dead-letters` and the options of `eventq submit` against a real API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from eventq.services.cli_exit import ExitCode
from eventq.services.http_limits import MIB
from tests.services.backend import Backend
from tests.services.command import Done, eventq

Run = Callable[..., Awaitable[Done]]


@pytest.fixture
def run(backend: Backend) -> Run:
    """The command, told where the API is."""
    url = str(backend.client.make_url("/")).rstrip("/")

    async def run(*arguments: str) -> Done:
        return await asyncio.to_thread(eventq, *arguments, "--api", url)

    return run


async def test_every_option_of_a_submission_arrives(backend: Backend, run: Run) -> None:
    options = ["--queue-timeout", "1m", "--heartbeat-timeout", "5", "--result-ttl", "1d", "--key", "ada", "--tag", "x"]
    options += ["--meta", "ticket=4711", "--retry", '{"initial_s": 5}', "--idempotency-key", "k1"]
    first = await run("submit", "resize", "-k", "width=3", *options, "--json")
    assert first.code == ExitCode.DONE, first.stderr
    second = await run("submit", "resize", "-k", "width=3", *options, "--json")
    assert second.json == first.json
    _, read = await backend.get(f"/tasks/{first.json['task_id']}")
    assert (read["queue_timeout_seconds"], read["heartbeat_timeout_seconds"], read["result_ttl_seconds"]) == (60, 5, 86400)
    assert (read["key"], read["tags"], read["metadata"]) == ("ada", ["x"], {"ticket": "4711"})
    other = await run("submit", "resize", "-k", "width=4", *options)
    assert other.code == ExitCode.USAGE
    assert "IDEMPOTENCY_KEY_REUSED" in other.stderr


async def test_a_unique_task_is_answered_instead_of_a_second(run: Run) -> None:
    ids = {(await run("submit", "resize", "-k", "width=3", "--unique")).stdout for _ in range(2)}
    assert len(ids) == 1


async def test_a_task_is_paused_updated_and_resumed(backend: Backend, run: Run) -> None:
    task_id = (await backend.submit())["task_id"]
    assert "PAUSED" in (await run("task", "pause", task_id, "--reason", "wait")).stdout
    done = await run("task", "update", task_id, "--priority", "9", "--tag", "x", "--if-version", "2", "--json")
    assert (done.code, done.json["version"]) == (ExitCode.DONE, 3), done.stderr
    assert (await run("task", "update", task_id, "--priority", "8", "--if-version", "2")).code == ExitCode.CONFLICT
    assert (await run("task", "update", task_id)).code == ExitCode.USAGE
    assert "PENDING" in (await run("task", "resume", task_id)).stdout


async def test_bulk_says_what_it_would_do_and_does_it_when_told(backend: Backend, run: Run) -> None:
    ids = [(await backend.submit(tags=["x"]))["task_id"] for _ in range(2)]
    await backend.submit(tags=["y"])
    preview = await run("task", "bulk", "cancel", "--tag", "x")
    assert "would cancel 2 tasks;" in preview.stdout
    assert "would cancel 1 task;" in (await run("task", "bulk", "cancel", "--tag", "y")).stdout
    assert "would resume 0 tasks; 1 more does not admit it;" in (await run("task", "bulk", "resume", "--tag", "y")).stdout
    assert (await run("task", "bulk", "cancel")).code == ExitCode.USAGE
    done = await run("task", "bulk", "cancel", "--tag", "x", "--yes", "--json")
    assert (done.code, done.json["done"]) == (ExitCode.DONE, 2)
    assert {task["task_id"] for task in done.json["tasks"]} == set(ids)


async def test_a_refusal_names_all_that_is_wrong_with_limits_and_what_was_found(backend: Backend, run: Run) -> None:
    done = await run("submit", "resize", "-k", "width=3", "--priority", "11", "--max-retries", "-1")
    assert done.code == ExitCode.USAGE
    assert done.stderr.splitlines() == [
        "error INVALID_INPUT: /priority: should be less than or equal to 10",
        "found: 11",
        "also /max_retries: should be greater than or equal to 0",
    ]
    assert (await run("submit", "resise")).stderr.splitlines()[1:] == ["found: resise", "hint: did you mean 'resize'?"]


async def test_dead_letters_are_listed_and_redriven(backend: Backend, run: Run) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.fail(task_id)
    await backend.api.freshness.wait_for_position(await backend.last_position(), 5)
    assert task_id in (await run("dead-letters", "list")).stdout
    assert (await run("dead-letters", "redrive")).code == ExitCode.USAGE
    done = await run("dead-letters", "redrive", task_id, "--json")
    assert (done.code, done.json["redriven"]) == (ExitCode.DONE, 1)
    assert (await run("dead-letters", "list", "--json")).json["total"] == 0


async def test_a_file_of_tasks_is_submitted_and_refusals_are_told(backend: Backend, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tasks.ndjson"
    good, bad = '{"task_name": "resize", "task_kwargs": {"width": 3}}', '{"task_name": "resize", "task_kwargs": {"width": 0}}'
    file.write_text(f"{good}\n\n{bad}\n{{broken\n{good}\n")
    done = await run("submit-batch", str(file))
    assert (done.code, len(done.stdout.splitlines())) == (ExitCode.FAILED, 2)
    assert "line 3: /task_kwargs/width" in done.stderr
    assert "line 4: body: is not JSON" in done.stderr
    lines = (await run("submit-batch", str(file), "--json")).lines
    assert lines[-1] == {"accepted": 2, "refused": 2}
    assert (await run("submit-batch", str(tmp_path / "none"))).code == ExitCode.NOT_FOUND
    assert (await backend.get("/tasks"))[1]["total"] == 4


async def test_a_file_that_is_not_read_to_its_end_is_no_success(backend: Backend, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tasks.ndjson"
    file.write_text('{"task_name": "resize", "task_kwargs": {"width": 3}}\n' + "x" * 4 * MIB)
    done = await run("submit-batch", str(file))
    assert (done.code, len(done.stdout.splitlines())) == (ExitCode.FAILED, 1)
    assert "the rest is not read: body: is larger than 1048576 bytes" in done.stderr


async def test_a_finished_task_is_cleaned_up_and_erased_and_erasing_asks_first(backend: Backend, run: Run) -> None:
    task_id = (await backend.submit())["task_id"]
    assert (await run("task", "delete", task_id)).code == ExitCode.CONFLICT
    await backend.complete(task_id, {"ok": True})
    assert "cleaned up" in (await run("task", "delete", task_id)).stdout
    refused = await run("task", "erase", task_id)
    assert (refused.code, "--yes" in refused.stderr) == (ExitCode.USAGE, True)
    done = await run("task", "erase", task_id, "--yes", "--reason", "asked to", "--json")
    assert (done.code, done.json["status"]) == (ExitCode.DONE, "COMPLETED"), done.stderr
    _, read = await backend.get(f"/tasks/{task_id}")
    assert (read["cleaned"], read["erased"], read["task_kwargs"]) == (True, True, {})
