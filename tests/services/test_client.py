"""The Python client against the real API."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eventq.events.errors import IllegalTransition, InvalidInput, TaskNotFound, Unavailable, UnknownTask
from eventq.events.ids import new_id
from eventq.services.client import Client
from tests.services.backend import Backend


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[Client]:
    async with Client(f"http://127.0.0.1:{backend.client.port}") as client:
        yield client


async def test_submit_wait_and_look(backend: Backend, client: Client) -> None:
    task_id = (await client.submit("resize", {"width": 5}, priority=8)).task_id
    assert (await client.get(task_id)).status == "PENDING"
    waiting = asyncio.create_task(client.wait(task_id, timeout_s=10))
    await backend.complete(task_id, {"ok": 1})
    assert (await waiting).result == {"ok": 1}
    story = await client.timeline(task_id)
    assert [event.event_type for event in story.events] == ["submitted", "started", "completed"]
    assert (await client.list(status=["COMPLETED", "FAILED"], priority=8)).total == 1
    assert (await client.list(status="PENDING")).total == 0
    assert (await client.get(task_id, as_of=datetime.now(UTC))).status == "COMPLETED"


async def test_wait_has_a_bound(client: Client) -> None:
    task_id = (await client.submit("echo", scheduled_at=datetime.now(UTC) + timedelta(hours=1))).task_id
    with pytest.raises(TimeoutError, match="SCHEDULED"):
        await client.wait(task_id, timeout_s=0.1)


async def test_cancel_retry_replay_and_compare(backend: Backend, client: Client) -> None:
    task_id = (await client.submit("resize", args=[5])).task_id
    assert (await client.cancel(task_id, reason="why not")).status == "CANCELLED"
    again = await client.retry(task_id)
    await backend.complete(again.task_id)
    await client.wait(again.task_id, timeout_s=10)
    third = await client.replay(again.task_id)
    assert third.original_task_id == again.task_id
    assert (await client.compare(again.task_id, third.task_id)).same_args is True


async def test_refusals_are_raised_as_what_they_are(client: Client) -> None:
    with pytest.raises(UnknownTask) as unknown:
        await client.submit("resise")
    assert unknown.value.fields["hint"] == "did you mean 'resize'?"
    with pytest.raises(InvalidInput) as invalid:
        await client.submit("resize", {"width": 0})
    assert (invalid.value.fields["field"], invalid.value.fields["limit"]) == ("/task_kwargs/width", 1)
    with pytest.raises(TaskNotFound):
        await client.get(new_id())
    task_id = (await client.submit("resize", {"width": 5})).task_id
    with pytest.raises(IllegalTransition):
        await client.retry(task_id)


async def test_an_absent_server_is_unavailable() -> None:
    async with Client("http://127.0.0.1:9", timeout_s=2) as client:
        with pytest.raises(Unavailable):
            await client.health()


async def test_files_go_up_and_come_down(backend: Backend, client: Client, tmp_path: Path) -> None:
    source, target = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(b"0123456789" * 100_000)
    blob = await client.upload(source, media_type="text/plain")
    assert blob.size_bytes == 1_000_000
    assert await client.download(blob, target) == 1_000_000
    assert target.read_bytes() == source.read_bytes()
    assert (await client.upload(source.read_bytes())).key == blob.key
    assert (await client.health()).checks["database"] == "healthy"


def test_importing_the_client_loads_no_http_library() -> None:
    code = "import sys, eventq.services.client; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_what_the_tasks_of_a_batch_raise_is_raised(client: Client) -> None:
    """Given tasks that come from somewhere else, when that fails, then it is not called trouble with the API."""

    def tasks() -> Iterator[dict[str, Any]]:
        yield {"task_name": "echo"}
        raise FileNotFoundError("no more tasks")

    with pytest.raises(FileNotFoundError, match="no more tasks"):
        async for _ in client.submit_batch(tasks()):
            pass
