"""Identifiers: made time-ordered, checked before they come near a subject.

A subject is an address on the broker: a dot, a star or 70,000 characters in an id would name something else or end the
shared connection. So nothing from outside becomes a subject token before it passed one of these checks.
"""

from __future__ import annotations

import re

from uuid_utils import uuid7

from eventq.events.errors import InvalidInput
from eventq.events.limits import ID_MAX_CHARS, NAME_MAX_CHARS, TASK_NAME_MAX_CHARS

_TOKEN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_POOL = re.compile(r"[a-z0-9]+", re.ASCII)
_TASK_NAME = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)


def new_id() -> str:
    """A UUIDv7: sorts by the time it was made, which keeps neighbours together in the projection's files."""
    return str(uuid7())


def check_id(value: str, field: str) -> str:
    """Answer ``value`` if it may stand as an id in a subject, else raise :class:`InvalidInput` naming ``field``."""
    return _checked(value, field, _TOKEN, ID_MAX_CHARS, "letters, digits, '-' and '_'")


def check_name(value: str, field: str) -> str:
    """Answer ``value`` if it may name a queue, else raise :class:`InvalidInput` naming ``field``."""
    return _checked(value, field, _TOKEN, NAME_MAX_CHARS, "letters, digits, '-' and '_'")


def check_pool(value: str, field: str = "pool") -> str:
    """Answer ``value`` if it may name a worker pool (no dash: it stands inside consumer names), else raise."""
    return _checked(value, field, _POOL, NAME_MAX_CHARS, "lower-case letters and digits")


def check_task_name(value: str, field: str = "task_name") -> str:
    """Answer ``value`` if it may name a task, else raise :class:`InvalidInput` naming ``field``."""
    return _checked(value, field, _TASK_NAME, TASK_NAME_MAX_CHARS, "letters, digits, '.', '-' and '_'")


def _checked(value: str, field: str, pattern: re.Pattern[str], max_chars: int, allowed: str) -> str:
    if len(value) > max_chars:
        raise InvalidInput(field, f"is longer than {max_chars} characters", limit=max_chars, found=len(value))
    if not pattern.fullmatch(value):
        raise InvalidInput(field, f"must be one or more of {allowed}", found=value[:80])
    return value
