"""Cron expressions in time zones: checked, explained, and the times they mean. Pure: no clock, no I/O but the zone's file.

As with Debian's cron, on the day a clock is set forward a job whose time does not exist runs right after the gap, and on the
day it is set back a job whose time comes twice runs once; expressions with ``*`` as minute or hour follow the elapsed time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from eventq.events.errors import InvalidInput
from eventq.events.limits import CRON_MAX_CHARS, NAME_MAX_CHARS

CRON_FIELDS = 5
_SOME_DAY = datetime(2024, 1, 1, tzinfo=UTC)


def check_zone(name: str, field: str = "time_zone") -> ZoneInfo:
    """The time zone of that IANA name. Raises :class:`InvalidInput` naming ``field``."""
    if len(name) > NAME_MAX_CHARS:
        raise InvalidInput(field, f"is longer than {NAME_MAX_CHARS} characters", limit=NAME_MAX_CHARS, found=len(name))
    try:
        return _zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(field, "is no IANA time zone, such as Europe/Berlin or UTC", found=name) from None


@cache
def _zones() -> frozenset[str]:
    """Names that mean the same on every host, unlike what its own folder of zones may hold: ``localtime``, for one."""
    return frozenset(files("tzdata").joinpath("zones").read_text().split())


@cache
def _zone(name: str) -> ZoneInfo:
    if name not in _zones():
        raise ZoneInfoNotFoundError(name)
    return ZoneInfo(name)


def check_cron(expression: str, field: str = "cron") -> None:
    """Raise :class:`InvalidInput` naming ``field`` for an expression that is none, or that means no time at all."""
    if len(expression) > CRON_MAX_CHARS:
        problem = f"is longer than {CRON_MAX_CHARS} characters"
        raise InvalidInput(field, problem, limit=CRON_MAX_CHARS, found=len(expression))
    fields = len(expression.split())
    if fields != CRON_FIELDS:
        hint = "minute hour day-of-month month day-of-week, such as 30 2 * * MON-FRI"
        raise InvalidInput(field, f"must have {CRON_FIELDS} fields", limit=CRON_FIELDS, found=fields, hint=hint)
    try:
        next(CronSim(expression, _SOME_DAY))
    except StopIteration:
        raise InvalidInput(field, "means no time within 50 years", found=expression) from None
    except (CronSimError, ValueError, TypeError, AssertionError) as error:
        raise InvalidInput(field, str(error) or "is no cron expression", found=expression) from None


def explain_cron(expression: str) -> str:
    """A checked expression as an English sentence."""
    return str(CronSim(expression, _SOME_DAY).explain())


def times_after(expression: str, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """The times that a checked expression means, strictly after ``after`` (aware), each once, ascending, in UTC."""
    last = after.astimezone(UTC)
    with suppress(OverflowError, ValueError):  # the calendar ends with the year 9999
        for time in CronSim(expression, last.astimezone(zone)):
            found = time.astimezone(UTC)
            if found > last:  # two times in a gap of the clock are one moment
                last = found
                yield found
