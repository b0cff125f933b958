"""Schedulers that are killed at each step of a workflow: every task is made once, and the workflow ends as it would have."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from eventq.events.bootstrap import BrokerConfig, bootstrap
from eventq.events.broker import Broker
from eventq.events.handle import handle_any, read_state
from eventq.events.ids import new_id
from eventq.events.log import EventLog
from eventq.events.task_events import Submitted
from eventq.events.workflow import NO_WORKFLOW, WORKFLOWS, CreateWorkflow, WorkflowStatus
from eventq.events.workflow_events import Definition, Node, WorkflowCreated
from tests.chaos.site import EVENTS_MAX_BYTES, PATIENCE_S, Site
from tests.services.gates import history_of
from tests.support.poll import eventually

STEPS = (
    "workflow.before_advanced=kill",
    "workflow.after_advanced=kill",
    "workflow.before_submit=kill@2",
    "workflow.after_submit=kill@2",
    "submit.before_append=kill@3",
    "workflow.before_advanced=kill@3",
    "workflow.after_advanced=kill@3",
)


def node(name: str, *depends_on: str) -> Node:
    task = Submitted(task_name="chaos.quick", pool="cpu", queue="default", priority=5, max_retries=0)
    return Node(name=name, depends_on=list(depends_on), task=task)


NODES = [node("a"), *(node(f"b{n}", "a") for n in range(4)), node("c", "b0", "b1", "b2", "b3")]


async def opened(site: Site) -> tuple[Broker, EventLog]:
    broker = await Broker.connect(site.server.url, name="test")
    await bootstrap(broker, BrokerConfig(monitor_urls=site.server.monitor_url, events_max_bytes=EVENTS_MAX_BYTES))
    return broker, await EventLog.open(broker)


async def create(log: EventLog) -> str:
    workflow_id = new_id()
    created = WorkflowCreated(name="w", nodes=len(NODES), definition=Definition(nodes=NODES))
    await handle_any(log, WORKFLOWS, workflow_id, CreateWorkflow(created), source="test", state=NO_WORKFLOW)
    return workflow_id


async def completed(log: EventLog, *workflow_ids: str) -> None:
    async def reached() -> bool:
        states = [await read_state(log, WORKFLOWS, each, fresh=True) for each in workflow_ids]
        return all(state.status is WorkflowStatus.COMPLETED for state in states)

    await eventually(reached, timeout=PATIENCE_S, what="the workflows complete")


async def made(broker: Broker) -> Counter[str]:
    found = [event.data for event in await history_of(broker) if isinstance(event.data, Submitted)]
    return Counter(f"{data.workflow_id} {data.node}" for data in found)


@pytest.mark.parametrize("step", STEPS)
async def test_a_scheduler_killed_at_any_step_of_a_workflow_loses_and_doubles_nothing(site: Site, step: str) -> None:
    broker, log = await opened(site)
    await site.workers(1)
    doomed = await site.started("scheduler", failpoints=step)
    workflow_id = await create(log)
    assert doomed.wait() == -signal.SIGKILL
    await site.started("scheduler")
    await completed(log, workflow_id)
    assert await made(broker) == {f"{workflow_id} {each.name}": 1 for each in NODES}
    assert len(site.visits()) == 2 * len(NODES), "each ran once: it was entered and left"
    await log.close()
    await broker.close()


async def test_three_schedulers_of_which_one_is_killed_make_what_one_makes(site: Site) -> None:
    broker, log = await opened(site)
    await site.workers(2)
    doomed = site.start("scheduler", failpoints="workflow.after_advanced=kill@5")
    await site.ready(doomed, site.start("scheduler"), site.start("scheduler"))
    ids = [await create(log) for _ in range(10)]
    await completed(log, *ids)
    assert await made(broker) == {f"{workflow_id} {each.name}": 1 for workflow_id in ids for each in NODES}
    await log.close()
    await broker.close()


async def test_a_scheduler_that_derives_ids_from_a_secret_doubles_what_a_killed_one_had_made(site: Site) -> None:
    """The negative control."""
    broker, log = await opened(site)
    doomed = await site.started("scheduler", bug="derive_ids_from_a_secret", failpoints="workflow.after_submit=kill")
    workflow_id = await create(log)
    assert doomed.wait() == -signal.SIGKILL
    assert await made(broker) == {f"{workflow_id} a": 1}
    await site.workers(1)
    await site.started("scheduler", bug="derive_ids_from_a_secret")
    await completed(log, workflow_id)
    assert await made(broker) == {f"{workflow_id} {each.name}": 2 if each.name == "a" else 1 for each in NODES}
    await log.close()
    await broker.close()
