"""`eventq queues` and `eventq task explain` against a real API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from eventq.services.cli_exit import ExitCode
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


async def test_limits_are_set_one_by_one_shown_and_dropped(backend: Backend, run: Run) -> None:
    done = await run("queues", "set", "mail", "--max-running", "3", "--rate", "100/1m:20", "--fair", "--json")
    assert done.code == ExitCode.DONE, done.stderr
    assert done.json["limits"]["rate"] == {"limit": 100, "per_seconds": 60.0, "burst": 20}
    done = await run("queues", "set", "mail", "--max-running-per-key", "1", "--rate", "none")
    assert "max_running=3 max_running_per_key=1 fair" in done.stdout
    assert "rate=" not in done.stdout
    listed = await run("queues", "list")
    assert "mail" in listed.stdout
    assert (await run("queues", "set", "mail", "--clear", "--json")).json["limits"]["max_running"] is None
    assert backend.api.freshness.halted is None


@pytest.mark.parametrize("arguments", [(), ("--max-running", "many"), ("--rate", "fast"), ("--rate", "1/1s:x")])
async def test_limits_that_cannot_be_read_change_nothing(backend: Backend, run: Run, arguments: tuple[str, ...]) -> None:
    before = await backend.last_position()
    done = await run("queues", "set", "mail", *arguments)
    assert done.code != ExitCode.DONE
    assert done.stdout == ""
    assert await backend.last_position() == before


async def test_a_queue_is_paused_shown_and_resumed(backend: Backend, run: Run) -> None:
    await backend.submit()
    done = await run("queues", "pause", "default", "--reason", "moving house")
    assert "paused    by 127.0.0.1" in done.stdout
    assert "moving house" in (await run("queues", "show", "default")).stdout
    assert "paused" in (await run("queues", "list")).stdout
    assert (await run("queues", "resume", "default", "--json")).json["paused"] is False
    assert (await run("queues", "show", "nowhere", "--json")).code != ExitCode.DONE


async def test_why_a_task_waits_is_told_in_sentences(backend: Backend, run: Run) -> None:
    task_id = (await backend.submit())["task_id"]
    done = await run("task", "explain", task_id)
    assert done.stdout.startswith("PENDING\nno_worker: ")
    assert "no start can be predicted: no worker serves its queue" in done.stdout
    assert (await run("task", "explain", task_id, "--json")).json["reasons"][0]["code"] == "no_worker"
