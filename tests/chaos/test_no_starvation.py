"""A flood of ten thousand urgent tasks, and a few that nobody hurries: the few move all the same."""

from __future__ import annotations

import asyncio

import pytest

from eventq.events.errors import LogUnavailable
from eventq.events.limits import PRIORITY_MAX, PRIORITY_MIN, WEIGHT_PER_PRIORITY
from tests.chaos.site import Control, Site

FLOOD, FEW = 10_000, 10
IN_FLIGHT_MAX = 500


async def submit(control: Control, count: int, priority: int) -> list[str]:
    turn = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def one() -> str:
        async with turn:
            while True:
                try:
                    return await control.submit("chaos.quick", priority=priority)
                except LogUnavailable:  # it may be stored, or not: one task more does no harm to a flood
                    continue

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def flooded(site: Site, control: Control, *, bug: str = "") -> tuple[list[str], list[str]]:
    """A flood that waits, the few behind it, and then a worker. The flood and the few."""
    flood = await submit(control, FLOOD, PRIORITY_MAX)
    few = await submit(control, FEW, PRIORITY_MIN)
    await site.started("worker", bug=bug, concurrency=8)
    return flood, few


def done(control: Control, task_ids: list[str]) -> list[int]:
    """Where in the log those of them that are completed were completed."""
    lasts = [control.tasks[task_id][-1] for task_id in task_ids]
    return [last.position for last in lasts if last.event.type == "completed"]


@pytest.mark.timeout(240)
async def test_the_least_urgent_move_through_a_flood_of_the_most_urgent(site: Site, control: Control) -> None:
    flood, few = await flooded(site, control)
    await control.until(lambda: len(done(control, few)) == FEW, "the few are done", timeout_s=150)
    last = max(done(control, few))
    before = sum(position < last for position in done(control, flood))
    # A free slot goes to one of the few with the chance of 1 in 1 + weight. Five times what that takes on average is a
    # run that nobody will see; a queue that starves them takes all of the flood.
    assert before < 5 * FEW * WEIGHT_PER_PRIORITY ** (PRIORITY_MAX - PRIORITY_MIN) < FLOOD / 2


@pytest.mark.timeout(240)
async def test_where_the_urgent_always_come_first_none_of_the_few_moves(site: Site, control: Control) -> None:
    flood, few = await flooded(site, control, bug="urgent_first")
    await control.until(lambda: len(done(control, flood)) > FLOOD / 2, "half of the flood is done", timeout_s=150)
    assert done(control, few) == []
