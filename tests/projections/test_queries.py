"""Typed reads: filters, order, pages, the past."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from eventq.events.errors import InvalidInput
from eventq.events.report import Log, LogLine, Progress
from eventq.events.task import Status
from eventq.events.task_events import CancelRequested, Completed, Retrying, Started
from eventq.events.worker import WorkerStatus
from eventq.events.worker_events import WorkerLost, WorkerPaused
from eventq.projections.queries import SORTABLE, Queries, TaskFilter, TaskRow, versions_of
from eventq.projections.store import Store
from tests.projections.support import ERROR, NOW, History, new_applier, random_history, registered, report_message, submission

STARTED = Started(worker_id="w1", hostname="host", device="cpu")
DONE = Completed(result={"rows": 3}, duration_s=0.5)


@pytest.fixture
async def queries(store: Store) -> AsyncIterator[Queries]:
    queries = Queries(store)
    yield queries
    queries.close()


def fill(store: Store) -> History:
    """One task in each of some situations."""
    history = History()
    history.worker("w1", registered(pid=7))
    history.task("done", submission(), STARTED, DONE)
    history.task("running", submission(priority=9, queue="fast"), STARTED)
    history.task("stopping", submission(), STARTED, CancelRequested(requested_by="ada"))
    history.task("retrying", submission(), STARTED, Retrying(error=ERROR, reason="error", due_at=NOW))
    history.task("waiting", submission(task_name="csv"))
    history.task("scheduled", submission(scheduled_at=NOW + timedelta(days=1)))
    lines = [
        report_message(1, "running", 1, Progress(done=4, total=10)),
        report_message(2, "running", 1, Log([LogLine("reading", fields={"file": "a.csv"})])),
        report_message(3, "done", 1, Progress(done=10, total=10)),
        report_message(4, "retrying", 0, Progress(done=1)),
    ]
    new_applier(store).apply(history.messages(), lines)
    return history


async def test_a_task_is_read_with_all_that_is_known_of_it(store: Store, queries: Queries) -> None:
    history = fill(store)
    row = await queries.get_task("done")
    assert row is not None
    assert row.status is Status.COMPLETED
    assert (row.result, row.kwargs, row.args, row.error) == ({"rows": 3}, {"text": "hällo"}, [], None)
    assert row.created_at == history.events[1].time
    assert (row.started_at, row.completed_at) == (history.events[2].time, history.events[3].time)
    assert (row.version, row.position, row.as_of) == (3, 4, len(history.events))
    assert row.progress is not None
    assert row.progress.done == 10
    retrying = await queries.get_task("retrying")
    assert retrying is not None
    assert retrying.error == ERROR
    assert retrying.progress is None  # of attempt 0, which is not the current one
    assert await queries.get_task("nobody") is None


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (TaskFilter(), {"done", "running", "stopping", "retrying", "waiting", "scheduled"}),
        (TaskFilter(statuses=(Status.RUNNING,)), {"running", "stopping"}),
        (TaskFilter(statuses=(Status.PENDING, Status.SCHEDULED)), {"waiting", "scheduled"}),
        (TaskFilter(statuses=(Status.RUNNING,), priority=9), {"running"}),
        (TaskFilter(queue="fast"), {"running"}),
        (TaskFilter(pool="gpu"), set[str]()),
        (TaskFilter(task_name="csv"), {"waiting"}),
        (TaskFilter(worker_id="w1", statuses=(Status.COMPLETED,)), {"done"}),
        (TaskFilter(created_before=NOW), set[str]()),
        (TaskFilter(created_after=NOW + timedelta(milliseconds=7 * 13)), {"waiting", "scheduled"}),
        (TaskFilter(task_name="' OR 1=1 --"), set[str]()),
    ],
)
async def test_filters(store: Store, queries: Queries, wanted: TaskFilter, expected: set[str]) -> None:
    fill(store)
    page = await queries.list_tasks(wanted)
    assert {row.task_id for row in page.rows} == expected
    assert page.total == len(expected)
    assert page.as_of == 14


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("sort_by", sorted(SORTABLE))
async def test_pages_neither_skip_nor_repeat(store: Store, queries: Queries, sort_by: str, descending: bool) -> None:
    history = random_history(41, 120, tasks=12)
    new_applier(store).apply(history.messages(), [])
    seen: list[str] = []
    for offset in range(0, len(history.tasks) + 5, 5):
        page = await queries.list_tasks(sort_by=sort_by, descending=descending, limit=5, offset=offset)
        assert page.total == len(history.tasks)
        seen += [row.task_id for row in page.rows]
    assert sorted(seen) == sorted(history.tasks)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"sort_by": "kwargs; DROP TABLE tasks"}, "sort_by"), ({"limit": 1001}, "limit"), ({"offset": -1}, "offset")],
)
async def test_what_is_not_allowed_is_refused(queries: Queries, arguments: dict[str, str | int], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await queries.list_tasks(**arguments)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert refusal.value.field == field


async def test_the_timeline_tells_the_whole_story(store: Store, queries: Queries) -> None:
    fill(store)
    story = await queries.timeline("running")
    assert [(event.version, event.type) for event in story.events] == [(1, "submitted"), (2, "started")]
    assert story.events[1].data == {"worker_id": "w1", "hostname": "host", "device": "cpu"}
    assert [(attempt.attempt, attempt.outcome) for attempt in story.attempts] == [(1, None)]
    assert [(line.message, line.fields) for line in story.logs] == [("reading", {"file": "a.csv"})]
    nobody = await queries.timeline("nobody")
    assert (nobody.events, nobody.attempts, nobody.logs) == ([], [], [])


async def test_the_past_is_folded_with_the_same_rules(store: Store, queries: Queries) -> None:
    """At every position, the task as of then is the row that the projection had then."""
    history = random_history(43, 60, tasks=3, erasures=False)  # whose past is erased with them
    applier = new_applier(store)
    then: dict[tuple[int, str], TaskRow | None] = {}
    for message in history.messages():
        applier.apply([message], [])
        for task_id in history.tasks:
            then[message.position, task_id] = await queries.get_task(task_id)
    for (position, task_id), expected in then.items():
        found = await queries.get_task_as_of(task_id, position=position)
        assert found == expected


async def test_the_past_by_time(store: Store, queries: Queries) -> None:
    history = fill(store)
    submitted, started = history.events[1], history.events[2]
    before = await queries.get_task_as_of("done", time=submitted.time - timedelta(microseconds=1))
    between = await queries.get_task_as_of("done", time=started.time - timedelta(microseconds=1))
    at_start = await queries.get_task_as_of("done", time=started.time)
    assert before is None
    assert between is not None
    assert at_start is not None
    assert (between.status, at_start.status) == (Status.PENDING, Status.RUNNING)


async def test_counts_queues_workers_and_declarations(store: Store, queries: Queries) -> None:
    history = fill(store)
    assert (await queries.counts())["cpu", "fast", "RUNNING"] == 1
    now = history.events[-1].time
    page = await queries.queue_page(now, {"served"}, limit=10, offset=0)
    assert ([one.name for one in page.queues], page.total) == (["default", "fast", "served"], 3)
    found = {one.name: one for one in page.queues}
    default, fast = found["default"].pools["cpu"], found["fast"].pools["cpu"]
    unfinished = {"PENDING": 1, "RUNNING": 1, "SCHEDULED": 1, "RETRYING": 1}
    assert {status: default.by_status.get(status) for status in unfinished} == unfinished
    assert (default.held, default.oldest_pending_at) == (0, history.events[-2].time)
    assert (fast.by_status, fast.oldest_pending_at) == ({"RUNNING": 1}, None)
    assert found["fast"].held_slots == 1
    assert (await queries.queue(now, "fast")).queues == [found["fast"]]
    assert (await queries.queue(now, "slow")).queues == []
    second = await queries.queue_page(now, {"served"}, limit=1, offset=1)
    assert (second.queues, second.total) == ([found["fast"]], 3)
    [worker] = await queries.living_workers()
    assert (worker.worker_id, worker.status, worker.pid, worker.queues, worker.running) == ("w1", "ACTIVE", 7, ["default"], 2)
    declarations = await queries.declarations()
    assert declarations["echo"] == registered(pid=7).tasks[0]
    assert await queries.position() == 14
    assert versions_of(store, ["done", "unknown", "workers.w1", "queues.none"]) == {"done": 3, "workers.w1": 1}


async def test_however_many_workers_came_later_the_older_ones_are_found(store: Store, queries: Queries) -> None:
    history = History()
    history.worker("old", registered())
    history.worker("paused", registered(), WorkerPaused(requested_by="ada"))
    for number in range(1_200):
        history.worker(f"far-{number}", registered().model_copy(update={"pool": "far"}))
    history.worker("gone", registered(), WorkerLost(evidence="disconnected", running=[]))
    new_applier(store).apply(history.messages(), [])
    assert {worker.worker_id for worker in await queries.living_workers()} == set(history.workers) - {"gone"}
    page = await queries.list_workers([WorkerStatus.ACTIVE], pool="cpu")
    assert (page.total, [worker.worker_id for worker in page.rows]) == (1, ["old"])
    page = await queries.list_workers(pool="cpu", limit=2, offset=1)
    assert (page.total, [worker.worker_id for worker in page.rows]) == (3, ["paused", "old"])
    page = await queries.list_workers([WorkerStatus.LOST, WorkerStatus.PAUSED])
    assert [worker.worker_id for worker in page.rows] == ["gone", "paused"]
    page = await queries.list_workers(limit=10, offset=1_201)
    assert (page.total, [worker.worker_id for worker in page.rows]) == (1_203, ["paused", "old"])
