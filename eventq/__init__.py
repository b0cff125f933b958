"""eventq, as its users import it: ``from eventq import task, Context, Client``.

Names are loaded on first use, so that ``import eventq`` (and with it the command line's ``--help``) stays fast
and never pulls in a database or a deep-learning library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventq.services.client import Client
    from eventq.workers.context import Context, TaskCancelled
    from eventq.workers.registry import task

_HOME = {
    "Client": "eventq.services.client",
    "Context": "eventq.workers.context",
    "TaskCancelled": "eventq.workers.context",
    "task": "eventq.workers.registry",
}

__all__ = ["Client", "Context", "TaskCancelled", "task"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eventq' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
