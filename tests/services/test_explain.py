"""Why a task waits: every reason, over HTTP and on facts alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventq.events.commands import AdmitTask, ConfirmPause, FailAttempt, PauseTask, SubmitTask
from eventq.events.data import ErrorInfo
from eventq.events.handle import handle, handle_any
from eventq.events.ids import new_id
from eventq.events.presence import Heartbeat, beat
from eventq.events.queue import Queue
from eventq.events.queue_events import QueueLimits, Rate
from eventq.events.task import Status
from eventq.events.task_events import Submitted
from eventq.events.worker import WORKERS, PauseWorker, WorkerStatus
from eventq.projections.queue_queries import LineFacts
from eventq.projections.rows import TaskRow
from eventq.services.explain import Explanation, PresentWorker, explain
from tests.services.backend import WORKER_ID, Backend
from tests.services.test_api_queues import admit, put

NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
WORKER = PresentWorker("w1", "cpu", (), capacity=2, running=0, status=WorkerStatus.ACTIVE)
BUSY = PresentWorker("w1", "cpu", (), capacity=2, running=2, status=WorkerStatus.ACTIVE)


def row(**changes: Any) -> TaskRow:
    """A task that waits for a worker."""
    values: dict[str, Any] = dict.fromkeys(TaskRow.__dataclass_fields__)
    values |= {
        "task_id": "t", "task_name": "echo", "status": Status.PENDING, "pool": "cpu", "queue": "q", "priority": 5, "version": 1,
        "attempt": 0, "failures": 0, "losses": 0, "ready": 1, "gated": False, "created_at": NOW, "updated_at": NOW,
    }  # fmt: skip
    return TaskRow(**{**values, **changes})


def held(**changes: Any) -> TaskRow:
    return row(ready=0, gated=True, **changes)


def line(limits: QueueLimits | None = None, **changes: Any) -> LineFacts:
    """Nothing stands before it."""
    values: dict[str, Any] = {
        "queue": Queue(limits=limits or QueueLimits()), "ahead": 0, "holders": 0, "holders_of_key": 0, "waiting": 0,
        "waiting_of_key": 0, "keys_held": 1, "holding": [], "holding_of_key": [], "admissions": [], "durations": [],
    }  # fmt: skip
    return LineFacts(**{**values, **changes})


def told(task: TaskRow, facts: LineFacts, workers: Sequence[PresentWorker] = (WORKER,)) -> Explanation:
    return explain(task, facts, workers, NOW)


def codes(found: Explanation) -> list[str]:
    return [reason.code for reason in found.reasons]


def test_a_task_that_nothing_stops_is_about_to_start() -> None:
    found = told(row(), line())
    assert codes(found) == ["about_to_start"]
    assert found.predicted is not None
    assert found.predicted.earliest == NOW


def test_where_no_worker_serves_the_queue_it_is_said_which_are_served() -> None:
    found = told(row(), line(), [PresentWorker("g", "gpu", ("a", "b"), 1, 0, WorkerStatus.ACTIVE)])
    assert codes(found) == ["no_worker"]
    assert found.reasons[0].facts == {"served": [{"pool": "gpu", "queues": "a, b"}]}
    assert found.predicted is None
    assert found.no_prediction == "no worker serves its queue"


def test_busy_and_paused_workers_are_told_apart() -> None:
    assert codes(told(row(), line(), [BUSY])) == ["workers_busy"]
    paused = PresentWorker("w", "cpu", ("q",), 1, 0, WorkerStatus.PAUSED)
    assert codes(told(row(), line(), [paused])) == ["workers_paused"]


def test_a_limit_names_who_holds_it() -> None:
    facts = line(QueueLimits(max_running=2), holders=2, holding=["a", "b"])
    (reason,) = told(held(), facts).reasons
    assert reason.code == "limit_held"
    assert reason.facts == {"limit": "max_running", "used": 2, "maximum": 2, "held_by": ["a", "b"]}


def test_a_limit_of_its_key_names_who_holds_that() -> None:
    facts = line(QueueLimits(max_running_per_key=1), holders=5, holders_of_key=1, holding_of_key=["a"])
    (reason,) = told(held(key="k"), facts).reasons
    assert reason.facts == {"limit": "max_running_per_key", "used": 1, "maximum": 1, "held_by": ["a"], "key": "k"}
    assert codes(told(held(), facts)) == ["awaiting_admission"], "tasks without a key are not limited by it"


def test_a_task_held_in_a_paused_queue_does_not_wait_for_the_gate() -> None:
    paused = Queue(limits=QueueLimits(max_running=2), paused_by="ada", paused_at=NOW)
    found = told(held(), line(queue=paused))
    assert (codes(found), found.no_prediction) == (["queue_paused"], "its queue is paused")
    assert codes(told(held(), line(queue=paused, holders=2))) == ["queue_paused", "limit_held"]


def test_a_rate_says_when_the_next_may_start() -> None:
    facts = line(QueueLimits(rate=Rate(limit=1, per_s=10)), admissions=[(NOW - timedelta(seconds=4), [None])])
    found = told(held(), facts)
    (reason,) = found.reasons
    assert (reason.code, reason.facts["next_start_at"]) == ("rate_limited", "2026-11-25T12:00:06.000Z")
    assert found.predicted is not None
    assert found.predicted.earliest == NOW + timedelta(seconds=6)


def test_keys_that_take_turns_and_tasks_ahead_are_told() -> None:
    facts = line(QueueLimits(fair=True), keys_held=7, ahead=12, waiting=3)
    assert codes(told(held(key="k"), facts)) == ["fair_turn", "behind"]


def test_a_paused_queue_says_by_whom_and_why_beside_all_else() -> None:
    queue = Queue(paused_by="ada", paused_at=NOW, paused_reason="moving house")
    found = told(row(), line(ahead=1, queue=queue), [BUSY])
    assert codes(found) == ["queue_paused", "workers_busy", "behind"]
    assert found.reasons[0].facts == {"by": "ada", "since": "2026-11-25T12:00:00.000Z", "reason": "moving house"}
    assert found.no_prediction == "its queue is paused"


def test_a_rate_spaces_those_ahead_though_workers_are_free_and_but_for_its_burst() -> None:
    free = PresentWorker("w", "cpu", (), capacity=100, running=0, status=WorkerStatus.ACTIVE)
    spaced = told(held(), line(QueueLimits(rate=Rate(limit=1, per_s=60)), ahead=5), [free]).predicted
    assert spaced is not None
    assert (spaced.earliest, spaced.latest) == (NOW + timedelta(minutes=5), NOW + timedelta(minutes=5, seconds=1))
    at_once = told(held(), line(QueueLimits(rate=Rate(limit=1, per_s=60, burst=10)), ahead=5), [free]).predicted
    assert at_once is not None
    assert at_once.earliest == NOW
    of_each = QueueLimits(rate_per_key=Rate(limit=1, per_s=60))
    of_key = told(held(key="a"), line(of_each, ahead=5), [free]).predicted
    assert of_key is not None
    assert (of_key.earliest, of_key.latest) == (NOW, NOW + timedelta(minutes=5, seconds=1)), "they may be of other keys"
    admitted = told(row(), line(QueueLimits(rate=Rate(limit=1, per_s=60)), ahead=5), [free]).predicted
    assert admitted is not None
    assert admitted.earliest == NOW, "a task that the rate let through waits for it no more"


def test_a_task_whose_keys_slots_are_taken_waits_for_one_though_workers_are_free() -> None:
    facts = line(QueueLimits(max_running_per_key=1), holders=1, holders_of_key=1, durations=[10.0])
    found = told(held(key="a"), facts).predicted
    assert found is not None
    assert (found.earliest, found.latest) == (NOW, NOW + timedelta(seconds=11))


def test_without_history_nothing_is_predicted_and_it_is_said_why() -> None:
    found = told(row(), line(ahead=5), [BUSY])
    assert found.predicted is None
    assert "was ever completed" in str(found.no_prediction)


def test_the_predicted_start_goes_by_those_ahead_and_how_long_they_take() -> None:
    facts = line(ahead=9, durations=[10.0] * 50)
    found = told(row(), facts, [BUSY]).predicted
    assert found is not None
    assert found.earliest == NOW + timedelta(seconds=40), "four rounds of two, and the two that run may end at once"
    assert found.latest == NOW + timedelta(seconds=51)
    assert found.based_on["tasks_ahead"] == 9


@pytest.mark.parametrize(
    ("limits", "durations", "why"),
    [
        (QueueLimits(rate=Rate(limit=1, per_s=604_800)), [], "its queue's rates let it start more than 366 days ahead"),
        (QueueLimits(), [86_400.0], "those before it may take more than 366 days"),
    ],
    ids=["rate", "tasks ahead"],
)
def test_a_start_that_is_absurdly_far_ahead_is_not_predicted(limits: QueueLimits, durations: list[float], why: str) -> None:
    found = told(held(), line(limits, ahead=3_000_000, durations=durations), [BUSY])
    assert (found.predicted, found.no_prediction) == (None, why)


def test_a_scheduled_task_is_predicted_for_its_time() -> None:
    found = told(row(status=Status.SCHEDULED, ready=0, due_at=NOW + timedelta(hours=1)), line())
    assert codes(found) == ["scheduled_for"]
    assert found.predicted is not None
    assert found.predicted.earliest == NOW + timedelta(hours=1)


async def explained(backend: Backend, task_id: str) -> Any:
    await backend.api.freshness.wait_for_position(await backend.last_position(), 10)
    status, answer = await backend.get(f"/tasks/{task_id}/explain")
    assert status == 200, answer
    return answer


async def heartbeat(backend: Backend) -> None:
    await beat(backend.broker, Heartbeat(WORKER_ID, "host", "cpu", 1, [], datetime.now(UTC)))


async def test_the_way_of_a_task_is_explained_at_every_step(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    first = await explained(backend, task_id)
    assert [r["code"] for r in first["reasons"]] == ["no_worker"]
    assert first["waiting"] is True
    await heartbeat(backend)
    assert [r["code"] for r in (await explained(backend, task_id))["reasons"]] == ["about_to_start"]
    other = (await backend.submit())["task_id"]
    await backend.begin(task_id)
    running = await explained(backend, task_id)
    assert running["waiting"] is False
    assert running["reasons"][0]["facts"]["worker_id"] == WORKER_ID
    assert [r["code"] for r in (await explained(backend, other))["reasons"]] == ["workers_busy"]
    error = ErrorInfo(type="E", message="no")
    await backend.command(task_id, FailAttempt(1, error, 60.0, datetime.now(UTC)))
    assert [r["code"] for r in (await explained(backend, task_id))["reasons"]] == ["retrying_until"]
    await backend.command(task_id, PauseTask("ada", "later"))
    reason = (await explained(backend, task_id))["reasons"][0]
    assert (reason["code"], reason["facts"]["by"], reason["facts"]["reason"]) == ("paused", "ada", "later")
    await backend.complete(other)
    finished = await explained(backend, other)
    assert (finished["reasons"][0]["code"], finished["reasons"][0]["facts"]["status"]) == ("finished", "COMPLETED")


async def test_a_held_task_is_explained_from_the_log(backend: Backend) -> None:
    await heartbeat(backend)
    limits = {"max_running": 1, "rate": {"limit": 1, "per_seconds": 60}}
    await put(backend, "default", {"limits": limits})
    first, second, third = [(await backend.submit())["task_id"] for _ in range(3)]
    await admit(backend, first)
    found = await explained(backend, third)
    assert [r["code"] for r in found["reasons"]] == ["limit_held", "rate_limited", "behind"]
    assert found["reasons"][0]["facts"]["held_by"] == [first]
    assert found["reasons"][2]["facts"]["tasks_ahead"] == 1
    await backend.post("/queues/default/pause", {"reason": "x"})
    assert (await explained(backend, second))["reasons"][0]["code"] == "queue_paused"


@pytest.mark.parametrize("limit", ["rate", "rate_per_key"])
async def test_what_another_pool_leaves_lying_holds_nothing_up(backend: Backend, limit: str) -> None:
    await heartbeat(backend)
    await put(backend, "default", {"limits": {limit: {"limit": 1, "per_seconds": 1}}})
    other = Submitted(task_name="gpu", pool="gpu", queue="default", priority=5, max_retries=0, gated=True, key="a")
    for _ in range(2):
        task_id = new_id()
        await handle(backend.log, task_id, SubmitTask(other, datetime.now(UTC)), source="test")
        await handle(backend.log, task_id, AdmitTask(1), source="test")
    held = (await backend.submit(key="a"))["task_id"]
    await backend.api.freshness.wait_for_position(await backend.last_position(), 10)
    assert [r["code"] for r in (await explained(backend, held))["reasons"]] == ["awaiting_admission"]


async def test_a_frozen_attempt_and_a_paused_worker_are_told(backend: Backend) -> None:
    await heartbeat(backend)
    task_id, other = [(await backend.submit())["task_id"] for _ in range(2)]
    await backend.begin(task_id)
    await backend.command(task_id, PauseTask("ada"))
    await backend.command(task_id, ConfirmPause(1, frozen=True))
    assert (await explained(backend, task_id))["reasons"][0]["facts"]["frozen_in"] == WORKER_ID
    await handle_any(backend.log, WORKERS, WORKER_ID, PauseWorker("ada"), source="test")
    assert [r["code"] for r in (await explained(backend, other))["reasons"]] == ["workers_paused"]


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED, Status.TIMED_OUT])
def test_a_finished_task_says_how_it_ended(status: Status) -> None:
    found = told(row(status=status, completed_at=NOW, reason="poison"), line())
    assert codes(found) == ["finished"]
    assert found.reasons[0].facts["status"] == status
