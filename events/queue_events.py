"""The events of a queue: its limits, its pauses, and who was let through its gate."""

from __future__ import annotations

from pydantic import Field

from eventq.events.data import EventData
from eventq.events.limits import NAME_MAX_CHARS, QUEUE_RUNNING_MAX, RATE_MAX, RATE_PERIOD_MAX_S


class Rate(EventData):
    """``limit`` starts in each ``per_s`` seconds, evenly spaced, of which up to ``burst`` may come at once."""

    limit: int = Field(ge=1, le=RATE_MAX)
    per_s: float = Field(default=1.0, gt=0, le=RATE_PERIOD_MAX_S)
    burst: int = Field(default=1, ge=1, le=RATE_MAX)


class QueueLimits(EventData):
    """What a queue lets through. ``None``: no limit. ``max_running``: attempts at once; ``rate``: starts;
    each also for every single ``key`` of the tasks. ``fair``: keys take turns, whatever each has waiting."""

    max_running: int | None = Field(default=None, ge=1, le=QUEUE_RUNNING_MAX)
    max_running_per_key: int | None = Field(default=None, ge=1, le=QUEUE_RUNNING_MAX)
    rate: Rate | None = None
    rate_per_key: Rate | None = None
    fair: bool = False

    @property
    def gated(self) -> bool:
        """Whether tasks must be admitted one by one, instead of going straight to the workers."""
        return self.fair or any(
            limit is not None for limit in (self.max_running, self.max_running_per_key, self.rate, self.rate_per_key)
        )


class QueueConfigured(EventData):
    """The queue's limits from now on: all of them, not a change."""

    limits: QueueLimits
    requested_by: str


class QueuePaused(EventData):
    """No task of the queue is started until it is resumed; what runs goes on."""

    requested_by: str
    reason: str | None = None


class QueueResumed(EventData):
    """Tasks of the queue are started again."""

    requested_by: str


class Admission(EventData):
    """One task let through, at the version it waited with, under its key."""

    task_id: str
    version: int
    key: str | None = Field(default=None, max_length=NAME_MAX_CHARS)


class QueueAdmitted(EventData):
    """These tasks were let through the queue's gate, in this order. Each then becomes ``queued`` itself."""

    tasks: list[Admission]
