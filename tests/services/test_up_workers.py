"""Workers of `eventq up`: one that was drained stays away, one that was killed is found lost and started again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from eventq.services.run_file import read_run
from eventq.services.settings import load_settings
from eventq.services.up import Instance, up
from tests.support.poll import eventually


async def the_worker(session: aiohttp.ClientSession, status: str) -> dict[str, Any] | None:
    """The only worker of this status, once there is one."""
    async with session.get("/api/v1/workers", params={"status": status}) as answer:
        page = await answer.json()
    return page["workers"][0] if answer.status == 200 and page["total"] == 1 else None


async def test_a_killed_worker_is_lost_and_replaced_and_a_drained_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(data_dir=tmp_path / "data", grace_s=2.0).settings
    lines: list[str] = []

    async def body(instance: Instance) -> None:
        run = read_run(tmp_path / "data")
        assert run is not None
        async with aiohttp.ClientSession(instance.api_url) as session:
            first = await eventually(lambda: the_worker(session, "ACTIVE"))
            os.kill(run.processes["worker-cpu"], signal.SIGKILL)
            lost = await eventually(lambda: the_worker(session, "LOST"), 30)
            assert (lost["worker_id"], lost["end_reason"]) == (first["worker_id"], "disconnected")
            second = await eventually(lambda: the_worker(session, "ACTIVE"), 30)
            async with session.post(f"/api/v1/workers/{second['worker_id']}/drain") as answer:
                assert answer.status == 200
            await eventually(lambda: any("its work is done" in line for line in lines), 30)
            stopped = await eventually(lambda: the_worker(session, "STOPPED"))
            assert (stopped["worker_id"], stopped["end_reason"]) == (second["worker_id"], "drained")
            again = read_run(tmp_path / "data")
            assert again is not None
            assert "worker-cpu" not in again.processes

    assert await up(settings, lines.append, body, any_ports=True, gpu=False) == 0
    assert sum("worker-cpu: ready" in line for line in lines) == 2
