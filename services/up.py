"""`eventq up`: every process of one machine.

    broker -> streams -> api -> scheduler -> workers        and back again to stop

Each is the same command that production runs, told by `EVENTQ_*` variables what is where. Ports are the usual ones when
they are free and any others when they are not; `run.json` in the data directory tells them to the other commands.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec

import aiohttp

from eventq.events.errors import Conflict
from eventq.events.subjects import EVENTS
from eventq.services.embedded import EmbeddedBroker, free_port
from eventq.services.processes import open_log
from eventq.services.run_file import Run, remove_run, started_ticks, write_run
from eventq.services.settings import Settings
from eventq.services.supervisor import STOP_S, ManagedProcess, Report, Supervisor

NATS_PORT, MONITOR_PORT = 4222, 8222

CATCH_UP_S = 30.0
POLL_S = 0.05

LOG_SHARE_OF_DISK = 0.4
"""At most this part of the free disk is promised to a new event log; progress, blobs and the projection need the rest."""


class PortTaken(Conflict):
    """Something else listens on the port that was asked for."""

    code = "PORT_TAKEN"


@dataclass(frozen=True, slots=True)
class Instance:
    """What runs: its addresses, and the settings that its processes got."""

    api_url: str
    settings: Settings


Body = Callable[[Instance], Awaitable[None]]


async def up(
    settings: Settings,
    report: Report,
    body: Body | None = None,
    *,
    any_ports: bool = False,
    this_port: bool = False,
    gpu: bool | None = None,
) -> int:
    """Start everything, run `body` (None: stay until a signal), stop everything. Returns the exit code: 0, or 130 when killed.

    `report` gets a line for people about each process. `any_ports` takes no usual port even when it is free;
    `this_port` takes the API's port and no other. `gpu` None: a GPU worker is started when torch is installed. Raises
    `DataDirInUse`, `PortTaken`, or what kept a process from becoming ready.
    """
    supervisor = Supervisor(report)

    async def work() -> None:
        pools = worker_pools(gpu)
        broker = _broker(settings, any_ports=any_ports)
        await broker.claim()  # before ports: where the directory is in use, it is often its own instance that has them
        try:
            port = _api_port(0 if any_ports else settings.api_port, report, this_port=this_port)
        except BaseException:
            await broker.stop()
            raise
        instance = await start_tree(supervisor, broker, settings.model_copy(update={"api_port": port}), pools=pools)
        await (body(instance) if body else asyncio.Event().wait())

    try:
        return await supervisor.run(work())
    finally:
        remove_run(settings.data_dir)


async def start_tree(supervisor: Supervisor, broker: EmbeddedBroker, settings: Settings, *, pools: Sequence[str]) -> Instance:
    """Start the processes in order and write `run.json`, now and whenever process ids change. The API's port is free."""
    await supervisor.start(broker)
    settings = settings.model_copy(
        update={
            "nats_url": broker.url,
            "nats_monitor_url": broker.monitor_url,
            "nats_system_url": broker.system_url,
            "accept_lazy_sync": False,
            "replicas": 1,
            "data_dir": settings.data_dir.resolve(),
            "stream_max_bytes": _fitting_bytes(settings),
        }
    )
    instance = Instance(f"http://127.0.0.1:{settings.api_port}", settings)
    await _create_streams(settings)
    await supervisor.start(_process("api", settings))
    await supervisor.start(_process("scheduler", settings))
    await supervisor.start(*(_worker(pool, settings) for pool in pools))
    await _caught_up(instance)
    supervisor.changed = lambda: _write_run_file(supervisor, instance)
    supervisor.changed()
    return instance


def _broker(settings: Settings, *, any_ports: bool) -> EmbeddedBroker:
    return EmbeddedBroker(
        settings.data_dir,
        port=-1 if any_ports else NATS_PORT,
        monitor_port=-1 if any_ports else MONITOR_PORT,
    )


def worker_pools(gpu: bool | None) -> list[str]:
    """The pools that get a worker here. `gpu` None: the GPU's as well when torch is installed."""
    return ["cpu", "gpu"] if (has_torch() if gpu is None else gpu) else ["cpu"]


def _api_port(wanted: int, report: Report, *, this_port: bool) -> int:
    found = free_port(wanted)
    if wanted not in (0, found):
        if this_port:
            hint = "stop what listens there, name another, or leave --port out to take any free one"
            raise PortTaken(f"port {wanted} is taken", port=wanted, hint=hint)
        report(f"api: port {wanted} is taken, so it listens on {found}")
    return found


def has_torch() -> bool:
    """Whether torch could be imported; looking does not load it."""
    return find_spec("torch") is not None


def _process(
    name: str, settings: Settings, *, stop_s: float = STOP_S, extra: Mapping[str, str] | None = None
) -> ManagedProcess:
    command = name.partition("-")[0]
    return ManagedProcess(
        name,
        # -P: the working directory, which may hold modules called as ours are, is no place to import from.
        [sys.executable, "-P", "-m", "eventq.services.cli", command],
        environment={**settings.environment(), **(extra or {})},
        log_file=settings.data_dir / "logs" / f"{name}.log",
        stop_s=stop_s,
    )


def _worker(pool: str, settings: Settings) -> ManagedProcess:
    return _process(f"worker-{pool}", settings, stop_s=settings.grace_s + STOP_S, extra={"EVENTQ_POOL": pool})


async def _create_streams(settings: Settings) -> None:
    async with open_log(settings, "up"):
        pass


async def _caught_up(instance: Instance) -> None:
    """Wait until the API's reads include what the workers said of themselves: before, it knows none of their tasks.

    After `CATCH_UP_S` it goes on: a long log is being folded, and the API answers `lagging` until it has been.
    """
    async with open_log(instance.settings, "up") as log:
        facts = await log.broker.stream_facts(EVENTS)
    with suppress(TimeoutError):
        async with asyncio.timeout(CATCH_UP_S), aiohttp.ClientSession(instance.api_url) as session:
            query = {"limit": "1", "min_position": str(facts.last if facts else 0)}
            while True:
                async with session.get("/api/v1/tasks", params=query) as answer:  # waits itself, then answers 503
                    if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                        return
                await asyncio.sleep(POLL_S)


def _fitting_bytes(settings: Settings) -> int:
    """The log's size limit: as set, but no promise that this disk cannot keep."""
    free = shutil.disk_usage(settings.data_dir).free
    return min(settings.stream_max_bytes, int(free * LOG_SHARE_OF_DISK))


def _write_run_file(supervisor: Supervisor, instance: Instance) -> None:
    write_run(
        instance.settings.data_dir,
        Run(
            pid=os.getpid(),
            started_ticks=started_ticks(os.getpid()),
            api_url=instance.api_url,
            nats_url=instance.settings.nats_url,
            nats_monitor_url=instance.settings.nats_monitor_url,
            processes=supervisor.pids(),
        ),
    )
