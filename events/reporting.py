"""Put progress and log lines beside the history. Apart from their shapes, so that task processes need no client for NATS."""

from __future__ import annotations

import nats.errors
from nats.js.errors import APIError

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.report import Log, Progress, encode_report
from eventq.events.subjects import PROGRESS, progress_subject


async def publish_report(broker: Broker, task_id: str, attempt: int, source: str, data: Progress | Log) -> None:
    """Store one message. Raises ``LogUnavailable`` where it may be lost."""
    payload = encode_report(task_id, attempt, source, data)
    try:
        await broker.js.publish(progress_subject(task_id), payload, stream=PROGRESS, timeout=5)
    except (APIError, nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"progress could not be stored: {error!r}") from error
