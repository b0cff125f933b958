"""What follows a failure that no worker process of ours reports: an HTTP worker does, or who watches it."""

from __future__ import annotations

import random

from eventq.events.retry import RetryPolicy, retry_in_s
from eventq.events.task import Task
from eventq.events.task_events import Submitted


def draw_retry_s(
    submitted: Submitted, declared: RetryPolicy | None, task: Task, error: str, asked_s: float | None = None
) -> float | None:
    """Seconds until the attempt after the one that fails now, by the submission's policy, else the declared, else the usual;
    ``None``: there is to be none. ``error``: the name of its class, the only one that is known of an error from elsewhere."""
    policy = submitted.retry or declared or RetryPolicy()
    return retry_in_s(policy, task.failures + 1, random.random(), errors=(error,), asked_s=asked_s)
