"""`eventq up` for real: the whole tree comes up, survives its broker, is found by others, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from eventq.services.cli_exit import ExitCode
from eventq.services.embedded import DataDirInUse, EmbeddedBroker
from eventq.services.run_file import Run, read_run
from eventq.services.settings import load_settings
from eventq.services.up import Instance, PortTaken, up
from tests.support.poll import eventually
from tests.support.processes import alive, dead


async def runs_a_task(api_url: str) -> bool:
    """Submit an `echo` and wait, boundedly, for its end."""
    async with aiohttp.ClientSession(api_url) as session:
        task = {"task_name": "echo", "task_kwargs": {"value": 1}}
        try:
            async with session.post("/api/v1/tasks", json=task) as answer:
                assert answer.status < 300, await answer.text()
                task_id = (await answer.json())["task_id"]
        except aiohttp.ClientError as error:
            raise AssertionError(repr(error)) from error

        async def completed() -> bool:
            async with session.get(f"/api/v1/tasks/{task_id}") as answer:
                return answer.status == 200 and (await answer.json())["status"] == "COMPLETED"

        return await eventually(completed, 30)


async def test_it_survives_its_broker_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(data_dir=tmp_path / "data", grace_s=2.0).settings
    lines: list[str] = []
    seen: list[Run] = []

    async def body(instance: Instance) -> None:
        run = read_run(tmp_path / "data")
        assert run is not None
        assert (run.pid, run.api_url) == (os.getpid(), instance.api_url)
        assert set(run.processes) == {"broker", "api", "scheduler", "worker-cpu"}
        assert all(alive(pid) for pid in run.processes.values())
        seen.append(run)
        assert await runs_a_task(instance.api_url)

        os.kill(run.processes["broker"], signal.SIGKILL)
        await eventually(lambda: (again := read_run(tmp_path / "data")) is not None and again.processes != run.processes)
        await eventually(partial(runs_a_task, instance.api_url), 60)

        command = [sys.executable, "-P", "-m", "eventq.services.cli", "up", "--data-dir", str(tmp_path / "data")]
        second = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, complaint = await second.communicate()
        assert second.returncode == ExitCode.CONFLICT
        assert f"in use by process {os.getpid()}" in complaint.decode()
        assert read_run(tmp_path / "data") is not None

    assert await up(settings, lines.append, body, any_ports=True, gpu=False) == 0

    (run,) = seen
    assert all(dead(pid) for pid in run.processes.values())
    assert read_run(tmp_path / "data") is None
    assert [line.partition(":")[0] for line in lines[:4]] == ["broker", "api", "scheduler", "worker-cpu"]
    assert [line for line in lines if "exited normally" in line][-1] == "broker: exited normally"


async def test_a_directory_in_use_is_told_before_anything_of_ports(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = load_settings(data_dir=tmp_path, api_port=other.getsockname()[1]).settings
        lines: list[str] = []
        async with EmbeddedBroker(tmp_path):
            for this_port in (False, True):
                with pytest.raises(DataDirInUse):
                    await up(settings, lines.append, gpu=False, this_port=this_port)
        assert lines == []
        for _ in range(2):  # the first has let go of the directory
            with pytest.raises(PortTaken):
                await up(settings, lines.append, gpu=False, this_port=True)
