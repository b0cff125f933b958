"""What a worker keeps of tasks that failed in its hands and will be tried again: the event with their submission. Most come
back to a worker that has had them, and it need not be read from the log once more.

Kept as the bytes that came, because the values made of them were handed to the task's function, which may have changed them.
A submission never changes: it is known by its task and its version. What is not kept is read.
"""

from __future__ import annotations

from eventq.events.envelope import Event, decode

KEPT_MAX = 4_096
"""Events kept; the oldest is forgotten first."""

KEPT_MAX_BYTES = 4_096
"""Larger ones are not."""


class Retries:
    """One per worker."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], tuple[bytes, str]] = {}

    def keep(self, event: Event, payload: bytes) -> None:
        """The task that ``event`` submitted, or changed, will be tried again. ``payload``: as the event is stored."""
        if len(payload) > KEPT_MAX_BYTES:
            return
        if len(self._kept) >= KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[event.aggregate_id, event.version] = (payload, event.subject)

    def take(self, task_id: str, version: int) -> tuple[Event, bytes] | None:
        """The event, made anew, and its payload, which are kept no longer."""
        kept = self._kept.pop((task_id, version), None)
        return None if kept is None else (decode(*kept), kept[0])
