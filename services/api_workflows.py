"""The native API's routes of workflows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from aiohttp import web

from eventq.events.errors import LogDamaged, PayloadTooLarge, WorkflowNotFound
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES
from eventq.events.workflow import AnswerNode, CancelWorkflow, SignalWorkflow, Workflow, WorkflowStatus, node_task_id
from eventq.events.workflow_events import Definition, Node
from eventq.events.workflow_run import NodeStatus
from eventq.projections.workflow_queries import Answer, NodeRow, NodeTask, WorkflowStory
from eventq.services.api import Api, api_of, requester, trace_of
from eventq.services.definitions import read_created, read_definition
from eventq.services.idempotency import holding, idempotency_key, record_of
from eventq.services.openapi import HttpRoutes, Reply
from eventq.services.reading import AS_OF_HEADER, fresh_enough
from eventq.services.task_views import etag, timeline_event
from eventq.services.workflow_commands import Keyed, change, create, retry
from eventq.services.workflow_models import (
    AnswerRequest,
    CancelWorkflowRequest,
    Edge,
    NodeAnswer,
    NodePath,
    SignalPath,
    SignalRequest,
    WorkflowAnswer,
    WorkflowListAnswer,
    WorkflowPath,
    WorkflowRequest,
    WorkflowsQuery,
    WorkflowSummary,
    WorkflowTimelineAnswer,
)

routes = HttpRoutes("workflows", "/api/v1")

WRITE_ERRORS = (400, 403, 408, 413, 415, 421, 503)
CHANGE_ERRORS = (*WRITE_ERRORS, 404, 409)
READ_ERRORS = (400, 404, 421, 503)

RESULT_SHOWN_MAX_CHARS = 8 * 1024
"""A node's result is shown inline up to this size; of a larger one its task tells."""


@routes.post("/workflows", status=201, errors=(*WRITE_ERRORS, 409, 422))
async def submit_workflow(request: web.Request, body: WorkflowRequest) -> Reply[WorkflowSummary]:
    """Submit a workflow.

    Names, dependencies, references, cycles and arguments are checked now; arguments that hold references when these are
    replaced. From then on the workflow goes on by itself. One `Idempotency-Key` makes one workflow.
    """
    key = idempotency_key(request)
    with holding(request.app, key):
        keyed = None
        if key is not None:
            keyed = Keyed(key, record_of(key, ["workflow", body.model_dump(mode="json", exclude_unset=True)]))
        workflow_id, workflow = await create(api_of(request), body, keyed, requester(request), trace_of(request))
    headers = {"Location": f"/api/v1/workflows/{workflow_id}", "ETag": etag(workflow.version)}
    return Reply(workflow_summary(workflow_id, workflow), headers=headers)


@routes.get("/workflows", errors=READ_ERRORS)
async def list_workflows(request: web.Request, query: WorkflowsQuery) -> Reply[WorkflowListAnswer]:
    """List workflows, newest first, by pages."""
    api = api_of(request)
    await fresh_enough(api, min_position=query.min_position)
    statuses = tuple(map(WorkflowStatus, query.status))
    page = await api.queries.list_workflows(statuses, name=query.name, limit=query.limit, offset=query.offset)
    answer = WorkflowListAnswer(
        total=page.total,
        limit=query.limit,
        offset=query.offset,
        workflows=[workflow_summary(row.workflow_id, row.workflow) for row in page.rows],
        as_of=page.as_of,
    )
    return Reply(answer, headers={AS_OF_HEADER: str(page.as_of)})


@routes.get("/workflows/{workflow_id}", errors=READ_ERRORS)
async def get_workflow(request: web.Request, path: WorkflowPath) -> Reply[WorkflowAnswer]:
    """Read a workflow, with its nodes and what depends on what."""
    api = api_of(request)
    story = await _story(api, path.workflow_id)
    answer = await _whole(api, path.workflow_id, story)
    return Reply(answer, headers={"ETag": etag(answer.version), AS_OF_HEADER: str(answer.as_of)})


