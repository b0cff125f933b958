"""The one door: commands of many hands against one broker, in pairs and in crowds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from eventq.events.broker import Broker
from eventq.events.commands import (
    AdmitTask,
    CancelTask,
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ExpireLease,
    FailAttempt,
    HoldTask,
    InterruptAttempt,
    PauseTask,
    ResumeTask,
    StartAttempt,
    SubmitTask,
    TimeOutAttempt,
)
from eventq.events.envelope import Stored, decode
from eventq.events.errors import Conflict, IllegalTransition, StaleAttempt, TaskNotFound
from eventq.events.handle import handle, read_task
from eventq.events.log import EventLog
from eventq.events.reader import Tail
from eventq.events.subjects import EVENTS, aggregate_filter
from eventq.events.task import ABSENT, Status
from tests.events.given import ERROR, NOW, submission
from tests.events.history import violations

SUBMIT = SubmitTask(submission(max_retries=1), NOW)
START = StartAttempt(worker_id="w1", hostname="host", device="cpu")
COMPLETE = CompleteAttempt(1, None, None, 1.0)
ENDS: list[Command] = [
    COMPLETE,
    FailAttempt(1, ERROR, None, NOW),
    FailAttempt(1, ERROR, 1.0, NOW),
    TimeOutAttempt(1, 5.0, 1.0, NOW),
    InterruptAttempt(1),
    ExpireLease(1),
    ConfirmCancel(1),
    CancelTask("ada"),
]


@pytest.fixture
async def log(broker: Broker) -> AsyncIterator[EventLog]:
    log = await EventLog.open(broker)
    yield log
    await log.close()


async def history_is_sound(log: EventLog, task_id: str) -> None:
    """Read the whole history past `handle` and judge it."""
    last = await log.last("tasks", task_id, fresh=True)
    assert last is not None
    async with Tail(log.broker, EVENTS, after=0, subject=aggregate_filter("tasks", task_id)) as tail:
        events = [decode(message.payload, message.subject) for message in await tail.next(timeout_s=5)]
        while events[-1].version < last.event.version:
            events += [decode(message.payload, message.subject) for message in await tail.next(timeout_s=5)]
    assert violations(events) == []


async def given_task(log: EventLog, task_id: str, *commands: Command) -> None:
    for command in commands:
        await handle(log, task_id, command, source="test")


async def test_a_command_answers_the_task_after_it(log: EventLog) -> None:
    submitted = await handle(log, "t1", SUBMIT, source="api")
    assert submitted.event is not None
    assert (submitted.state.status, submitted.state.version, submitted.event.version) == (Status.PENDING, 1, 1)

    started = await handle(log, "t1", START, source="worker.w1", task=submitted.state)
    assert started.event is not None
    assert (started.state.attempt, started.event.previous) == (1, submitted.event.id)
    assert await read_task(log, "t1") == started.state


async def test_a_command_to_no_task_is_not_found(log: EventLog) -> None:
    with pytest.raises(TaskNotFound) as missing:
        await handle(log, "nobody", CancelTask("ada"), source="api")
    assert missing.value.fields == {"task_id": "nobody"}
    assert await read_task(log, "nobody") is ABSENT


async def test_a_fulfilled_command_writes_nothing(log: EventLog) -> None:
    await given_task(log, "t1", SUBMIT, START, CancelTask("ada"))
    again = await handle(log, "t1", CancelTask("bob"), source="api")
    assert (again.event, again.state.version) == (None, 3)
    assert await log.at("tasks", "t1", 4) is None


async def test_a_refused_command_writes_nothing(log: EventLog) -> None:
    await given_task(log, "t1", SUBMIT, START, COMPLETE)
    with pytest.raises(IllegalTransition):
        await handle(log, "t1", START, source="worker.w2")
    assert await log.at("tasks", "t1", 4) is None


async def test_a_stale_view_does_no_harm(log: EventLog) -> None:
    pending = (await handle(log, "t1", SUBMIT, source="api")).state
    await given_task(log, "t1", CancelTask("ada"))
    with pytest.raises(IllegalTransition, match="CANCELLED"):
        await handle(log, "t1", START, source="worker.w1", task=pending)
    await history_is_sound(log, "t1")


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not ask the leader is answered by a replica that lacks the newest event, as replicas do for an instant."""
    last = EventLog.last

    async def lagging(self: EventLog, aggregate: str, aggregate_id: str, *, fresh: bool = False) -> Stored | None:
        found = await last(self, aggregate, aggregate_id, fresh=True)
        if fresh or found is None or found.event.version == 1:
            return found if fresh else None
        return await self.at(aggregate, aggregate_id, found.event.version - 1)

    monkeypatch.setattr(EventLog, "last", lagging)


