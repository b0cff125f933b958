"""What the routes of queues take and answer, and what an explanation says."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from eventq.events.limits import QUEUE_RUNNING_MAX, RATE_MAX, RATE_PERIOD_MAX_S, REASON_MAX_CHARS
from eventq.events.queue_events import QueueLimits, Rate
from eventq.services.answers import Answer
from eventq.services.http_limits import OFFSET_MAX, PAGE_DEFAULT, PAGE_MAX
from eventq.services.schemas import POSITION_MAX, Closed, QueueName

Running = Annotated[int, Field(ge=1, le=QUEUE_RUNNING_MAX)]


class RateBody(Closed):
    """So many starts in each period, evenly spaced, of which up to `burst` may come at once."""

    limit: int = Field(ge=1, le=RATE_MAX)
    per_seconds: float = Field(1.0, gt=0, le=RATE_PERIOD_MAX_S)
    burst: int = Field(1, ge=1, le=RATE_MAX)

    def rate(self) -> Rate:
        """As the log has it."""
        return Rate(limit=self.limit, per_s=self.per_seconds, burst=self.burst)


class LimitsBody(Closed):
    """All limits of a queue; what is left out is without limit. Each `..._per_key` holds for every single key of the tasks;
    tasks without a key are not limited by them."""

    max_running: Running | None = Field(None, description="Tasks in workers' hands at once, with those about to be started.")
    max_running_per_key: Running | None = None
    rate: RateBody | None = None
    rate_per_key: RateBody | None = None
    fair: bool = Field(False, description="Keys take turns, whatever each has waiting.")

    def limits(self) -> QueueLimits:
        """As the log has them."""
        return QueueLimits(
            max_running=self.max_running,
            max_running_per_key=self.max_running_per_key,
            rate=None if self.rate is None else self.rate.rate(),
            rate_per_key=None if self.rate_per_key is None else self.rate_per_key.rate(),
            fair=self.fair,
        )

    @classmethod
    def of(cls, limits: QueueLimits) -> LimitsBody:
        """The inverse."""
        return cls(
            max_running=limits.max_running,
            max_running_per_key=limits.max_running_per_key,
            rate=None if limits.rate is None else _rate(limits.rate),
            rate_per_key=None if limits.rate_per_key is None else _rate(limits.rate_per_key),
            fair=limits.fair,
        )


def _rate(rate: Rate) -> RateBody:
    return RateBody(limit=rate.limit, per_seconds=rate.per_s, burst=rate.burst)


class ConfigureQueueRequest(Closed):
    """The limits from now on."""

    limits: LimitsBody


class PauseQueueRequest(Closed):
    """Why; may be left out with the whole body."""

    reason: str | None = Field(None, max_length=REASON_MAX_CHARS)


class QueuePath(Closed):
    """One queue."""

    queue_name: QueueName


class QueueQuery(Closed):
    """What the answer must include."""

    min_position: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this position is visible.")


class QueuesQuery(Closed):
    """Which of all queues."""

    limit: int = Field(PAGE_DEFAULT, ge=1, le=PAGE_MAX)
    offset: int = Field(0, ge=0, le=OFFSET_MAX)
    min_position: int | None = Field(None, ge=0, le=POSITION_MAX, description="Wait until this position is visible.")


class PoolDepthAnswer(Answer):
    """The queue's tasks in one worker pool. `priorities`: those that workers take work of."""

    pool: str
    depth: dict[str, int]
    held: int
    oldest_pending_at: datetime | None
    priorities: list[int]


class MovedAnswer(Answer):
    """How many attempts were started, completed, and failed or timed out (retried ones too)."""

    started: int
    completed: int
    failed: int


class RatesAnswer(Answer):
    """How the queue moves."""

    last_minute: MovedAnswer
    last_5_minutes: MovedAnswer


class HolderAnswer(Answer):
    """A task that holds a slot. `worker_id`: null while it waits for a worker."""

    task_id: str
    status: str
    key: str | None
    pool: str
    worker_id: str | None
    since: datetime


class SlotsAnswer(Answer):
    """Who holds the queue's slots. `maximum`: null without limit; `holders`: the first hundred of `used`."""

    used: int
    maximum: int | None
    holders: list[HolderAnswer]


class QueueAnswer(Answer):
    """A queue, over all pools. `depth`: tasks by status; `held`: of the pending ones, those that wait for admission."""

    queue_name: str
    depth: dict[str, int]
    held: int
    oldest_pending_at: datetime | None
    oldest_age_seconds: float | None
    pools: list[PoolDepthAnswer]
    rates: RatesAnswer
    limits: LimitsBody
    configured_by: str | None
    paused: bool
    paused_by: str | None
    paused_at: datetime | None
    paused_reason: str | None
    slots: SlotsAnswer
    version: int
    as_of: int


class QueueListAnswer(Answer):
    """A page of the queues that have tasks, limits, a pause, or workers' attention. `total`: of all."""

    total: int
    limit: int
    offset: int
    queues: list[QueueAnswer]
    as_of: int


ReasonCode = Literal[
    "scheduled_for",
    "retrying_until",
    "paused",
    "queue_paused",
    "no_worker",
    "workers_paused",
    "workers_busy",
    "limit_held",
    "rate_limited",
    "fair_turn",
    "awaiting_admission",
    "behind",
    "about_to_start",
    "running",
    "finished",
]


class ReasonAnswer(Answer):
    """One reason why a task waits, or what it does instead: a stable code, a sentence, and the facts behind it."""

    code: ReasonCode
    message: str
    facts: dict[str, Any]


class PredictedStartAnswer(Answer):
    """Between when and when the task will probably be started. `based_on`: what this was reckoned from."""

    earliest: datetime
    latest: datetime
    based_on: dict[str, Any]


class ExplainAnswer(Answer):
    """Why a task waits. `predicted_start`: null where nothing can be said, and `no_prediction` says why."""

    task_id: str
    status: str
    waiting: bool
    reasons: list[ReasonAnswer]
    predicted_start: PredictedStartAnswer | None
    no_prediction: str | None
    version: int
    as_of: int
