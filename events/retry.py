"""When the next attempt may start: pure arithmetic, the randomness passed in.

The drawn delay is stored in the ``retrying`` event, so replaying history never draws again.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RetryPolicy(BaseModel):
    """Exponential back-off: ``initial_s * factor ** (failures - 1)``, at most ``max_s``, less up to ``jitter`` of it.

    ``jitter`` is the share of the delay that is random: 0 none, 1 full jitter. Times in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial_s: float = Field(default=1.0, ge=0, le=86_400)
    factor: float = Field(default=2.0, ge=1, le=100)
    max_s: float = Field(default=300.0, ge=0, le=7 * 86_400)
    jitter: float = Field(default=0.25, ge=0, le=1)


def retry_delay_s(policy: RetryPolicy, failures: int, random: float) -> float:
    """Seconds until the attempt after the ``failures``-th failure (1, 2, ...); ``random`` is drawn from [0, 1)."""
    exponent = min(failures - 1, 64)  # beyond this every factor > 1 has reached max_s; keeps the power finite
    full = min(policy.max_s, policy.initial_s * policy.factor**exponent)
    return full * (1 - policy.jitter * random)
