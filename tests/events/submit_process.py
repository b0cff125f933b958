"""Submits one scheduled task to the broker at the address given, under the id given: a process that a test may kill."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta

from eventq.events.broker import Broker
from eventq.events.log import EventLog
from eventq.events.submitter import Submitter
from tests.events.given import submission


async def main(url: str, task_id: str) -> None:
    async with await Broker.connect(url, name="submitter") as broker:
        log = await EventLog.open(broker)
        due_at = datetime.now(UTC) + timedelta(hours=1)
        await Submitter(log, source="api").submit(task_id, submission(scheduled_at=due_at, queue_timeout_s=30.0))
        await log.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
