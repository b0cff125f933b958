"""Children of running tasks on a real log: checked before anything is stored, stored once however often they are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventq.events.blobs import BlobStore
from eventq.events.envelope import Trace
from eventq.events.errors import InvalidInput, UnknownTask
from eventq.events.limits import INLINE_PAYLOAD_MAX_BYTES
from eventq.events.submitter import Submitter
from eventq.events.task import ABSENT
from eventq.events.task_events import Submitted
from eventq.workers.context import SpawnRequest
from eventq.workers.registry import Registry
from eventq.workers.spawning import Spawner, child_id_of
from tests.chaos.site import Control, Site
from tests.support.nats import NatsServer

PARENT = "parent"
TRACE = Trace(None, "correlation", None)


@pytest.fixture
async def control(own_nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Control]:
    async with await Control.open(Site(own_nats_server, tmp_path)) as control:
        yield control


@pytest.fixture
def spawner(control: Control, tmp_path: Path) -> Spawner:
    registry = Registry()

    @registry.task(name="child", priority=3)
    async def child(text: str = "") -> None: ...

    return Spawner(registry, BlobStore.open(tmp_path / "blobs"), Submitter(control.log, source="worker.w"))


async def spawn(spawner: Spawner, name: str = "child", *args: Any, key: str = "key one", **options: Any) -> str:
    return await spawner.spawn(PARENT, ABSENT, SpawnRequest(name, list(args), {}, key, options), TRACE)


async def test_a_child_is_stored_once(control: Control, spawner: Spawner) -> None:
    first, again, other = await spawn(spawner), await spawn(spawner), await spawn(spawner, key="key two", priority=9)
    assert first == again == child_id_of(PARENT, "key one") != other
    await control.until(lambda: {first, other} <= set(control.tasks), "both are stored")
    data = [control.events(task_id)[0].data for task_id in (first, other)]
    assert [(one.parent_task_id, one.priority) for one in data if isinstance(one, Submitted)] == [(PARENT, 3), (PARENT, 9)]
    assert control.types(first) == ["submitted"]


async def test_a_large_input_lies_beside_the_log(control: Control, spawner: Spawner) -> None:
    task_id = await spawn(spawner, "child", "x" * (INLINE_PAYLOAD_MAX_BYTES + 1))
    await control.until(lambda: task_id in control.tasks, "it is stored")
    data = control.events(task_id)[0].data
    assert isinstance(data, Submitted)
    assert data.args == []
    assert data.input is not None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"queue": "a b"}, "queue"),
        ({"priority": 11}, "priority"),
        ({"priority": True}, "priority"),
        ({"max_retries": 1.5}, "max_retries"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
)
async def test_a_wrong_option_is_named_and_nothing_is_stored(
    control: Control, spawner: Spawner, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await spawn(spawner, **options)
    assert caught.value.field == field
    assert (await control.broker.js.stream_info("EVENTS")).state.messages == 0


async def test_options_that_are_not_given_are_the_declared_ones(control: Control, spawner: Spawner) -> None:
    task_id = await spawn(spawner, priority=None, queue=None)
    await control.until(lambda: task_id in control.tasks, "it is stored")
    assert control.task(task_id).priority == 3


async def test_an_unknown_task_is_refused_with_those_that_are_known(spawner: Spawner) -> None:
    with pytest.raises(UnknownTask, match="child"):
        await spawn(spawner, "nobody")
