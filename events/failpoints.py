"""Places where a test may kill, stop or fail a real process: at the exact step whose crash it wants to see survived.

``EVENTQ_FAILPOINTS="attempt.before_start=kill@3,project.before_commit=stop"`` kills at the third hit of the first and
stops (SIGSTOP) at the first hit of the second. Without the variable a failpoint costs one truth test.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass

VARIABLE = "EVENTQ_FAILPOINTS"


class FailpointError(RuntimeError):
    """Raised by the action ``raise``."""


@dataclass(frozen=True, slots=True)
class _Action:
    verb: str
    at_hit: int


def _parse(text: str) -> dict[str, _Action]:
    actions: dict[str, _Action] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, action = entry.partition("=")
        verb, _, hit = action.partition("@")
        if verb not in {"kill", "stop", "raise"}:
            raise ValueError(f"{VARIABLE}: action of {name!r} must be kill, stop or raise, found {verb!r}")
        actions[name] = _Action(verb, int(hit or 1))
    return actions


_ACTIONS = _parse(os.environ.get(VARIABLE, ""))
_HITS: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Do what ``EVENTQ_FAILPOINTS`` says for ``name``, at the hit it says; otherwise nothing."""
    if not _ACTIONS or (action := _ACTIONS.get(name)) is None:
        return
    _HITS[name] += 1
    if _HITS[name] != action.at_hit:
        return
    if action.verb == "raise":
        raise FailpointError(name)
    os.kill(os.getpid(), signal.SIGKILL if action.verb == "kill" else signal.SIGSTOP)
