"""Put progress and log lines beside the history. Apart from their shapes, so that task processes need no client for NATS."""

from __future__ import annotations

from datetime import datetime

import nats.errors
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from eventq.events.broker import Broker
from eventq.events.errors import LogUnavailable
from eventq.events.report import Log, Progress, decode_report, encode_report
from eventq.events.subjects import PROGRESS, progress_subject


async def publish_report(broker: Broker, task_id: str, attempt: int, source: str, data: Progress | Log) -> None:
    """Store one message. Raises ``LogUnavailable`` where it may be lost."""
    payload = encode_report(task_id, attempt, source, data)
    try:
        await broker.js.publish(progress_subject(task_id), payload, stream=PROGRESS, timeout=5)
    except (APIError, nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"progress could not be stored: {error!r}") from error


async def last_report_at(broker: Broker, task_id: str, attempt: int) -> datetime | None:
    """When this attempt said something last, by the broker's clock; ``None`` where it never did, or a later one has. Raises
    ``LogUnavailable``."""
    try:
        found: RawStreamMsg = await broker.js.get_last_msg(PROGRESS, progress_subject(task_id))
    except NotFoundError:
        return None
    except (APIError, nats.errors.Error, TimeoutError) as error:
        raise LogUnavailable(f"progress cannot be read: {error!r}") from error
    report = decode_report(found.data or b"", progress_subject(task_id))
    return found.time if report.attempt == attempt else None
