"""Moves workflows on: the duty that decides what follows from the ends of their tasks, and makes the tasks that follow.

It is shown the log, keeps a fold of every unfinished workflow, and appends what :func:`plan` says. Only after that, and only if
no other coordinator was first, are the tasks made that the event names: under ids that derive from the node, so making them
twice makes them once. Whoever dies in between leaves events that name tasks nobody made; every coordinator sees those, and
makes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import orjson
import structlog

from eventq.events.blobs import BlobStore
from eventq.events.catalogue import read_data
from eventq.events.commands import CancelTask
from eventq.events.data import EventData
from eventq.events.errors import (
    BlobDamaged,
    IllegalTransition,
    LogDamaged,
    LogUnavailable,
    NotFound,
    TaskErased,
    TaskNotFound,
)
from eventq.events.failpoints import failpoint
from eventq.events.handle import handle, handle_any
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES
from eventq.events.log import EventLog
from eventq.events.submitter import Submitter
from eventq.events.task_events import Submitted
from eventq.events.timers import WAIT_SLACK_S, Hint, set_timer
from eventq.events.workflow import DEADLINE, WORKFLOWS, AdvanceWorkflow
from eventq.events.workflow_events import Definition, WorkflowAdvanced, WorkflowCreated
from eventq.events.workflow_run import Owner, Plan, PlannedEvent, Run, needed_by, plan, task_of
from eventq.events.workflow_values import TOO_MUCH, Unresolved, Wanted
from eventq.services.clock import CarriedClock, broker_clock
from eventq.services.definitions import read_definition
from eventq.services.follower import Fact, Follower
from eventq.services.node_results import Fetched, NodeResults
from eventq.services.side_by_side import side_by_side

log = structlog.get_logger("eventq.coordinator")

SOURCE = "coordinator"

HELP_AFTER_S = 2.0
"""Tasks that another coordinator released and has not made after this long are made by whoever sees it."""

NEVER_S = 24 * 3600.0
"""A task that must not run is submitted for so much later, and cancelled at once."""

CANNOT_BE_MADE = "it cannot be made"

RETRY_S = 1.0
"""A workflow that could not be moved on, for want of the broker or the blob store, is tried again after so long; others go
on."""

RETRY_LOST_S = 60.0
"""The same where something of it is lost: somebody may put it back."""

TAKERS_MAX = 4
"""Steps and tasks, of all workflows together, that have results of nodes in memory at once: up to ``NODE_RESULTS_MAX_BYTES``
each."""

LOOK_EVERY_S = 0.5
"""How often all workflows are looked through for what is due."""

TERMINAL_EVENTS = frozenset({"completed", "failed", "cancelled", "timed_out", "erased"})
"""After these a workflow does nothing by itself."""


@dataclass(frozen=True, slots=True)
class TaskNews:
    """What the fold needs of one event of a task."""

    task_id: str
    parent_id: str | None
    status: str


@dataclass(slots=True)
class Followed:
    """One unfinished workflow. ``inbox``: what was seen and is not folded yet; ``moved_at``: monotonic time at which it last
    moved; ``history_to``: up to which version the log must be read again, because the workflow had ended before; ``mine``:
    the newest version that this process wrote; ``made``: tasks that this process made; ``voided``: tasks that must never
    run."""

    run: Run
    inbox: list[Fact | TaskNews] = field(default_factory=list[Fact | TaskNews])
    moved_at: float = 0.0
    history_to: int = 0
    mine: int = 0
    made: set[str] = field(default_factory=set[str])
    voided: set[str] = field(default_factory=set[str])


class Coordinator:
    """A duty of the follower. Run one with :meth:`run` until it is cancelled. Memory grows with the unfinished workflows."""

    def __init__(
        self,
        event_log: EventLog,
        submitter: Submitter,
        blobs: BlobStore,
        *,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._log = event_log
        self._submitter = submitter
        self._blobs = blobs
        self._clock = CarriedClock(broker_clock(event_log.broker))
        self._now = now or self._clock.now  # other clocks are a test's
        self._followed: dict[str, Followed] = {}
        self._dirty: dict[str, None] = {}
        self._fired_at = datetime.min.replace(tzinfo=UTC)
        self._looked_at = 0.0
        self._again_at: dict[str, float] = {}
        self._results = NodeResults(event_log, blobs)
        self._takers = asyncio.Semaphore(TAKERS_MAX)
        self.wake = asyncio.Event()
        self.advanced = 0

    def note(self, fact: Fact) -> None:
        """See :class:`Duty`."""
        if fact.kind == "tasks":
            workflow_id = fact.state.get("workflow_id")
            if workflow_id is None or (followed := self._followed.get(workflow_id)) is None:
                return
            followed.inbox.append(TaskNews(fact.id, fact.state.get("parent_task_id"), fact.state["status"]))
            self._dirty[workflow_id] = None
        elif fact.kind == "workflows":
            self._note_workflow(fact)

    def _note_workflow(self, fact: Fact) -> None:
        if fact.type in TERMINAL_EVENTS:
            self._followed.pop(fact.id, None)
            self._dirty.pop(fact.id, None)
            return
        followed = self._followed.get(fact.id)
        if followed is None:
            followed = self._followed[fact.id] = Followed(Run(fact.id), history_to=fact.version - 1)
        age_s = max(0.0, time.time() - fact.stored_ns / 1e9)
        followed.moved_at = time.monotonic() - age_s
        followed.inbox.append(fact)
        self._dirty[fact.id] = None

    async def deadline(self, hint: Hint) -> bool:
        """Answer a hint: something in a workflow may have waited too long. The next look tells; a hint that is lost is made up
        for by the look once a second."""
        if hint.fired_at is not None:
            self._fired_at = max(self._fired_at, hint.fired_at)
        if hint.id in self._followed:
            self._dirty[hint.id] = None
            self.wake.set()
        return True

    async def run(self, follower: Follower) -> None:
        """Move workflows on whenever something came and all of the log has been seen."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            await follower.until_caught_up()
            await self.look()

    async def look(self) -> None:
        """Move on every workflow of which something is new, or something is due."""
        if not self._followed:
            return
        try:
            await self._clock.keep_right(LOOK_EVERY_S)
        except LogUnavailable as unknown:
            log.warning("coordinator.waiting_for_broker", error=unknown.detail)
            return  # all that is to be done stays so for the next look
        self._look_for_due()
        todo = list(self._dirty)
        self._dirty.clear()
        failures = await side_by_side(todo, self._attend)
        for workflow_id, error in failures:
            lost = isinstance(error, NotFound | LogDamaged | BlobDamaged)
            self._again_at[workflow_id] = time.monotonic() + (RETRY_LOST_S if lost else RETRY_S)
            log.warning("coordinator.workflow_waits", workflow_id=workflow_id, lost=lost, error=repr(error))

    def _look_for_due(self) -> None:
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        for workflow_id in [each for each, at in self._again_at.items() if at <= self._looked_at]:
            del self._again_at[workflow_id]
            self._dirty[workflow_id] = None
        now = self._time()
        for workflow_id, followed in self._followed.items():
            if workflow_id in self._again_at:
                continue
            deadline = followed.run.next_deadline()
            if (deadline is not None and deadline <= now) or self._unmade(followed):
                self._dirty[workflow_id] = None

    def _time(self) -> datetime:
        return max(self._now(), self._fired_at)

    async def _attend(self, workflow_id: str) -> None:
        followed = self._followed.get(workflow_id)
        if followed is None:
            return
        await self._fold(followed)
        run = followed.run
        if run.state.ending is not None:
            await self._stop_tasks(followed)
        else:
            for task_id in list(run.voids):  # whoever made it for nothing died before it cancelled it
                await self._cancel(run, task_id, CANNOT_BE_MADE)
            if self._unmade(followed):
                await self._make(followed)
        event = await self._plan(run)
        if event is not None:
            await self._advance(followed, event)

    def _unmade(self, followed: Followed) -> list[str]:
        """Released tasks that this process should make: its own, and those that others have not made for too long."""
        if followed.mine < followed.run.state.version and followed.moved_at >= time.monotonic() - HELP_AFTER_S:
            return []
        return [task_id for task_id in followed.run.unmade if task_id not in followed.made]

    async def _fold(self, followed: Followed) -> None:
        """Fold what came. What had been forgotten, because the workflow had ended, is read from the log again."""
        run = followed.run
        if run.state.version < followed.history_to:
            await self._read_again(followed)
        while followed.inbox:
            news = followed.inbox[0]
            if isinstance(news, TaskNews):
                run.note_task(news.task_id, news.parent_id, news.status)
            elif news.version > run.state.version:
                data = read_data("workflows", news.type, news.event["schema"], news.data)
                await self._apply(run, news.event["id"], news.time, data)
            del followed.inbox[0]

    async def _apply(self, run: Run, event_id: str, at: datetime, data: EventData) -> None:
        if isinstance(data, WorkflowCreated) and run.graph is None:
            run.know(await self._definition(data))
        run.apply(event_id, at, data)

    async def _definition(self, created: WorkflowCreated) -> Definition:
        return await read_definition(self._blobs, created)

    async def _read_again(self, followed: Followed) -> None:
        run = followed.run
        for version in range(run.state.version + 1, followed.history_to + 1):
            stored = await self._log.at("workflows", run.workflow_id, version)
            if stored is None:
                raise LogDamaged(f"workflow {run.workflow_id} lacks its version {version}", workflow_id=run.workflow_id)
            await self._apply(run, stored.event.id, stored.event.time, stored.event.data)

    async def _plan(self, run: Run) -> PlannedEvent | None:
        """What to append; results that are needed are fetched first."""
        planned = plan(run, {}, self._time())
        if not planned.missing:
            return planned.event
        async with self._takers:
            return await self._plan_with_results(run, planned)

    async def _plan_with_results(self, run: Run, planned: Plan) -> PlannedEvent | None:
        """Where not all results can be had at once, what to append for the nodes whose results are at hand; the others come
        next, and one that needs more than that by itself fails."""
        fetched, greedy = Fetched(), None
        while planned.missing:
            if fetched.full:
                greedy = planned.wanting  # it came first and had all the room; what it wants may be little to others
            else:
                await self._results.fetch(run, planned.missing, fetched)
            planned = plan(run, fetched.results, self._time(), fetched.lost, greedy=greedy, enough=fetched.full)
        return planned.event

    async def _advance(self, followed: Followed, event: PlannedEvent) -> None:
        run, state = followed.run, followed.run.state
        if isinstance(event, WorkflowAdvanced):
            await self._set_wait_timer(run, event)
        failpoint("workflow.before_advanced")
        command = AdvanceWorkflow(state.version, event)
        try:
            handled = await handle_any(
                self._log, WORKFLOWS, run.workflow_id, command, source=SOURCE, state=state, at=self._time()
            )
        except IllegalTransition:
            return  # somebody else was first; what they wrote is on its way to us
        failpoint("workflow.after_advanced")
        self.advanced += 1
        if isinstance(event, WorkflowAdvanced) and handled.event is not None:
            run.apply(handled.event.id, handled.event.time, event)
            followed.mine = run.state.version
            followed.moved_at = time.monotonic()
            if run.state.ending is None or event.compensating:
                await self._make(followed)

    async def _set_wait_timer(self, run: Run, event: WorkflowAdvanced) -> None:
        """Where this begins or ends waits: a timer for the first of those that then go on. Its answer sets the next one."""
        over = {end.node for end in event.finished if end.waited}
        if not (over or event.waiting):
            return
        assert run.graph is not None
        now = self._time() + timedelta(seconds=WAIT_SLACK_S)
        begun = (run.graph.nodes[name].timeout_s for name in event.waiting)
        times = [now + timedelta(seconds=timeout_s) for timeout_s in begun if timeout_s is not None]
        times += [at for name, at in run.waiting.items() if at is not None and name not in over]
        if times:
            hint = Hint("workflows", run.workflow_id, DEADLINE, run.state.version + 1)
            await set_timer(self._log.timers, hint, min(times))

    async def _make(self, followed: Followed) -> None:
        """Make the tasks that were released, where they do not exist."""
        failures = await side_by_side(self._unmade(followed), lambda task_id: self._make_one(followed, task_id))
        if failures:
            raise failures[0][1]

    async def _make_one(self, followed: Followed, task_id: str) -> None:
        run = followed.run
        owner = run.unmade.get(task_id)
        if owner is None or (run.state.ending is not None and not owner.compensation):
            return
        needed = needed_by(run, owner)
        async with self._takers if needed else nullcontext():  # what takes nothing waits for none who take
            submitted, problem = await self._task(run, owner, needed)
        if submitted is None:
            await self._make_void(run, task_id, f"{CANNOT_BE_MADE}: {problem}")
            return
        failpoint("workflow.before_submit")
        with suppress(IllegalTransition):  # made already
            await self._submitter.submit(task_id, submitted)
        followed.made.add(task_id)
        failpoint("workflow.after_submit")

    async def _task(self, run: Run, owner: Owner, needed: Iterable[Wanted]) -> tuple[Submitted | None, str]:
        """What to submit; or ``None`` and why not, where a result was destroyed since the node was released. What undoes
        work runs without such a result, and says itself what it lacks."""
        fetched = Fetched()
        await self._results.fetch(run, needed, fetched)
        problem = TOO_MUCH if fetched.full else next(iter(fetched.lost.values()), "")
        try:
            submitted = task_of(run, owner, fetched.results)
        except Unresolved as error:
            problem = str(error)
            submitted = task_of(run, owner, {})
        if problem:
            log.warning("coordinator.unresolved", workflow_id=run.workflow_id, node=owner.node, problem=problem)
            if not owner.compensation:
                return None, problem
        encoded = orjson.dumps({"args": submitted.args, "kwargs": submitted.kwargs})
        if len(encoded) <= INLINE_PAYLOAD_MAX_BYTES:
            return submitted, ""
        stored = await self._blobs.put_async(encoded, media_type="application/json")
        return submitted.model_copy(update={"args": [], "kwargs": {}, "input": stored}), ""

    async def _stop_tasks(self, followed: Followed) -> None:
        """Cancel what runs of a workflow that stops; what undoes its work goes on. Released tasks that nobody made are made
        as cancelled ones, so that nobody can make them later."""
        run = followed.run
        await self._make(followed)
        for task_id in [each for each, owner in run.unmade.items() if not owner.compensation]:
            if task_id not in followed.voided:
                await self._make_void(run, task_id, _why(run))
                followed.voided.add(task_id)
        unfinished = dict(run.unfinished_tasks())

        async def cancel(task_id: str) -> None:
            tree, root = unfinished[task_id], run.owner(run.tasks[task_id])
            if task_id not in tree.cancelled and root is not None and not root.compensation:
                await self._cancel(run, task_id, _why(run))
                tree.cancelled.add(task_id)

        failures = await side_by_side(list(unfinished), cancel)
        if failures:
            raise failures[0][1]

    async def _make_void(self, run: Run, task_id: str, why: str | None) -> None:
        assert run.graph is not None
        template = run.graph.nodes[run.unmade[task_id].node].task
        assert template is not None
        later = self._now() + timedelta(seconds=NEVER_S)
        void = template.model_copy(
            update={
                "args": [],
                "kwargs": {},
                "scheduled_at": later,
                "workflow_id": run.workflow_id,
                "node": run.unmade[task_id].node,
            }
        )
        with suppress(IllegalTransition):  # made after all
            await self._submitter.submit(task_id, void)
        await self._cancel(run, task_id, why)

    async def _cancel(self, run: Run, task_id: str, why: str | None) -> None:
        who = run.state.cancel_requested_by or SOURCE
        try:
            await handle(self._log, task_id, CancelTask(who, why), source=SOURCE)
        except (IllegalTransition, TaskErased, TaskNotFound):
            return  # it ended meanwhile


def _why(run: Run) -> str | None:
    """Why the tasks of a workflow that stops are cancelled."""
    return run.state.cancel_reason if run.state.cancel_requested_by else f"its workflow ends as {run.state.ending}"
