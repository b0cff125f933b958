"""Who passes a gate: limits, rates, turns, on folds of queues and tasks alone."""

from __future__ import annotations

import random
import time
from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventq.events import admission
from eventq.events.admission import FAIR_WINDOW, Entry, Line, Pick, Stage, Turns, rate_ahead
from eventq.events.limits import WEIGHT_PER_PRIORITY
from eventq.events.queue import Queue
from eventq.events.queue_events import Admission, QueueLimits, Rate

NOW = 1_700_000_000.0


class Gate:
    """A line, and what becomes of it."""

    def __init__(self, **limits: object) -> None:
        self.line = Line()
        self.configure(**limits)
        self.positions = count(1)

    def configure(self, **limits: object) -> None:
        self.line.set_queue(self.line.queue.model_copy(update={"limits": QueueLimits.model_validate(limits)}))

    def hold(self, task_id: str, key: str | None = None, priority: int = 5, version: int = 1, pool: str = "cpu") -> None:
        self.line.set_entry(task_id, Entry(version, Stage.HELD, key, priority, next(self.positions), True, pool=pool))

    def hold_many(self, number: int, key: str | None = None, priority: int = 5, prefix: str = "t") -> None:
        for n in range(number):
            self.hold(f"{prefix}-{key}-{priority}-{n}", key, priority)

    def stored(self, picks: list[Pick], at: float = NOW) -> None:
        """The queue's event is in the log, and each of them is queued."""
        self.line.note_admissions(at, [Admission(task_id=p.task_id, version=p.entry.version, key=p.entry.key) for p in picks])
        for pick in picks:
            self.move(pick.task_id, Stage.ROUTED)

    def move(self, task_id: str, stage: Stage) -> None:
        entry = self.line.entries[task_id]
        moved = Entry(entry.version + 1, stage, entry.key, entry.priority, next(self.positions), True, pool=entry.pool)
        self.line.set_entry(task_id, moved)

    def end(self, task_id: str) -> None:
        self.line.set_entry(task_id, None)

    def admit(self, at: float = NOW) -> list[Pick]:
        picks = self.line.choose(at)
        self.stored(picks, at)
        return picks


def ids(picks: list[Pick]) -> list[str]:
    return [pick.task_id for pick in picks]


def test_no_more_than_max_running_pass_and_each_that_ends_lets_one_follow() -> None:
    gate = Gate(max_running=2)
    gate.hold_many(5)
    first = gate.admit()
    assert ids(first) == ["t-None-5-0", "t-None-5-1"]
    assert gate.admit() == []
    gate.move(first[0].task_id, Stage.RUNNING)
    assert gate.admit() == []
    gate.end(first[0].task_id)
    assert ids(gate.admit()) == ["t-None-5-2"]


def test_choosing_changes_nothing() -> None:
    gate = Gate(max_running=3, fair=True)
    for key in "abc":
        gate.hold_many(4, key)
    first = ids(gate.line.choose(NOW))
    for _ in range(500):
        assert ids(gate.line.choose(NOW)) == first


def test_what_was_chosen_in_vain_is_a_turn_on_no_level() -> None:
    gate = Gate(fair=True)
    for n in range(3):
        gate.hold(f"g{n}", "a", pool="gpu")
    for n in range(3):
        gate.hold(f"ca{n}", "a", pool="cpu")
    for n in range(3):
        gate.hold(f"cb{n}", "b", pool="cpu")
    assert ids(gate.line.choose(NOW, 3)) == ["g0", "cb0", "g1"], "of which nothing comes: another gate was first"
    for n in range(3):
        gate.end(f"g{n}")
    assert ids(gate.line.choose(NOW, 2)) == ["ca0", "cb0"], "the key has had no turn yet, and its task is older"


def test_an_admission_holds_its_slot_before_the_task_is_queued() -> None:
    gate = Gate(max_running=1)
    gate.hold_many(2)
    (pick,) = gate.line.choose(NOW)
    gate.line.note_admissions(NOW, [Admission(task_id=pick.task_id, version=1)])
    assert list(gate.line.owed) == [pick.task_id]
    assert gate.line.choose(NOW) == []
    gate.move(pick.task_id, Stage.ROUTED)
    assert not gate.line.owed


