"""The composition roots: each function wires one process from the settings and runs it until it is told to stop.

Only here are things put together; everything else receives what it needs. SIGTERM and SIGINT ask a process to stop; it
then finishes or hands back what it holds and answers its exit code.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from aiohttp import web

from eventq.events.blobs import BlobStore
from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.echoes import Echoes
from eventq.events.ending import end
from eventq.events.errors import LogUnavailable
from eventq.events.ids import new_id
from eventq.events.log import EventLog
from eventq.events.schedule import TICK
from eventq.events.submitter import Submitter
from eventq.events.timers import DUE, START_BY
from eventq.events.workflow import DEADLINE
from eventq.services.child import announce_finished, announce_ready
from eventq.services.coordinator import Coordinator
from eventq.services.disposal import Disposal
from eventq.services.due_tasks import DueTasks
from eventq.services.follower import Follower
from eventq.services.gate import Gate
from eventq.services.promoter import SOURCE as SCHEDULER
from eventq.services.promoter import Answer, Promoter
from eventq.services.reconciler import Reconciler
from eventq.services.schedules import ScheduleSweep, TickMaker
from eventq.services.settings import Settings
from eventq.services.task_check import load_tasks
from eventq.services.task_timers import TaskTimers
from eventq.services.worker_watch import WorkerWatch

log = structlog.get_logger("eventq.processes")


def broker_config(settings: Settings) -> BrokerConfig:
    """What bootstrap needs of the settings."""
    return BrokerConfig(
        monitor_urls=settings.nats_monitor_url,
        accept_lazy_sync=settings.accept_lazy_sync,
        replicas=settings.replicas,
        events_max_bytes=settings.stream_max_bytes,
    )


@asynccontextmanager
async def open_system(settings: Settings) -> AsyncGenerator[Broker | None]:
    """A connection for the broker's own events; ``None`` where none is set."""
    if settings.nats_system_url is None:
        yield None
        return
    async with await Broker.connect(
        settings.nats_system_url, name=f"eventq watch {socket.gethostname()}:{os.getpid()}"
    ) as found:
        yield found


@asynccontextmanager
async def open_log(settings: Settings, role: str) -> AsyncGenerator[EventLog]:
    """A connection to a broker that has been checked and made ready, and the log on it."""
    async with await Broker.connect(settings.nats_url, name=f"eventq {role} {socket.gethostname()}:{os.getpid()}") as broker:
        await bootstrap(broker, broker_config(settings))
        event_log = await EventLog.open(broker, lease_s=settings.lease_s)
        try:
            yield event_log
        finally:
            await event_log.close()


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _connection(event_log: EventLog) -> asyncio.Task[None]:
    """A duty that raises when the connection is closed for good: the process is to be started anew."""

    async def watch() -> None:
        await event_log.broker.closed.wait()
        raise LogUnavailable("the connection to the broker was closed for good")

    return asyncio.create_task(watch(), name="connection")


