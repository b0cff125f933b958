"""Health, probes, metrics, verification, blobs, and the documentation pages."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib import resources
from io import BytesIO
from pathlib import Path

import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from eventq.events.errors import LogDamaged
from eventq.events.presence import Heartbeat, beat
from eventq.services.app import create_app, declared_routes
from eventq.services.openapi_document import openapi_document
from tests.services.backend import WORKER_ID, Backend
from tests.services.browser import watched_page
from tests.support.nats import NatsServer


async def test_health_tells_each_part(backend: Backend) -> None:
    status, health = await backend.get("/health")
    assert (status, health["status"]) == (200, "degraded")
    assert health["checks"] == {"database": "healthy", "broker": "healthy", "redis": "healthy", "workers": "degraded"}
    assert "eventq worker" in health["problems"]["workers"]
    stored = await backend.log.last("workers", WORKER_ID)
    assert stored is not None
    await beat(backend.broker, Heartbeat(WORKER_ID, "host", "cpu", 1, [], stored.event.time))
    _, health = await backend.get("/health")
    assert (health["status"], health["version"], health["problems"]) == ("healthy", "0.0.1", {})


async def test_health_names_pools_whose_tasks_no_living_worker_takes(backend: Backend) -> None:
    now = datetime.now(UTC)
    await beat(backend.broker, Heartbeat("worker-2", "host", "gpu", 1, [], now))
    assert (await backend.get("/health"))[1]["status"] == "healthy", "no task waits"
    await backend.submit()
    await backend.api.freshness.wait_for_position(await backend.last_position(), 10)
    for workers in ([], [Heartbeat(WORKER_ID, "host", "cpu", 1, ["a"], now, "DRAINING")]):
        for heartbeat in workers:
            await beat(backend.broker, heartbeat)
        status, health = await backend.get("/health")
        assert (status, health["status"], health["checks"]["workers"]) == (200, "degraded", "degraded")
        assert "nobody serves pool cpu" in health["problems"]["workers"]
    await beat(backend.broker, Heartbeat(WORKER_ID, "host", "cpu", 1, [], now))
    assert (await backend.get("/health"))[1]["problems"] == {}


async def test_probes_answer(backend: Backend) -> None:
    for path in ("/healthz", "/readyz"):
        async with backend.client.get(path) as answer:
            assert (answer.status, (await answer.json())["status"]) == (200, "ok")


async def test_without_a_broker_writes_say_so_and_reads_go_on(backend: Backend, own_nats_server: NatsServer) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.get(f"/tasks/{task_id}")
    own_nats_server.kill()
    async with backend.client.get("/readyz") as answer:
        assert answer.status == 503
    status, health = await backend.get("/health")
    assert (status, health["status"], health["checks"]["redis"]) == (503, "unhealthy", "unhealthy")
    assert (await backend.get(f"/tasks/{task_id}"))[0] == 200
    async with backend.client.post("/api/v1/tasks", json={"task_name": "echo"}) as answer:
        body = await answer.json()
        assert (answer.status, body["code"]) == (503, "LOG_UNAVAILABLE")
        assert int(answer.headers["Retry-After"]) > 0


async def test_a_full_log_refuses_writes_and_still_answers_reads(own_nats_server: NatsServer, tmp_path: Path) -> None:
    backend = await Backend.start(own_nats_server.url, tmp_path, events_max_bytes=256 * 1024)
    try:
        await backend.register_worker()
        large = {"task_name": "echo", "task_kwargs": {"message": "x" * 60_000}}
        accepted = 0
        while True:
            async with backend.client.post("/api/v1/tasks", json=large) as answer:
                body = await answer.json()
            if answer.status != 201:
                break
            accepted += 1
        assert (answer.status, body["code"], answer.headers["Retry-After"]) == (503, "LOG_FULL", "30")
        assert 0 < accepted < 5
        assert (await backend.get("/tasks"))[1]["total"] == accepted
    finally:
        await backend.close()


async def test_a_halted_projection_serves_its_last_good_state_and_says_so(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.get(f"/tasks/{task_id}")
    backend.api.freshness.halt(LogDamaged("an event is missing"))
    await backend.complete(task_id)
    status, task = await backend.get(f"/tasks/{task_id}")
    # The projector itself runs on here, so the answer may show any state that the log had.
    assert (status, task["status"] in ("PENDING", "RUNNING", "COMPLETED")) == (200, True)
    status, body = await backend.get("/tasks?min_position=999999999")
    assert (status, body["code"], body["cause"]) == (503, "LAGGING", "LOG_DAMAGED")
    status, health = await backend.get("/health")
    assert (status, health["checks"]["database"]) == (503, "unhealthy")
    assert "an event is missing" in health["problems"]["database"]


async def test_metrics_count_requests_and_tasks_without_ids(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.get(f"/tasks/{task_id}")
    await backend.get("/tasks/bad.id")
    async with backend.client.get("/metrics") as answer:
        text = await answer.text()
    assert 'eventq_http_requests_total{method="GET",route="/api/v1/tasks/{task_id}",status="400"} 1.0' in text
    assert 'eventq_tasks{pool="cpu",queue="default",status="PENDING"} 1.0' in text
    assert 'eventq_tasks_submitted_total{queue="default"} 1.0' in text
    assert "eventq_projection_lag_events" in text
    assert task_id not in text
    names = set(re.findall(r"^# HELP (\w+)", text, re.MULTILINE))
    assert all(name.startswith("eventq_") for name in names)


async def test_a_projection_is_verified_and_rebuilt(backend: Backend) -> None:
    task_id = (await backend.submit())["task_id"]
    await backend.complete(task_id, 1)
    await backend.get(f"/tasks/{task_id}?min_version=3")
    status, found = await backend.post("/projection/verify")
    assert (status, found["equal"], found["differences"]) == (200, True, [])
    assert found["tables"]["tasks"]["rows"] == 1
    status, done = await backend.post("/projection/rebuild")
    assert (status, done["position"]) == (200, await backend.last_position())
    assert (await backend.get(f"/tasks/{task_id}"))[1]["status"] == "COMPLETED"


async def test_a_file_goes_in_and_comes_out(backend: Backend) -> None:
    data = bytes(range(256)) * 4_000
    async with backend.client.post("/api/v1/blobs", data=data, headers={"Content-Type": "image/png"}) as answer:
        blob = await answer.json()
        assert answer.status == 201
        assert answer.headers["Location"].endswith(blob["key"])
    assert blob["sha256"] == hashlib.sha256(data).hexdigest()
    assert (blob["size_bytes"], blob["media_type"]) == (len(data), "image/png")
    async with backend.client.get(f"/api/v1/blobs/{blob['key']}") as answer:
        assert await answer.read() == data
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Type"] == "application/octet-stream"
    async with backend.client.head(f"/api/v1/blobs/{blob['key']}") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(data)))


async def test_files_that_are_too_large_slow_or_odd_are_refused(backend: Backend) -> None:
    limit = backend.api.limits.blob_max_bytes
    for data in (BytesIO(b"x" * (limit + 1)), _pieces(limit + 1)):
        async with backend.client.post("/api/v1/blobs", data=data) as answer:
            body = await answer.json()
            assert (answer.status, body["code"], body["limit"]) == (413, "PAYLOAD_TOO_LARGE", limit)
    for key in ("x", "../../etc/passwd", "sha256/aa/" + "b" * 64, "tasks/a/0/x", "sha256/ab/" + "ab" * 32 + "/x"):
        status, body = await backend.get(f"/blobs/{key.replace('..', '%2E%2E')}")
        assert status in (400, 404), key
    status, body = await backend.get("/blobs/sha256/ab/" + "ab" * 32)
    assert (status, body["code"]) == (404, "BLOB_NOT_FOUND")
    reader, writer = await asyncio.open_connection("127.0.0.1", backend.client.port)
    writer.write(b"POST /api/v1/blobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
    async with asyncio.timeout(8):
        assert (await reader.readline()).split()[1] == b"408"
    writer.close()


async def _pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 65_536):
        yield b"x" * 65_536


async def test_every_route_is_in_a_valid_document(backend: Backend) -> None:
    async with backend.client.get("/openapi.json") as answer:
        document = await answer.json()
    OpenAPIV31SpecValidator(document).validate()
    served = {
        (route.method.lower(), re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.resource.canonical))
        for route in create_app(backend.api).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    documented = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert served == documented
    assert len(declared_routes()) == len(served)


def test_every_error_status_of_a_route_is_explained() -> None:
    document = openapi_document(declared_routes(), "1")
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert all(answer["description"] for operation in operations for answer in operation["responses"].values())
    assert all(operation["summary"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)


@pytest.mark.parametrize(
    ("path", "shows"), [("/docs", ".opblock-summary-path"), ("/redoc", "[data-section-id*='submit_task']")]
)
async def test_documentation_pages_work_offline(backend: Backend, path: str, shows: str) -> None:
    async with watched_page() as watched:
        await watched.page.goto(f"http://127.0.0.1:{backend.client.port}{path}")
        await watched.page.locator(shows).first.wait_for(timeout=30_000)
        assert watched.errors == []
        assert watched.foreign_requests == []


async def test_the_try_it_out_of_the_documentation_works_under_its_policy(backend: Backend) -> None:
    async with watched_page() as watched:
        await watched.page.goto(f"http://127.0.0.1:{backend.client.port}/docs")
        section = watched.page.locator("#operations-system-get_liveness")
        await section.locator(".opblock-summary-control").click()
        await section.get_by_role("button", name="Execute").click()
        await section.locator(".live-responses-table .response-col_status", has_text="200").wait_for(timeout=30_000)
        assert watched.errors == []


def test_vendored_files_are_as_published() -> None:
    folder = resources.files("eventq.services") / "static"
    listed = re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})`", (folder / "THIRD_PARTY.md").read_text(), re.MULTILINE)
    assert len(listed) == 3
    for name, digest in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


async def test_pages_and_answers_carry_their_protections(backend: Backend) -> None:
    async with backend.client.get("/docs") as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    async with backend.client.get("/api/v1/tasks") as answer:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Server"] == "eventq"


async def test_a_fault_is_answered_without_a_word_of_it(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> web.Response:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(backend.api.queries), "get_task", broken)
    status, body = await backend.get("/tasks/x")
    assert (status, body["code"]) == (500, "INTERNAL_ERROR")
    assert "secret" not in str(body)