def test_an_admitted_task_that_changed_before_it_was_queued_waits_again() -> None:
    gate = Gate(max_running=1)
    gate.hold("a")
    gate.line.note_admissions(NOW, [Admission(task_id="a", version=1)])
    gate.hold("a", version=2)
    assert not gate.line.owed
    assert ids(gate.line.choose(NOW)) == ["a"]
    gate.line.note_admissions(NOW, [Admission(task_id="a", version=1)])
    assert not gate.line.owed, "an admission of a version that is past"


def test_a_task_whose_key_is_changed_keeps_its_place() -> None:
    gate = Gate(max_running=2)
    gate.hold("first", "a")
    gate.hold("second", "a")
    gate.hold("first", None, version=2)
    gate.hold("third", None)
    assert ids(gate.admit()) == ["first", "second"]


def test_a_task_whose_key_is_changed_keeps_its_place_before_younger_ones_of_that_key() -> None:
    gate = Gate(max_running=3)
    for task_id, key in [("x", "a"), ("y", "b"), ("z", "c")]:
        gate.hold(task_id, key)
    gate.hold("x", "c", version=2)
    assert ids(gate.admit()) == ["x", "y", "z"]


def test_limits_of_each_key_do_not_hold_up_others() -> None:
    gate = Gate(max_running_per_key=1)
    gate.hold_many(100, "greedy")
    gate.hold_many(1, "modest")
    gate.hold_many(3, None)
    assert Counter(pick.entry.key for pick in gate.admit()) == {"greedy": 1, "modest": 1, None: 3}
    assert gate.admit() == []
    gate.end("t-greedy-5-0")
    assert ids(gate.admit()) == ["t-greedy-5-1"]


def test_limits_lifted_let_all_pass_and_a_pause_lets_none() -> None:
    gate = Gate(max_running=1)
    gate.hold_many(20)
    gate.admit()
    gate.line.set_queue(gate.line.queue.model_copy(update={"limits": QueueLimits(), "paused_by": "ada"}))
    assert gate.admit() == []
    gate.line.set_queue(gate.line.queue.model_copy(update={"paused_by": None}))
    assert len(gate.admit()) == 19


def test_a_rate_spaces_admissions_and_says_when_the_next_is_due() -> None:
    gate = Gate(rate={"limit": 10, "per_s": 1.0, "burst": 2})
    gate.hold_many(4)
    assert len(gate.admit()) == 2
    assert gate.admit() == []
    assert gate.line.next_at(NOW) == NOW + 0.1
    assert len(gate.admit(NOW + 0.1)) == 1


def test_admissions_that_nobody_starts_do_not_pile_up_behind_a_rate() -> None:
    gate = Gate(rate={"limit": 10, "per_s": 1.0, "burst": 2})
    gate.hold_many(100)
    admitted = sum(len(gate.admit(NOW + tenth / 10)) for tenth in range(100))
    assert admitted == rate_ahead(Rate(limit=10, per_s=1.0, burst=2)) == 10


@pytest.mark.parametrize("limits", [{"fair": True}, {"rate": {"limit": 100, "per_s": 1.0, "burst": 300}}])
def test_tasks_that_no_worker_of_their_pool_starts_hold_up_no_other_pool(limits: dict[str, object]) -> None:
    gate = Gate(**limits)
    for n in range(1_000):
        gate.hold(f"g{n}", "a", pool="gpu")
    waiting = 0
    while picks := gate.admit(NOW + 10 * waiting):
        waiting += len(picks)
    assert 0 < waiting <= 300, "no more than fit the window"
    gate.hold("c", "b", pool="cpu")
    assert ids(gate.admit(NOW + 10_000)) == ["c"]


def test_tasks_of_a_key_that_no_worker_of_their_pool_starts_hold_up_none_of_another_pool() -> None:
    gate = Gate(rate_per_key={"limit": 1, "per_s": 1.0, "burst": 1})
    for n in range(3):
        gate.hold(f"g{n}", "a", pool="gpu")
    assert ids(gate.admit()) == ["g0"]
    assert gate.admit(NOW + 10) == []
    gate.hold("c", "a", pool="cpu")
    assert ids(gate.admit(NOW + 20)) == ["c"]
    assert gate.admit(NOW + 30) == [], "of each pool one waits for a worker"


