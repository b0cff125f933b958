"""Whether and when the next attempt may start: pure arithmetic, the randomness passed in.

The drawn delay is stored in the ``retrying`` event, so replaying history never draws again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ERRORS_NAMED_MAX = 50
ERROR_NAME_MAX_CHARS = 200
DELAY_MAX_S = 7 * 86_400.0

ErrorName = Annotated[str, Field(min_length=1, max_length=ERROR_NAME_MAX_CHARS)]
"""A class of exceptions, also by its subclasses: ``ValueError``, or ``requests.exceptions.Timeout`` to be exact."""

Number = Annotated[float, Field(strict=True)]
"""Nothing that only reads like a number. Requests hold policies too, and events were never written with anything else."""


class RetryPolicy(BaseModel):
    """Exponential back-off: ``initial_s * factor ** (failures - 1)``, at most ``max_s``, less up to ``jitter`` of it.

    ``jitter`` is the share of the delay that is random: 0 none, 1 full jitter. Times in seconds. Errors named in ``never`` are
    not retried; where ``only`` names some, no others are; ``after_s`` gives errors a delay of their own, without jitter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial_s: Number = Field(default=1.0, ge=0, le=86_400)
    factor: Number = Field(default=2.0, ge=1, le=100)
    max_s: Number = Field(default=300.0, ge=0, le=DELAY_MAX_S)
    jitter: Number = Field(default=0.25, ge=0, le=1)
    never: tuple[ErrorName, ...] = Field(default=(), max_length=ERRORS_NAMED_MAX)
    only: tuple[ErrorName, ...] = Field(default=(), max_length=ERRORS_NAMED_MAX)
    after_s: dict[ErrorName, Annotated[Number, Field(ge=0, le=DELAY_MAX_S)]] = Field(
        default_factory=dict[str, float], max_length=ERRORS_NAMED_MAX
    )


def retry_delay_s(policy: RetryPolicy, failures: int, random: float) -> float:
    """Seconds until the attempt after the ``failures``-th failure (1, 2, ...); ``random`` is drawn from [0, 1)."""
    exponent = min(failures - 1, 64)  # beyond this every factor > 1 has reached max_s; keeps the power finite
    full = min(policy.max_s, policy.initial_s * policy.factor**exponent)
    return full * (1 - policy.jitter * random)


def retry_in_s(
    policy: RetryPolicy, failures: int, random: float, *, errors: Collection[str] = (), asked_s: float | None = None
) -> float | None:
    """As :func:`retry_delay_s`, after an error; ``None`` where it is not to be retried, which is the policy's to say.

    ``errors``: the names of its class and of those above it, the nearest first; ``asked_s``: the delay that the error itself
    asks for, instead of the policy's.
    """
    if any(name in policy.never for name in errors):
        return None
    if policy.only and not any(name in policy.only for name in errors):
        return None
    if asked_s is not None:
        return min(asked_s, DELAY_MAX_S)
    own = next((policy.after_s[name] for name in errors if name in policy.after_s), None)
    return retry_delay_s(policy, failures, random) if own is None else own
