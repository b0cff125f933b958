"""The options of a task: what requests call them, what the log calls them, and what a declaration says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

from eventq.events.worker_events import TaskDeclaration
from eventq.services.schemas import TaskOptions

NAMES = {
    "queue_name": "queue",
    "priority": "priority",
    "max_retries": "max_retries",
    "retry": "retry",
    "timeout_seconds": "timeout_s",
    "queue_timeout_seconds": "queue_timeout_s",
    "heartbeat_timeout_seconds": "heartbeat_timeout_s",
    "result_ttl_seconds": "result_ttl_s",
    "key": "key",
    "tags": "tags",
    "metadata": "metadata",
}
"""By their names in requests: their names in ``Submitted``."""

_DECLARED = ("queue", "priority", "max_retries", "timeout_s", "queue_timeout_s", "heartbeat_timeout_s", "result_ttl_s")


_declared_values = attrgetter(*_DECLARED)


def declared(declaration: TaskDeclaration) -> dict[str, Any]:
    """What holds where nobody asks for anything else, by its names in ``Submitted``."""
    return dict(zip(_DECLARED, _declared_values(declaration), strict=True))


def asked(body: TaskOptions, names: Iterable[str] = NAMES) -> dict[str, Any]:
    """What a request says, null included, of the options named as in requests; by their names in ``Submitted``."""
    return {NAMES[name]: getattr(body, name) for name in names if name in NAMES}


def resolved(declaration: TaskDeclaration, wanted: dict[str, Any]) -> dict[str, Any]:
    """``wanted`` with what is declared in the place of every null for which something is."""
    defaults = declared(declaration)
    return {name: defaults.get(name) if value is None else value for name, value in wanted.items()}


def completed(declaration: TaskDeclaration, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What is declared, with what ``wanted`` asks for in its place; nulls ask for nothing."""
    return declared(declaration) | {name: value for name, value in wanted.items() if value is not None}
