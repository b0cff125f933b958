"""What task code can ask for: retries of its own, and children."""

from __future__ import annotations

import pytest

from eventq.events.retry import RetryPolicy
from eventq.events.task import Status
from eventq.events.task_events import Completed, Failed, Retrying, Submitted
from tests.chaos.site import Control, Site

AT_ONCE = RetryPolicy(initial_s=0.01, jitter=0)


@pytest.mark.parametrize("kind", ["chaos.raise_odd", "chaos.raise_odd_plain"])
@pytest.mark.parametrize(
    ("policy", "retried"),
    [
        (AT_ONCE, True),
        (AT_ONCE.model_copy(update={"never": ("OddError",)}), False),
        (AT_ONCE.model_copy(update={"never": ("ValueError",)}), False),
        (AT_ONCE.model_copy(update={"only": ("KeyError",)}), False),
        (AT_ONCE.model_copy(update={"only": ("builtins.ValueError",)}), True),
        (RetryPolicy(initial_s=3600, after_s={"ValueError": 0.01}), True),
    ],
    ids=["any", "never", "never its base", "only others", "only its base", "a delay of its own"],
)
async def test_the_policy_tells_errors_apart_by_their_classes(
    site: Site, control: Control, kind: str, policy: RetryPolicy, retried: bool
) -> None:
    await site.started("scheduler")
    await site.workers(1)
    task_id = await control.submit(kind, max_retries=3, retry=policy)
    end = await control.ended(task_id)
    assert control.status(task_id) is (Status.COMPLETED if retried else Status.FAILED)
    if not retried:
        assert isinstance(end.data, Failed)
        assert end.data.reason == "not_retryable"


async def test_an_error_may_ask_for_a_delay_or_for_none_at_all(site: Site, control: Control) -> None:
    await site.started("scheduler")
    await site.workers(1)
    asking, hopeless = await control.submit("chaos.asks_for_time", max_retries=1), await control.submit("chaos.gives_up")
    await control.until_ended(asking, hopeless)
    data = control.events(asking)[2].data
    assert isinstance(data, Retrying)
    assert (data.due_at - control.events(asking)[2].time).total_seconds() < 1
    assert control.status(asking) is Status.COMPLETED
    failed = control.events(hopeless)[-1].data
    assert isinstance(failed, Failed)
    assert (failed.reason, failed.error.type) == ("not_retryable", "DoNotRetry")


async def test_children_are_stored_before_spawn_answers_and_are_the_same_at_every_attempt(site: Site, control: Control) -> None:
    await site.started("scheduler")
    await site.workers(1)
    parent = await control.submit("chaos.parent", 3, True, max_retries=1, workflow_id="wf-1", node="n", key="tenant")
    end = await control.ended(parent)
    assert isinstance(end.data, Completed)
    children: list[str] = end.data.result
    assert control.task(parent).attempt == 2
    assert len(set(children)) == 4
    await control.until_ended(*children)
    spawned = [task_id for task_id in control.tasks if control.task(task_id).parent_task_id == parent]
    assert sorted(spawned) == sorted(children), "none was made twice"
    first = control.events(children[-1])[0].data
    assert isinstance(first, Submitted)
    assert (first.priority, first.workflow_id, first.node, first.key) == (9, "wf-1", None, "tenant")


async def test_an_async_function_awaits_its_children(site: Site, control: Control) -> None:
    await site.workers(1)
    end = await control.run("chaos.parent_async", 2)
    assert isinstance(end.data, Completed)
    await control.until_ended(*end.data.result)


@pytest.mark.parametrize(
    ("kind", "args", "says"),
    [
        ("chaos.wrong_parent", ["nobody"], "unknown to this worker"),
        ("chaos.wrong_parent", ["chaos.quick"], "parameters"),
        ("chaos.parent_on_loop", [], "spawn_async"),
    ],
)
async def test_a_child_that_cannot_be_is_refused_to_its_parent(
    site: Site, control: Control, kind: str, args: list[str], says: str
) -> None:
    await site.workers(1)
    end = await control.run(kind, *args)
    assert isinstance(end.data, Failed)
    assert says in end.data.error.message
    assert end.data.reason == "not_retryable"