@routes.get("/workflows/{workflow_id}/timeline", errors=READ_ERRORS)
async def get_workflow_timeline(request: web.Request, path: WorkflowPath) -> WorkflowTimelineAnswer:
    """Read what happened to a workflow."""
    api = api_of(request)
    story = await _story(api, path.workflow_id)
    events = await api.queries.workflow_events(path.workflow_id)
    return WorkflowTimelineAnswer(
        workflow_id=path.workflow_id,
        status=story.row.workflow.status,
        events=[timeline_event(event) for event in events],
        as_of=story.row.as_of,
    )


@routes.post("/workflows/{workflow_id}/cancel", errors=CHANGE_ERRORS)
async def cancel_workflow(
    request: web.Request, path: WorkflowPath, body: CancelWorkflowRequest | None
) -> Reply[WorkflowSummary]:
    """Cancel a workflow: what runs is cancelled, nothing new starts. It is `CANCELLED` once all has stopped."""
    command = CancelWorkflow(requester(request), None if body is None else body.reason)
    return await _changed(request, path.workflow_id, command)


@routes.post("/workflows/{workflow_id}/retry", errors=CHANGE_ERRORS)
async def retry_workflow(request: web.Request, path: WorkflowPath) -> Reply[WorkflowSummary]:
    """Run again what did not complete. What completed keeps its results, unless its work was undone."""
    workflow = await retry(api_of(request), path.workflow_id, requester(request), trace_of(request))
    return _reply(path.workflow_id, workflow)


@routes.post("/workflows/{workflow_id}/nodes/{node}/approve", errors=CHANGE_ERRORS)
async def approve_node(request: web.Request, path: NodePath, body: AnswerRequest) -> Reply[WorkflowSummary]:
    """Approve a node that waits for it."""
    return await _changed(request, path.workflow_id, AnswerNode(path.node, True, body.by, body.comment))


@routes.post("/workflows/{workflow_id}/nodes/{node}/reject", errors=CHANGE_ERRORS)
async def reject_node(request: web.Request, path: NodePath, body: AnswerRequest) -> Reply[WorkflowSummary]:
    """Reject a node that waits for approval: it fails, and its `on_failure` says what follows."""
    return await _changed(request, path.workflow_id, AnswerNode(path.node, False, body.by, body.comment))


@routes.post("/workflows/{workflow_id}/signals/{name}", errors=CHANGE_ERRORS)
async def signal_workflow(request: web.Request, path: SignalPath, body: SignalRequest | None) -> Reply[WorkflowSummary]:
    """Send a signal to the nodes that wait for it, now or later. The newest of a name counts."""
    payload = None if body is None else body.payload
    if (size := len(orjson.dumps(payload))) > INLINE_PAYLOAD_MAX_BYTES:
        problem = f"is larger than {INLINE_PAYLOAD_MAX_BYTES} bytes"
        raise PayloadTooLarge("/payload", problem, limit=INLINE_PAYLOAD_MAX_BYTES, found=size)
    return await _changed(request, path.workflow_id, SignalWorkflow(path.name, payload, requester(request)))


async def _changed(
    request: web.Request, workflow_id: str, command: CancelWorkflow | AnswerNode | SignalWorkflow
) -> Reply[WorkflowSummary]:
    return _reply(workflow_id, await change(api_of(request), workflow_id, command, trace_of(request)))


def _reply(workflow_id: str, workflow: Workflow) -> Reply[WorkflowSummary]:
    return Reply(workflow_summary(workflow_id, workflow), headers={"ETag": etag(workflow.version)})


async def _story(api: Api, workflow_id: str) -> WorkflowStory:
    await fresh_enough(api)
    story = await api.queries.get_workflow(workflow_id)
    if story is None:
        raise WorkflowNotFound(workflow_id)
    return story


def workflow_summary(workflow_id: str, workflow: Workflow) -> WorkflowSummary:
    """A workflow as the API tells it, without its nodes."""
    return WorkflowSummary(**_summary(workflow_id, workflow))


