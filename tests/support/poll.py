"""Waiting for a condition, with a bound: the tests never sleep for a guessed time."""

# The bound is what these functions are for, so they take it as an argument.
# ruff: noqa: ASYNC109

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

TIMEOUT_S = 10.0
POLL_S = 0.01


@overload
async def eventually(
    condition: Callable[[], Awaitable[T | None]],
    timeout: float = ...,
    what: str | None = ...,
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T | None],
    timeout: float = ...,
    what: str | None = ...,
) -> T: ...
async def eventually(
    condition: Callable[[], Any],
    timeout: float = TIMEOUT_S,
    what: str | None = None,
) -> Any:
    """Return the first truthy value of `condition()`, which may be plain or async.

    An `AssertionError` raised by the condition means "not yet", so a condition may hold asserts; the last one
    is shown when `timeout` seconds pass without success.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            value = condition()
            if inspect.isawaitable(value):
                value = await asyncio.wait_for(value, max(POLL_S, deadline - time.monotonic()))
        except AssertionError as not_yet:
            value, last = None, repr(not_yet)
        else:
            last = repr(value)
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition!r}; last: {last}")
        await asyncio.sleep(POLL_S)


def eventually_sync(condition: Callable[[], T | None], timeout: float = TIMEOUT_S, what: str | None = None) -> T:
    """`eventually` for tests without an event loop."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            value = condition()
        except AssertionError as not_yet:
            value, last = None, repr(not_yet)
        else:
            last = repr(value)
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition!r}; last: {last}")
        time.sleep(POLL_S)
