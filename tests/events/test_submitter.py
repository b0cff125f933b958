"""The one way to make a task, against a real broker: once for each id, timers first, at its queue's gate."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import orjson
import pytest

from eventq.events import submitter as module
from eventq.events.appender import Appender
from eventq.events.broker import Broker
from eventq.events.commands import CancelTask
from eventq.events.errors import IllegalTransition, LogUnavailable, VersionConflict
from eventq.events.handle import Handled, handle, handle_any, read_state, read_task
from eventq.events.log import EventLog
from eventq.events.queue import QUEUES, ConfigureQueue, PauseQueue
from eventq.events.queue_events import QueueLimits
from eventq.events.subjects import TIMERS
from eventq.events.submitter import Submitter
from eventq.events.task import Status
from eventq.events.task_events import Submitted
from eventq.events.timers import WAIT_SLACK_S, set_task_timers
from tests.events.given import submission
from tests.support.nats import NatsServer

ROOT = Path(__file__).parents[2]
LIMITED = QueueLimits(max_running=1)
HOUR = timedelta(hours=1)


@pytest.fixture
async def log(broker: Broker) -> AsyncIterator[EventLog]:
    log = await EventLog.open(broker)
    yield log
    await log.close()


@pytest.fixture
def submitter(log: EventLog) -> Submitter:
    return Submitter(log, source="api")


async def timers(url: str) -> dict[str, datetime]:
    """When each pending timer fires, by what it is about."""
    nc = await nats.connect(url)
    try:
        js = nc.jetstream()
        facts = (await js.stream_info(TIMERS, subjects_filter="sched.>")).state.subjects or {}
        found: dict[str, datetime] = {}
        for subject in facts:
            message = await js.get_last_msg(TIMERS, subject)
            assert orjson.loads(message.data or b"")["kind"] == "tasks"
            schedule = str((message.headers or {})["Nats-Schedule"])  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
            found[subject.removeprefix("sched.")] = datetime.fromisoformat(schedule.removeprefix("@at "))
        return found
    finally:
        await nc.close()


async def test_many_tasks_at_once_ask_for_their_queue_once(
    log: EventLog, submitter: Submitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def counted(*arguments: Any) -> Any:
        asked.append(arguments[2])
        return await read_state(*arguments)

    monkeypatch.setattr(module, "read_state", counted)
    await asyncio.gather(*(submitter.queues.get(queue) for queue in ["default", "other"] * 50))
    assert sorted(asked) == ["default", "other"]


async def test_many_that_ask_for_a_queue_share_the_failure_too(submitter: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def fails(*_: Any) -> Any:
        nonlocal asked
        asked += 1
        raise LogUnavailable("the broker does not answer reads")

    monkeypatch.setattr(module, "read_state", fails)
    outcomes = await asyncio.gather(*(submitter.queues.get("default") for _ in range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {LogUnavailable}
    assert asked == 1
    monkeypatch.undo()
    assert (await submitter.queues.get("default")).version == 0


async def test_the_same_id_submitted_twice_makes_one_task(log: EventLog, submitter: Submitter) -> None:
    first = await submitter.submit("t1", submission(args=[1]))
    with pytest.raises(IllegalTransition):
        await submitter.submit("t1", submission(args=[2]))
    assert await log.at("tasks", "t1", 2) is None
    stored = await log.at("tasks", "t1", 1)
    assert stored is not None
    assert isinstance(stored.event.data, Submitted)
    assert (stored.event.data.args, stored.event.id) == ([1], first.state.event_id)


async def test_of_ten_that_submit_the_same_id_at_once_one_does(log: EventLog, submitter: Submitter) -> None:
    others = [Submitter(log, source=f"api-{number}") for number in range(9)]
    racing = [each.submit("t1", submission()) for each in (submitter, *others)]
    outcomes = await asyncio.gather(*racing, return_exceptions=True)
    assert sum(isinstance(outcome, IllegalTransition) for outcome in outcomes) == 9
    assert (await read_task(log, "t1", fresh=True)).version == 1


async def test_an_id_is_not_free_again_after_its_task_has_ended(log: EventLog, submitter: Submitter) -> None:
    await submitter.submit("t1", submission())
    await handle(log, "t1", CancelTask("ada"), source="api")
    with pytest.raises(IllegalTransition, match="CANCELLED"):
        await submitter.submit("t1", submission())


async def test_a_task_of_a_queue_without_limits_is_work_at_once(submitter: Submitter) -> None:
    handled = await submitter.submit("t1", submission())
    assert handled.event is not None
    assert handled.event.route is not None
    assert not handled.state.gated


async def test_a_task_of_a_queue_with_limits_is_held_at_its_gate(log: EventLog, submitter: Submitter) -> None:
    await handle_any(log, QUEUES, "default", ConfigureQueue(LIMITED, "ada"), source="api")
    handled = await submitter.submit("t1", submission())
    assert handled.event is not None
    assert handled.event.subject == "tasks.t1.1.submitted"
    assert (handled.state.held, handled.state.gated) == (True, True)
    assert isinstance(handled.event.data, Submitted)
    assert handled.event.data.gated


async def test_a_pause_alone_makes_no_gate(log: EventLog, submitter: Submitter) -> None:
    await handle_any(log, QUEUES, "default", PauseQueue("ada"), source="api")
    assert not (await submitter.submit("t1", submission())).state.held


async def test_limits_are_believed_for_a_while_and_known_at_once_to_whom_changed_them(
    log: EventLog, submitter: Submitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_TTL_S", 3600.0)
    assert not (await submitter.submit("t1", submission())).state.held
    await handle_any(log, QUEUES, "default", ConfigureQueue(LIMITED, "ada"), source="api")
    assert not (await submitter.submit("t2", submission())).state.held
    submitter.queues.forget("default")
    assert (await submitter.submit("t3", submission())).state.held


async def test_limits_of_somebody_else_are_known_once_the_belief_is_old(
    log: EventLog, submitter: Submitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_TTL_S", 0.0)
    assert not (await submitter.submit("t1", submission())).state.held
    await handle_any(log, QUEUES, "default", ConfigureQueue(LIMITED, "ada"), source="api")
    assert (await submitter.submit("t2", submission())).state.held


async def test_an_answer_that_was_forgotten_while_it_was_asked_for_is_not_remembered(
    log: EventLog, submitter: Submitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_TTL_S", 3600.0)

    async def slow(*arguments: Any) -> Any:
        found = await read_state(*arguments)
        await handle_any(log, QUEUES, "default", ConfigureQueue(LIMITED, "ada"), source="api")
        submitter.queues.forget("default")
        return found

    monkeypatch.setattr(module, "read_state", slow)
    assert not (await submitter.queues.get("default")).gated
    monkeypatch.undo()
    assert (await submitter.queues.get("default")).gated


async def test_no_more_queues_are_remembered_than_named(
    log: EventLog, submitter: Submitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUES_MAX", 2)
    for number in range(5):
        await submitter.queues.get(f"q{number}")
        assert len(submitter.queues._known) <= 2  # pyright: ignore[reportPrivateUsage]


async def test_a_task_that_waits_for_nothing_sets_no_timer(submitter: Submitter, own_nats_server: NatsServer) -> None:
    await submitter.submit("t1", submission())
    assert await timers(own_nats_server.url) == {}


async def test_timers_are_set_for_its_time_and_for_the_end_of_its_wait(
    submitter: Submitter, own_nats_server: NatsServer
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    await submitter.submit("later", submission(scheduled_at=now + HOUR, queue_timeout_s=30.0), now=now)
    await submitter.submit("now", submission(queue_timeout_s=600.0), now=now)
    slack = timedelta(seconds=WAIT_SLACK_S)
    assert await timers(own_nats_server.url) == {
        "tasks.later.due.1": now + HOUR,
        "tasks.later.start_by.1": now + HOUR + timedelta(seconds=30) + slack,
        "tasks.now.start_by.1": now + timedelta(seconds=600) + slack,
    }


async def test_tasks_stored_together_are_each_as_if_stored_alone(
    log: EventLog, submitter: Submitter, own_nats_server: NatsServer
) -> None:
    await handle_any(log, QUEUES, "limited", ConfigureQueue(LIMITED, "ada"), source="api")
    now = datetime.now(UTC).replace(microsecond=0)
    tasks = {
        "plain": submission(),
        "held": submission(queue="limited"),
        "later": submission(scheduled_at=now + HOUR, queue_timeout_s=30.0),
        "held-later": submission(queue="limited", scheduled_at=now + HOUR),
        **{f"t{number}": submission(args=[number]) for number in range(20)},
    }

    outcomes = await submitter.submit_all(tasks, now=now)

    assert list(outcomes) == list(tasks)
    for task_id, outcome in outcomes.items():
        assert isinstance(outcome, Handled)
        assert await read_task(log, task_id, fresh=True) == outcome.state
        alone = await submitter.submit(f"{task_id}-alone", tasks[task_id], now=now)
        assert outcome.state._replace(event_id=None) == alone.state._replace(event_id=None)
    assert set(await timers(own_nats_server.url)) >= {"tasks.later.due.1", "tasks.later.start_by.1", "tasks.held-later.due.1"}


async def test_of_tasks_stored_together_one_whose_id_is_taken_is_refused_alone(log: EventLog, submitter: Submitter) -> None:
    await submitter.submit("t3", submission(args=["first"]))
    outcomes = await submitter.submit_all({f"t{number}": submission() for number in range(20)}, now=datetime.now(UTC))
    assert [task_id for task_id, outcome in outcomes.items() if isinstance(outcome, VersionConflict)] == ["t3"]
    assert sum(isinstance(outcome, Handled) for outcome in outcomes.values()) == 19


async def test_of_tasks_stored_together_one_whose_timer_cannot_be_set_is_not_stored(
    log: EventLog, submitter: Submitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)

    async def fails(timers: Appender, task_id: str, **rest: Any) -> None:
        if task_id == "unlucky":
            raise LogUnavailable("the timer could not be set")
        await set_task_timers(timers, task_id, **rest)

    monkeypatch.setattr(module, "set_task_timers", fails)
    wanted = submission(scheduled_at=now + HOUR)
    outcomes = await submitter.submit_all({"lucky": wanted, "unlucky": wanted, "plain": submission()}, now=now)
    assert isinstance(outcomes["unlucky"], LogUnavailable)
    assert (await read_task(log, "unlucky", fresh=True)).status is Status.ABSENT
    assert (await read_task(log, "lucky", fresh=True)).status is Status.SCHEDULED
    assert (await read_task(log, "plain", fresh=True)).status is Status.PENDING


async def test_who_dies_before_the_event_leaves_only_timers_and_the_id_free(
    log: EventLog, submitter: Submitter, own_nats_server: NatsServer
) -> None:
    assert await killed_at("submit.before_append", own_nats_server.url, "t1") == -signal.SIGKILL
    assert sorted(await timers(own_nats_server.url)) == ["tasks.t1.due.1", "tasks.t1.start_by.1"]
    assert (await read_task(log, "t1", fresh=True)).status is Status.ABSENT

    assert (await submitter.submit("t1", submission())).state.status is Status.PENDING


async def test_who_dies_after_the_event_has_made_the_task_and_its_timers(
    log: EventLog, submitter: Submitter, own_nats_server: NatsServer
) -> None:
    assert await killed_at("submit.after_append", own_nats_server.url, "t1") == -signal.SIGKILL
    assert sorted(await timers(own_nats_server.url)) == ["tasks.t1.due.1", "tasks.t1.start_by.1"]
    assert (await read_task(log, "t1", fresh=True)).status is Status.SCHEDULED
    with pytest.raises(IllegalTransition):
        await submitter.submit("t1", submission())


async def killed_at(point: str, url: str, task_id: str) -> int:
    """Submit in a process that is killed at this failpoint; its exit status."""
    environment = {**os.environ, "EVENTQ_FAILPOINTS": f"{point}=kill"}
    command = [sys.executable, "-m", "tests.events.submit_process", url, task_id]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False
    )
    return done.returncode


async def test_without_a_broker_nothing_is_known(submitter: Submitter, own_nats_server: NatsServer) -> None:
    await submitter.submit("t0", submission())
    await asyncio.to_thread(own_nats_server.kill)
    with pytest.raises(LogUnavailable):
        await submitter.submit("t1", submission(queue_timeout_s=30.0))
