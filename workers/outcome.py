"""How one execution of a task's function ended, before anybody decided what follows from it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

from eventq.events.data import ErrorInfo
from eventq.events.errors import FetchRefused, InvalidInput, NotFound
from eventq.events.limits import ERROR_MESSAGE_MAX_CHARS, TRACEBACK_MAX_CHARS
from eventq.events.retry import DELAY_MAX_S, ERROR_NAME_MAX_CHARS
from eventq.workers.text import clean, text_of

TYPE_MAX_CHARS = 200
OURS = "eventq.workers."


class StopReason(StrEnum):
    """Why an attempt was stopped from outside. The first reason given is the one that counts."""

    CANCELLED = "cancelled"
    PAUSED = "paused"
    TIMED_OUT = "timed_out"
    SILENT = "silent"
    INTERRUPTED = "interrupted"
    LEASE_LOST = "lease_lost"


@dataclass(frozen=True, slots=True)
class Returned:
    """The function returned; ``result`` is its value as JSON."""

    result: bytes


@dataclass(frozen=True, slots=True)
class Raised:
    """The function raised, its process died, or its value is no JSON. ``retryable``: whether trying again
    could help. ``names``: of the error's class and of those above it, bare and qualified, the nearest first;
    ``retry_after_s``: the delay that it asked for.
    """

    error: ErrorInfo
    retryable: bool = True
    names: tuple[str, ...] = ()
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The attempt was stopped from outside and has ended. ``steps``: what was done for that, in order."""

    reason: StopReason
    steps: tuple[str, ...] = ()


Outcome = Returned | Raised | Stopped


class RetryAfter(Exception):
    """Raise it in a task to be tried again after so many seconds (0 to a week) instead of the policy's delay. Where the
    policy does not retry it at all, it is not. Raises :class:`InvalidInput` for any other number."""

    def __init__(self, seconds: float, message: str = "") -> None:
        if not 0 <= seconds <= DELAY_MAX_S:
            raise InvalidInput("seconds", "is no delay", limit=(0, DELAY_MAX_S), found=repr(seconds)[:80])
        super().__init__(message or f"try again in {seconds:g} s")
        self.seconds = float(seconds)


class DoNotRetry(Exception):
    """Raise it in a task where trying again cannot help: the task has failed."""


_HOPELESS = (InvalidInput, NotFound, FetchRefused, DoNotRetry)


def raised(error: BaseException) -> Raised:
    """The outcome of an exception. Bad arguments and missing inputs are as bad at the next attempt: not
    retryable.
    """
    return Raised(
        describe_error(error),
        retryable=not isinstance(error, _HOPELESS),
        names=tuple(name for kind in type(error).__mro__ if kind is not object for name in _names(kind)),
        retry_after_s=error.seconds if isinstance(error, RetryAfter) else None,
    )


def _names(kind: type) -> tuple[str, str]:
    return clean(kind.__name__, ERROR_NAME_MAX_CHARS), clean(f"{kind.__module__}.{kind.__qualname__}", ERROR_NAME_MAX_CHARS)


def describe_error(error: BaseException) -> ErrorInfo:
    """The error as data, cut to its limits. Survives exceptions whose ``__str__`` raises, even ``SystemExit``."""
    try:
        text = "".join(traceback.format_exception(type(error), error, _users_part(error.__traceback__), limit=-20))
    except BaseException:  # what the exception's own methods raise must not take the outcome along
        text = ""
    return ErrorInfo(
        type=clean(type(error).__name__, TYPE_MAX_CHARS),
        message=clean(text_of(error), ERROR_MESSAGE_MAX_CHARS),
        traceback=clean(text[-TRACEBACK_MAX_CHARS:], TRACEBACK_MAX_CHARS) or None,
    )


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """What follows the frames that called the task's function; the whole where it was not called."""
    inner = trace
    while inner is not None and inner.tb_frame.f_globals.get("__name__", "").startswith(OURS):
        inner = inner.tb_next
    return inner or trace
