"""What all event data is made of: the closed base, references to blobs, errors as data."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

JSON = Any
"""A JSON value: ``None``, ``bool``, ``int``, ``float``, ``str``, or lists and string-keyed dicts of those."""


class EventData(BaseModel):
    """Base of all event data: immutable, and closed, so that a misspelt field cannot slip into the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def wire(self) -> dict[str, Any]:
        """The data as it stands in the log."""
        return self.model_dump()


class BlobRef(EventData):
    """Where a payload above 64 KiB lies, and what it must be: a reader checks size and digest."""

    key: str
    sha256: str
    size_bytes: int
    media_type: str = "application/octet-stream"


class ErrorInfo(EventData):
    """What an attempt ended with: the exception's class name, its message, and the user's part of the traceback."""

    type: str
    message: str
    traceback: str | None = None
