"""Who may pass the gate of a queue, and when: the fold of one queue's events and of its tasks'. Pure, and quick.

A task that waits at the gate is *held*. The gate admits it by an event of the queue, after which it becomes ``queued`` by an
event of its own. From its admission until it leaves the workers' hands it *holds* a slot: while it waits for a worker, runs,
or stands frozen; an attempt that is lost or interrupted keeps the slot for the next. All of that is counted from the log, and
every admission bears the queue's version that it was counted at. So of two gates that count the same one wins, the other
counts anew, and no limit is ever exceeded by admissions, however many gates there are and whenever they die.

Who comes next: priorities share by weight, and within a priority the oldest comes first, or, where the queue is shared by
keys, the keys take turns. Both by start-time fair queueing (:class:`Turns`), folded from the admissions like all else: who was
away has saved up nothing, who came back has forfeited nothing.

Choosing is a trial: what it takes is put back, because only the log says what was admitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf
from typing import Any, TypeVar

from eventq.events import gcra
from eventq.events.limits import WEIGHT_PER_PRIORITY
from eventq.events.queue import Queue
from eventq.events.queue_events import Admission, QueueLimits, Rate

ADMIT_MAX = 500
"""Tasks in one admission: some 75 KB of event."""

FAIR_WINDOW = 200
"""Of a queue whose keys take turns, at most so many tasks of each pool are admitted and not started yet: workers take those in
the order of their admission, so this is how far a newcomer may be behind."""

RATE_AHEAD_S = 1.0
"""Of a queue with a rate, at most so many seconds' worth of starts are admitted and not started yet in each pool (and always
the burst): when workers come back after a while, no more than that come at once."""

FORGET_AT = 1_000
"""Keys remembered before those that need not be are forgotten."""


class Stage(Enum):
    """How far a ready task is. ``HELD``: at the gate; ``ADMITTED``: let through, and not queued yet; ``ROUTED``: a work item
    waits for a worker; ``RUNNING``: a worker has it, running or frozen."""

    HELD = "held"
    ADMITTED = "admitted"
    ROUTED = "routed"
    RUNNING = "running"


WAITING_STAGES = frozenset({Stage.ADMITTED, Stage.ROUTED})


@dataclass(slots=True)
class Entry:
    """One ready task of a queue. ``position``: since when it has been in line; ``gated``: it waits for admission whenever it
    becomes ready; ``state``: the whole of it, while it is held."""

    version: int
    stage: Stage
    key: str | None
    priority: int
    position: int
    gated: bool
    state: dict[str, Any] | None = None
    pool: str = ""

    @property
    def where(self) -> _Where:
        """The level that it waits on."""
        return self.priority, self.pool


@dataclass(frozen=True, slots=True)
class Pick:
    """A task chosen to be admitted."""

    task_id: str
    entry: Entry


H = TypeVar("H", bound=Hashable)

_Where = tuple[int, str]
"""Which priority, of which pool."""

_Place = tuple[int, str, int]
"""Since when, which task, at which version."""

_PoolTurn = tuple[float, int, str]
"""When, since when its first task waits, which pool."""

_Turn = tuple[float, int, int, str | None]
"""When, since when its first task waits, a serial number so that no two are the same, which key."""


class Turns:
    """Start-time fair queueing: whoever has had least is next, and nobody saves up while away. With ``base`` a trial on top of
    another, which it leaves as it is."""

    def __init__(self, base: Turns | None = None) -> None:
        self._base = base
        self._finish: dict[Hashable, float] = {}
        self._now: float = 0.0 if base is None else base._now
        self._forget_at = FORGET_AT

    def finish(self, who: Hashable) -> float:
        """When its last turn ended; 0 where that is past and forgotten."""
        found = self._finish.get(who)
        if found is not None:
            return found
        return self._base.finish(who) if self._base is not None else 0.0

    def start(self, who: Hashable) -> float:
        """When its next turn would begin."""
        return max(self._now, self.finish(who))

    def take(self, who: Hashable, cost: float = 1.0, rivals: float = inf) -> None:
        """It has had a turn. ``rivals``: how many wanted this one, itself included, where ever new ones may come: time then
        passes with each turn, or all of them would be before the second turn of one who waits. Those of another priority, or
        for workers of another pool, want another turn: however many they are, they make nobody wait here."""
        start = self.start(who)
        self._finish[who] = start + cost
        self._now = start + cost / rivals
        if self._base is None and len(self._finish) > self._forget_at:
            self._finish = {one: at for one, at in self._finish.items() if at > self._now}
            self._forget_at = max(FORGET_AT, 2 * len(self._finish))


@dataclass(slots=True)
class _Level:
    """The held tasks of one priority and pool. ``lanes``: of each key those that were held, oldest first, of which some may be
    held no more; ``held``: how many are; ``turns``: which key is next, and with which turn; ``listed``: the one turn of each
    key that counts."""

    lanes: dict[str | None, list[_Place]] = field(default_factory=dict[str | None, list["_Place"]])
    held: Counter[str | None] = field(default_factory=Counter[str | None])
    turns: list[_Turn] = field(default_factory=list["_Turn"])
    listed: dict[str | None, _Turn] = field(default_factory=dict[str | None, "_Turn"])
    serials: Iterator[int] = field(default_factory=count)

    def list(self, key: str | None, at: float, position: int) -> None:
        """Let the key have this turn, and no other."""
        turn = (at, position, next(self.serials), key)
        self.listed[key] = turn
        heappush(self.turns, turn)
        if len(self.turns) > 2 * len(self.listed) + FORGET_AT:
            self.turns = sorted(self.listed.values(), key=lambda one: one[:3])

    def first(self) -> _Turn | None:
        """The next turn."""
        while self.turns and self.listed.get(self.turns[0][3]) != self.turns[0]:
            heappop(self.turns)
        return self.turns[0] if self.turns else None

    def next(self) -> _Turn:
        """Take the next turn off the list, which must have one."""
        turn = self.first()
        assert turn is not None
        heappop(self.turns)
        del self.listed[turn[3]]
        return turn


class _Trial:
    """What would be true if the tasks chosen so far had been admitted."""

    def __init__(self, line: Line) -> None:
        self.priorities = Turns(line.priorities)
        self.keys = Turns(line.keys)
        self.chosen: list[tuple[str, Entry]] = []
        self.of_key: Counter[str] = Counter()
        self.of_pool: Counter[str] = Counter()
        self.of_key_in: Counter[tuple[str, str]] = Counter()
        self.arrivals: dict[str, float] = {}
        self.parked: set[str] = set()
        self.tried: dict[tuple[_Where, str | None], float] = {}
        """Which keys were looked at, and when their turn was."""


class Line:
    """One queue: who waits at its gate, who holds its slots, and who may pass now."""

    def __init__(self) -> None:
        self.queue = Queue()
        self.entries: dict[str, Entry] = {}
        self.stages: Counter[Stage] = Counter()
        self.strangers: dict[str, int] = {}
        """Tasks with a work item that no gate let through, and the version of it."""
        self.owed: dict[str, Entry] = {}
        """Admitted, and not queued yet."""
        self.priorities = Turns()
        self.keys = Turns()
        self._levels: dict[_Where, _Level] = {}
        self._holders_of: Counter[str] = Counter()
        self._waiting_of: Counter[tuple[str, str]] = Counter()
        """Of each key in each pool: workers of one may be away, and those of another not."""
        self._waiting_in: Counter[str] = Counter()
        self._arrival = gcra.NEVER
        self._arrivals: dict[str, float] = {}
        self._forget_at = FORGET_AT
        self._parked: dict[str, set[_Where]] = {}
        self._due: list[tuple[float, str]] = []
        self._now = 0.0

    # What it is

    @property
    def limits(self) -> QueueLimits:
        return self.queue.limits

    @property
    def shared(self) -> bool:
        """Whether keys take turns."""
        return self.limits.fair or self.limits.max_running_per_key is not None or self.limits.rate_per_key is not None

    @property
    def holders(self) -> int:
        """How many slots are taken."""
        return len(self.entries) - self.stages[Stage.HELD]

    @property
    def waiting(self) -> int:
        """How many tasks are admitted and not started."""
        return self.stages[Stage.ADMITTED] + self.stages[Stage.ROUTED]

    # Fold

    def set_queue(self, queue: Queue) -> None:
        """The queue's own state changed."""
        before, self.queue = self.limits, queue
        if before == queue.limits:
            return
        if before.rate != queue.limits.rate:
            self._arrival = gcra.NEVER
        if before.rate_per_key != queue.limits.rate_per_key:
            self._arrivals.clear()
        self._list_all()

    def set_entry(self, task_id: str, entry: Entry | None) -> None:
        """The task is as ``entry`` says, or is not ready, or in another queue (``None``)."""
        before = self.entries.pop(task_id, None)
        if before is not None:
            self._count(before, -1)
            self.strangers.pop(task_id, None)
            self.owed.pop(task_id, None)
        if entry is not None:
            if before is not None and before.stage is not Stage.RUNNING:
                entry.position = min(entry.position, before.position)
            self._add(task_id, entry)
        if before is not None and before.stage is Stage.HELD:
            self._tidy(before)

    def _add(self, task_id: str, entry: Entry) -> None:
        self.entries[task_id] = entry
        self._count(entry, +1)
        if entry.stage is Stage.HELD:
            self._put(task_id, entry)
        elif entry.stage is Stage.ADMITTED:
            self.owed[task_id] = entry
        elif entry.stage is Stage.ROUTED and not entry.gated:
            self.strangers[task_id] = entry.version

    def note_admissions(self, at: float, admissions: Iterable[Admission]) -> None:
        """The queue let these through at ``at`` (POSIX seconds)."""
        rate, rate_per_key = self.limits.rate, self.limits.rate_per_key
        for admission in admissions:
            key = admission.key
            if rate is not None:
                self._arrival = gcra.charge(rate, self._arrival, at)
            if rate_per_key is not None and key is not None:
                self._arrivals[key] = gcra.charge(rate_per_key, self._arrivals.get(key, gcra.NEVER), at)
            entry = self.entries.get(admission.task_id)
            level = None if entry is None else self._levels.get(entry.where)
            self.keys.take(key, rivals=max(1, 0 if level is None else len(level.listed)))
            if entry is not None and entry.stage is Stage.HELD and entry.version == admission.version:
                self.priorities.take(entry.priority, _cost(entry.priority))
                admitted = replace(entry, stage=Stage.ADMITTED, key=key, gated=True)
                self.set_entry(admission.task_id, admitted)
        if len(self._arrivals) > self._forget_at:
            self._arrivals = {one: arrival for one, arrival in self._arrivals.items() if arrival > at}
            self._forget_at = max(FORGET_AT, 2 * len(self._arrivals))

    def _count(self, entry: Entry, by: int) -> None:
        self.stages[entry.stage] += by
        if entry.stage in WAITING_STAGES:
            _add(self._waiting_in, entry.pool, by)
        if entry.key is None or entry.stage is Stage.HELD:
            return
        _add(self._holders_of, entry.key, by)
        if entry.stage in WAITING_STAGES:
            _add(self._waiting_of, (entry.key, entry.pool), by)
        if by < 0:
            self._unpark(entry.key)

    def _put(self, task_id: str, entry: Entry) -> None:
        level = self._levels.setdefault(entry.where, _Level())
        lane = level.lanes.setdefault(entry.key, [])
        heappush(lane, (entry.position, task_id, entry.version))
        level.held[entry.key] += 1
        if len(lane) > 2 * level.held[entry.key] + FORGET_AT:  # behind one that waits long many came and went
            lane[:] = sorted(filter(self._is_held, lane))
        parked = entry.key is not None and entry.where in self._parked.get(entry.key, ())
        turn = level.listed.get(entry.key)
        if turn is None and not parked:
            self._list(level, entry.key, self.keys)
        elif turn is not None and entry.position < turn[1]:  # it has been in line for longer than those of this key
            level.list(entry.key, turn[0], entry.position)

    def _tidy(self, left: Entry) -> None:
        """Forget the lane that this task was the last of."""
        level = self._levels[left.where]
        level.held[left.key] -= 1
        if not level.held[left.key]:
            del level.held[left.key]
            level.lanes.pop(left.key, None)
            level.listed.pop(left.key, None)

    def _list(self, level: _Level, key: str | None, turns: Turns) -> None:
        """Put the key where its turn is."""
        if lane := level.lanes.get(key):
            level.list(key, turns.start(key) if self.shared else 0.0, lane[0][0])

    def _list_all(self) -> None:
        """Put every key where its turn is, and park none."""
        self._parked.clear()
        self._due.clear()
        for level in self._levels.values():
            level.turns.clear()
            level.listed.clear()
            for key in level.lanes:
                self._list(level, key, self.keys)

    def _unpark(self, key: str) -> None:
        for where in self._parked.pop(key, ()):
            self._list(self._levels[where], key, self.keys)

    # Choose

    def choose(self, now: float, most: int = ADMIT_MAX) -> list[Pick]:
        """Whom to admit at ``now`` (POSIX seconds), in order; at most ``most``."""
        self._keep_time(now)
        while self._due and self._due[0][0] <= now:
            self._unpark(heappop(self._due)[1])
        room, window = min(most, self._room(now)), self._window()
        trial = _Trial(self)
        pools: dict[int, list[_PoolTurn]] = {}
        for (priority, pool), level in self._levels.items():
            if (turn := level.first()) is not None:
                heappush(pools.setdefault(priority, []), (*turn[:2], pool))
        while pools and len(trial.chosen) < room:
            priority = min(pools, key=lambda one: (trial.priorities.start(one), -one))
            *_, pool = heappop(pools[priority])
            if self._waiting_in[pool] + trial.of_pool[pool] < window:
                self._try_one((priority, pool), trial, now)
                if (turn := self._levels[priority, pool].first()) is not None:
                    heappush(pools[priority], (*turn[:2], pool))
            if not pools[priority]:
                del pools[priority]
        self._put_back(trial)
        return [Pick(task_id, entry) for task_id, entry in trial.chosen]

    def next_at(self, now: float) -> float | None:
        """When time alone may let another pass; ``None`` where only an event can. Ask after :meth:`choose` chose nobody."""
        if self.queue.paused or not self.stages[Stage.HELD]:
            return None
        times = [self._due[0][0]] if self._due else []
        rate = self.limits.rate
        if rate is not None and not gcra.available(rate, self._arrival, now):
            times.append(gcra.allowed_at(rate, self._arrival))
        return min(times, default=None)

    def _keep_time(self, now: float) -> None:
        if now < self._now:
            self._list_all()  # the clock was set back: keys are parked until times that come again
        self._now = now
        if self.limits.rate is not None:
            self._arrival = gcra.bounded(self.limits.rate, self._arrival, now)

    def _room(self, now: float) -> int:
        """How many the limits of the whole queue let through."""
        if self.queue.paused:
            return 0
        limits = self.limits
        rooms: list[int] = []
        if limits.max_running is not None:
            rooms.append(limits.max_running - self.holders)
        if limits.rate is not None:
            rooms.append(gcra.available(limits.rate, self._arrival, now))
        return max(0, min(rooms, default=ADMIT_MAX))

    def _window(self) -> float:
        """How many may be admitted and not started in each pool: workers of one may be away, and those of another not."""
        window = FAIR_WINDOW if self.shared else inf
        return window if self.limits.rate is None else min(window, rate_ahead(self.limits.rate))

    def _try_one(self, where: _Where, trial: _Trial, now: float) -> None:
        """Take the task whose turn is next there, or put its key where it belongs. Some key must be listed."""
        level = self._levels[where]
        at, position, _, key = level.next()
        lane = level.lanes[key]
        self._drop_stale(lane)
        if not lane:
            del level.lanes[key]
            return
        trial.tried.setdefault((where, key), at)
        if key is not None and (until := self._blocked_until(key, where[1], trial, now)) is not None:
            self._park(key, where, until, trial)
        elif (self.shared and trial.keys.finish(key) > at) or lane[0][0] > position:
            level.list(key, max(at, trial.keys.finish(key)) if self.shared else 0.0, lane[0][0])
        else:
            self._take(where, key, trial, now)

    def _take(self, where: _Where, key: str | None, trial: _Trial, now: float) -> None:
        level, (priority, pool) = self._levels[where], where
        task_id = heappop(level.lanes[key])[1]
        trial.chosen.append((task_id, self.entries[task_id]))
        trial.of_pool[pool] += 1
        trial.priorities.take(priority, _cost(priority))
        trial.keys.take(key, rivals=1 + len(level.listed))  # its own turn is off the list
        if key is not None:
            trial.of_key[key] += 1
            trial.of_key_in[key, pool] += 1
            if (rate := self.limits.rate_per_key) is not None:
                trial.arrivals[key] = gcra.charge(rate, self._arrival_of(key, rate, trial, now), now)
        self._list(level, key, trial.keys)

    def _put_back(self, trial: _Trial) -> None:
        """As if nobody had been chosen: keys are listed where they were, on every level where the trial had moved them."""
        for task_id, entry in trial.chosen:
            level = self._levels[entry.where]
            heappush(level.lanes.setdefault(entry.key, []), (entry.position, task_id, entry.version))
        for key in trial.parked:
            self._unpark(key)
        for (where, tried), at in trial.tried.items():
            if tried is None or where not in self._parked.get(tried, ()):
                level = self._levels[where]
                level.list(tried, max(at, self.keys.finish(tried)) if self.shared else 0.0, level.lanes[tried][0][0])

    def _drop_stale(self, lane: list[_Place]) -> None:
        while lane and not self._is_held(lane[0]):
            heappop(lane)

    def _is_held(self, place: _Place) -> bool:
        """Whether the task waits there still."""
        _, task_id, version = place
        entry = self.entries.get(task_id)
        return entry is not None and entry.stage is Stage.HELD and entry.version == version

    def _blocked_until(self, key: str, pool: str, trial: _Trial, now: float) -> float | None:
        """``None``: its next task may pass; else when time alone may change that, infinity where only an event can."""
        limits = self.limits
        most = limits.max_running_per_key
        if most is not None and self._holders_of[key] + trial.of_key[key] >= most:
            return inf
        rate = limits.rate_per_key
        if rate is None:
            return None
        if self._waiting_of[key, pool] + trial.of_key_in[key, pool] >= rate_ahead(rate):
            return inf
        arrival = self._arrival_of(key, rate, trial, now)
        return None if gcra.available(rate, arrival, now) else gcra.allowed_at(rate, arrival)

    def _arrival_of(self, key: str, rate: Rate, trial: _Trial, now: float) -> float:
        if key not in self._arrivals:
            return trial.arrivals.get(key, gcra.NEVER)
        self._arrivals[key] = gcra.bounded(rate, self._arrivals[key], now)
        return trial.arrivals.get(key, self._arrivals[key])

    def _park(self, key: str, where: _Where, until: float, trial: _Trial) -> None:
        self._parked.setdefault(key, set()).add(where)
        if trial.of_key[key]:
            trial.parked.add(key)  # because of what was only tried
        elif until < inf:
            heappush(self._due, (until, key))


def rate_ahead(rate: Rate) -> int:
    """How many may be admitted and not started."""
    return max(rate.burst, ceil(RATE_AHEAD_S / gcra.interval_s(rate)))


def _cost(priority: int) -> float:
    return WEIGHT_PER_PRIORITY**-priority


def _add(counter: Counter[H], key: H, by: int) -> None:
    counter[key] += by
    if not counter[key]:
        del counter[key]
