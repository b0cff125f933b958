"""`eventq queues` and `eventq task explain` against a real API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from eventq.services import task_watch
from eventq.services.cli_exit import ExitCode
from eventq.services.client import Client
from eventq.services.output import Output
from tests.services.backend import Backend
from tests.services.command import Done, eventq
from tests.support.poll import eventually

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


async def test_who_waits_for_a_task_that_does_not_start_is_told_why_once(run: Run) -> None:
    done = await run("submit", "resize", "-k", "width=3", "--wait-timeout", "7")
    assert done.code == ExitCode.WAIT_TIMED_OUT
    told = [line for line in done.stderr.splitlines() if "waits:" in line]
    assert len(told) == 1
    assert "no worker serves the queue default of the pool cpu" in told[0]


async def test_another_reason_to_wait_is_told_as_well(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(task_watch, "WHY_AFTER_S", 0.05)
    task_id = (await backend.submit())["task_id"]
    told: list[str] = []

    def lines() -> list[str]:
        told.extend(line for line in capsys.readouterr().err.splitlines() if "waits:" in line)
        return told

    async with Client(str(backend.client.make_url("/")).rstrip("/")) as client:
        watching = asyncio.create_task(task_watch.watch_with_bar(client, task_id, Output(), 20))
        await eventually(lambda: len(lines()) == 1)
        await client.queues.pause("default", reason="for\nrepair")
        await eventually(lambda: len(lines()) == 2)
        await backend.complete(task_id)
        assert (await watching)["status"] == "COMPLETED"
    assert len(lines()) == 2
    assert "no worker serves" in told[0]
    assert "paused its queue" in told[1]
    assert "for repair; no worker serves" in told[1]
