"""Claims: at most one unfinished task for each unique key. Pure rules, as a task's.

A claim names the task that holds the key. It is never given back: whoever wants the key reads whether that task has finished,
and claims it for another if so. So a key cannot be blocked by somebody who died, nor be held twice: a claim's next version is
written once, and a task that was claimed and not submitted yet is submitted, under the id that the claim names, by the next
who wants the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from eventq.events.aggregate import State, modelled
from eventq.events.claim_events import Claimed
from eventq.events.data import EventData
from eventq.events.errors import IllegalTransition, NotFound


class Claim(State):
    """The fold of a claim's events. ``task_id``: who holds the key, if that has not finished."""

    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class ClaimKey:
    """Somebody wants the key for a task of his. ``version``: of the claim whose task he saw finished."""

    version: int
    task_id: str


def decide_claim(command: ClaimKey, claim: Claim) -> list[EventData]:
    """What follows. Raises :class:`IllegalTransition` where somebody else claimed the key meanwhile."""
    if command.version != claim.version:
        raise IllegalTransition("the unique key was claimed by another task meanwhile", status=f"version {claim.version}")
    return [Claimed(task_id=command.task_id)]


def evolve_claim(claim: Claim, event_id: str, at: datetime, data: EventData) -> Claim:
    """The claim after its next event."""
    match data:
        case Claimed():
            return claim.after(event_id, task_id=data.task_id)
        case _:
            raise IllegalTransition(f"{type(data).__name__} is not an event of a claim")


def _no_claim(claim_id: str) -> NotFound:
    return NotFound("nobody ever claimed this key", claim_id=claim_id)


CLAIMS = modelled("system", Claim, decide_claim, evolve_claim, _no_claim, (ClaimKey,))
"""Under ``system``: the stream has no other place for what is neither task nor worker, queue, schedule or workflow."""
