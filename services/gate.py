"""The gates of all queues: a duty of the follower that lets held tasks pass, as far as their queue's limits allow.

Two steps, each an event. First the queue admits some tasks, on the condition that nothing of the queue changed since they
were counted; then each of them becomes ``queued`` and with that a work item. Who dies in between leaves tasks that are
admitted and still held: whoever folds the log sees them and takes the second step. Who is second to admit is refused, folds
what the first wrote, and counts anew. So any number of gates may run; ``events/admission.py`` has the counting.

Beside that it calls back tasks that became work items although their queue has limits (the limits came later, or were not
known yet where the task was submitted), and sees to it that the consumers of paused queues are paused, and others are not.

Memory grows with the tasks that are ready or in a worker's hands, not with the log.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import nats.errors
import structlog
from nats.js.errors import APIError

from eventq.events.admission import Entry, Line, Pick, Stage
from eventq.events.commands import AdmitTask, Command, HoldTask
from eventq.events.errors import Conflict, Damaged, TaskNotFound, Unavailable
from eventq.events.failpoints import failpoint
from eventq.events.handle import handle, handle_any
from eventq.events.log import EventLog
from eventq.events.queue import QUEUES, AdmitTasks
from eventq.events.queue_events import Admission
from eventq.events.task import Status, from_summary
from eventq.services.follower import Fact, Follower

log = structlog.get_logger("eventq.gate")

SOURCE = "gate"

OWED_PATIENCE_S = 1.0
"""For so long an admitted task is left to the gate that admitted it. Then any other takes it to be dead."""

CALL_BACK_MAX = 500
"""Tasks called back at once."""

LOOK_S = 5.0
"""How often the consumers of queues that were ever paused are looked at: one may have been made while that changed."""

RETRY_S = 0.5
"""How long to wait for a broker that did not answer."""

_STAGES = {Status.PENDING.value: Stage.ROUTED, Status.RUNNING.value: Stage.RUNNING}


class Gate:
    """Run one with :meth:`run` until it is cancelled."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log
        self.wake = asyncio.Event()
        self.admitted = 0
        """Tasks that this gate admitted."""
        self._lines: defaultdict[str, Line] = defaultdict(Line)
        self._line_of: dict[str, str] = {}
        self._changed: set[str] = set()
        self._later: dict[str, float] = {}
        """When a queue is to be looked at although nothing came: by a clock that nobody sets, like all waits here."""
        self._owed_since: dict[str, float] = {}
        self._own: dict[str, int] = {}
        """The version of a queue that this gate wrote and has not been shown yet."""
        self._paused: dict[str, bool] = {}
        """Queues that were ever paused, and whether they are."""
        self._pauses_changed: set[str] = set()
        self._looked = 0.0

    # Fold

    def note(self, fact: Fact) -> None:
        """See :class:`Duty`."""
        if fact.kind == "tasks":
            self._note_task(fact)
        elif fact.kind == "queues":
            self._note_queue(fact)

    def _note_queue(self, fact: Fact) -> None:
        line = self._lines[fact.id]
        if fact.type == "admitted":
            line.note_admissions(fact.time.timestamp(), map(Admission.model_validate, fact.data["tasks"]))
            # Of history it happened when the broker stored it.
            since = time.monotonic() - max(0.0, time.time() - fact.stored_ns / 1e9)
            for task in fact.data["tasks"]:
                if task["task_id"] in line.owed:
                    self._owed_since[task["task_id"]] = since
        line.set_queue(QUEUES.from_summary(fact.state))
        if fact.type in {"paused", "resumed"}:
            self._paused[fact.id] = line.queue.paused
            self._pauses_changed.add(fact.id)
        self._changed.add(fact.id)

    def _note_task(self, fact: Fact) -> None:
        entry = _entry(fact)
        queue = fact.state.get("queue", "")
        before = self._line_of.pop(fact.id, None)
        if before is not None:
            self._owed_since.pop(fact.id, None)
            if before != queue or entry is None:
                self._lines[before].set_entry(fact.id, None)
                self._changed.add(before)
        if entry is not None:
            self._line_of[fact.id] = queue
            self._lines[queue].set_entry(fact.id, entry)
            self._changed.add(queue)

    # Act

    async def run(self, follower: Follower) -> None:
        """Act whenever something came or is due, and all of the log has been seen."""
        while True:
            await self._rest()
            await follower.until_caught_up()
            try:
                await self.act()
            except (nats.errors.Error, APIError, Unavailable, Damaged, TimeoutError) as error:
                log.warning("gate.waiting", error=repr(error))
                await asyncio.sleep(RETRY_S)

    async def _rest(self) -> None:
        due = min(self._later.values(), default=None)
        try:
            async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                await self.wake.wait()
        except TimeoutError:
            return
        self.wake.clear()

    async def act(self) -> None:
        """Do for every queue what is to be done now. Raises what the broker's absence leads to; then it is done again."""
        await self._keep_paused()
        now = time.monotonic()
        due = self._changed | {name for name, at in self._later.items() if at <= now}
        self._changed = set()
        try:
            await _all(self._serve(name, self._lines[name]) for name in due)
        except BaseException:
            self._changed |= due
            raise

    async def _keep_paused(self) -> None:
        """Consumers are paused exactly where their queue is."""
        changed, self._pauses_changed = self._pauses_changed, set()
        try:
            if time.monotonic() - self._looked > LOOK_S:
                changed |= set(self._paused)
                self._looked = time.monotonic()
            for name in changed:
                if consumers := await self._log.routes.set_paused(name, self._paused[name]):
                    log.info(
                        "gate.queue_paused" if self._paused[name] else "gate.queue_resumed", queue=name, consumers=consumers
                    )
        except BaseException:
            self._pauses_changed |= changed
            raise

    async def _serve(self, name: str, line: Line) -> None:
        self._later.pop(name, None)
        if line.limits.gated and line.strangers:
            await self._call_back(line)
        await self._complete(line)
        if self._own.get(name, 0) <= line.queue.version:
            self._own.pop(name, None)
            if line.stages[Stage.HELD] and (picks := line.choose(time.time())):
                await self._admit(name, line, picks)
        self._plan(name, line)

    def _plan(self, name: str, line: Line) -> None:
        """When to look again although nothing comes."""
        times = [self._owed_since[task_id] + OWED_PATIENCE_S for task_id in line.owed if task_id in self._owed_since]
        now = time.time()
        if name not in self._own and (next_at := line.next_at(now)) is not None:
            times.append(time.monotonic() + next_at - now)
        if times:
            self._later[name] = min(times)

    async def _call_back(self, line: Line) -> None:
        """Tasks that passed by the gate wait at it, unless a worker was first."""
        strangers = list(line.strangers.items())[:CALL_BACK_MAX]
        await _all(self._command(task_id, HoldTask(version)) for task_id, version in strangers)
        log.info("gate.called_back", tasks=len(strangers))

    async def _complete(self, line: Line) -> None:
        """What an admission led to, where whoever admitted did not live to see it."""
        now = time.monotonic()
        late = now - OWED_PATIENCE_S
        owed = [Pick(t, entry) for t, entry in line.owed.items() if self._owed_since.get(t, late) <= late]
        if owed:
            self._owed_since |= {pick.task_id: now for pick in owed}  # what comes of it is waited for as long
            await self._queue(owed)
            log.info("gate.completed", tasks=len(owed))

    async def _admit(self, name: str, line: Line, picks: Sequence[Pick]) -> None:
        """Both steps. Nothing happens where another gate, or a change of the queue, came first."""
        tasks = tuple(Admission(task_id=pick.task_id, version=pick.entry.version, key=pick.entry.key) for pick in picks)
        failpoint("gate.before_admitted")
        try:
            command = AdmitTasks(line.queue.version, tasks)
            handled = await handle_any(self._log, QUEUES, name, command, source=SOURCE, state=line.queue)
        except Conflict:
            return
        failpoint("gate.after_admitted")
        self._own[name] = handled.state.version
        self.admitted += len(picks)
        await self._queue(picks)

    async def _queue(self, picks: Iterable[Pick]) -> None:
        """The second step: each becomes a work item."""
        await _all(self._queue_one(pick) for pick in picks)

    async def _queue_one(self, pick: Pick) -> None:
        entry = pick.entry
        await self._command(pick.task_id, AdmitTask(entry.version), entry.state)
        failpoint("gate.after_queued")

    async def _command(self, task_id: str, command: Command, state: dict[str, Any] | None = None) -> None:
        """``state``: the task as it was last seen, if it is remembered."""
        try:
            known = None if state is None else from_summary(state)
            await handle(self._log, task_id, command, source=SOURCE, task=known)
        except (Conflict, TaskNotFound):
            return  # it was started, cancelled, changed or paused meanwhile: the log has it
        except Damaged as error:
            log.warning("gate.unreadable", task_id=task_id, error=error.detail)  # a newer program will let it pass


def _entry(fact: Fact) -> Entry | None:
    """The task as its line has it; ``None`` where it is not ready and in nobody's hands."""
    state = fact.state
    stage = _STAGES.get(state["status"])
    if stage is None and state["status"] == Status.PAUSED.value and state.get("worker_id") is not None:
        stage = Stage.RUNNING
    if stage is None:
        return None
    if stage is Stage.ROUTED and not state.get("ready", 0):
        stage = Stage.HELD
    return Entry(
        version=fact.version,
        stage=stage,
        key=state.get("key"),
        priority=state.get("priority", 0),
        position=fact.position,
        gated=state.get("gated", False),
        state=state if stage is Stage.HELD else None,
        pool=state.get("pool", ""),
    )


async def _all(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Take all steps at once; raises the first error once all have ended."""
    for outcome in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
