"""Claims: at most one unfinished task for each unique key. Pure rules, as a task's.

A claim names the task that holds the key. It is never given back: whoever wants the key reads whether that task has finished,
and claims it for another if so. So a key cannot be blocked by somebody who died, nor be held twice: a claim's next version is
written once, and a task that was claimed and not submitted yet is submitted, under the id that the claim names, by the next
who wants the key.

What is to be done once has a claim of its own where a unique task is the answer: a request under an ``Idempotency-Key``, or one
certain repetition. It names the task, be it made for that or, for a request, there before. A repetition must be what it says:
where another task took the place that was claimed for it, its next claim gets the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from eventq.events.aggregate import State, modelled
from eventq.events.claim_events import Answered, Claimed
from eventq.events.data import EventData
from eventq.events.errors import IllegalTransition, NotFound
from eventq.events.task_events import Idempotency


class Claim(State):
    """The fold of a claim's events. ``task_id``: who holds the key, if that has not finished; ``idempotency``: of the request
    whose answer it is, where the key is an ``Idempotency-Key``."""

    task_id: str | None = None
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class ClaimKey:
    """Somebody wants the key for a task of his. ``version``: of the claim whose task he saw finished."""

    version: int
    task_id: str


@dataclass(frozen=True, slots=True)
class AnswerKey:
    """What is to be done once is to be answered with this task. ``version``: of the claim that had no such answer."""

    version: int
    task_id: str
    idempotency: Idempotency | None


def decide_claim(command: ClaimKey | AnswerKey, claim: Claim) -> list[EventData]:
    """What follows. Raises :class:`IllegalTransition` where somebody else claimed the key meanwhile, or it has its answer."""
    match command:
        case ClaimKey():
            if command.version != claim.version:
                problem = "the unique key was claimed by another task meanwhile"
                raise IllegalTransition(problem, status=f"version {claim.version}")
            return [Claimed(task_id=command.task_id)]
        case AnswerKey():
            if command.version != claim.version:
                raise IllegalTransition("the key has its answer", status=f"version {claim.version}")
            return [Answered(task_id=command.task_id, idempotency=command.idempotency)]


def evolve_claim(claim: Claim, event_id: str, at: datetime, data: EventData) -> Claim:
    """The claim after its next event."""
    match data:
        case Claimed():
            return claim.after(event_id, task_id=data.task_id)
        case Answered():
            return claim.after(event_id, task_id=data.task_id, idempotency=data.idempotency)
        case _:
            raise IllegalTransition(f"{type(data).__name__} is not an event of a claim")


def _no_claim(claim_id: str) -> NotFound:
    return NotFound("nobody ever claimed this key", claim_id=claim_id)


CLAIMS = modelled("system", Claim, decide_claim, evolve_claim, _no_claim, (ClaimKey, AnswerKey))
"""Under ``system``: the stream has no other place for what is neither task nor worker, queue, schedule or workflow."""