def test_tasks_of_several_pools_come_in_order_of_their_age() -> None:
    gate = Gate(max_running=4)
    for n in range(6):
        gate.hold(f"t{n}", pool="cpu" if n % 3 else "gpu")
    assert ids(gate.admit()) == ["t0", "t1", "t2", "t3"]


def test_a_rate_of_each_key_is_its_own() -> None:
    gate = Gate(rate_per_key={"limit": 1, "per_s": 10.0, "burst": 1})
    for key in "ab":
        gate.hold_many(2, key)
    assert sorted(ids(gate.admit())) == ["t-a-5-0", "t-b-5-0"]
    assert gate.admit() == []
    assert gate.line.next_at(NOW) is None, "nobody has started them yet"
    gate.end("t-a-5-0")
    gate.end("t-b-5-0")
    assert gate.admit() == []
    assert gate.line.next_at(NOW) == NOW + 10
    assert sorted(ids(gate.admit(NOW + 10))) == ["t-a-5-1", "t-b-5-1"]


@pytest.mark.parametrize("limit", ["rate", "rate_per_key"])
def test_a_clock_that_is_set_back_holds_nobody_up_and_lets_no_more_through(limit: str) -> None:
    gate = Gate(**{limit: {"limit": 10, "per_s": 1.0, "burst": 2}})
    gate.hold_many(100, "a")

    def started(at: float) -> int:
        task_ids = ids(gate.admit(at))
        for task_id in task_ids:
            gate.end(task_id)
        return len(task_ids)

    assert [started(NOW + 3600) for _ in range(3)] == [2, 0, 0]
    assert started(NOW) == 0
    next_at = gate.line.next_at(NOW)
    assert next_at is not None
    assert next_at - NOW <= 0.1 + 1e-6
    assert sum(started(NOW + hundredth / 100) for hundredth in range(101)) == 10


def test_keys_take_turns_so_that_few_tasks_never_wait_for_many() -> None:
    gate = Gate(fair=True)
    gate.hold_many(10_000, "greedy")
    gate.admit()
    assert gate.line.waiting == FAIR_WINDOW
    gate.hold_many(3, "modest")
    gate.hold_many(1, "other")
    for n in range(8):
        gate.move(f"t-greedy-5-{n}", Stage.RUNNING)
    keys = [pick.entry.key for pick in gate.admit()]
    assert keys[:2] in (["modest", "other"], ["other", "modest"], ["greedy", "modest"], ["modest", "greedy"])
    assert keys.count("modest") == 3
    assert keys.count("other") == 1


def test_without_keys_to_share_by_the_oldest_comes_first() -> None:
    gate = Gate(max_running=3)
    gate.hold_many(2, "a")
    gate.hold_many(2, "b")
    assert ids(gate.admit()) == ["t-a-5-0", "t-a-5-1", "t-b-5-0"]


def test_a_tenant_that_comes_back_again_and_again_gets_no_more_than_its_turn() -> None:
    gate = Gate(fair=True, max_running=1)
    gate.hold_many(100, "steady")
    admitted: Counter[str | None] = Counter()
    for n in range(60):
        gate.hold(f"x{n}", "comes-and-goes")
        (pick,) = gate.admit()
        admitted[pick.entry.key] += 1
        gate.end(pick.task_id)
    assert abs(admitted["steady"] - admitted["comes-and-goes"]) <= 2


def test_a_newcomer_has_saved_up_nothing_while_it_was_away() -> None:
    gate = Gate(fair=True, max_running=1)
    gate.hold_many(200, "steady")
    for _ in range(100):
        gate.end(gate.admit()[0].task_id)
    gate.hold_many(200, "newcomer")
    admitted: Counter[str | None] = Counter()
    for _ in range(40):
        (pick,) = gate.admit()
        admitted[pick.entry.key] += 1
        gate.end(pick.task_id)
    assert admitted == {"steady": 20, "newcomer": 20}


