"""What has a history of its own: a task, a worker, a queue, a schedule, a workflow. One description of each kind.

The description holds the kind's pure rules and how its state travels in its events, so that one door (``handle``) and one
envelope serve them all. A kind's rules live in a file of its own (``task.py``, ``queue.py``, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from eventq.events.data import EventData
from eventq.events.errors import NotFound, UnknownEvent
from eventq.events.subjects import Route


class Folded(Protocol):
    """What every state tells: how many events it is the fold of, and the id of the last."""

    @property
    def version(self) -> int: ...

    @property
    def event_id(self) -> str | None: ...


class State(BaseModel):
    """Base of the states of all kinds but tasks: small, immutable, and plain JSON with its defaults left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 0
    event_id: str | None = None

    def after(self, event_id: str, **changes: Any) -> Self:
        """The state one event later, with ``changes``."""
        return self.model_copy(update={"version": self.version + 1, "event_id": event_id, **changes})

    def whole(self) -> dict[str, Any]:
        """All of it, as a table holds it."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def summary(self) -> dict[str, Any]:
        """What of it travels in each event."""
        return self.whole()


S = TypeVar("S", bound=Folded)
M = TypeVar("M", bound=State)


def _no_attempt(_: Any) -> int:
    return 0


def _no_route(_: Any) -> Route | None:
    return None


@dataclass(frozen=True, slots=True)
class Aggregate(Generic[S]):
    """One kind. ``name``: the first token of its subjects; ``absent``: the state before the first event.

    ``decide(command, state)`` answers what follows or raises; ``evolve(state, event_id, at, data)`` folds one event.
    ``not_found`` makes the error for an id that has no history; ``creates``: the commands that need none. ``attempt`` and
    ``route`` tell what the envelope says of the state after an event: the route where that event is work.
    """

    name: str
    absent: S
    decide: Callable[[Any, S], list[EventData]]
    evolve: Callable[[S, str, datetime, EventData], S]
    summary: Callable[[S], dict[str, Any]]
    from_summary: Callable[[dict[str, Any]], S]
    not_found: Callable[[str], NotFound]
    creates: tuple[type, ...]
    attempt: Callable[[S], int] = _no_attempt
    route: Callable[[S], Route | None] = _no_route


def modelled(
    name: str,
    model: type[M],
    decide: Callable[[Any, M], list[EventData]],
    evolve: Callable[[M, str, datetime, EventData], M],
    not_found: Callable[[str], NotFound],
    creates: tuple[type, ...],
) -> Aggregate[M]:
    """A kind whose state is a pydantic model. Reading a state that a newer program wrote raises ``UnknownEvent``."""

    def from_summary(state: dict[str, Any]) -> M:
        try:
            return model.model_validate(state)
        except ValidationError as error:
            raise UnknownEvent(f"the state in {name} was written by a newer version of eventq: {error}") from error

    return Aggregate(
        name=name,
        absent=model(),
        decide=decide,
        evolve=evolve,
        summary=lambda state: state.summary(),
        from_summary=from_summary,
        not_found=not_found,
        creates=creates,
    )
