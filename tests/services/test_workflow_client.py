"""Workflows through the Python client and the command line, against the real API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventq.events.errors import IllegalTransition, WorkflowNotFound
from eventq.services.client import Client
from eventq.services.client_workflows import chain, result_of, task
from tests.services.backend import Backend
from tests.services.command import Done, eventq
from tests.services.workflows import Site
from tests.support.nats import NatsServer


@pytest.fixture
async def site(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Site]:
    backend = await Backend.start(own_nats_server.url, tmp_path)
    await backend.register_worker()
    site = Site(backend)
    async with site.coordinator(), site.workers(2):
        yield site
    await backend.close()


async def test_the_client_submits_waits_answers_and_cancels(site: Site) -> None:
    async with Client(f"http://127.0.0.1:{site.backend.client.port}") as client:
        nodes = chain(
            task("a", "echo", {"message": 1}),
            {"name": "ok", "kind": "approval"},
            {"name": "paid", "kind": "signal"},
            task("b", "echo", {"message": result_of("a", "/message")}, after=["a"]),
        )
        accepted = await client.workflows.submit("w", nodes, idempotency_key="k", tags=["x"])
        assert (await client.workflows.submit("w", nodes, idempotency_key="k", tags=["x"])).workflow_id == accepted.workflow_id
        await client.workflows.signal(accepted.workflow_id, "paid", {"sum": 1})
        await site.until_node(accepted.workflow_id, "ok", "WAITING")
        with pytest.raises(TimeoutError):
            await client.workflows.wait(accepted.workflow_id, timeout_s=0.05)
        await client.workflows.approve(accepted.workflow_id, "ok", by="ada")
        done = await client.workflows.wait(accepted.workflow_id, timeout_s=20)
        assert done.result == {"b": {"message": 1}}
        with pytest.raises(IllegalTransition):
            await client.workflows.retry(accepted.workflow_id)
        with pytest.raises(WorkflowNotFound):
            await client.workflows.get("nothing")
        other = await client.workflows.submit("w", [{"name": "ok", "kind": "approval"}])
        await client.workflows.cancel(other.workflow_id, reason="enough")
        assert (await client.workflows.wait(other.workflow_id, timeout_s=20)).status == "CANCELLED"
        assert (await client.workflows.list(status=["CANCELLED"])).total == 1
        assert (await client.workflows.timeline(other.workflow_id)).events[0].event_type == "created"


async def test_the_command_line_has_workflows(site: Site, tmp_path: Path) -> None:
    async def run(*arguments: str) -> Done:
        api = f"http://127.0.0.1:{site.backend.client.port}"
        return await asyncio.to_thread(eventq, "workflows", *arguments, "--api", api, cwd=tmp_path)

    file = tmp_path / "w.json"
    nodes: list[dict[str, Any]] = [{"name": "a", "task_name": "echo"}, {"name": "ok", "kind": "approval", "depends_on": ["a"]}]
    file.write_text(json.dumps({"name": "w", "nodes": nodes}))
    submitted = await run("submit", str(file), "--json")
    workflow_id = submitted.json["workflow_id"]
    await site.until_node(workflow_id, "ok", "WAITING")
    shown = await run("show", workflow_id)
    assert "approval of ok" in shown.stdout
    assert (await run("approve", workflow_id, "ok", "--reject", "--by", "ada", "--json")).code == 0
    await site.until(workflow_id, "FAILED")
    assert (await run("retry", workflow_id, "--json")).json["run"] == 2
    assert (await run("signal", workflow_id, "x", "--payload", '{"a": 1}')).code == 0
    await site.until_node(workflow_id, "ok", "WAITING")
    assert (await run("cancel", workflow_id, "--reason", "enough")).code == 0
    await site.until(workflow_id, "CANCELLED")
    assert workflow_id in (await run("list", "--status", "CANCELLED")).stdout
    file.write_text(json.dumps({"name": "w", "nodes": [{**nodes[0], "depends_on": ["a"]}]}))
    refused = await run("submit", str(file))
    assert refused.code != 0
    assert "a -> a" in refused.stderr
    file.write_text(json.dumps({"name": "w", "nodes": nodes[:1]}))
    assert (await run("submit", str(file), "--wait", "--json")).json["status"] == "COMPLETED"
    waited = await run("submit", str(file), "--wait")
    assert "COMPLETED" in waited.stdout
    assert waited.stderr.split()[1] in waited.stdout
    bare = await run("submit", str(file))
    assert bare.stderr.endswith(f"look with `eventq workflows show {bare.stdout.strip()}`\n"), "the id alone is on stdout"
    await site.until(bare.stdout.strip(), "COMPLETED")
