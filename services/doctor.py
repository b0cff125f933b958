"""`eventq doctor`: every precondition looked at, one finding each, and how to mend what is wrong.

It changes nothing: missing streams are reported, not made. Checks that need the broker are skipped where it does not
answer; one that breaks is itself a finding.
"""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.js.errors import APIError

from eventq.events.bootstrap import bootstrap, stream_configs
from eventq.events.broker import Broker, check_durability
from eventq.events.errors import BrokerUnfit, EventqError, Unavailable
from eventq.events.presence import present, unserved
from eventq.events.routes import Routes
from eventq.events.subjects import EVENTS, Route, work_consumer
from eventq.services.cli_instance import Instance, NoInstance
from eventq.services.output import size, span
from eventq.services.processes import broker_config
from eventq.workers.devices import STAND_IN, NoTorch, gpu_devices

if TYPE_CHECKING:
    from eventq.services.settings import Settings

OK, WARN, FAIL = "OK", "WARN", "FAIL"

PYTHON_MIN = (3, 11)
DISK_WARN_BYTES, DISK_FAIL_BYTES = 2 * 1024**3, 256 * 1024**2
SKEW_WARN_S, SKEW_FAIL_S = 1.0, 30.0
"""The broker fires timers by its own clock; events carry their writer's. Leases are measured on one clock and do not care."""

