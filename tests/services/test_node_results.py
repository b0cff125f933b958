"""How much of what nodes returned a step of a workflow reads at once, over a real log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eventq.events.log import EventLog
from eventq.events.task_events import Submitted
from eventq.events.workflow import node_task_id
from eventq.events.workflow_events import Definition, Node, NodeEnd, WorkflowAdvanced, WorkflowCreated
from eventq.events.workflow_run import Run
from eventq.events.workflow_values import Wanted
from eventq.services.node_results import Fetched, NodeResults
from eventq.services.side_by_side import AT_ONCE
from tests.services.backend import Backend
from tests.support.nats import NatsServer

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
ECHO = Submitted(task_name="echo", pool="cpu", queue="default", priority=7, max_retries=0)
TEXT = "x" * 10_000
MANY = 3 * AT_ONCE


@pytest.fixture
async def backend(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Backend]:
    backend = await Backend.start(own_nats_server.url, tmp_path)
    yield backend
    await backend.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks whose last event was read."""
    found: list[str] = []
    last = EventLog.last

    async def noted(self: EventLog, aggregate: str, aggregate_id: str, **options: Any) -> Any:
        found.append(aggregate_id)
        return await last(self, aggregate, aggregate_id, **options)

    monkeypatch.setattr(EventLog, "last", noted)
    return found


def run_of(*names: str) -> Run:
    """A workflow all of whose nodes run."""
    definition = Definition(nodes=[Node(name=name, task=ECHO) for name in names])
    run = Run("w")
    run.know(definition)
    run.apply("e1", NOON, WorkflowCreated(name="w", nodes=len(names), definition=definition))
    run.apply("e2", NOON, WorkflowAdvanced(released=list(names)))
    return run


async def complete(backend: Backend, task_ids: list[str]) -> None:
    async def one(task_id: str) -> None:
        await backend.api.submitter.submit(task_id, ECHO)
        await backend.complete(task_id, TEXT)

    await asyncio.gather(*map(one, task_ids))


async def test_of_many_results_those_are_read_for_which_there_is_room(backend: Backend, reads: list[str]) -> None:
    names = [f"n{number}" for number in range(MANY)]
    run = run_of(*names)
    await complete(backend, [node_task_id("w", name, 1) for name in names])
    run.apply("e3", NOON, WorkflowAdvanced(finished=[NodeEnd(node=name, outcome="COMPLETED") for name in names]))
    reads.clear()
    fetched = Fetched(room=5 * len(TEXT) + 100)
    await NodeResults(backend.log, backend.api.blobs).fetch(run, [Wanted(name, False) for name in names], fetched)
    assert fetched.results == {Wanted(name, False): TEXT for name in names[:5]}
    assert fetched.full
    assert len(reads) <= AT_ONCE


async def test_a_list_of_results_that_is_too_large_is_not_read_to_its_end(backend: Backend, reads: list[str]) -> None:
    run = run_of("a")
    parent = node_task_id("w", "a", 1)
    children = [f"child-{number}" for number in range(MANY)]
    await complete(backend, children)
    run.note_task(parent, None, "RUNNING")
    for child in children:
        run.note_task(child, parent, "PENDING")
    reads.clear()
    fetched = Fetched(room=5 * len(TEXT))
    await NodeResults(backend.log, backend.api.blobs).fetch(run, [Wanted("a", True)], fetched)
    assert fetched.results == {}
    assert fetched.full
    assert len(reads) <= AT_ONCE
