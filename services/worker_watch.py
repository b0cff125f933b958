"""Finds workers that are gone, says so in the log, and ends what they held, so that it runs elsewhere.

Two signs, and neither is believed at once:

* *disconnected*: the broker says that a connection of the worker ended (a killed process: within milliseconds). A moment later
  the broker is asked whether any connection of that worker listens; a blip, after which it is back, is none.
* *presence lapsed*: its heartbeats stopped (a frozen host, a lost network, an HTTP worker). Slower, and needs nothing but the
  bucket; it also finds those that were running when a whole machine was switched off.

After the broker was away nobody is judged for a while: connections and heartbeats went with it, and come back one by one.

| found                                                               | then                                               |
|---------------------------------------------------------------------|----------------------------------------------------|
| a living worker is gone                                             | ``lost``, and each of its attempts ended           |
| a worker that is gone still holds attempts (who found out died)     | each ended: a loss, that counts towards poison     |
| an HTTP worker's attempt is over its time, or silent for too long   | timed out: nobody else could                       |
| an HTTP worker goes on for too long with what is to be cancelled    | cancelled, and taken away: nobody else could       |
| an HTTP worker's heartbeats do not list an attempt that it holds    | ended without a loss: the answer never reached it  |

All of it is a fold of the log plus what the broker says now, decided by the rules and appended with the version check: any
number of these may run beside each other, and die anywhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg
from nats.js.errors import APIError

from eventq.events.attempt_end import end_attempt
from eventq.events.bootstrap import PRESENCE_TTL_S
from eventq.events.broker import Broker
from eventq.events.commands import Command, ConfirmCancel, ExpireLease, InterruptAttempt, TimeOutAttempt, TimeoutReason
from eventq.events.errors import Conflict, Damaged, NotFound, Unavailable
from eventq.events.failpoints import failpoint
from eventq.events.handle import handle_any
from eventq.events.log import EventLog
from eventq.events.presence import Heartbeat, present, reachable
from eventq.events.reporting import last_report_at
from eventq.events.retry import RetryPolicy
from eventq.events.specification import submission_of
from eventq.events.subjects import DISCONNECTS
from eventq.events.task import HOLDING, Task, from_summary, timeout_error
from eventq.events.worker import LIVING, WORKERS, LoseWorker, Worker
from eventq.services.attempt_ends import draw_retry_s
from eventq.services.follower import Fact, Follower

log = structlog.get_logger("eventq.worker_watch")

SOURCE = "worker-watch"

BLIP_S = 1.3
"""How long after a disconnect a worker may come back: clients try again after a second."""

PRESENCE_LOOK_S = 2.0
"""How often heartbeats are looked at."""

OUTAGE_GRACE_S = PRESENCE_TTL_S * 1.5
"""For so long after the broker was away, or this process began, no worker is judged by what it does not say."""

UNCLAIMED_S = 10.0
"""An HTTP worker that was given a task and does not list it in a heartbeat so much later never got the answer."""

OVERTIME_S = 1.0
"""How much longer than allowed an HTTP worker's attempt may take: its own report of the time-out comes first."""

CANCEL_GRACE_S = 30.0
"""For so long an HTTP worker may go on with what is to be cancelled: it hears of that within five seconds, by a heartbeat, and
a process would be killed ten seconds later. While nobody is judged, nor is who does not obey: he may not have been told."""

RUNNING_TOLD_MAX = 1_000
"""Tasks named in a ``lost`` event; an event has a size limit, and the log tells of the others."""

AT_ONCE = 100
"""Attempts ended at the same time."""

_NAMES = ("eventq worker ", "lease-keeper ")


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt in a worker's hands. ``started_at``: by the clock of who wrote so, which heartbeats are stamped by as well;
    ``since``, and ``cancel_since``, from when on it is to be cancelled: by the broker's, which limits are judged by."""

    worker_id: str
    attempt: int
    started_at: datetime
    since: datetime
    state: dict[str, Any]
    cancel_since: datetime | None = None


