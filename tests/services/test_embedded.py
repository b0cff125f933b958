"""The embedded broker: ready when it says so, one owner per directory, no orphans, nothing lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import nats
import pytest

from eventq.services import child
from eventq.services.embedded import BrokerNotStarted, DataDirInUse, EmbeddedBroker, free_port
from tests.support.poll import eventually, eventually_sync
from tests.support.processes import alive, dead

HOLD_A_BROKER = """
import asyncio, sys
from pathlib import Path
from eventq.services.embedded import EmbeddedBroker

async def main():
    async with EmbeddedBroker(Path(sys.argv[1])) as broker:
        print(broker.pid, broker.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def connect(url: str) -> Any:
    return await nats.connect(url)  # pyright: ignore[reportUnknownMemberType]


async def varz(broker: EmbeddedBroker, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"{broker.monitor_url}/{path}") as answer:
        return await answer.json()


async def test_it_listens_on_loopback_and_syncs_every_write(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        facts = await varz(broker, "varz")
        assert facts["host"] == "127.0.0.1"
        assert facts["http_host"] == "127.0.0.1"
        assert facts["jetstream"]["config"]["sync_always"] is True


async def test_the_benchmarks_may_choose_the_lazy_sync(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path, sync="default") as broker:
        assert "sync_always" not in (await varz(broker, "varz"))["jetstream"]["config"]


async def test_the_store_is_kept_for_the_next_start(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        client = await connect(broker.url)
        await client.jetstream().add_stream(name="S", subjects=["s"])
        await client.jetstream().publish("s", b"kept")
        await client.close()
    async with EmbeddedBroker(tmp_path) as broker:
        client = await connect(broker.url)
        assert (await client.jetstream().stream_info("S")).state.messages == 1
        await client.close()


async def test_a_restart_after_a_crash_keeps_the_address(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        before = (broker.url, broker.monitor_url)
        broker.kill()
        assert await broker.wait() == -signal.SIGKILL
        await broker.start()
        assert (broker.url, broker.monitor_url) == before


async def test_stop_is_clean_and_quick(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    await broker.start()
    await asyncio.wait_for(broker.stop(), 5)
    assert await broker.wait() == 0


async def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path):
        with pytest.raises(DataDirInUse, match=rf"in use by process {os.getpid()}.*EVENTQ_DATA_DIR"):
            await EmbeddedBroker(tmp_path).start()
    async with EmbeddedBroker(tmp_path):
        pass


async def test_a_taken_port_is_not_taken_twice(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert free_port(taken) != taken
        async with EmbeddedBroker(tmp_path, port=taken) as broker:
            assert not broker.url.endswith(f":{taken}")


async def test_a_broken_store_is_an_error_with_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "nats").mkdir()
    (tmp_path / "nats" / "jetstream").write_text("a file where a directory must be")
    broker = EmbeddedBroker(tmp_path)
    with pytest.raises(BrokerNotStarted, match="storage directory is not a directory"):
        await broker.start()
    with pytest.raises(BrokerNotStarted):  # and the lock was released: not DataDirInUse
        await EmbeddedBroker(tmp_path).start()


def test_the_broker_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-P", "-c", HOLD_A_BROKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    pid = int(holder.stdout.readline().split()[0])
    assert alive(pid)

    holder.kill()
    holder.wait(10)
    holder.stdout.close()

    eventually_sync(lambda: not alive(pid), 5, "the orphaned broker to die")


async def test_the_next_owner_waits_for_a_dying_broker(tmp_path: Path) -> None:
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", HOLD_A_BROKER, str(tmp_path), stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    await holder.stdout.readline()
    holder.kill()
    async with EmbeddedBroker(tmp_path) as broker:
        client = await connect(broker.url)
        await client.close()
    await holder.wait()


async def test_a_child_that_ignores_the_request_is_killed_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    stubborn = f'trap "" TERM; sleep 600 & echo $$ $! > {pids}; wait; while :; do sleep 600; done'
    process = await child.spawn(["bash", "-c", stubborn])
    started = await eventually(lambda: pids.read_text().split() if pids.exists() else [])

    assert await child.end(process, signal.SIGTERM, 0.2) == -signal.SIGKILL

    for pid in started:
        await eventually(partial(dead, int(pid)))


async def test_a_command_that_does_not_exist_ends_with_its_name(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = await child.spawn(["/no/such/command"], output=output)
    assert await process.wait() == 1
    assert "cannot run /no/such/command" in log.read_text()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited normally"),
        (1, "exited with code 1"),
        (2, "refused its arguments or settings"),
        (-9, "exited with code 137 (SIGKILL: killed from outside, or out of memory)"),
        (137, "exited with code 137 (SIGKILL: killed from outside, or out of memory)"),
        (-10, "exited with code 138 (SIGUSR1)"),
        (255, "exited with code 255"),
    ],
)
def test_exit_codes_are_explained(code: int, words: str) -> None:
    assert words in child.describe_exit(code)
