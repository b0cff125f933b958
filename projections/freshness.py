"""Read your writes: wait, within a bound, until the projection has applied what a reader must see.

Three questions, one mechanism. *Has this position been applied? This version of this task? All that this process wrote?*
Each is answered at once where it is true and otherwise waited for; past the bound the answer is ``ProjectionLagging``, an
honest "not yet" instead of a stale row.

Lives in the event loop; the projector calls :meth:`Freshness.applied` after each commit. Memory is bounded: of versions the
newest ``RECENT_MAX`` are remembered (for others the tables are asked), of own writes the newest ``OWN_WRITES_MAX``. Dropping
the oldest own write is safe: it stands in the log before the newer ones that are still waited for.

What is noted as written may have been applied long before: a command that was fulfilled already answers the version that it
found, and so does a duplicate. No commit will ever tell of that version again, so the tables are asked for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count, islice

from eventq.events.errors import Damaged, ProjectionLagging

RECENT_MAX = 50_000
OWN_WRITES_MAX = 100_000

LOOK_AFTER_S = 0.1
"""An own write that no commit has told of for so long may be an old one: the tables are asked."""

VersionLookup = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]
"""The versions in the tables, of those that stand there."""


class Freshness:
    """What is applied, and who waits for more."""

    def __init__(self) -> None:
        self.position = 0
        self.progress_position = 0
        self.halted: Damaged | None = None
        """Why nothing more will be applied: waits that are not over yet end at once."""
        self.lookup: VersionLookup | None = None
        self.awaited = asyncio.Event()
        """Set while somebody waits for what is not applied yet."""
        self._recent: dict[str, int] = {}
        self._serial = count(1)
        self._own: dict[str, list[tuple[int, int]]] = {}
        self._outstanding: dict[int, str] = {}
        self._looked_up = 0
        self._position_waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._version_waiters: dict[str, list[tuple[int, asyncio.Future[None]]]] = {}
        self._own_waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    def applied(self, position: int, progress_position: int, versions: Mapping[str, int]) -> None:
        """Called after a commit: everything up to ``position`` is readable, and ``versions`` of these tasks."""
        self.position, self.progress_position = position, progress_position
        for task_id, version in versions.items():
            self._recent.pop(task_id, None)
            self._recent[task_id] = version
            if task_id in self._own:
                self._settle(task_id, version)
            if task_id in self._version_waiters:
                self._wake_version(task_id, version)
        for task_id in list(islice(self._recent, max(0, len(self._recent) - RECENT_MAX))):
            del self._recent[task_id]
        _wake(self._position_waiters, position)
        _wake(self._own_waiters, self._settled())
        if all(future.done() for future in self._waiting()):
            self.awaited.clear()

    def halt(self, error: Damaged) -> None:
        """Nothing more will be applied until :meth:`resume`."""
        self.halted = error
        for future in self._waiting():
            if not future.done():
                future.set_exception(_halted(error))

    def resume(self) -> None:
        """The projector goes on, perhaps over a new file: what was known of versions is forgotten."""
        self.halted = None
        self._recent.clear()
        self._looked_up = 0

    def note_write(self, task_id: str, version: int) -> None:
        """This process had ``version`` of ``task_id`` accepted by the log."""
        if self._recent.get(task_id, 0) >= version:
            return
        serial = next(self._serial)
        self._own.setdefault(task_id, []).append((version, serial))
        self._outstanding[serial] = task_id
        if len(self._outstanding) > OWN_WRITES_MAX:
            self._forget(next(iter(self._outstanding)))

    async def wait_for_position(self, position: int, timeout_s: float) -> None:
        """Return once all up to ``position`` is applied. Raises ``ProjectionLagging`` after ``timeout_s``."""
        if self.position >= position:
            return
        future = self._future()
        heappush(self._position_waiters, (position, next(self._serial), future))
        await self._wait(future, timeout_s, f"position {position}", position=position)

    async def wait_for_version(self, task_id: str, version: int, timeout_s: float) -> None:
        """Return once ``version`` of the task is applied. Raises ``ProjectionLagging`` after ``timeout_s``."""
        if self._recent.get(task_id, 0) >= version:
            return
        future = self._future()
        waiters = self._version_waiters.setdefault(task_id, [])
        waiters.append((version, future))
        try:
            if task_id not in self._recent and self.lookup is not None:
                found = await self.lookup([task_id])
                if found.get(task_id, 0) >= version:
                    return
            await self._wait(future, timeout_s, f"version {version} of {task_id}", task_id=task_id, version=version)
        finally:
            waiters.remove((version, future))
            if not waiters:
                self._version_waiters.pop(task_id, None)

    async def wait_own_writes(self, timeout_s: float) -> None:
        """Return once all that :meth:`note_write` told before this call is applied. Raises ``ProjectionLagging``."""
        if not self._outstanding:
            return
        newest = next(reversed(self._outstanding))
        future = self._future()
        heappush(self._own_waiters, (newest, next(self._serial), future))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        try:
            while not future.done():
                if (left_s := deadline - loop.time()) <= 0:
                    raise self._lagging("this process's own writes", timeout_s)
                await asyncio.wait((future,), timeout=min(left_s, LOOK_AFTER_S))
                if not future.done():
                    await self._look_up()  # again and again: whoever asked for all may have been cancelled
            await future
        finally:
            future.cancel()

    async def _look_up(self) -> None:
        """Settle what the tables hold already. Each note is asked for once: what they do not hold, a commit will tell of."""
        asked = [serial for serial in self._outstanding if serial > self._looked_up]
        if self.lookup is None or not asked:
            return
        before, self._looked_up = self._looked_up, asked[-1]
        try:
            found = await self.lookup(sorted({self._outstanding[serial] for serial in asked}))
        except BaseException:
            self._looked_up = min(self._looked_up, before)
            raise
        for task_id, version in found.items():
            if task_id in self._own:
                self._settle(task_id, version)
        _wake(self._own_waiters, self._settled())

    def _future(self) -> asyncio.Future[None]:
        if self.halted is not None:
            raise _halted(self.halted)
        self.awaited.set()
        return asyncio.get_running_loop().create_future()

    async def _wait(self, future: asyncio.Future[None], timeout_s: float, what: str, **fields: object) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError as error:
            raise self._lagging(what, timeout_s, **fields) from error

    def _lagging(self, what: str, timeout_s: float, **fields: object) -> ProjectionLagging:
        problem = f"the projection stands at position {self.position} and did not reach {what} within {timeout_s:g} s"
        return ProjectionLagging(problem, as_of=self.position, **fields)

    def _settle(self, task_id: str, version: int) -> None:
        left: list[tuple[int, int]] = []
        for note in self._own.pop(task_id):
            if note[0] <= version:
                del self._outstanding[note[1]]
            else:
                left.append(note)
        if left:
            self._own[task_id] = left

    def _forget(self, serial: int) -> None:
        task_id = self._outstanding.pop(serial)
        kept = [note for note in self._own[task_id] if note[1] != serial]
        if kept:
            self._own[task_id] = kept
        else:
            del self._own[task_id]

    def _settled(self) -> int:
        """All own writes up to this serial are applied."""
        oldest = next(iter(self._outstanding), None)
        return next(self._serial) if oldest is None else oldest - 1

    def _wake_version(self, task_id: str, version: int) -> None:
        for wanted, future in self._version_waiters[task_id]:
            if wanted <= version and not future.done():
                future.set_result(None)

    def _waiting(self) -> list[asyncio.Future[None]]:
        heaped = [entry[2] for heap in (self._position_waiters, self._own_waiters) for entry in heap]
        return heaped + [future for waiters in self._version_waiters.values() for _, future in waiters]


def _wake(waiters: list[tuple[int, int, asyncio.Future[None]]], reached: int) -> None:
    while waiters and (waiters[0][0] <= reached or waiters[0][2].done()):
        future = heappop(waiters)[2]
        if not future.done():
            future.set_result(None)


def _halted(error: Damaged) -> ProjectionLagging:
    return ProjectionLagging(
        f"the projection has halted and serves its last good state: {error.detail}", cause=error.code, halted=True
    )
