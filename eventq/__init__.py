"""eventq, as its users import it: ``from eventq import task, Context, Client``.

Names are loaded on first use, so that ``import eventq`` (and with it the command line's ``--help``) stays fast
and never pulls in a database or a deep-learning library.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventq.events.retry import RetryPolicy
    from eventq.services.client import Client
    from eventq.workers.context import Context, TaskCancelled, TaskPaused
    from eventq.workers.outcome import DoNotRetry, RetryAfter
    from eventq.workers.registry import task

# In a checkout the rooms are installed beside this folder, not inside it: without this line Python, started in the
# repository's root, would find this folder first and look for `eventq.events` nowhere else.
__path__ = extend_path(__path__, __name__)

_HOME = {
    "Client": "eventq.services.client",
    "Context": "eventq.workers.context",
    "DoNotRetry": "eventq.workers.outcome",
    "RetryAfter": "eventq.workers.outcome",
    "RetryPolicy": "eventq.events.retry",
    "TaskCancelled": "eventq.workers.context",
    "TaskPaused": "eventq.workers.context",
    "task": "eventq.workers.registry",
}

__all__ = ["Client", "Context", "DoNotRetry", "RetryAfter", "RetryPolicy", "TaskCancelled", "TaskPaused", "task"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eventq' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
