"""Typed reads of workflows and their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from eventq.events.data import JSON, BlobRef, ErrorInfo
from eventq.events.workflow import WORKFLOWS, Workflow, WorkflowStatus
from eventq.projections.rows import EventRow
from eventq.projections.store import Snapshot

EVENTS_OF_WORKFLOW_MAX = 5_000
_ANSWERS = ("approved", "rejected", "signalled")


@dataclass(frozen=True, slots=True)
class WorkflowRow:
    """One workflow, true for the position ``as_of``."""

    workflow_id: str
    workflow: Workflow
    as_of: int


@dataclass(frozen=True, slots=True)
class WorkflowPage:
    """A page of workflows. ``total``: all that match."""

    total: int
    rows: list[WorkflowRow]
    as_of: int


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node that was started, skipped or ended at some time; ``position``: of the event that tells of it last."""

    node: str
    run: int
    position: int
    status: str
    reason: str | None
    started_at: datetime | None
    ended_at: datetime | None
    compensation: str | None


@dataclass(frozen=True, slots=True)
class NodeTask:
    """What is told of a node's task. ``result``: as JSON text."""

    task_id: str
    status: str
    result: str | None
    output: BlobRef | None
    error: ErrorInfo | None
    started_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An event by which somebody answered or signalled."""

    position: int
    type: str
    data: dict[str, JSON]


@dataclass(frozen=True, slots=True)
class WorkflowStory:
    """A workflow with its nodes; ``answers``: oldest first."""

    row: WorkflowRow
    nodes: dict[str, NodeRow]
    answers: list[Answer]


def get_workflow(snapshot: Snapshot, workflow_id: str) -> WorkflowStory | None:
    """The workflow; ``None`` where the projection has none of that id."""
    records = snapshot.records("SELECT workflow_id, state FROM workflows WHERE workflow_id = $id", {"id": workflow_id})
    if not records:
        return None
    nodes = snapshot.records(
        "SELECT node, run, position, status, reason, started_at, ended_at, compensation FROM workflow_nodes"
        " WHERE workflow_id = $id",
        {"id": workflow_id},
    )
    answers = snapshot.rows(
        "SELECT position, type, data FROM events WHERE aggregate = 'workflows' AND aggregate_id = $id"
        " AND type IN (SELECT unnest($types)) ORDER BY version",
        {"id": workflow_id, "types": list(_ANSWERS)},
    )
    return WorkflowStory(
        row=_row(records[0], snapshot.position),
        nodes={node["node"]: NodeRow(**{name: _aware(value) for name, value in node.items()}) for node in nodes},
        answers=[Answer(position, kind, orjson.loads(data)) for position, kind, data in answers],
    )


def node_tasks(snapshot: Snapshot, task_ids: Sequence[str]) -> dict[str, NodeTask]:
    """Those of these tasks that there are, by id."""
    records = snapshot.records(
        "SELECT task_id, status, CAST(result AS VARCHAR) AS result, output, error, started_at, completed_at"
        " FROM tasks WHERE task_id IN (SELECT unnest($ids))",
        {"ids": list(task_ids)},
    )
    return {record["task_id"]: _node_task(record) for record in records}


def list_workflows(
    snapshot: Snapshot, statuses: Sequence[WorkflowStatus], name: str | None, limit: int, offset: int
) -> WorkflowPage:
    """One page of those of these statuses (none: of any), newest first."""
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    if statuses:
        conditions.append("status IN (SELECT unnest($statuses))")
        parameters["statuses"] = [status.value for status in statuses]
    if name is not None:
        conditions.append("name = $name")
        parameters["name"] = name
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    total = snapshot.rows(f"SELECT count(*) FROM workflows {where}", parameters)[0][0]
    records = snapshot.records(
        f"SELECT workflow_id, state FROM workflows {where} ORDER BY created_at DESC, workflow_id LIMIT $limit OFFSET $offset",
        parameters | {"limit": limit, "offset": offset},
    )
    return WorkflowPage(total, [_row(record, snapshot.position) for record in records], snapshot.position)


def workflow_events(snapshot: Snapshot, workflow_id: str) -> list[EventRow]:
    """The workflow's own events, oldest first, at most five thousand."""
    records = snapshot.records(
        "SELECT position, version, type, time, attempt, source, event_id, previous, causation_id, correlation_id,"
        " traceparent, data FROM events WHERE aggregate = 'workflows' AND aggregate_id = $id ORDER BY version LIMIT $limit",
        {"id": workflow_id, "limit": EVENTS_OF_WORKFLOW_MAX},
    )
    return [
        EventRow(**{name: orjson.loads(value) if name == "data" else _aware(value) for name, value in record.items()})
        for record in records
    ]


def _node_task(record: dict[str, Any]) -> NodeTask:
    output, error = record["output"], record["error"]
    return NodeTask(
        task_id=record["task_id"],
        status=record["status"],
        result=record["result"],
        output=None if output is None else BlobRef.model_validate_json(output),
        error=None if error is None else ErrorInfo.model_validate_json(error),
        started_at=_aware(record["started_at"]),
        completed_at=_aware(record["completed_at"]),
    )


def _aware(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


def _row(record: dict[str, Any], as_of: int) -> WorkflowRow:
    return WorkflowRow(record["workflow_id"], WORKFLOWS.from_summary(orjson.loads(record["state"])), as_of)