MONITOR_PORT_USUAL, NATS_PORT_USUAL = 8222, 4222


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. ``fix``: what to do, ``None`` where nothing needs doing."""

    status: str
    name: str
    detail: str
    fix: str | None = None


async def examine(instance: Instance) -> list[Finding]:
    """Every finding, in the order in which one would look. Raises ``SettingsError``: nothing can be looked at then."""
    settings = instance.settings
    findings = [_python(), _data_dir(settings.data_dir), _instance(instance)]
    if instance.run is None:
        findings.append(_ports(settings))
    findings += await _broker(instance, settings)
    findings.append(await _api(instance))
    findings.append(await _torch())
    return findings


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    detail = f"{found}, eventq {version('eventq')}"
    if sys.version_info[:2] < PYTHON_MIN:
        return Finding(FAIL, "python", detail, f"install Python {'.'.join(map(str, PYTHON_MIN))} or newer")
    return Finding(OK, "python", detail)


def _data_dir(folder: Path) -> Finding:
    existing = next(each for each in (folder.resolve(), *folder.resolve().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        fix = "make it writable for this user, or set EVENTQ_DATA_DIR to a directory that is"
        return Finding(FAIL, "data directory", f"{folder} cannot be written: {error.strerror}", fix)
    detail = f"{folder.resolve()}, {size(free)} free"
    status = FAIL if free < DISK_FAIL_BYTES else WARN if free < DISK_WARN_BYTES else OK
    return Finding(status, "data directory", detail, None if status == OK else "free some disk, or set EVENTQ_DATA_DIR")


def _instance(instance: Instance) -> Finding:
    run = instance.run
    if run is None:
        folder = instance.loaded.settings.data_dir
        return Finding(OK, "instance", f"no `eventq up` runs on {folder}")
    return Finding(OK, "instance", f"`eventq up` runs as process {run.pid}: {', '.join(sorted(run.processes))}")


def _ports(settings: Settings) -> Finding:
    wanted = {"API": settings.api_port, "NATS": NATS_PORT_USUAL, "NATS monitoring": MONITOR_PORT_USUAL}
    taken = [f"{port} ({name})" for name, port in wanted.items() if port and not _is_free(port)]
    if not taken:
        return Finding(OK, "ports", f"{', '.join(map(str, wanted.values()))} are free")
    detail = f"in use: {', '.join(taken)}"
    return Finding(WARN, "ports", detail, "`eventq up` takes other ports and prints them; `eventq api` needs --port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def _broker(instance: Instance, settings: Settings) -> list[Finding]:
    try:
        async with instance.broker("doctor") as broker:
            return [
                await _checked("broker", lambda: _server(broker)),
                await _checked("durability", lambda: _durability(settings)),
                await _checked("clock", lambda: _clock(broker)),
                await _checked("streams", lambda: _streams(broker, settings)),
                await _checked("workers", lambda: _workers(broker)),
                await _checked("queues", lambda: _queues(broker)),
            ]
    except EventqError as error:
        return [_no_broker(instance, error)]


def _no_broker(instance: Instance, error: EventqError) -> Finding:
    """Before the first start there is none, which is no fault; one that was named must answer."""
    if instance.run is None and "nats_url" not in instance.loaded.origins:
        detail = _nobody(error, f"none runs at {instance.settings.nats_url}")
        return Finding(WARN, "broker", detail, "start everything with `eventq up`")
    return Finding(FAIL, "broker", error.detail, "start it, or set EVENTQ_NATS_URL to one that runs")


def _nobody(error: EventqError, sentence: str) -> str:
    """``sentence``, unless no address was asked at all."""
    return error.detail if isinstance(error, NoInstance) and "url" not in error.fields else sentence


async def _checked(name: str, check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        return await check()
    except BrokerUnfit as error:
        return Finding(FAIL, name, *_split(error.detail))
    except EventqError as error:
        return Finding(FAIL, name, error.detail, _hint(error))
    except (APIError, nats.errors.Error, TimeoutError, OSError) as error:
        return Finding(FAIL, name, f"no answer: {type(error).__name__}: {error}", "look into the broker's log")


def _split(sentence: str) -> tuple[str, str | None]:
    """Sentences of an unfit broker say what is wrong, a colon, and what to do."""
    wrong, _, fix = sentence.partition(": ")
    return wrong, fix or None


def _hint(error: EventqError) -> str | None:
    hint = error.fields.get("hint")
    return None if hint is None else str(hint)


async def _server(broker: Broker) -> Finding:
    broker.check_version()
    url = broker.nc.connected_url
    place = "" if url is None else f" at {url.hostname}:{url.port}"
    found = broker.nc.connected_server_version
    return Finding(OK, "broker", f"nats-server {found.major}.{found.minor}.{found.patch}{place}")


async def _durability(settings: Settings) -> Finding:
    if settings.accept_lazy_sync:
        fix = "set `sync_interval: always` in the broker's jetstream block and drop EVENTQ_ACCEPT_LAZY_SYNC"
        return Finding(WARN, "durability", "lazy sync is accepted: a power cut loses acknowledged tasks", fix)
    await check_durability(settings.nats_monitor_url, accept_lazy_sync=False)
    return Finding(OK, "durability", "every write is on disk before it is acknowledged")


async def _clock(broker: Broker) -> Finding:
    asked = datetime.now(UTC)
    reply = await broker.request("$JS.API.STREAM.LIST", {"offset": 0})
    half = (datetime.now(UTC) - asked) / 2
    streams: list[dict[str, Any]] = reply.get("streams") or []
    stamps = [str(entry["ts"]) for entry in streams if "ts" in entry]
    if not stamps:
        return Finding(OK, "clock", "not compared: the broker tells its time only with a stream, and has none yet")
    skew_s = abs((datetime.fromisoformat(stamps[0]) - (asked + half)).total_seconds())
    status = FAIL if skew_s > SKEW_FAIL_S else WARN if skew_s > SKEW_WARN_S else OK
    fix = "synchronise both machines' clocks (NTP): delayed tasks and retries start when the broker's clock says so"
    return Finding(status, "clock", f"{span(skew_s)} apart from the broker's", None if status == OK else fix)


async def _streams(broker: Broker, settings: Settings) -> Finding:
    config = broker_config(settings)
    names = [str(wanted.name) for wanted in stream_configs(config)]
    facts = {name: await broker.stream_facts(name) for name in names}
    if missing := [name for name, found in facts.items() if found is None]:
        detail = f"missing: {', '.join(missing)}"
        return Finding(WARN, "streams", detail, "none to worry: the first eventq process that starts makes them")
    await bootstrap(broker, config)  # all exist, so this only verifies
    return Finding(OK, "streams", ", ".join(f"{name} {size(found.bytes)}" for name, found in facts.items() if found))


async def _workers(broker: Broker) -> Finding:
    alive = await present(broker)
    if not alive:
        return Finding(WARN, "workers", "none is alive: tasks wait", "start one with `eventq worker`, or all with `eventq up`")
    pools: dict[str, list[int]] = {}
    for heartbeat in alive.values():
        pools.setdefault(heartbeat.pool, []).append(heartbeat.capacity)
    text = "; ".join(f"pool {pool}: {len(sizes)}, {sum(sizes)} tasks at a time" for pool, sizes in sorted(pools.items()))
    return Finding(OK, "workers", text)


async def _queues(broker: Broker) -> Finding:
    if await broker.stream_facts(EVENTS) is None:
        return Finding(OK, "queues", "none yet")
    waiting: dict[Route, int] = {}
    running = 0
    for route in await Routes(broker).existing():
        info = await broker.js.consumer_info(EVENTS, work_consumer(route))
        waiting[route] = info.num_pending or 0
        running += info.num_ack_pending or 0
    text = f"{len(waiting)} in use, {sum(waiting.values())} tasks wait, {running} run"
    if stuck := unserved((route.pool for route, count in waiting.items() if count), await present(broker)):
        fix = "; ".join(f"eventq worker --pool {pool}" for pool in stuck)
        return Finding(WARN, "queues", f"{text}; nobody serves pool {', '.join(stuck)}", fix)
    return Finding(OK, "queues", text)


async def _api(instance: Instance) -> Finding:
    try:
        async with instance.client() as client:
            health = await client.health()
    except Unavailable as error:
        expected = instance.run is not None or instance.api is not None or instance.loaded.settings.api_url is not None
        fix = "look into logs/api.log of the data directory" if instance.run else "start everything with `eventq up`"
        return Finding(FAIL if expected else WARN, "API", _nobody(error, f"none answers at {instance.api_url}"), fix)
    except EventqError as error:
        return Finding(FAIL, "API", f"{instance.api_url}: {error.detail}", "is something else listening there?")
    status = {"healthy": OK, "degraded": WARN}.get(health.status, FAIL)
    problems = "; ".join(f"{name}: {problem}" for name, problem in health.problems.items())
    detail = f"{instance.api_url} is {health.status}{': ' if problems else ''}{problems}"
    hint = "see the finding on that part, and logs/api.log of its data directory"
    return Finding(status, "API", detail, None if status == OK else hint)


async def _torch() -> Finding:
    try:
        devices = await gpu_devices()
    except NoTorch:
        return Finding(OK, "gpu", "torch is not installed; only a GPU worker needs it: pip install '.[torch]'")
    if devices == [STAND_IN]:
        return Finding(OK, "gpu", "torch sees no GPU: a GPU worker runs on the CPU as a labelled stand-in")
    return Finding(OK, "gpu", f"torch sees {', '.join(device.label for device in devices)}")
