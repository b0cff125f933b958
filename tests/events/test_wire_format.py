"""The log as others read it: subjects, fields and headers that the README promises, seen by a bare client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventq.events.appender import PlainAppender
from eventq.events.broker import Broker
from eventq.events.commands import (
    CancelTask,
    Command,
    CompleteAttempt,
    ConfirmCancel,
    ExpireLease,
    FailAttempt,
    PromoteTask,
    StartAttempt,
    SubmitTask,
    TimeOutAttempt,
)
from eventq.events.envelope import Trace
from eventq.events.handle import handle
from eventq.events.log import EventLog
from eventq.events.report import Log, LogLine, Progress
from eventq.events.reporting import publish_report
from eventq.events.subjects import TIMERS
from eventq.events.timers import Hint, set_timer
from tests.events.bare_client import stream_view, tap
from tests.events.given import ERROR, submission
from tests.support.nats import NatsServer

FIELDS = {
    "id",
    "source",
    "type",
    "subject",
    "time",
    "schema",
    "version",
    "previous",
    "attempt",
    "causation_id",
    "correlation_id",
    "traceparent",
    "state",
    "data",
}
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
START = StartAttempt(worker_id="w1", hostname="host", device="cpu")


@pytest.fixture
async def log(broker: Broker) -> AsyncIterator[EventLog]:
    log = await EventLog.open(broker)
    yield log
    await log.close()


def submit(**changes: Any) -> SubmitTask:
    return SubmitTask(submission(**changes), datetime.now(UTC))


async def live(log: EventLog, task_id: str, *commands: Command) -> None:
    for command in commands:
        await handle(log, task_id, command, source="test")


async def test_a_task_s_life_on_the_tap_and_in_the_stream(log: EventLog, own_nats_server: NatsServer) -> None:
    async with tap(own_nats_server.url, "tap.tasks.>") as seen:
        await live(log, "t1", submit(), START, CompleteAttempt(1, {"answer": 42}, None, 0.25))
        on_tap = [await asyncio.wait_for(seen.get(), 5) for _ in range(3)]
    in_stream = await stream_view(own_nats_server.url, "EVENTS", "tasks.t1.>")

    assert [each.subject for each in in_stream] == [
        "tasks.t1.1.submitted.cpu.default.5",
        "tasks.t1.2.started",
        "tasks.t1.3.completed",
    ]
    assert [each.subject for each in on_tap] == [f"tap.{each.subject}" for each in in_stream]
    assert [each.body for each in on_tap] == [each.body for each in in_stream]


async def test_every_event_has_the_documented_fields(log: EventLog, own_nats_server: NatsServer) -> None:
    await live(log, "t1", submit(), START, CompleteAttempt(1, {"answer": 42}, None, 0.25))
    bodies = [each.body for each in await stream_view(own_nats_server.url, "EVENTS", "tasks.t1.>")]

    for version, body in enumerate(bodies, 1):
        assert set(body) == FIELDS
        assert UUID7.fullmatch(body["id"])
        assert RFC3339_UTC.fullmatch(body["time"])
        assert (body["subject"], body["source"], body["version"]) == ("tasks.t1", "test", version)
    assert [(body["type"], body["schema"]) for body in bodies] == [("submitted", 2), ("started", 1), ("completed", 1)]
    assert [body["previous"] for body in bodies] == [None, bodies[0]["id"], bodies[1]["id"]]
    assert [body["attempt"] for body in bodies] == [0, 1, 1]
    assert [body["state"]["status"] for body in bodies] == ["PENDING", "RUNNING", "COMPLETED"]
    assert bodies[2]["data"] == {"result": {"answer": 42}, "output": None, "duration_s": 0.25}


async def test_what_caused_an_event_travels_with_it(log: EventLog, own_nats_server: NatsServer) -> None:
    trace = Trace("request-1", "order-7", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    await handle(log, "t1", submit(), source="api", trace=trace)
    [seen] = await stream_view(own_nats_server.url, "EVENTS", "tasks.t1.>")
    assert (seen.body["causation_id"], seen.body["correlation_id"]) == ("request-1", "order-7")
    assert seen.body["traceparent"].startswith("00-4bf92f35")


async def test_the_tap_says_where_the_event_is_stored(log: EventLog, own_nats_server: NatsServer) -> None:
    async with tap(own_nats_server.url, "tap.tasks.>") as seen:
        await live(log, "t1", submit(), CancelTask("ada"))
        first, second = [await asyncio.wait_for(seen.get(), 5) for _ in range(2)]
    assert (first.headers["Nats-Sequence"], second.headers["Nats-Sequence"]) == ("1", "2")
    assert first.headers["Nats-Stream"] == "EVENTS"
    assert first.headers["Nats-Subject"] == "tasks.t1.1.submitted.cpu.default.5"


async def test_refused_events_are_not_on_the_tap(log: EventLog, own_nats_server: NatsServer) -> None:
    async with tap(own_nats_server.url, "tap.>") as seen:
        await asyncio.gather(*[live(log, "t1", submit()) for _ in range(5)], return_exceptions=True)
        await live(log, "t2", submit())
        subjects = [(await asyncio.wait_for(seen.get(), 5)).subject for _ in range(2)]
    assert subjects == ["tap.tasks.t1.1.submitted.cpu.default.5", "tap.tasks.t2.1.submitted.cpu.default.5"]


async def test_one_kind_of_event_can_be_watched_alone(log: EventLog, own_nats_server: NatsServer) -> None:
    """`nats sub 'tap.tasks.*.*.failed'`: all failures, and nothing else."""
    async with tap(own_nats_server.url, "tap.tasks.*.*.failed") as seen:
        await live(log, "good", submit(), START, CompleteAttempt(1, None, None, 0.1))
        await live(log, "bad", submit(), START, FailAttempt(1, ERROR, None, datetime.now(UTC)))
        failed = await asyncio.wait_for(seen.get(), 5)
        assert seen.empty()
    assert failed.subject == "tap.tasks.bad.3.failed"
    assert failed.body["data"]["error"] == {"type": "ValueError", "message": "no such column", "traceback": None}


async def test_the_subjects_of_every_path_through_a_life(log: EventLog, own_nats_server: NatsServer) -> None:
    now = datetime.now(UTC)
    soon = now + timedelta(seconds=60)
    await live(log, "later", submit(scheduled_at=soon, pool="gpu", queue="big", priority=9))
    await live(log, "later", PromoteTask(1, soon))
    await live(log, "retried", submit(), START, FailAttempt(1, ERROR, 0.0, now))
    await live(log, "lost", submit(), START, ExpireLease(1))
    await live(log, "late", submit(max_retries=0), START, TimeOutAttempt(1, 5.0, None, now))
    await live(log, "stopped", submit(), START, CancelTask("ada"), ConfirmCancel(1))

    seen = [each.subject for each in await stream_view(own_nats_server.url, "EVENTS", "tasks.>")]

    assert seen == [
        "tasks.later.1.submitted",
        "tasks.later.2.queued.gpu.big.9",
        "tasks.retried.1.submitted.cpu.default.5",
        "tasks.retried.2.started",
        "tasks.retried.3.retrying",
        "tasks.lost.1.submitted.cpu.default.5",
        "tasks.lost.2.started",
        "tasks.lost.3.queued.cpu.default.5",
        "tasks.late.1.submitted.cpu.default.5",
        "tasks.late.2.started",
        "tasks.late.3.timed_out",
        "tasks.stopped.1.submitted.cpu.default.5",
        "tasks.stopped.2.started",
        "tasks.stopped.3.cancel_requested",
        "tasks.stopped.4.cancelled",
    ]


async def test_the_stored_message_names_the_check_it_passed(log: EventLog, own_nats_server: NatsServer) -> None:
    await live(log, "t1", submit(), CancelTask("ada"))
    first, second = await stream_view(own_nats_server.url, "EVENTS", "tasks.t1.>")
    for seen, checked in ((first, "tasks.t1.>"), (second, "tasks.t1.2.>")):
        assert seen.headers["Nats-Expected-Last-Subject-Sequence"] == "0"
        assert seen.headers["Nats-Expected-Last-Subject-Sequence-Subject"] == checked


async def test_progress_and_log_lines_are_beside_the_history(broker: Broker, own_nats_server: NatsServer) -> None:
    await publish_report(broker, "t1", 2, "worker.w1", Progress(done=1, total=4, unit="rows"))
    await publish_report(broker, "t1", 2, "worker.w1", Log([LogLine("half-way", fields={"rows": 2})]))

    progress, line = await stream_view(own_nats_server.url, "PROGRESS", "progress.t1")

    assert set(progress.body) == {"id", "source", "type", "subject", "time", "schema", "attempt", "data"}
    assert RFC3339_UTC.fullmatch(progress.body["time"])
    assert (progress.body["type"], progress.body["subject"], progress.body["attempt"]) == ("progress", "tasks.t1", 2)
    assert progress.body["data"] == {"done": 1.0, "total": 4.0, "unit": "rows", "message": None}
    assert line.body["type"] == "log"
    (written,) = line.body["data"]["lines"]
    assert written.pop("at").endswith("Z")
    assert written == {"message": "half-way", "level": "info", "fields": {"rows": 2}}
    assert await stream_view(own_nats_server.url, "EVENTS", ">") == []


async def test_a_timer_fires_as_a_message_to_its_task_and_version(broker: Broker, own_nats_server: NatsServer) -> None:
    await set_timer(PlainAppender(broker, TIMERS), Hint("tasks", "t1", "due", 3), datetime.now(UTC) - timedelta(seconds=1))
    subscription = await broker.js.pull_subscribe_bind("promoter", "TIMERS")
    [fired] = await subscription.fetch(1, timeout=5)
    body = b'{"kind":"tasks","id":"t1","what":"due","version":3}'
    assert (fired.subject, fired.data) == ("due.tasks.t1.due.3", body)
    await fired.ack()
