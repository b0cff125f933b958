"""A bare client of JetStream's fast ingest, to open batches by hand and see every answer."""

from __future__ import annotations

import json
import secrets
import time
from collections import defaultdict
from typing import Any, Self

from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.support.poll import eventually

IDLE_LIMIT_S = 10.0
OPEN, ADD, STORE_AND_COMMIT = 0, 1, 2


Check = dict[str, str] | None


class FastIngest:
    """`answers[batch]`: everything the broker said of a batch, in order."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._inbox = nc.new_inbox()
        self.answers: dict[str, list[dict[str, Any]]] = defaultdict(list)

    @classmethod
    async def on(cls, nc: Client) -> Self:
        """Listen on a connection."""
        self = cls(nc)
        await nc.subscribe(f"{self._inbox}.>", cb=self._take)
        return self

    async def send(
        self,
        batch: str,
        sequence: int,
        subject: str,
        payload: bytes = b"{}",
        check: dict[str, str] | None = None,
        op: int = ADD,
        flow: int = 1,
    ) -> None:
        """Publish one message of a batch: gap ok. Sequence 1 opens the batch. `flow`: messages for one answer."""
        operation = OPEN if sequence == 1 else op
        reply = f"{self._inbox}.{batch}.{flow}.ok.{sequence}.{operation}.$FI"
        await self._nc.publish(subject, payload, reply, headers=check)

    async def ask(self, batch: str, sequence: int, subject: str, **rest: Any) -> list[dict[str, Any]]:
        """Publish one message and return what the broker says of it."""
        before = len(self.answers[batch])
        await self.send(batch, sequence, subject, **rest)
        await eventually(lambda: len(self.answers[batch]) > before + (sequence == 1), what=f"answers of {batch}")
        return self.answers[batch][before:]

    async def open(self, count: int, prefix: str) -> list[str]:
        """Open so many batches, each with a stored message under `<prefix>.<batch>.1.opened`."""
        batches = [secrets.token_hex(8) for _ in range(count)]
        for batch in batches:
            await self.send(batch, 1, f"{prefix}.{batch}.1.opened")
        await eventually(lambda: all(len(self.answers[batch]) >= 1 for batch in batches))
        return batches

    async def wait_until_idle_batches_are_forgotten(self, prefix: str) -> dict[str, Any]:
        """Wait until the broker has ended every batch that is idle since now. Answers what it says of such a batch.

        Asking after a batch keeps it alive, so each of many is asked once.
        """
        probes = await self.open(200, prefix)
        opened = time.monotonic()

        async def forgotten() -> dict[str, Any] | None:
            if time.monotonic() - opened < IDLE_LIMIT_S - 0.5:
                return None
            probe = probes.pop()
            [answer] = await self.ask(probe, 2, f"{prefix}.{probe}.2.asked")
            return answer if "error" in answer else None

        return await eventually(forgotten, timeout=IDLE_LIMIT_S + 5)

    async def _take(self, message: Msg) -> None:
        answer = json.loads(message.data) if message.data else {"status": (message.headers or {}).get("Status")}
        self.answers[message.subject.split(".")[2]].append(answer)
