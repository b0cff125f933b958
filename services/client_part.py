"""What the parts of the client (``client.schedules``, ...) need of it."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


class Asks(Protocol):
    """The client, as its parts know it."""

    async def ask(self, answer: type[M], method: str, path: str, **options: Any) -> M:
        """One call of the API."""
        ...
