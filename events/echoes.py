"""What a process has written comes back to it where it follows the log as well: the same bytes need not be parsed again.

Written in the event loop, read in the thread that folds; each step is one operation of a dict, and what is found is compared
byte by byte.
"""

from __future__ import annotations

from eventq.events.envelope import Event, decode
from eventq.events.ingest import Outgoing

ECHOES_MAX = 10_000
"""Events that have not come back. Where so many are waited for all are forgotten, and parsed as others' are."""

ECHO_MAX_BYTES = 4_096
"""Larger ones are parsed: what is remembered has a bound."""


class Echoes:
    """Events of this process that are on their way."""

    def __init__(self) -> None:
        self._written: dict[str, tuple[bytes, Event]] = {}

    def expect(self, event: Event, message: Outgoing) -> None:
        """``event`` is about to be stored by ``message``."""
        if len(message.payload) > ECHO_MAX_BYTES:
            return
        if len(self._written) >= ECHOES_MAX:
            self._written.clear()
        self._written[message.subject] = (message.payload, event)

    def forget(self, event: Event) -> None:
        """It was not stored, as far as is known."""
        self._written.pop(event.subject, None)

    def decode(self, payload: bytes, subject: str) -> Event:
        """As :func:`eventq.events.envelope.decode`."""
        written = self._written.pop(subject, None)
        return written[1] if written is not None and written[0] == payload else decode(payload, subject)
