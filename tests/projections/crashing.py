"""A real projector process for the crash tests: `python -m tests.projections.crashing <folder> <broker url> [planted bug]`.

The planted bug, for the checker to find: `separate-checkpoint` commits the rows first and the checkpoint after them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eventq.events.broker import Broker
from eventq.events.failpoints import failpoint
from eventq.projections import applier, inflow
from eventq.projections.applier import Checkpoint
from eventq.projections.projector import Projector
from eventq.projections.store import Store, Transaction


def plant_separate_checkpoint() -> None:
    """Let the checkpoint be committed in a transaction of its own, after the rows."""
    advance = applier._advance  # pyright: ignore[reportPrivateUsage]

    def advance_later(transaction: Transaction, stream: str, before: Checkpoint, last: Any) -> Checkpoint:
        transaction.execute("COMMIT")
        failpoint("planted.between_commits")
        transaction.execute("BEGIN")
        return advance(transaction, stream, before, last)

    applier._advance = advance_later  # pyright: ignore[reportPrivateUsage]


@contextmanager
def opened(folder: Path) -> Generator[Store]:
    store = Store.open(folder)
    try:
        yield store
    finally:
        store.close()


async def project(folder: Path, url: str) -> None:
    """Follow the log until killed."""
    with opened(folder) as store:
        async with await Broker.connect(url, name="projector") as broker:
            await Projector(store, broker).run()


if __name__ == "__main__":
    inflow.BATCH_MAX = 20  # several batches of a short log, so that a later one can be the victim
    if "separate-checkpoint" in sys.argv[3:]:
        plant_separate_checkpoint()
    asyncio.run(project(Path(sys.argv[1]), sys.argv[2]))