class WorkerWatch:
    """A duty of the follower. Memory grows with living workers and the attempts that run, not with the log."""

    def __init__(self, event_log: EventLog) -> None:
        self.wake = asyncio.Event()
        self.lost = 0
        self._log = event_log
        self._workers: dict[str, Worker] = {}
        self._registered: dict[str, float] = {}
        """When each of them began, in POSIX seconds of the broker's clock."""
        self._held: dict[str, Held] = {}
        self._orphans: set[str] = set()
        """Tasks that may be held by a worker that is gone."""
        self._policies: dict[str, RetryPolicy] = {}
        self._suspects: dict[str, float] = {}
        self._looked = 0.0
        self._began = time.monotonic()

    # Fold

    def note(self, fact: Fact) -> None:
        """See :class:`Duty`."""
        if fact.kind == WORKERS.name:
            self._note_worker(fact)
        elif fact.kind == "tasks":
            self._note_task(fact)

    def _note_worker(self, fact: Fact) -> None:
        worker = WORKERS.from_summary(fact.state)
        if worker.status in LIVING:
            self._workers[fact.id] = worker
            if fact.type == "registered":
                self._registered[fact.id] = fact.stored_ns / 1e9
        elif self._workers.pop(fact.id, None) is not None:
            self._registered.pop(fact.id, None)
            self._orphans.update(task_id for task_id, held in self._held.items() if held.worker_id == fact.id)
        if fact.type == "registered":
            for declared in fact.data.get("tasks", ()):
                self._policies[declared["name"]] = RetryPolicy.model_validate(declared["retry"])

    def _note_task(self, fact: Fact) -> None:
        worker_id = fact.state.get("worker_id")
        if worker_id is None or fact.state["status"] not in HOLDING:
            self._held.pop(fact.id, None)
            return
        held = self._held.get(fact.id)
        attempt, stored_at = int(fact.state["attempt"]), datetime.fromtimestamp(fact.stored_ns / 1e9, UTC)
        if held is not None and held.attempt == attempt:
            held = replace(held, worker_id=worker_id, state=fact.state)
        else:
            held = Held(worker_id, attempt, fact.time, stored_at, fact.state)
        if held.cancel_since is None and fact.state.get("cancel_requested_by") is not None:
            held = replace(held, cancel_since=stored_at)
        self._held[fact.id] = held
        if worker_id not in self._workers:
            self._orphans.add(fact.id)

    # Act

    async def run(self, follower: Follower, system: Broker | None = None) -> None:
        """Watch until cancelled. ``system``: a connection for the broker's own events; without it, presence has to do."""
        if system is not None:
            await system.nc.subscribe(DISCONNECTS, cb=self._on_disconnect)
        while True:
            await self.wake.wait()
            self.wake.clear()
            await follower.until_caught_up()
            try:
                await self.sweep()
            except (nats.errors.Error, APIError, Unavailable, TimeoutError) as error:
                log.warning("worker_watch.waiting_for_broker", error=repr(error))
                await asyncio.sleep(1.0)

    async def _on_disconnect(self, message: Msg) -> None:
        worker_id = _worker_of(message.data)
        if worker_id is not None and worker_id not in self._suspects:
            self._suspects[worker_id] = time.monotonic() + BLIP_S
            asyncio.get_running_loop().call_later(BLIP_S + 0.01, self.wake.set)

    async def sweep(self) -> None:
        """Look at everything once. Raises ``Unavailable`` where the broker is away."""
        await self._judge_suspects()
        await self._complete_losses()
        if time.monotonic() - self._looked >= PRESENCE_LOOK_S:
            self._looked = time.monotonic()
            heartbeats = await present(self._log.broker)
            if self._settled():
                await self._judge_silent(heartbeats)
            await self._watch_http(heartbeats)

    def _settled(self) -> bool:
        since = max(self._began, self._log.broker.reconnected_at)
        return time.monotonic() - since > OUTAGE_GRACE_S

    async def _judge_suspects(self) -> None:
        """A suspect that listens again is none any more; nor is one while the broker itself has just come back."""
        now = time.monotonic()
        for worker_id in [suspect for suspect, at in self._suspects.items() if at <= now]:
            worker = self._workers.get(worker_id)
            back = now - self._log.broker.reconnected_at < OUTAGE_GRACE_S
            cleared = worker is None or back or await reachable(self._log.broker, worker_id)
            if cleared or worker is None or await self._lose(worker_id, worker, "disconnected"):
                del self._suspects[worker_id]

    async def _judge_silent(self, heartbeats: dict[str, Heartbeat]) -> None:
        silent = [(worker_id, worker) for worker_id, worker in self._workers.items() if worker_id not in heartbeats]
        if not silent:
            return
        now = (await self._log.broker.time()).timestamp()
        for worker_id, worker in silent:
            if now - self._registered.get(worker_id, 0.0) >= PRESENCE_TTL_S:  # else it has had no time to say something
                await self._lose(worker_id, worker, "presence_lapsed")

    async def _lose(self, worker_id: str, worker: Worker, evidence: Any) -> bool:
        """Whether the worker is known to be gone now; no where it did something meanwhile, which has yet to be folded."""
        running = sorted(task_id for task_id, held in self._held.items() if held.worker_id == worker_id)
        command = LoseWorker(worker.version, evidence, tuple(running[:RUNNING_TOLD_MAX]))
        try:
            handled = await handle_any(self._log, WORKERS, worker_id, command, source=SOURCE)
        except (Conflict, NotFound):
            return True  # it has stopped, or somebody else has said it
        if handled.event is None:
            return False
        self.lost += 1
        log.warning("worker.lost", worker_id=worker_id, evidence=evidence, running=len(running))
        failpoint("watch.after_lost")
        await self._expire(running)
        return True

    async def _complete_losses(self) -> None:
        """End what is held by workers that are gone."""
        known, self._orphans = self._orphans, set()  # more may become known meanwhile
        try:
            await self._expire(
                task_id
                for task_id in known
                if (held := self._held.get(task_id)) is not None and held.worker_id not in self._workers
            )
        except BaseException:
            self._orphans |= known
            raise

    async def _expire(self, task_ids: Iterable[str]) -> None:
        found = {task_id: self._held.get(task_id) for task_id in task_ids}
        ends = [(task_id, held) for task_id, held in found.items() if held is not None]
        for start in range(0, len(ends), AT_ONCE):
            chunk = ends[start : start + AT_ONCE]
            await asyncio.gather(*(self._end(task_id, held, ExpireLease(held.attempt)) for task_id, held in chunk))

    async def _end(self, task_id: str, held: Held, command: Command) -> None:
        """End the attempt, unless it has ended."""
        try:
            await end_attempt(self._log, task_id, command, source=SOURCE, task=from_summary(held.state))
        except (Conflict, NotFound):
            return
        except Damaged as error:
            log.warning("worker_watch.unreadable", task_id=task_id, error=error.detail)  # a newer program will look after it
            return
        log.info("worker_watch.ended", task_id=task_id, worker_id=held.worker_id, command=type(command).__name__)

    # HTTP workers

    async def _watch_http(self, heartbeats: dict[str, Heartbeat]) -> None:
        leased = [(task_id, held) for task_id, held in self._held.items() if self._speaks_http(held.worker_id)]
        if not leased:
            return
        now = await self._log.broker.time()
        for task_id, held in leased:
            try:
                await self._judge_attempt(task_id, held, heartbeats.get(held.worker_id), now)
            except Damaged as error:
                log.warning("worker_watch.unreadable", task_id=task_id, error=error.detail)

    def _speaks_http(self, worker_id: str) -> bool:
        worker = self._workers.get(worker_id)
        return worker is not None and worker.kind == "http"

    async def _judge_attempt(self, task_id: str, held: Held, heartbeat: Heartbeat | None, now: datetime) -> None:
        task = from_summary(held.state)
        if held.cancel_since is not None and self._settled() and _longer_ago(held.cancel_since, CANCEL_GRACE_S, now):
            await self._end(task_id, held, ConfirmCancel(held.attempt, ("asked", "revoked")))
        elif _longer_ago(held.since, task.timeout_s, now):
            await self._end(task_id, held, await self._time_out(task_id, task, held.since, now, "execution_timeout"))
        elif _longer_ago(said_at := await self._said_at(task_id, task, held), task.heartbeat_timeout_s, now):
            await self._end(task_id, held, await self._time_out(task_id, task, said_at, now, "heartbeat_timeout"))
        elif heartbeat is not None and _unclaimed(task_id, held, heartbeat):
            await self._end(task_id, held, InterruptAttempt(held.attempt))

    async def _said_at(self, task_id: str, task: Task, held: Held) -> datetime:
        """When the attempt said something last; its start counts. Only asked where it matters."""
        if task.heartbeat_timeout_s is None:
            return held.since
        return await last_report_at(self._log.broker, task_id, held.attempt) or held.since

    async def _time_out(
        self, task_id: str, task: Task, since: datetime, now: datetime, reason: TimeoutReason
    ) -> TimeOutAttempt:
        submitted = await submission_of(self._log, task_id, task)
        after_s = round((now - since).total_seconds(), 3)
        error = timeout_error(reason, after_s).type
        retry_in_s = draw_retry_s(submitted, self._policies.get(task.task_name), task, error)
        return TimeOutAttempt(task.attempt, after_s, retry_in_s, now, reason)


def _longer_ago(at: datetime, limit_s: float | None, now: datetime) -> bool:
    return limit_s is not None and now - at > timedelta(seconds=limit_s + OVERTIME_S)


def _unclaimed(task_id: str, held: Held, heartbeat: Heartbeat) -> bool:
    return task_id not in heartbeat.running and heartbeat.at - held.started_at > timedelta(seconds=UNCLAIMED_S)


def _worker_of(payload: bytes) -> str | None:
    """The worker whose connection ended, by the connection's name; ``None`` for other clients."""
    try:
        name = str(orjson.loads(payload)["client"]["name"])
    except (ValueError, KeyError, TypeError):
        return None
    for prefix in _NAMES:
        if name.startswith(prefix):
            return name.removeprefix(prefix).split(" ")[0]
    return None
