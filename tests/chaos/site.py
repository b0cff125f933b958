"""A whole installation in a test's hands: a broker of its own and real processes.

:class:`Site` owns what runs; :class:`Control` is a connection to it, made for one test: it submits, cancels, follows the
log, and judges the history in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.commands import CancelTask
from eventq.events.ending import end
from eventq.events.envelope import Event, decode
from eventq.events.handle import handle
from eventq.events.ids import new_id
from eventq.events.log import EventLog
from eventq.events.reader import Message, Tail
from eventq.events.subjects import EVENTS, Route, work_consumer
from eventq.events.submitter import Submitter
from eventq.events.task import ABSENT, TERMINAL, Status, Task, from_summary
from eventq.events.task_events import Submitted
from tests.chaos.checker import History, Projected, Visit, read_witness, violations
from tests.chaos.process import Process
from tests.support.nats import NatsServer

TASKS = Path(__file__).with_name("chaos_tasks.py")
LEASE_S = 1.0
PATIENCE_S = 60.0
"""How long a condition may take to come true on a slow machine. A bound, not an expectation."""

EVENTS_MAX_BYTES = 256 * 1024 * 1024
ROUTE = Route("cpu", "default", 5)


class Site:
    """Processes are ended by :meth:`close`, which every test's fixture calls; the broker is the fixture's."""

    def __init__(self, server: NatsServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.witness = folder / "witness"
        self.processes: list[Process] = []

    def start(
        self, role: str, *, failpoints: str = "", bug: str = "", stop_s: float | None = None, **settings: object
    ) -> Process:
        """Start a process; it is not ready yet. ``settings``: of ``EVENTQ_*``, in lower case; ``bug`` and ``stop_s``: see
        ``run_process.py``."""
        environment = {
            "EVENTQ_NATS_URL": self.server.url,
            "EVENTQ_NATS_MONITOR_URL": self.server.monitor_url,
            "EVENTQ_DATA_DIR": str(self.folder),
            "EVENTQ_STREAM_MAX_BYTES": str(EVENTS_MAX_BYTES),
            "EVENTQ_TASK_MODULES": str(TASKS),
            "EVENTQ_LEASE_S": str(LEASE_S),
            "EVENTQ_CONCURRENCY": "4",
            "EVENTQ_QUEUES": ROUTE.queue,
            "EVENTQ_API_PORT": "0",
            "EVENTQ_FAILPOINTS": failpoints,
            "WITNESS": str(self.witness),
            **{f"EVENTQ_{name.upper()}": str(value) for name, value in settings.items()},
        }
        if bug:
            environment["CHAOS_BUG"] = bug
        if stop_s is not None:
            environment["CHAOS_STOP_S"] = str(stop_s)
        process = Process(role, self.folder / f"{len(self.processes)}-{role}.log", environment)
        self.processes.append(process)
        return process

    async def started(
        self, role: str, *, failpoints: str = "", bug: str = "", stop_s: float | None = None, **settings: object
    ) -> Process:
        """Start a process and wait until it is ready."""
        process = self.start(role, failpoints=failpoints, bug=bug, stop_s=stop_s, **settings)
        await self.ready(process)
        return process

    async def ready(self, *processes: Process) -> None:
        """Return once all of them said that they serve."""
        for process in processes:
            await asyncio.to_thread(process.wait_ready)

    async def workers(
        self, count: int, *, failpoints: str = "", bug: str = "", stop_s: float | None = None, **settings: object
    ) -> list[Process]:
        """Start several workers at once and wait until all are ready."""
        processes = [self.start("worker", failpoints=failpoints, bug=bug, stop_s=stop_s, **settings) for _ in range(count)]
        await self.ready(*processes)
        return processes

    def visits(self) -> list[Visit]:
        """What user code witnessed so far."""
        return list(read_witness(self.witness))

    def gate(self, name: str = "gate") -> Path:
        """A gate that tasks wait at until the test makes the file."""
        return self.folder / name

    def close(self) -> None:
        for process in self.processes:
            process.close()


@dataclass(frozen=True, slots=True)
class Stored:
    """An event of a task, when the broker stored it."""

    position: int
    stored_at: datetime
    event: Event


class Control:
    """A test's own connection to a site. Follows the log from where it is opened; ``tasks`` holds what it saw."""

    def __init__(self, site: Site, broker: Broker, log: EventLog) -> None:
        self.site = site
        self.broker = broker
        self.log = log
        self._submitter = Submitter(log, source="test")
        self.acknowledged: set[str] = set()
        self.tasks: dict[str, list[Stored]] = {}
        self._changed = asyncio.Condition()
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, site: Site) -> Self:
        """Connect and bootstrap, as the first of the processes."""
        broker = await Broker.connect(site.server.url, name="test")
        await bootstrap(broker, BrokerConfig(monitor_urls=site.server.monitor_url, events_max_bytes=EVENTS_MAX_BYTES))
        facts = await broker.stream_facts(EVENTS)
        assert facts is not None
        control = cls(site, broker, await EventLog.open(broker, lease_s=LEASE_S))
        control._watching = asyncio.create_task(control._watch(facts.last), name="watch")
        return control

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop_watching()
        await self.log.close()
        await self.broker.close()

    # Do

    async def submit(self, task_name: str, *args: object, scheduled_at: datetime | None = None, **options: Any) -> str:
        """Submit a task as the API does; its id. ``options``: of ``Submitted``. Raises ``LogUnavailable`` if unknown."""
        task_id = new_id()
        await self.submit_as(task_id, task_name, *args, scheduled_at=scheduled_at, **options)
        return task_id

    async def submit_as(
        self, task_id: str, task_name: str, *args: object, scheduled_at: datetime | None = None, **options: Any
    ) -> None:
        """As :meth:`submit`, under a given id."""
        given: dict[str, Any] = {"pool": ROUTE.pool, "queue": ROUTE.queue, "priority": ROUTE.priority, "max_retries": 0}
        submitted = Submitted(task_name=task_name, args=list(args), scheduled_at=scheduled_at, **{**given, **options})
        await self._submitter.submit(task_id, submitted)
        self.acknowledged.add(task_id)

    async def cancel(self, task_id: str) -> Task:
        """Cancel a task as the API does; raises what the rules say."""
        return (await handle(self.log, task_id, CancelTask("test", "no longer wanted"), source="test")).state

    # See

    def events(self, task_id: str) -> list[Event]:
        """The events of a task that were seen so far."""
        return [stored.event for stored in self.tasks.get(task_id, [])]

    def types(self, task_id: str) -> list[str]:
        return [event.type for event in self.events(task_id)]

    def task(self, task_id: str) -> Task:
        """The task as its newest seen event tells it."""
        events = self.events(task_id)
        return from_summary(events[-1].state) if events else ABSENT

    def status(self, task_id: str) -> Status:
        return self.task(task_id).status

    def unfinished(self, task_ids: Collection[str]) -> list[str]:
        return [task_id for task_id in task_ids if self.status(task_id) not in TERMINAL]

    async def until(self, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Return once ``condition`` holds; it is asked again after every batch of events, and ten times a second."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self._wait_for_change()
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s:g} s: {what}\n{self._describe()}") from None

    async def until_ended(self, *task_ids: str, timeout_s: float = PATIENCE_S) -> None:
        """Return once each of these tasks has a terminal event."""
        await self.until(lambda: not self.unfinished(task_ids), f"{len(task_ids)} tasks end", timeout_s)

    async def until_entered(self, task_id: str, attempt: int = 1) -> Visit:
        """Return once user code was entered for this attempt; the visit."""

        def entered() -> list[Visit]:
            return [v for v in self.site.visits() if (v.task_id, v.attempt, v.step) == (task_id, attempt, "enter")]

        await self.until(entered, f"task {task_id} is entered")
        return entered()[0]

    async def worker_of(self, task_id: str, attempt: int = 1) -> str:
        """Wait until this attempt's start was seen in the log; the worker that runs it."""
        await self.until(lambda: self.task(task_id).attempt >= attempt, f"attempt {attempt} of {task_id} is seen")
        return self.task(task_id).worker_id or ""

    async def ended(self, task_id: str) -> Event:
        """Wait for the task's end; its last event."""
        await self.until_ended(task_id)
        return self.events(task_id)[-1]

    async def run(self, task_name: str, *args: object, **options: Any) -> Event:
        """Submit a task and wait for its end; its last event."""
        return await self.ended(await self.submit(task_name, *args, **options))

    async def until_nothing_outstanding(self, route: Route = ROUTE) -> None:
        """Return once the broker has no work item left, neither waiting nor handed out: it will never deliver again."""
        await self._poll(lambda: self._nothing_outstanding(route), "the broker's work consumer is empty")

    async def _nothing_outstanding(self, route: Route) -> bool:
        info = await self.broker.js.consumer_info(EVENTS, work_consumer(route))
        return not info.num_pending and not info.num_ack_pending

    async def _poll(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await condition():
                    await self._wait_for_change()
        except TimeoutError:
            raise AssertionError(f"not within {PATIENCE_S:g} s: {what}") from None

    # Judge

    async def messages(self) -> list[Message]:
        """The whole of the stream EVENTS, from its first message to its present end."""
        facts = await self.broker.stream_facts(EVENTS)
        assert facts is not None
        found: list[Message] = []
        async with Tail(self.broker, EVENTS, after=0) as tail:
            while tail.position < facts.last:
                found += await tail.next(timeout_s=PATIENCE_S)
        return found

    async def history(self, projection: dict[str, Projected] | None = None) -> History:
        """All that is to be judged."""
        history = History.read(await self.messages(), self.acknowledged, self.site.witness)
        history.projection = projection
        return history

    async def check(self, projection: dict[str, Projected] | None = None) -> None:
        """Fail unless the whole history is a good one in which every task came to its end."""
        found = violations(await self.history(projection))
        assert not found, "\n".join(found)

    # Watch

    async def stop_watching(self) -> None:
        """Follow the log no more: before a test writes what is no event."""
        if self._watching is not None:
            await end(self._watching)

    async def _watch(self, after: int) -> None:
        async with Tail(self.broker, EVENTS, after=after) as tail:
            async for batch in tail:
                self._take(batch)
                async with self._changed:
                    self._changed.notify_all()

    def _take(self, batch: Sequence[Message]) -> None:
        for message in batch:
            event = decode(message.payload, message.subject)
            if event.aggregate == "tasks":
                stored = Stored(message.position, message.stored_at, event)
                self.tasks.setdefault(event.aggregate_id, []).append(stored)

    async def _wait_for_change(self) -> None:
        assert self._watching is not None
        if self._watching.done():
            self._watching.result()
        async with self._changed:
            try:
                async with asyncio.timeout(0.1):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _describe(self) -> str:
        lines = [f"{task_id}: {self.types(task_id)}" for task_id in self.unfinished(list(self.tasks))][:10]
        words = [f"--- {p.role} {p.pid} running={p.running}\n{p.last_words()[-1_500:]}" for p in self.site.processes]
        return "\n".join([*lines, *words])