def _summary(workflow_id: str, workflow: Workflow) -> dict[str, Any]:
    counts = dict(workflow.counts)
    if rest := workflow.nodes - sum(counts.values()):
        name = (NodeStatus.CANCELLED if workflow.ended else NodeStatus.BLOCKED).value
        counts[name] = counts.get(name, 0) + rest
    return {
        "workflow_id": workflow_id,
        "name": workflow.name,
        "status": workflow.status,
        "run": workflow.run,
        "nodes_total": workflow.nodes,
        "counts": counts,
        "approvals": workflow.approvals,
        "because": workflow.because,
        "cancel_requested_by": workflow.cancel_requested_by,
        "cancel_reason": workflow.cancel_reason,
        "timeout_seconds": workflow.timeout_s,
        "deadline_at": workflow.deadline_at,
        "tags": workflow.tags,
        "metadata": workflow.metadata,
        "created_at": workflow.created_at,
        "ended_at": workflow.ended_at,
        "erased": workflow.erased,
        "version": workflow.version,
    }


async def _whole(api: Api, workflow_id: str, story: WorkflowStory) -> WorkflowAnswer:
    definition = await _definition(api, workflow_id)
    workflow = story.row.workflow
    rows = {name: row for name, row in story.nodes.items() if row.run == workflow.run or row.status == "COMPLETED"}
    ids = {name: node_task_id(workflow_id, name, row.run) for name, row in story.nodes.items()}
    tasks = await api.queries.node_tasks(list(ids.values()))
    nodes = [
        _node(node, rows.get(node.name), ids.get(node.name), tasks.get(ids.get(node.name, "")), workflow, story.answers)
        for node in definition.nodes
    ]
    depended_on = {name for node in definition.nodes for name in node.depends_on}
    done = workflow.status is WorkflowStatus.COMPLETED
    return WorkflowAnswer(
        **_summary(workflow_id, workflow),
        nodes=nodes,
        edges=[Edge(source=name, target=node.name) for node in definition.nodes for name in node.depends_on],
        result={node.name: node.result for node in nodes if node.name not in depended_on} if done else None,
        as_of=story.row.as_of,
    )


async def _definition(api: Api, workflow_id: str) -> Definition:
    created = await read_created(api.log, workflow_id)
    if created is None:
        raise LogDamaged(f"workflow {workflow_id} has no first event", workflow_id=workflow_id)
    return await read_definition(api.blobs, created)


def _said_to(node: Node, before: int, answers: Sequence[Answer]) -> Any:
    """What a node that waited was told: by the newest of its answers that came ``before`` a position, that of its end."""
    for answer in reversed(answers):
        data = answer.data
        if answer.position > before:
            continue
        if answer.type == "signalled":
            if node.kind == "signal" and data["name"] == node.signal:
                return data["payload"]
        elif node.kind == "approval" and data["node"] == node.name:
            return {"approved": answer.type == "approved", "by": data["by"], "comment": data["comment"]}
    return None


def _node(
    node: Node,
    row: NodeRow | None,
    task_id: str | None,
    task: NodeTask | None,
    workflow: Workflow,
    answers: Sequence[Answer],
) -> NodeAnswer:
    unstarted = NodeStatus.CANCELLED if workflow.ended else NodeStatus.BLOCKED
    status = unstarted if row is None else NodeStatus(row.status)
    result = None
    if task is not None and task.result is not None and len(task.result) <= RESULT_SHOWN_MAX_CHARS:
        result = orjson.loads(task.result)
    elif row is not None and status in (NodeStatus.COMPLETED, NodeStatus.FAILED):
        result = _said_to(node, row.position, answers)
    shown = task if row is not None else None
    return NodeAnswer(
        name=node.name,
        kind=node.kind,
        depends_on=node.depends_on,
        status=status,
        reason=None if row is None else row.reason,
        run=None if row is None else row.run,
        task_name=None if node.task is None else node.task.task_name,
        task_id=task_id if shown is not None else None,
        task_status=None if shown is None else shown.status,
        run_if=node.run_if,
        on_failure=node.on_failure,
        compensation=None if row is None else row.compensation,
        result=result if row is not None else None,
        output=None if shown is None else shown.output,
        error=None if shown is None else shown.error,
        started_at=(shown.started_at if shown is not None else None) or (None if row is None else row.started_at),
        ended_at=None if row is None else row.ended_at,
    )
