"""Waiting until a read is new enough, and not a moment longer than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from eventq.events.ending import end
from eventq.events.errors import LogDamaged, ProjectionLagging
from eventq.projections import freshness as freshness_module
from eventq.projections.freshness import LOOK_AFTER_S, Freshness

WAIT_S = 10.0
SOON_S = 0.01


async def waiting(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """The wait as a task that has begun to wait."""
    task = asyncio.create_task(coroutine)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_what_is_applied_is_not_waited_for() -> None:
    freshness = Freshness()
    freshness.applied(7, 0, {"t1": 3})
    await freshness.wait_for_position(7, 0)
    await freshness.wait_for_version("t1", 3, 0)
    await freshness.wait_own_writes(0)


async def test_a_wait_ends_with_the_commit_that_it_waits_for() -> None:
    freshness = Freshness()
    position = await waiting(freshness.wait_for_position(5, WAIT_S))
    version = await waiting(freshness.wait_for_version("t1", 2, WAIT_S))
    freshness.applied(4, 0, {"t1": 1, "t2": 9})
    await asyncio.sleep(0)
    assert not position.done()
    assert not version.done()
    freshness.applied(5, 0, {"t1": 2})
    await asyncio.gather(position, version)


async def test_past_the_bound_the_answer_is_lagging() -> None:
    freshness = Freshness()
    freshness.applied(4, 0, {})
    with pytest.raises(ProjectionLagging, match="stands at position 4 and did not reach position 5") as refusal:
        await freshness.wait_for_position(5, SOON_S)
    assert refusal.value.fields["as_of"] == 4
    with pytest.raises(ProjectionLagging, match="version 2 of t1"):
        await freshness.wait_for_version("t1", 2, SOON_S)
    freshness.note_write("t1", 2)
    with pytest.raises(ProjectionLagging, match="own writes"):
        await freshness.wait_own_writes(SOON_S)


async def test_own_writes_made_later_are_not_waited_for() -> None:
    freshness = Freshness()
    freshness.note_write("t1", 1)
    freshness.note_write("t2", 1)
    mine = await waiting(freshness.wait_own_writes(WAIT_S))
    freshness.note_write("t1", 2)
    freshness.applied(1, 0, {"t2": 1})
    await asyncio.sleep(0)
    assert not mine.done()
    freshness.applied(2, 0, {"t1": 1})
    await mine
    later = await waiting(freshness.wait_own_writes(WAIT_S))
    freshness.applied(3, 0, {"t1": 2})
    await later


async def test_a_write_noted_after_it_was_applied_is_not_waited_for() -> None:
    freshness = Freshness()
    freshness.applied(1, 0, {"t1": 1})
    freshness.note_write("t1", 1)
    await freshness.wait_own_writes(0)


async def test_the_tables_are_asked_about_tasks_that_were_not_touched_of_late() -> None:
    freshness = Freshness()

    async def in_tables(_: Sequence[str]) -> dict[str, int]:
        return {"old": 3}

    freshness.lookup = in_tables
    await freshness.wait_for_version("old", 3, 0)
    with pytest.raises(ProjectionLagging):
        await freshness.wait_for_version("old", 4, 0)


async def test_a_noted_version_that_was_applied_long_ago_is_not_waited_for() -> None:
    freshness = Freshness()
    asked: list[list[str]] = []

    async def in_tables(keys: Sequence[str]) -> dict[str, int]:
        asked.append([*keys])
        return {"old": 3}

    freshness.lookup = in_tables
    freshness.note_write("old", 3)
    await freshness.wait_own_writes(WAIT_S)
    freshness.note_write("new", 1)
    for _ in range(2):
        with pytest.raises(ProjectionLagging):
            await freshness.wait_own_writes(SOON_S)
    assert asked == [["old"], ["new"]]
    freshness.applied(9, 0, {"new": 1})
    await freshness.wait_own_writes(0)


async def test_a_reader_that_is_cut_off_while_it_asks_the_tables_leaves_nobody_waiting() -> None:
    freshness = Freshness()
    asked, answers = asyncio.Event(), asyncio.Event()

    async def in_tables(_: Sequence[str]) -> dict[str, int]:
        asked.set()
        await answers.wait()
        return {"old": 3}

    freshness.lookup = in_tables
    freshness.note_write("old", 3)
    first = asyncio.create_task(freshness.wait_own_writes(WAIT_S))
    await asked.wait()
    second = asyncio.create_task(freshness.wait_own_writes(WAIT_S))
    await asyncio.wait((second,), timeout=2 * LOOK_AFTER_S)  # it relies on the first by now
    await end(first)
    answers.set()
    await second


async def test_over_a_new_file_the_tables_are_asked_again() -> None:
    freshness = Freshness()
    tables: dict[str, int] = {}

    async def in_tables(_: Sequence[str]) -> dict[str, int]:
        return tables

    freshness.lookup = in_tables
    freshness.note_write("t1", 1)
    with pytest.raises(ProjectionLagging):
        await freshness.wait_own_writes(SOON_S)
    tables["t1"] = 1
    freshness.resume()
    await freshness.wait_own_writes(WAIT_S)


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness_module, "RECENT_MAX", 10)
    monkeypatch.setattr(freshness_module, "OWN_WRITES_MAX", 10)
    freshness = Freshness()
    for number in range(100):
        freshness.note_write(f"t{number}", 1)
    waiter = await waiting(freshness.wait_own_writes(WAIT_S))
    freshness.applied(99, 0, {f"t{number}": 1 for number in range(99)})
    await asyncio.sleep(0)
    assert not waiter.done()
    freshness.applied(100, 0, {"t99": 1})
    await waiter
    assert len(freshness._recent) <= 10  # pyright: ignore[reportPrivateUsage]
    assert not freshness._outstanding  # pyright: ignore[reportPrivateUsage]
    assert not freshness._own  # pyright: ignore[reportPrivateUsage]


async def test_a_halt_ends_every_wait_and_refuses_new_ones_until_resumed() -> None:
    freshness = Freshness()
    freshness.applied(3, 0, {})
    freshness.note_write("t1", 1)
    waits = [
        await waiting(freshness.wait_for_position(5, WAIT_S)),
        await waiting(freshness.wait_for_version("t1", 1, WAIT_S)),
        await waiting(freshness.wait_own_writes(WAIT_S)),
    ]
    freshness.halt(LogDamaged("position 4 is gone"))
    for result in await asyncio.gather(*waits, return_exceptions=True):
        assert isinstance(result, ProjectionLagging)
        assert "position 4 is gone" in result.detail
    with pytest.raises(ProjectionLagging, match="halted"):
        await freshness.wait_for_position(5, WAIT_S)
    await freshness.wait_for_position(3, 0)
    freshness.resume()
    last = await waiting(freshness.wait_for_position(5, WAIT_S))
    freshness.applied(5, 0, {"t1": 1})
    await last


async def test_it_tells_whether_somebody_waits() -> None:
    freshness = Freshness()
    assert not freshness.awaited.is_set()
    wait = await waiting(freshness.wait_for_position(5, WAIT_S))
    assert freshness.awaited.is_set()
    freshness.applied(4, 0, {})
    assert freshness.awaited.is_set()
    freshness.applied(5, 0, {})
    await wait
    assert not freshness.awaited.is_set()


async def test_whoever_gave_up_waiting_waits_no_more() -> None:
    freshness = Freshness()
    with pytest.raises(ProjectionLagging):
        await freshness.wait_for_position(5, SOON_S)
    freshness.applied(4, 0, {})
    assert not freshness.awaited.is_set()
