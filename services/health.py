"""Is it well? Each part is asked, with a bound, and answers ``healthy``, ``degraded`` or ``unhealthy``, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import nats.errors
from nats.js.errors import APIError

from eventq.events.errors import EventqError
from eventq.events.presence import present, unserved
from eventq.events.subjects import EVENTS, PROGRESS, TIMERS
from eventq.events.task import Status
from eventq.services.api import Api

CHECK_TIMEOUT_S = 3.0
READY_LAG_MAX = 1_000
"""Events that a replica may be behind and still be called ready."""

HEALTHY, DEGRADED, UNHEALTHY = "healthy", "degraded", "unhealthy"


@dataclass(frozen=True, slots=True)
class Check:
    """What one part answered. ``problem``: a sentence, ``None`` where it is well."""

    name: str
    status: str
    problem: str | None = None


async def all_checks(api: Api) -> list[Check]:
    """Every part, asked at once: database, broker, workers."""
    checks = {"database": _database, "broker": _broker, "workers": _workers}
    return list(await asyncio.gather(*(_bounded(name, check, api) for name, check in checks.items())))


async def ready_problems(api: Api) -> list[str]:
    """Why this process should get no requests yet; empty when it should."""
    checks = await asyncio.gather(_bounded("broker", _broker, api), _bounded("database", _database, api))
    return [f"{check.name}: {check.problem}" for check in checks if check.problem is not None]


def overall(checks: list[Check]) -> str:
    """Without the workers that are needed the rest still accepts tasks and answers: degraded, not unhealthy."""
    if any(check.status == UNHEALTHY for check in checks):
        return UNHEALTHY
    return DEGRADED if any(check.status == DEGRADED for check in checks) else HEALTHY


async def lag_events(api: Api) -> int:
    """How many positions this replica's projection is behind the log."""
    facts = await api.log.broker.stream_facts(EVENTS)
    return 0 if facts is None else max(0, facts.last - api.freshness.position)


async def _bounded(name: str, check: Callable[[Api], Awaitable[Check]], api: Api) -> Check:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await check(api)
    except EventqError as error:
        return Check(name, UNHEALTHY, error.detail)
    except (TimeoutError, nats.errors.Error, APIError) as error:
        return Check(name, UNHEALTHY, f"no answer: {type(error).__name__}")


async def _database(api: Api) -> Check:
    halted = api.freshness.halted
    if halted is not None:
        return Check("database", UNHEALTHY, f"halted, serving the last good state: {halted.detail}")
    await api.queries.counts()
    behind = await lag_events(api)
    if behind > READY_LAG_MAX:
        return Check("database", DEGRADED, f"{behind} events behind the log")
    return Check("database", HEALTHY)


async def _broker(api: Api) -> Check:
    for stream in (EVENTS, PROGRESS, TIMERS):
        if await api.log.broker.stream_facts(stream) is None:
            return Check("broker", UNHEALTHY, f"it has no stream {stream}: restart a process, which makes it anew")
    return Check("broker", HEALTHY)


async def _workers(api: Api) -> Check:
    alive = await present(api.log.broker)
    if not alive:
        return Check("workers", DEGRADED, "no worker is alive; start one with `eventq worker`")
    counts = await api.queries.counts()
    if stuck := unserved((pool for (pool, _, status), count in counts.items() if count and status == Status.PENDING), alive):
        fix = " and ".join(f"`eventq worker --pool {pool}`" for pool in stuck)
        return Check("workers", DEGRADED, f"tasks wait and nobody serves pool {', '.join(stuck)}; start {fix}")
    return Check("workers", HEALTHY)
