"""The file: opened, damaged, outdated, replaced."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import duckdb
import pytest

from eventq.projections import store as store_module
from eventq.projections.applier import Applier
from eventq.projections.fold import Write
from eventq.projections.store import DAMAGED_KEPT, ProjectionBusy, ProjectionDamaged, Store
from tests.projections.support import new_applier, random_history, tables

COLUMNS = ("stream", "position", "event_id", "stream_created")


def position(store: Store) -> int:
    with store.read() as snapshot:
        return snapshot.position


def filled(folder: Path, events: int = 50) -> Path:
    """A closed file that holds a history; answers its path."""
    store = Store.open(folder)
    new_applier(store).apply(random_history(1, events).messages()[:events], [])
    store.close()
    return store.path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_what_was_committed_is_there_after_opening_again(folder: Path) -> None:
    filled(folder)
    store = Store.open(folder)
    assert position(store) == 50
    assert Applier(store).checkpoints["EVENTS"].position == 50
    store.close()


def test_json_that_is_kept_as_text_is_json_to_the_database(folder: Path) -> None:
    """What analysts ask: with operators, paths, and as lists."""
    filled(folder)
    store = Store.open(folder)
    with store.read() as snapshot:
        marks = snapshot.rows("""
            SELECT count(*), count(*) FILTER (json_valid(data)), count(data ->> 'task_name'), count(data -> '$.args')
            FROM events WHERE type = 'submitted'
        """)
        lists = snapshot.rows(
            "SELECT count(*), count(json_array_length(args)), count(args::JSON[]), count(kwargs::JSON) FROM tasks"
        )
    store.close()
    for counts in (*marks, *lists):
        assert counts[0] > 0
        assert set(counts) == {counts[0]}


def test_a_folder_belongs_to_one_process_at_a_time(store: Store, folder: Path) -> None:
    with pytest.raises(ProjectionBusy, match="another process"):
        Store.open(folder)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "zeroed": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:6000]),
    "text": lambda path: path.write_bytes(b"this is no database"),
    "empty": lambda path: path.write_bytes(b""),
    "flipped block": lambda path: flip(path, 12_288 + 100),
    "flipped header": lambda path: flip(path, 4096 + 20),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_file_never_keeps_the_store_from_opening(folder: Path, damage: Callable[[Path], object]) -> None:
    """Either its checksums give it away and it is moved aside, or the damage hit nothing that is in use."""
    path = filled(folder)
    damage(path)
    store = Store.open(folder)
    if position(store) == 0:
        assert store.path != path or not list(folder.glob("damaged-*"))
        new_applier(store).apply(random_history(1, 50).messages(), [])
    assert position(store) == 50
    store.close()


def test_a_bad_file_is_kept_for_inspection_but_not_for_ever(folder: Path) -> None:
    for _ in range(DAMAGED_KEPT + 2):
        filled(folder).write_bytes(b"this is no database")
        Store.open(folder).close()
    kept = sorted(path.name for path in folder.glob("damaged-*"))
    assert len(kept) == DAMAGED_KEPT
    assert kept[-1] == f"damaged-projection-{DAMAGED_KEPT + 2:06d}.duckdb"


def test_a_file_of_another_schema_is_set_aside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(folder)
    monkeypatch.setattr(store_module, "SCHEMA_VERSION", store_module.SCHEMA_VERSION + 1)
    store = Store.open(folder)
    assert position(store) == 0
    assert path.with_name(f"damaged-{path.name}").exists()
    store.close()


CRASH = """
import os, signal, sys
from pathlib import Path
from eventq.projections.store import Store
from tests.projections.support import new_applier, random_history
store = Store.open(Path(sys.argv[1]))
new_applier(store).apply(random_history(1, 50).messages(), [])
os.kill(os.getpid(), signal.SIGKILL)
"""


def crashed(folder: Path) -> Path:
    """A file whose process was killed after a commit: its rows stand in the WAL. Answers the WAL's path."""
    ended = subprocess.run([sys.executable, "-c", CRASH, str(folder)], check=False, capture_output=True)
    assert ended.returncode == -9, ended.stderr
    [wal] = folder.glob("*.wal")
    return wal


def test_the_wal_of_a_killed_process_is_replayed(folder: Path) -> None:
    crashed(folder)
    store = Store.open(folder)
    assert position(store) == 50
    store.close()


@pytest.mark.parametrize("damage", [b"garbage" * 1000, b""], ids=["garbage", "empty"])
def test_a_bad_wal_costs_its_rows_and_not_the_process(folder: Path, damage: bytes) -> None:
    crashed(folder).write_bytes(damage)
    store = Store.open(folder)
    assert position(store) == 0
    assert tables(store)["events"] == []
    store.close()


def test_a_child_that_dies_of_a_wal_costs_the_file_and_not_the_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashed(folder)
    monkeypatch.setattr(store_module, "_RECOVER", "import os, signal; os.kill(os.getpid(), signal.SIGABRT)")
    store = Store.open(folder)
    assert position(store) == 0
    assert [path.name for path in folder.glob("damaged-*.wal")] == ["damaged-projection-000001.duckdb.wal"]
    store.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from eventq.projections.store import ProjectionUnwritable, Store