def test_priorities_share_by_weight_and_none_starves() -> None:
    gate = Gate(max_running=1)
    for priority in range(11):
        gate.hold_many(3_000, priority=priority)
    admitted: Counter[int] = Counter()
    for _ in range(2_000):
        (pick,) = gate.admit()
        admitted[pick.entry.priority] += 1
        gate.end(pick.task_id)
    total = sum(WEIGHT_PER_PRIORITY**p for p in range(11))
    for priority in range(11):
        assert abs(admitted[priority] - 2_000 * WEIGHT_PER_PRIORITY**priority / total) <= 3, priority


def test_ten_thousand_held_tasks_of_as_many_keys_are_admitted_in_turn() -> None:
    gate = Gate(fair=True, max_running=100)
    for n in range(10_000):
        gate.hold(f"t{n}", f"k{n}")
    seen: list[str] = []
    while picks := gate.admit():
        seen += ids(picks)
        for pick in picks:
            gate.end(pick.task_id)
    assert seen == [f"t{n}" for n in range(10_000)]


def test_turns_forget_those_that_are_past() -> None:
    turns = Turns()
    for n in range(admission.FORGET_AT * 20):
        turns.take(f"k{n}")
        turns.take("busy")
    assert len(turns._finish) <= 2 * admission.FORGET_AT  # pyright: ignore[reportPrivateUsage]


def test_ever_new_keys_neither_starve_one_that_waits_nor_are_remembered() -> None:
    gate = Gate(fair=True, max_running=1)
    gate.hold_many(1_000, "steady")
    admitted: Counter[str | None] = Counter()
    for n in range(admission.FORGET_AT * 3):
        gate.hold(f"t{n}", f"k{n}")
        (pick,) = gate.admit()
        admitted[pick.entry.key] += 1
        gate.end(pick.task_id)
    line = gate.line
    waiting = len({entry.key for entry in line.entries.values()})
    assert admitted["steady"] > 50, "as many as the new ones that it made wait, which all are its rivals"
    assert waiting < 100
    assert len(line.keys._finish) <= 2 * admission.FORGET_AT  # pyright: ignore[reportPrivateUsage]
    assert sum(len(level.lanes) for level in line._levels.values()) == waiting  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(("pool", "priority"), [("gpu", 5), ("cpu", 0)], ids=["pool whose workers are away", "low priority"])
def test_keys_that_wait_elsewhere_starve_none_that_waits_among_ever_new_ones(pool: str, priority: int) -> None:
    gate = Gate(fair=True, max_running=FAIR_WINDOW + 1)
    for n in range(5_000):
        gate.hold(f"e{n}", f"e{n}", priority, pool=pool)
    if pool == "gpu":
        gate.admit()
    gate.hold_many(1_000, "steady")
    admitted: Counter[str | None] = Counter()
    for n in range(3_000):
        gate.hold(f"t{n}", f"k{n}")
        picks = gate.line.choose(NOW, 1)
        gate.stored(picks)
        for pick in picks:
            admitted[pick.entry.key] += 1
            gate.end(pick.task_id)
    assert admitted["steady"] > 10


def test_keys_without_number_are_folded_in_no_time() -> None:
    """Given as many keys as tasks, as where a task's key is a user's id, when their admissions are folded, then each costs no
    more than the first: a gate that starts folds all there ever were."""
    gate, keys = Gate(max_running=1), 200_000
    began = time.process_time()
    for n in range(keys):
        gate.line.note_admissions(NOW, [Admission(task_id=f"t{n}", version=1, key=f"k{n}")])
    assert time.process_time() - began < 30
    assert len(gate.line.keys._finish) <= 2 * admission.FORGET_AT  # pyright: ignore[reportPrivateUsage]


def test_pools_without_number_hold_up_no_gate() -> None:
    """Given tasks of a thousand pools, when some hundreds of them are chosen, then each costs about what it does with one."""
    gate = Gate(fair=True)
    for n in range(20_000):
        gate.hold(f"t{n}", f"k{n % 100}", pool=f"p{n % 1_000}")
    began = time.process_time()
    for _ in range(10):
        gate.stored(gate.line.choose(NOW))
    assert time.process_time() - began < 3


