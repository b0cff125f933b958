"""The client's part for workflows: ``client.workflows``."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from eventq.services.client_part import Asks
from eventq.services.workflow_models import (
    WorkflowAnswer,
    WorkflowListAnswer,
    WorkflowSummary,
    WorkflowTimelineAnswer,
)

Json = dict[str, Any]

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
POLL_FIRST_S, POLL_MAX_S = 0.05, 1.0


def task(name: str, task_name: str, kwargs: Json | None = None, *, after: Sequence[str] = (), **options: Any) -> Json:
    """A node that runs a task after the nodes ``after``. ``options``: as the API takes them."""
    return {"name": name, "task_name": task_name, "task_kwargs": kwargs or {}, "depends_on": list(after), **options}


def result_of(node: str, path: str = "", *, children: bool = False) -> Json:
    """Stands for a node's result in another's arguments. ``path``: a JSON pointer to a part of it; ``children``: the list of
    the results of the tasks that it spawned."""
    return {"$from": node} | ({"path": path} if path else {}) | ({"children": True} if children else {})


def chain(*nodes: Json) -> list[Json]:
    """These nodes one after the other: each also depends on the one before."""
    linked: list[Json] = []
    for node in nodes:
        before = [linked[-1]["name"]] if linked else []
        linked.append({**node, "depends_on": [*dict.fromkeys([*node.get("depends_on", []), *before])]})
    return linked


class WorkflowsClient:
    """Workflows of the server that ``client`` speaks to. Reads see what was written through the same server before."""

    def __init__(self, client: Asks) -> None:
        self._client = client

    async def submit(
        self, name: str, nodes: Sequence[Json], *, idempotency_key: str | None = None, **options: Any
    ) -> WorkflowSummary:
        """Submit a workflow of these nodes, as :func:`task` and :func:`chain` make them, or as the API takes them. ``options``:
        ``timeout_seconds``, ``tags``, ``metadata``. One ``idempotency_key`` makes one workflow."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        body = {"name": name, "nodes": list(nodes), **options}
        return await self._client.ask(WorkflowSummary, "POST", "/workflows", json=body, headers=headers)

    async def list(
        self, *, status: Sequence[str] = (), name: str | None = None, limit: int = 50, offset: int = 0
    ) -> WorkflowListAnswer:
        """A page of workflows, newest first."""
        params = [("limit", str(limit)), ("offset", str(offset)), *(("status", each) for each in status)]
        if name is not None:
            params.append(("name", name))
        return await self._client.ask(WorkflowListAnswer, "GET", "/workflows", params=params)

    async def get(self, workflow_id: str) -> WorkflowAnswer:
        """The workflow, with its nodes and edges."""
        return await self._client.ask(WorkflowAnswer, "GET", _path(workflow_id))

    async def wait(self, workflow_id: str, *, timeout_s: float | None = None) -> WorkflowAnswer:
        """The workflow once it has ended, whichever way. Raises ``TimeoutError`` after ``timeout_s`` seconds."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = POLL_FIRST_S
        while True:
            workflow = await self.get(workflow_id)
            if workflow.status in ENDED:
                return workflow
            left_s = float("inf") if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"workflow {workflow_id} is {workflow.status} after {timeout_s:g} s")
            await asyncio.sleep(min(pause_s * random.uniform(0.8, 1.2), left_s))
            pause_s = min(pause_s * 1.5, POLL_MAX_S)

    async def cancel(self, workflow_id: str, *, reason: str | None = None) -> WorkflowSummary:
        """Stop it; it is ``CANCELLED`` once all that ran has stopped."""
        return await self._client.ask(WorkflowSummary, "POST", f"{_path(workflow_id)}/cancel", json={"reason": reason})

    async def retry(self, workflow_id: str) -> WorkflowSummary:
        """Run again what did not complete."""
        return await self._client.ask(WorkflowSummary, "POST", f"{_path(workflow_id)}/retry")

    async def approve(self, workflow_id: str, node: str, *, by: str, comment: str | None = None) -> WorkflowSummary:
        """Approve a node that waits for it."""
        return await self._answer(workflow_id, node, "approve", by, comment)

    async def reject(self, workflow_id: str, node: str, *, by: str, comment: str | None = None) -> WorkflowSummary:
        """Reject a node that waits for approval: it fails."""
        return await self._answer(workflow_id, node, "reject", by, comment)

    async def signal(self, workflow_id: str, name: str, payload: Any = None) -> WorkflowSummary:
        """Send a signal to the nodes that wait for it, now or later."""
        path = f"{_path(workflow_id)}/signals/{quote(name, safe='')}"
        return await self._client.ask(WorkflowSummary, "POST", path, json={"payload": payload})

    async def timeline(self, workflow_id: str) -> WorkflowTimelineAnswer:
        """What happened to it."""
        return await self._client.ask(WorkflowTimelineAnswer, "GET", f"{_path(workflow_id)}/timeline")

    async def _answer(self, workflow_id: str, node: str, word: str, by: str, comment: str | None) -> WorkflowSummary:
        path = f"{_path(workflow_id)}/nodes/{quote(node, safe='')}/{word}"
        return await self._client.ask(WorkflowSummary, "POST", path, json={"by": by, "comment": comment})


def _path(workflow_id: str) -> str:
    return f"/workflows/{quote(workflow_id, safe='')}"
