"""From a checked request to a stored workflow: every node resolved against what workers declared, so that a scheduler needs
nothing but the log to run it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from eventq.events.envelope import Trace
from eventq.events.errors import IllegalTransition, InvalidInput, PayloadTooLarge
from eventq.events.handle import Handled, handle_any, read_state
from eventq.events.ids import new_id
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES, WORKFLOW_DEFINITION_MAX_BYTES
from eventq.events.task_events import Idempotency, Submitted
from eventq.events.timers import Hint, set_timer
from eventq.events.worker_events import TaskDeclaration
from eventq.events.workflow import (
    DEADLINE,
    NO_WORKFLOW,
    WORKFLOWS,
    CreateWorkflow,
    RetryWorkflow,
    Workflow,
    WorkflowCommand,
    decide_workflow,
)
from eventq.events.workflow_events import Condition, Definition, Node, WorkflowCreated, WorkflowRetried
from eventq.events.workflow_graph import check_graph, has_reference
from eventq.events.workflow_values import references
from eventq.projections.fold import version_key
from eventq.services.api import SOURCE, Api
from eventq.services.clock import broker_clock
from eventq.services.definitions import encode_definition, read_created, store_definition
from eventq.services.idempotency import check_same, keyed_id
from eventq.services.preparation import declaration_of
from eventq.services.submission import refuse_when_damaged
from eventq.services.task_options import asked, completed
from eventq.services.workflow_models import CompensationBody, NodeBody, WorkflowRequest

DEADLINE_SLACK_S = 0.05
"""The time of the event is an instant after the timer is set."""


@dataclass(frozen=True, slots=True)
class Keyed:
    """An idempotency key, and what is kept of it and its request."""

    key: str
    record: Idempotency


async def create(api: Api, body: WorkflowRequest, keyed: Keyed | None, requested_by: str, trace: Trace) -> tuple[str, Workflow]:
    """Store a new workflow, or answer the one that its key made before. Raises ``UnknownTask`` or ``InvalidInput`` with
    nothing stored."""
    refuse_when_damaged(api)
    workflow_id = new_id() if keyed is None else keyed_id(keyed.key, "workflows")
    if keyed is not None and (known := await _known(api, workflow_id, keyed.record)) is not None:
        return workflow_id, known
    definition = Definition(nodes=[await _node(api, number, node) for number, node in enumerate(body.nodes)])
    await asyncio.to_thread(check_graph, definition.nodes)
    now = await broker_clock(api.log.broker)()
    created = await _created(api, workflow_id, body, definition, keyed, requested_by, now)
    if created.deadline_at is not None:
        await _set_deadline(api, workflow_id, created.deadline_at, 1)
    try:
        return workflow_id, await change(api, workflow_id, CreateWorkflow(created), trace, NO_WORKFLOW, now)
    except IllegalTransition:
        if keyed is None or (known := await _known(api, workflow_id, keyed.record)) is None:
            raise
        return workflow_id, known


async def change(
    api: Api,
    workflow_id: str,
    command: WorkflowCommand,
    trace: Trace,
    state: Workflow | None = None,
    now: datetime | None = None,
) -> Workflow:
    """Carry out a command. ``now``: by the broker's clock, by which all of a workflow goes. Raises what the rules say."""
    at = now or await broker_clock(api.log.broker)()
    handled: Handled[Workflow] = await handle_any(
        api.log, WORKFLOWS, workflow_id, command, source=SOURCE, trace=trace, state=state, at=at
    )
    if handled.state.version:
        api.freshness.note_write(version_key("workflows", workflow_id), handled.state.version)
    return handled.state


async def retry(api: Api, workflow_id: str, requested_by: str, trace: Trace) -> Workflow:
    """Run again what did not complete, with a timer where the workflow may take only so long."""
    state = await read_state(api.log, WORKFLOWS, workflow_id, fresh=True)
    now = await broker_clock(api.log.broker)()
    command = RetryWorkflow(requested_by, now)
    if state.version:
        (event,) = decide_workflow(command, state)
        assert isinstance(event, WorkflowRetried)
        if event.deadline_at is not None:
            await _set_deadline(api, workflow_id, event.deadline_at, state.version + 1)
    return await change(api, workflow_id, command, trace, state, now)


async def _known(api: Api, workflow_id: str, record: Idempotency) -> Workflow | None:
    created = await read_created(api.log, workflow_id)
    if created is None:
        return None
    check_same(created.idempotency, record)
    return await read_state(api.log, WORKFLOWS, workflow_id, fresh=True)


async def _set_deadline(api: Api, workflow_id: str, deadline_at: datetime, version: int) -> None:
    at = deadline_at + timedelta(seconds=DEADLINE_SLACK_S)
    await set_timer(api.log.timers, Hint("workflows", workflow_id, DEADLINE, version), at)