def test_tasks_that_come_and_go_behind_one_that_waits_are_forgotten() -> None:
    gate = Gate(max_running=1)
    gate.hold("first")
    for n in range(admission.FORGET_AT * 5):
        gate.hold(f"t{n}")
        gate.end(f"t{n}")
    (level,) = gate.line._levels.values()  # pyright: ignore[reportPrivateUsage]
    assert len(level.lanes[None]) <= 2 * admission.FORGET_AT
    gate.hold("second")
    assert ids(gate.admit()) == ["first"]
    gate.end("first")
    assert ids(gate.admit()) == ["second"]


def test_keys_that_wait_take_turns_however_many_there_are() -> None:
    gate, keys = Gate(fair=True, max_running=1), 3 * admission.FORGET_AT
    for n in range(2 * keys):  # of each key both at once: the second is older than the first of the next
        gate.hold(f"t{n}", f"k{n // 2}")
    seen: list[str | None] = []
    for _ in range(2 * keys):
        (pick,) = gate.admit()
        seen.append(pick.entry.key)
        gate.end(pick.task_id)
    assert seen == 2 * [f"k{n}" for n in range(keys)]


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        QueueLimits,
        max_running=st.none() | st.integers(1, 5),
        max_running_per_key=st.none() | st.integers(1, 3),
        rate=st.none() | st.builds(Rate, limit=st.integers(1, 5), per_s=st.just(1.0), burst=st.integers(1, 3)),
        rate_per_key=st.none() | st.builds(Rate, limit=st.integers(1, 5), per_s=st.just(1.0), burst=st.integers(1, 3)),
        fair=st.booleans(),
    ),
    st.integers(0, 2**32),
)
def test_whatever_happens_no_limit_is_exceeded_and_in_the_end_nobody_is_left(limits: QueueLimits, seed: int) -> None:
    chance = random.Random(seed)
    gate, now = Gate(), NOW
    gate.line.set_queue(Queue(limits=limits))
    for step in range(300):
        now += chance.choice([0.0, 0.01, 0.3])
        event = chance.random()
        if event < 0.45:
            gate.hold(f"t{step}", chance.choice([None, "a", "b", "c"]), chance.choice([0, 5, 10]), pool=chance.choice("pq"))
        elif event < 0.5 and (waiting := [t for t, e in gate.line.entries.items() if e.stage is Stage.HELD]):
            changed = chance.choice(waiting)  # somebody updates it
            version = gate.line.entries[changed].version + 1
            gate.hold(changed, chance.choice([None, "a", "b", "c"]), chance.choice([0, 5, 10]), version)
        elif event < 0.55:
            gate.line.choose(now)  # of which nothing came: another gate was first, or this one died
        elif event < 0.75:
            gate.admit(now)
        elif working := [t for t, e in gate.line.entries.items() if e.stage is not Stage.HELD]:
            task_id = chance.choice(working)
            if gate.line.entries[task_id].stage is Stage.ROUTED:
                gate.move(task_id, Stage.RUNNING)
            else:
                gate.end(task_id)
        check(gate.line)
    for _ in range(20_000):
        if not gate.line.entries:
            break
        for task_id in ids(gate.admit(now)):
            check(gate.line)
            gate.end(task_id)
        for task_id in [t for t, e in gate.line.entries.items() if e.stage is not Stage.HELD]:
            gate.end(task_id)
        now = max(now, gate.line.next_at(now) or now)
    assert not gate.line.entries
    assert gate.line.holders == gate.line.waiting == 0


def check(line: Line) -> None:
    holding = [e for e in line.entries.values() if e.stage is not Stage.HELD]
    limits = line.limits
    assert line.holders == len(holding)
    assert limits.max_running is None or len(holding) <= limits.max_running
    held = Counter((e.where, e.key) for e in line.entries.values() if e.stage is Stage.HELD)
    assert held == {(where, key): n for where, level in line._levels.items() for key, n in level.held.items()}  # pyright: ignore[reportPrivateUsage]
    per_key = Counter(e.key for e in holding if e.key is not None)
    assert limits.max_running_per_key is None or all(n <= limits.max_running_per_key for n in per_key.values())