async def run_until(stop: asyncio.Event, *duties: asyncio.Task[None]) -> None:
    """Wait for ``stop``; a duty that ends before it raises what it ended with. All are cancelled at the end."""
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([stopping, *duties], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(stopping, *duties)


def collect_seldom() -> None:
    """What is loaded now stays, and is looked through no more; what comes is looked through after every 50,000 new objects.

    Each task or request makes hundreds of objects that vanish by themselves. Looking for cycles among them after every 700,
    as Python does, took a worker a fifth of its time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


async def run_api(settings: Settings) -> int:
    """The HTTP API with the projector that feeds it. Ready once it listens; reads wait until the projection caught up."""
    from eventq.projections.projector import Projector
    from eventq.projections.queries import Queries
    from eventq.projections.rebuild import rebuild_after_erasures
    from eventq.projections.store import Store
    from eventq.services.api import SOURCE, Api
    from eventq.services.app import create_app
    from eventq.services.arguments import Declarations
    from eventq.services.http_guard import GuardedRunner

    stop = stop_on_signals()
    store = Store.open(settings.projection_dir)
    try:
        async with open_log(settings, "api") as event_log:
            event_log.echoes = Echoes()
            projector = Projector(store, event_log.broker, decode=event_log.echoes.decode)
            queries = Queries(store)
            api = Api(
                log=event_log,
                submitter=Submitter(event_log, source=SOURCE),
                projector=projector,
                queries=queries,
                freshness=projector.freshness,
                blobs=BlobStore.open(settings.blobs),
                declarations=Declarations(queries.declarations),
                version=version("eventq"),
                allowed_hosts=frozenset(settings.allowed_hosts),
            )
            projecting = asyncio.create_task(projector.run(), name="projector")
            forgetting = asyncio.create_task(rebuild_after_erasures(projector), name="forget")
            runner = GuardedRunner(create_app(api))
            await runner.setup()
            try:
                site = web.TCPSite(runner, settings.api_host, settings.api_port)
                await site.start()
                collect_seldom()
                announce_ready()
                log.info("api.ready", url=site.name)
                await run_until(stop, projecting, forgetting, _connection(event_log))
            finally:
                await runner.cleanup()
                queries.close()
    finally:
        store.close()
    return 0


async def run_scheduler(settings: Settings) -> int:
    """The promoter of due timers, and the duties that follow the log. Any number may run beside each other."""
    stop = stop_on_signals()
    async with open_log(settings, "scheduler") as event_log, open_system(settings) as system:
        reconciler = Reconciler(event_log, lease_s=settings.lease_s)
        due_tasks = DueTasks()
        timers = TaskTimers(event_log, source=SCHEDULER, known=reconciler.known, due=due_tasks.take)
        answers: dict[tuple[str, str], Answer] = {
            ("tasks", DUE): timers.promote,
            ("tasks", START_BY): timers.expire_wait,
        }
        ticks = TickMaker(event_log, Submitter(event_log, source=SCHEDULER), source=SCHEDULER)
        answers[("schedules", TICK)] = ticks.tick
        schedule_sweep = ScheduleSweep(event_log, ticks)
        gate = Gate(event_log)
        coordinator = Coordinator(event_log, Submitter(event_log, source=SCHEDULER), BlobStore.open(settings.blobs))
        answers["workflows", DEADLINE] = coordinator.deadline
        disposal = Disposal(event_log, BlobStore.open(settings.blobs))
        worker_watch = WorkerWatch(event_log)
        follower = Follower(
            event_log.broker, [reconciler, due_tasks, schedule_sweep, gate, worker_watch, coordinator, disposal]
        )
        duties = (
            asyncio.create_task(Promoter(event_log.broker, answers).run(), name="promoter"),
            asyncio.create_task(follower.run(), name="follower"),
            asyncio.create_task(reconciler.run(follower), name="reconciler"),
            asyncio.create_task(worker_watch.run(follower, system), name="worker watch"),
            asyncio.create_task(schedule_sweep.run(follower), name="schedules"),
            asyncio.create_task(gate.run(follower), name="gate"),
            asyncio.create_task(coordinator.run(follower), name="workflows"),
            asyncio.create_task(disposal.run(follower), name="disposal"),
        )
        collect_seldom()
        announce_ready()
        log.info("scheduler.ready")
        await run_until(stop, *duties, _connection(event_log))
    return 0


async def run_worker(settings: Settings) -> int:
    """A worker of one pool. Stops gracefully; raises where it lost the broker for good, so that it is restarted."""
    from eventq.workers.config import Isolation, WorkerConfig
    from eventq.workers.worker import Worker

    stop = stop_on_signals()
    config = WorkerConfig(
        worker_id=f"{settings.pool}-{new_id()}",
        nats_url=settings.nats_url,
        pool=settings.pool,
        queues=settings.queues,
        concurrency=settings.concurrency or os.cpu_count() or 1,
        lease_s=settings.lease_s,
        grace_s=settings.grace_s,
        isolation=Isolation(settings.task_modules, settings.blobs, settings.input_dirs, settings.fetch_allow),
    )
    registry = load_tasks(settings.task_modules)
    async with open_log(settings, f"worker {config.worker_id}") as event_log:
        worker = await Worker.create(config, event_log.broker, event_log, registry)
        collect_seldom()
        ready = asyncio.Event()
        running = asyncio.create_task(worker.run(stop, ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if ready.is_set():
            announce_ready()
        await running
        if worker.drained:
            announce_finished()
    if worker.ghosts:
        # Leaving the event loop would wait for them, and they end never. All that counts is stored and closed.
        log.warning("worker.leaves_ghosts", coroutines=worker.ghosts)
        os._exit(0)
    return 0
