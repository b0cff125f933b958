"""What the nodes of a workflow returned, read for other nodes to take: from the log, or from the blob store where it is large.

A step takes a bounded amount at once, however many results it asks for, and whatever their tasks returned.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import orjson

from eventq.events.blobs import BlobStore
from eventq.events.data import JSON, BlobRef
from eventq.events.errors import BlobDamaged, BlobNotFound
from eventq.events.limits import CHILDREN_MAX, HANDED_ON_MAX_BYTES, NODE_RESULTS_MAX_BYTES
from eventq.events.log import EventLog
from eventq.events.task_events import Cleaned, Completed
from eventq.events.workflow_run import Run
from eventq.events.workflow_values import Unresolved, Wanted
from eventq.services.side_by_side import AT_ONCE, side_by_side

KEPT = 2_000
KEPT_MAX_BYTES = 4 * 1024
"""Results remembered, each up to this size: fan-out asks for one result many times."""


@dataclass(slots=True)
class Fetched:
    """Results that one step has at hand. ``lost``: those that it cannot have, each with the reason; ``room``: bytes that it
    may still take; ``full``: some were left out for want of room."""

    results: dict[Wanted, JSON] = field(default_factory=dict[Wanted, JSON])
    lost: dict[Wanted, str] = field(default_factory=dict[Wanted, str])
    room: int = NODE_RESULTS_MAX_BYTES
    full: bool = False


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one task returned: the value itself, or where it is. ``size``: of its JSON, in bytes."""

    value: JSON
    stored: BlobRef | None
    size: int


@dataclass(frozen=True, slots=True)
class _Found:
    """What one reference leads to; ``many``: the list of these, not the one."""

    outcomes: Sequence[_Outcome]
    many: bool = False

    @property
    def size(self) -> int:
        return sum(outcome.size for outcome in self.outcomes)


class NodeResults:
    """Reads results; remembers small ones."""

    def __init__(self, event_log: EventLog, blobs: BlobStore) -> None:
        self._log = event_log
        self._blobs = blobs
        self._kept: OrderedDict[str, _Outcome] = OrderedDict()

    async def fetch(self, run: Run, wanted: Iterable[Wanted], fetched: Fetched) -> None:
        """Add what is ``wanted`` and not there yet, in its order, as far as there is room. Raises what keeps
        it from reading."""
        asked = [each for each in wanted if each not in fetched.results]
        for portion in _portions(asked):
            if fetched.full:
                return
            await self._fetch(run, portion, fetched)

    async def _fetch(self, run: Run, portion: Sequence[Wanted], fetched: Fetched) -> None:
        found: dict[Wanted, _Found] = {}

        async def look_up(each: Wanted) -> None:
            try:
                found[each] = await self._look_up(run, each, fetched.room)
            except Unresolved as error:
                fetched.lost[each] = _unreadable(each, error)

        async def read(each: Wanted) -> None:
            try:
                fetched.results[each] = await self._read(found[each])
            except (BlobNotFound, BlobDamaged) as error:
                fetched.lost[each] = _unreadable(each, error)

        for failed in await side_by_side(portion, look_up):
            raise failed[1]
        fitting: list[Wanted] = []
        for each in (each for each in portion if each in found):
            if found[each].size > fetched.room:
                fetched.full = True
                break
            fetched.room -= found[each].size
            fitting.append(each)
        for failed in await side_by_side(fitting, read):
            raise failed[1]

    async def _look_up(self, run: Run, wanted: Wanted, room: int) -> _Found:
        assert run.graph is not None
        node = run.graph.nodes[wanted.node]
        if wanted.children:
            children = run.children_of(wanted.node)
            if len(children) > CHILDREN_MAX:
                raise Unresolved(f"it spawned more than {CHILDREN_MAX} tasks")
            return _Found(await self._outcomes(children, room), many=True)
        if node.kind == "signal":
            return _Found([_inline(run.payload_of(wanted.node))])
        if node.kind == "approval":
            answer = run.answers[wanted.node]
            return _Found([_inline({"approved": True, "by": answer.by, "comment": answer.comment})])
        return _Found([await self._outcome(run.task_id(wanted.node))])

    async def _outcomes(self, task_ids: Sequence[str], room: int) -> list[_Outcome]:
        """Of all these tasks; or of the first of them, where already those do not fit into ``room``."""
        found: list[_Outcome] = []
        for start in range(0, len(task_ids), AT_ONCE):
            found += await asyncio.gather(*map(self._outcome, task_ids[start : start + AT_ONCE]))
            if sum(outcome.size for outcome in found) > room:
                break
        return found

    async def _outcome(self, task_id: str) -> _Outcome:
        if task_id in self._kept:
            self._kept.move_to_end(task_id)
            return self._kept[task_id]
        outcome = await self._outcome_in_log(task_id)
        if outcome.stored is None and outcome.size <= KEPT_MAX_BYTES:
            self._kept[task_id] = outcome
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return outcome

    async def _outcome_in_log(self, task_id: str) -> _Outcome:
        last = await self._log.last("tasks", task_id, fresh=True)
        if last is not None and isinstance(last.event.data, Cleaned):
            raise Unresolved("it was given up")
        if last is None or not isinstance(last.event.data, Completed):
            raise Unresolved("there is none")
        output = last.event.data.output
        if output is None:
            return _inline(last.event.data.result)
        if output.size_bytes > HANDED_ON_MAX_BYTES:
            raise Unresolved(f"it is larger than {HANDED_ON_MAX_BYTES} bytes")
        return _Outcome(None, output, output.size_bytes)

    async def _read(self, found: _Found) -> JSON:
        values = [await self._value(outcome) for outcome in found.outcomes]
        return values if found.many else values[0]

    async def _value(self, outcome: _Outcome) -> JSON:
        if outcome.stored is None:
            return outcome.value
        return orjson.loads(await self._blobs.get_async(outcome.stored, max_bytes=HANDED_ON_MAX_BYTES))


def _portions(asked: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
    """What is looked up at once, in the order of ``asked``: looking up brings small results with it, and how many there are
    in a list is not known before. So each list is a portion of its own."""
    portion: list[Wanted] = []
    for each in asked:
        if portion and (each.children or portion[-1].children or len(portion) == AT_ONCE):
            yield portion
            portion = []
        portion.append(each)
    if portion:
        yield portion


def _inline(value: JSON) -> _Outcome:
    return _Outcome(value, None, len(orjson.dumps(value)))


def _unreadable(wanted: Wanted, error: Exception) -> str:
    return f"the result of {wanted.node} cannot be read: {error}"