from tests.projections.support import new_applier, random_history
store = Store.open(Path(sys.argv[1]))
applier, messages = new_applier(store), random_history(1, 6000, tasks=30).messages()
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
refused = 0
for start in range(0, 6000, 200):
    try:
        applier.apply(messages[start : start + 200], [])
    except ProjectionUnwritable:
        refused += 1
        with store.read() as snapshot:
            assert snapshot.position == start == snapshot.rows("SELECT count(*) FROM events")[0][0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        applier.apply(messages[start : start + 200], [])
assert refused == 1, refused
store.close()
"""


def test_a_batch_that_the_disk_does_not_take_can_be_applied_again_when_it_does(folder: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", FULL_DISK, str(folder)], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    store = Store.open(folder)
    assert position(store) == 6000
    store.close()


FULL_DISK_IN_THE_END = """
import resource, sys
from pathlib import Path
from eventq.projections.store import ProjectionUnwritable, Store
from tests.projections.support import new_applier, random_history
store = Store.open(Path(sys.argv[1]))
messages = random_history(1, 500).messages()
new_applier(store).apply(messages[:100], [])
rebuild = store.new_rebuild()
new_applier(rebuild).apply(messages, [])
resource.setrlimit(resource.RLIMIT_FSIZE, (rebuild.path.stat().st_size, resource.RLIM_INFINITY))
try:
    store.replace(rebuild)
except ProjectionUnwritable:
    refused = True
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
rebuild.discard()
with store.read() as snapshot:
    assert snapshot.rows("SELECT count(*) FROM events") == [(100,)]
assert refused
store.close()
"""


def test_a_rebuild_that_the_disk_does_not_take_in_the_end_leaves_the_old_file(folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK_IN_THE_END, str(folder)], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    store = Store.open(folder)
    assert position(store) == 100
    store.close()


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.transaction() as transaction:
            transaction.execute("INSERT INTO checkpoint VALUES ('EVENTS', 7, 'e', now()::TIMESTAMP)")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert position(store) == 0


def test_rows_of_a_failed_batch_do_not_come_with_the_next(store: Store) -> None:
    """What keeps appending fast keeps the rows before a bad one, too."""

    def rows(*positions: object) -> Write:
        return Write("checkpoint", "insert", COLUMNS, [(str(at), at, "e", datetime(2026, 1, 1)) for at in positions])

    def fail() -> None:
        with store.transaction() as transaction:
            transaction.write(rows(1, "no number"))

    with pytest.raises(duckdb.ConversionException):
        fail()
    with store.transaction() as transaction:
        transaction.write(rows(2))
    with store.read() as snapshot:
        assert snapshot.rows("SELECT position FROM checkpoint") == [(2,)]


def test_a_read_sees_one_moment(store: Store) -> None:
    messages = random_history(1, 50).messages()
    applier = new_applier(store)
    applier.apply(messages[:20], [])
    with store.read() as snapshot:
        assert snapshot.position == 20
        with ThreadPoolExecutor(1) as other:
            other.submit(applier.apply, messages[20:], []).result()
        assert snapshot.position == 20
        assert snapshot.rows("SELECT max(position) FROM events") == [(20,)]
    assert position(store) == 50


def test_a_reader_finishes_in_the_old_file_while_a_new_one_takes_over(store: Store) -> None:
    messages = random_history(1, 50).messages()
    new_applier(store).apply(messages[:20], [])
    old = store.path
    rebuild = store.new_rebuild()
    new_applier(rebuild).apply(messages, [])
    entered, leave = threading.Event(), threading.Event()

    def read() -> list[tuple[int, ...]]:
        with store.read() as snapshot:
            entered.set()
            assert leave.wait(10)
            return snapshot.rows("SELECT count(*) FROM events")

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read)
        assert entered.wait(10)
        store.replace(rebuild)
        assert position(store) == 50
        leave.set()
        assert reading.result() == [(20,)]
    assert not old.exists()
    rebuild.discard()


def test_one_rebuild_at_a_time(store: Store) -> None:
    rebuild = store.new_rebuild()
    with pytest.raises(ProjectionBusy, match="running already"):
        store.new_rebuild()
    rebuild.discard()
    store.new_rebuild().discard()


def test_what_an_interrupted_rebuild_left_is_cleared(folder: Path) -> None:
    path = filled(folder)
    (folder / "rebuild.duckdb").write_bytes(b"half a rebuild")
    (folder / "projection-000007.duckdb").write_bytes(path.read_bytes())
    store = Store.open(folder)
    assert store.path.name == "projection-000007.duckdb"
    assert not path.exists()
    store.new_rebuild().discard()
    assert not (folder / "rebuild.duckdb").exists()
    store.close()


def test_a_file_damaged_while_open_is_noticed_and_replaced(store: Store) -> None:
    store.damage = ProjectionDamaged("found by a read")
    new_applier(store).apply(random_history(1, 20).messages(), [])
    store.start_over()
    assert store.damage is None
    assert position(store) == 0
    assert len(list(store.folder.glob("damaged-*"))) >= 1