@pytest.mark.usefixtures("behind")
async def test_nothing_is_refused_because_a_replica_is_behind(log: EventLog) -> None:
    await handle(log, "t", SUBMIT, source="api", task=ABSENT)
    assert (await handle(log, "t", PauseTask("ada"), source="api")).state.status is Status.PAUSED
    assert (await handle(log, "t", ResumeTask("ada", NOW), source="api")).state.status is Status.PENDING
    await history_is_sound(log, "t")


@pytest.mark.usefixtures("behind")
async def test_nothing_is_taken_for_done_because_a_replica_is_behind(log: EventLog) -> None:
    await given_task(log, "t", SUBMIT)
    await handle(log, "t", HoldTask(1), source="gate")
    admitted = await handle(log, "t", AdmitTask(2), source="gate")
    assert (admitted.state.version, admitted.state.ready) == (3, 3)


async def test_a_settled_version_is_found_although_a_replica_is_behind(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    await given_task(log, "t", SUBMIT)
    get, asked = log._get, list[bool]()  # pyright: ignore[reportPrivateUsage]

    async def lagging(subject: str, *, fresh: bool) -> Stored | None:
        asked.append(fresh)
        return await get(subject, fresh=True) if fresh else None

    assert await log.settled("tasks", "t", 1) == await log.at("tasks", "t", 1)
    monkeypatch.setattr(log, "_get", lagging)
    assert await log.settled("tasks", "t", 1) == await get("tasks.t.1.>", fresh=True)
    assert asked == [False, True]
    assert await log.settled("tasks", "t", 2) is None


async def test_a_history_whose_first_event_was_deleted_does_not_begin_again(log: EventLog) -> None:
    await given_task(log, "t1", SUBMIT, START, COMPLETE)
    await log.broker.js.delete_msg(EVENTS, 1)
    with pytest.raises(IllegalTransition):
        await handle(log, "t1", SUBMIT, source="api", task=ABSENT)
    assert await log.at("tasks", "t1", 1) is None


async def test_a_worker_that_slept_through_its_lease_is_refused(log: EventLog) -> None:
    await given_task(log, "t1", SUBMIT)
    asleep = (await handle(log, "t1", START, source="worker.w1")).state
    await given_task(log, "t1", ExpireLease(1), START)

    with pytest.raises(StaleAttempt):
        await handle(log, "t1", COMPLETE, source="worker.w1", task=asleep)

    await given_task(log, "t1", CompleteAttempt(2, {"by": "w2"}, None, 1.0))
    with pytest.raises(IllegalTransition):
        await handle(log, "t1", COMPLETE, source="worker.w1", task=asleep)
    await history_is_sound(log, "t1")


async def test_of_twenty_workers_one_starts(log: EventLog) -> None:
    pending = (await handle(log, "t1", SUBMIT, source="api")).state
    starts = [handle(log, "t1", START, source=f"worker.{number}", task=pending) for number in range(20)]
    outcomes = await asyncio.gather(*starts, return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    assert all(isinstance(outcome, IllegalTransition) for outcome in outcomes if isinstance(outcome, BaseException))
    await history_is_sound(log, "t1")


async def test_cancelling_races_starting(log: EventLog) -> None:
    """Whoever wins, a task cancelled before its start never starts."""
    for number in range(50):
        task_id = f"t{number}"
        pending = (await handle(log, task_id, SUBMIT, source="api")).state
        racing = [
            handle(log, task_id, START, source="worker.w1", task=pending),
            handle(log, task_id, CancelTask("ada"), source="api", task=pending),
        ]
        await asyncio.gather(*(racing if number % 2 else racing[::-1]), return_exceptions=True)
        task = await read_task(log, task_id, fresh=True)
        assert (task.status, task.attempt) in {(Status.CANCELLED, 0), (Status.RUNNING, 1)}
        await history_is_sound(log, task_id)


@pytest.mark.parametrize("one", ENDS, ids=lambda end: type(end).__name__)
async def test_two_ends_of_one_attempt_make_one_end(log: EventLog, one: Command) -> None:
    for number, other in enumerate(ENDS):
        task_id = f"t{number}"
        await given_task(log, task_id, SUBMIT, START)
        running = await read_task(log, task_id)

        racing = [handle(log, task_id, end, source="test", task=running) for end in (one, other, one, other)]
        outcomes = await asyncio.gather(*racing, return_exceptions=True)

        assert all(isinstance(outcome, Conflict) for outcome in outcomes if isinstance(outcome, BaseException))
        assert any(not isinstance(outcome, BaseException) for outcome in outcomes)
        await history_is_sound(log, task_id)


async def test_the_clock_is_the_writer_s_and_aware(log: EventLog) -> None:
    before = datetime.now(UTC)
    handled = await handle(log, "t1", SUBMIT, source="api")
    assert handled.event is not None
    assert before <= handled.event.time <= datetime.now(UTC)
