"""The test bed: a broker and processes of eventq on loopback, in a temporary directory, all gone at the end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.services import child
from eventq.services.embedded import EmbeddedBroker, Sync, free_port
from eventq.services.settings import PREFIX, Settings
from eventq.services.supervisor import ManagedProcess

HERE = Path(__file__).resolve().parent
LOAD_MAX_S = 600.0
CONCURRENCY = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: ``runs`` of each figure, on each of ``syncs``; ``quick``: sizes that only show that it works."""

    runs: int
    quick: bool
    syncs: tuple[Sync, ...]
    note: Callable[[str], None]

    def size(self, usual: int, quick: int) -> int:
        """How many of something."""
        return quick if self.quick else usual


class Bed:
    """Made by :func:`open_bed`."""

    def __init__(self, folder: Path, server: EmbeddedBroker, sync: Sync, stack: AsyncExitStack) -> None:
        self.server = server
        self.settings = Settings.model_validate(
            {
                "nats_url": server.url,
                "nats_monitor_url": server.monitor_url,
                "nats_system_url": server.system_url,
                "accept_lazy_sync": sync == "default",
                "data_dir": folder,
                "concurrency": CONCURRENCY,
                "task_modules": [str(HERE / "bench_tasks.py")],
                "log_level": "warning",
            }
        )
        self._stack = stack

    async def start_api(self) -> tuple[ManagedProcess, str]:
        """The API with its projector; answers its base URL too."""
        self.settings = self.settings.model_copy(update={"api_port": free_port()})
        return await self.start("api"), f"http://127.0.0.1:{self.settings.api_port}"

    async def start(self, role: str) -> ManagedProcess:
        """A process of eventq, as ``eventq up`` starts it, ready."""
        return await self._started(role, [sys.executable, "-P", "-m", "eventq.services.cli", role])

    async def start_bare_server(self) -> str:
        """The HTTP baseline's base URL."""
        port = free_port()
        await self._started("bare", _own_process("bare_server", str(port)))
        return f"http://127.0.0.1:{port}"

    async def declare(self) -> None:
        """Have a worker come and go: the log then knows the task, and nobody runs it."""
        await (await self.start("worker")).stop()

    async def load(self, kind: str, **arguments: Any) -> dict[str, Any]:
        """Run a load generator of ``load.py`` in a process of its own; answers what it found."""
        command = _own_process("load", kind, json.dumps(arguments))
        process = await asyncio.create_subprocess_exec(
            *child.dying_with_parent(command), stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        try:
            async with asyncio.timeout(LOAD_MAX_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                child.kill_group(process.pid)
                await process.wait()
        if process.returncode:
            raise RuntimeError(f"the load generator {kind!r} {child.describe_exit(process.returncode)}")
        found: dict[str, Any] = json.loads(output)
        return found

    async def _started(self, name: str, command: list[str]) -> ManagedProcess:
        process = ManagedProcess(
            name, command, environment=self.settings.environment(), log_file=self.settings.data_dir / "logs" / f"{name}.log"
        )
        self._stack.push_async_callback(process.stop)
        await process.start()
        return process


def _own_process(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this folder."""
    return [sys.executable, "-P", str(HERE / "__main__.py"), "--process", module, *arguments]


@asynccontextmanager
async def open_bed(sync: Sync) -> AsyncGenerator[Bed]:
    """A fresh broker with its streams, and nothing else yet."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]  # the caller's settings are not the benchmark's
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eventq-bench-")))
        server = await stack.enter_async_context(EmbeddedBroker(folder, sync=sync))
        async with await Broker.connect(server.url, name="bench") as broker:
            await bootstrap(broker, BrokerConfig(accept_lazy_sync=True))
        yield Bed(folder, server, sync, stack)