async def _created(
    api: Api,
    workflow_id: str,
    body: WorkflowRequest,
    definition: Definition,
    keyed: Keyed | None,
    requested_by: str,
    now: datetime,
) -> WorkflowCreated:
    encoded = encode_definition(definition)
    if len(encoded) > WORKFLOW_DEFINITION_MAX_BYTES:
        problem = f"are larger than {WORKFLOW_DEFINITION_MAX_BYTES} bytes, once complete"
        raise PayloadTooLarge("/nodes", problem, limit=WORKFLOW_DEFINITION_MAX_BYTES, found=len(encoded))
    large = len(encoded) > INLINE_PAYLOAD_MAX_BYTES
    timeout_s = body.timeout_seconds
    return WorkflowCreated(
        name=body.name,
        nodes=len(definition.nodes),
        definition=None if large else definition,
        stored=await store_definition(api.blobs, workflow_id, encoded) if large else None,
        timeout_s=timeout_s,
        deadline_at=None if timeout_s is None else now + timedelta(seconds=timeout_s),
        tags=body.tags,
        metadata=body.metadata,
        idempotency=None if keyed is None else keyed.record,
        requested_by=requested_by,
    )


async def _node(api: Api, number: int, node: NodeBody) -> Node:
    place = f"/nodes/{number}"
    if node.kind == "task":
        if node.task_name is None:
            raise InvalidInput(f"{place}/task_name", "is required of a task")
        for field, value in (("signal", node.signal), ("wait_timeout_seconds", node.wait_timeout_seconds)):
            if value is not None:
                raise InvalidInput(f"{place}/{field}", "is of approvals and signals only")
    elif node.task_name is not None or node.task_args or node.task_kwargs or node.compensate is not None:
        raise InvalidInput(f"{place}/task_name", f"an {node.kind} runs no task" if node.kind == "approval" else "runs no task")
    elif node.kind == "approval" and node.signal is not None:
        raise InvalidInput(f"{place}/signal", "is of signals only")
    return Node(
        name=node.name,
        kind=node.kind,
        depends_on=node.depends_on,
        task=None if node.task_name is None else await _template(api, place, node, node),
        compensate=None if node.compensate is None else await _template(api, f"{place}/compensate", node.compensate, node),
        signal=(node.signal or node.name) if node.kind == "signal" else None,
        when=[Condition(node=each.node, path=each.path, op=each.op, value=each.value) for each in node.when],
        run_if=node.run_if,
        on_failure=node.on_failure,
        timeout_s=node.wait_timeout_seconds,
    )


async def _template(api: Api, place: str, task: NodeBody | CompensationBody, node: NodeBody) -> Submitted:
    """What will be submitted, complete but for references. What is not asked for is as declared."""
    assert task.task_name is not None
    try:
        declaration = await declaration_of(api, task.task_name)
        references(task.task_args, "/task_args")  # malformed ones are refused here, where their place is known
        references(task.task_kwargs, "/task_kwargs")
        api.declarations.check(_lenient(declaration, task), task.task_args, task.task_kwargs)
    except InvalidInput as error:
        raise _placed(error, place) from None
    # What undoes a node's work is another task: of the node it has only whose it is, and how to find it.
    options = asked(node) if isinstance(task, NodeBody) else asked(node, ("key", "tags", "metadata"))
    values = completed(declaration, options)
    return Submitted(task_name=declaration.name, pool=declaration.pool, args=task.task_args, kwargs=task.task_kwargs, **values)


def _lenient(declaration: TaskDeclaration, task: NodeBody | CompensationBody) -> TaskDeclaration:
    """The declaration with anything admitted where the argument holds a reference: what comes is not known yet."""
    by_position = dict(zip(declaration.parameters, task.task_args, strict=False))
    unknown = [name for name, value in (by_position | task.task_kwargs).items() if has_reference(value)]
    properties: dict[str, Any] = declaration.arguments.get("properties", {})
    if not any(name in properties for name in unknown):
        return declaration
    admitted: dict[str, Any] = properties | {name: {} for name in unknown if name in properties}
    # A name of its own, so that the check of the whole declaration stays remembered.
    return declaration.model_copy(
        update={"arguments": {**declaration.arguments, "properties": admitted}, "name": f"{declaration.name} with references"}
    )


def _placed(error: InvalidInput, place: str) -> InvalidInput:
    """The error, told of a place in the whole request."""
    field = str(error.fields.get("field", ""))
    problem = error.detail.removeprefix(f"{field}: ")
    told = ("limit", "found", "hint")
    rest: dict[str, Any] = {name: error.fields[name] for name in told if error.fields.get(name) is not None}
    return type(error)(f"{place}/{field.lstrip('/')}", problem, **rest)
