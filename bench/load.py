"""The load generators, each in a process of its own: does a bounded number of things, prints one JSON object, and ends."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import aiohttp

from bench.http_connection import HttpConnection
from bench.until import until
from eventq.events.appender import PipelinedAppender
from eventq.events.broker import Broker
from eventq.events.commands import StartAttempt, SubmitTask
from eventq.events.envelope import encode, next_event
from eventq.events.handle import handle
from eventq.events.ids import new_id
from eventq.events.ingest import Outgoing, Refused
from eventq.events.log import EventLog
from eventq.events.subjects import EVENTS, version_check
from eventq.events.task import ABSENT, TASKS, decide
from eventq.events.task_events import Submitted

Found = dict[str, Any]

SUBMISSION = Submitted(task_name="noop", pool="cpu", queue="default", priority=5, max_retries=0)
SUBMIT_BODY = {"task_name": "noop"}
SUBMIT_PATH = "/api/v1/tasks"
POLL_S = 0.001


async def http(url: str, count: int, in_flight: int, warm_up: int = 200) -> Found:
    """POST ``count`` times over ``in_flight`` connections; latencies in seconds of each, and the rate."""
    connections = [await HttpConnection.open(url) for _ in range(in_flight)]
    left, latencies = warm_up, list[float]()

    async def post(connection: HttpConnection) -> None:
        nonlocal left
        request = connection.request("POST", SUBMIT_PATH, SUBMIT_BODY)
        while left > 0:
            left -= 1
            began = time.perf_counter()
            status, body = await connection.ask(request)
            latencies.append(time.perf_counter() - began)
            if status != 201:
                raise RuntimeError(f"answered {status}: {body.decode(errors='replace')[:500]}")

    await asyncio.gather(*map(post, connections))
    left = count
    latencies.clear()
    began = time.perf_counter()
    await asyncio.gather(*map(post, connections))
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return {"per_s": count / seconds, "latencies_s": latencies}


async def bulk(url: str, count: int) -> Found:
    """Submit ``count`` tasks in one request, a line each, and read the answer of each; the rate, from the first byte sent."""
    body = b'{"task_name": "noop"}\n' * count
    headers = {"Content-Type": "application/x-ndjson"}
    async with aiohttp.ClientSession() as session:
        began = time.perf_counter()
        async with session.post(f"{url}{SUBMIT_PATH}/batch", data=body, headers=headers) as answer:
            answers = (await answer.read()).splitlines()
        seconds = time.perf_counter() - began
    if (accepted := sum(b'"task_id"' in line for line in answers)) != count:
        raise RuntimeError(f"answered {answer.status}, {accepted} of {count} accepted: {answers[-1:]}")
    return {"per_s": count / seconds}


async def append(url: str, count: int, in_flight: int) -> Found:
    """Append ``count`` events with their version check, ``in_flight`` unanswered, each as large as a task's second event.

    Beside the events of tasks in the same stream, under a subject that is nobody's work.
    """
    event, task = next_event(TASKS, "0" * 36, ABSENT, SUBMISSION, source="bench", at=datetime.now(UTC))
    started = decide(StartAttempt(f"cpu-{new_id()}", "localhost", "cpu"), task)[0]
    event, _ = next_event(TASKS, "0" * 36, task, started, source="bench", at=datetime.now(UTC))
    payload = encode(event)
    async with await Broker.connect(url, name="bench append") as broker:
        appender = PipelinedAppender(broker, EVENTS)
        await appender.start()

        async def one() -> None:
            aggregate_id = new_id()
            subject, check = f"system.{aggregate_id}.1.bench", version_check("system", aggregate_id, 1)
            with suppress(Refused):  # sent twice, because the answer took long: the id is ours alone
                await appender.append(Outgoing(subject, payload, check))

        began, cpu_began = time.perf_counter(), time.process_time()
        await _repeat(one, count, in_flight)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        await appender.close()
    return {"per_s": count / seconds, "cpu_s": cpu_s / count, "payload_bytes": len(payload)}


async def fill(url: str, count: int, in_flight: int = 500) -> Found:
    """Submit ``count`` tasks straight into the log, as the API does once it has checked a request."""
    async with await Broker.connect(url, name="bench fill") as broker:
        event_log = await EventLog.open(broker)

        async def one() -> None:
            await handle(event_log, new_id(), SubmitTask(SUBMISSION, datetime.now(UTC)), source="bench", task=ABSENT)

        began = time.perf_counter()
        await _repeat(one, count, in_flight)
        seconds = time.perf_counter() - began
        await event_log.close()
    return {"per_s": count / seconds}


async def latency(url: str, count: int) -> Found:
    """Submit one at a time with pauses, and watch each another way: seconds from the call to four moments."""
    connection = await HttpConnection.open(url)
    found: dict[str, list[float]] = {"start_s": [], "visible_s": [], "listed_s": [], "completed_s": []}
    for number in range(-10, count):  # the first ten warm up
        one = {
            "visible_s": await _until_visible(connection),
            "listed_s": await _until_listed(connection),
            **await _until_completed(connection),
        }
        for name, value in one.items():
            if number >= 0:
                found[name].append(value)
    connection.close()
    return found


async def _until_visible(connection: HttpConnection) -> float:
    task_id, called_ns = await _submit(connection)
    await _get(connection, f"{SUBMIT_PATH}/{task_id}?min_version=1")
    return (time.time_ns() - called_ns) / 1e9


async def _until_listed(connection: HttpConnection) -> float:
    task_id, called_ns = await _submit(connection)

    async def listed() -> bool:
        page = await _get(connection, f"{SUBMIT_PATH}?limit=20")
        return task_id in {task["task_id"] for task in page["tasks"]}

    await until(listed, every_s=POLL_S, most_s=30)
    return (time.time_ns() - called_ns) / 1e9


async def _until_completed(connection: HttpConnection) -> dict[str, float]:
    """Both moments of one task: when its function began, as that says itself, and when a read shows it completed."""
    task_id, called_ns = await _submit(connection)
    task: Any = None

    async def completed() -> bool:
        nonlocal task
        task = await _get(connection, f"{SUBMIT_PATH}/{task_id}")
        return bool(task["status"] == "COMPLETED")

    await until(completed, every_s=POLL_S, most_s=30)
    return {"completed_s": (time.time_ns() - called_ns) / 1e9, "start_s": (task["result"] - called_ns) / 1e9}


async def _submit(connection: HttpConnection) -> tuple[str, int]:
    """A new task's id and when it was asked for, after a pause of no particular rhythm."""
    await asyncio.sleep(random.uniform(0.005, 0.025))
    request = connection.request("POST", SUBMIT_PATH, SUBMIT_BODY)
    called_ns = time.time_ns()
    status, body = await connection.ask(request)
    if status != 201:
        raise RuntimeError(f"answered {status}: {body.decode(errors='replace')[:500]}")
    return json.loads(body)["task_id"], called_ns


async def _get(connection: HttpConnection, path: str) -> Any:
    status, body = await connection.ask(connection.request("GET", path))
    if status != 200:
        raise RuntimeError(f"{path} answered {status}: {body.decode(errors='replace')[:500]}")
    return json.loads(body)


async def _repeat(work: Callable[[], Awaitable[None]], count: int, in_flight: int) -> None:
    left = count

    async def again() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await work()

    await asyncio.gather(*(again() for _ in range(in_flight)))


KINDS: dict[str, Callable[..., Coroutine[Any, Any, Found]]] = {
    "http": http,
    "bulk": bulk,
    "append": append,
    "fill": fill,
    "latency": latency,
}


def main(arguments: Sequence[str]) -> None:
    """Run the generator of that name with its arguments, a JSON object, and print what it found."""
    kind, options = arguments
    gc.freeze()
    print(json.dumps(asyncio.run(KINDS[kind](**json.loads(options)))))
