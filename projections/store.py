"""The projection's DuckDB file: open it, write a batch, read a snapshot, replace it. The only file that imports duckdb.

The store is a folder. ``projection-<generation>.duckdb`` with the highest generation is the current file; a rebuild
writes ``rebuild.duckdb`` beside it and becomes the next generation by one rename, so a crash leaves the old file or the new
one. Readers that are inside the old file finish there. One process holds the folder at a time (DuckDB's own rule), which
a lock file says in a better sentence.

The file is disposable: whatever is wrong with it, it is moved aside (``damaged-*``, the newest three are kept until something
is erased), and the rows are folded from the log again. A file with an unmerged WAL was not closed properly. Replaying a WAL can
abort the whole process, so a child process does that first; if the child dies, the file goes aside and we live.

Threads: `transaction` belongs to the one writing thread, `read` to any number of reading threads.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import duckdb
import structlog

from eventq.events.errors import Damaged, LogDamaged, Unavailable
from eventq.projections.fold import Action, Write

log = structlog.get_logger("eventq.store")

SCHEMA_VERSION = 4
"""Goes up with every change of ``schema.sql`` or of what the fold writes: older files are rebuilt, not migrated."""

DAMAGED_KEPT = 3
RECOVERY_TIMEOUT_S = 120.0
"""How long a child may take to replay a WAL before the file is given up; 64 MB take a second or two."""

WAL_MAX = "64MB"
"""Size of the WAL at which DuckDB merges it into the file. A merge stalls one commit for 0.1 s or so: rarely, then."""

THREADS = 2
_GENERATION = re.compile(r"projection-(\d{6})\.duckdb")
_REBUILD = "rebuild.duckdb"
_SET_ASIDE = "damaged-projection-*.duckdb"
_ERASURE = "erasure"

COMPARED = {
    "events": "position",
    "tasks": "task_id",
    "attempts": "task_id || ' attempt ' || attempt",
    "workers": "worker_id",
    "queues": "queue",
    "claims": "claim_id",
    "schedules": "schedule_id",
    "workflows": "workflow_id",
    "workflow_nodes": "workflow_id || ' node ' || node",
    "task_declarations": "name",
}
"""The tables that a verification compares, which derive from EVENTS alone, each with what names a row of it."""

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not what the log says. ``key``: the event's position, the task's id, ...; ``position``: in EVENTS.
    ``in_projection`` and ``in_log``: whether either side has such a row at all."""

    table: str
    key: str
    position: int
    in_projection: bool
    in_log: bool

    def __str__(self) -> str:
        what = "differs from" if self.in_projection and self.in_log else "is missing from" if self.in_log else "is not in"
        side = "the projection" if self.in_log and not self.in_projection else "the fold of the log"
        return f"{self.table}: {self.key} (position {self.position}) {what} {side}"


class ProjectionBusy(Unavailable):
    """Another process holds the projection's folder."""

    code = "PROJECTION_BUSY"


class ProjectionUnwritable(Unavailable):
    """The projection's file cannot be written now (disk full, permissions). Nothing of the batch was stored."""

    code = "PROJECTION_UNWRITABLE"


class ProjectionDamaged(Damaged):
    """The projection's file is not what DuckDB wrote. It will be moved aside and folded from the log again."""

    code = "PROJECTION_DAMAGED"


def _translated(error: duckdb.Error, path: Path) -> Exception:
    """DuckDB's error as ours: the file is bad, the disk is, or (left as it is) our SQL is."""
    text = str(error)
    if isinstance(error, duckdb.ConstraintException):
        return LogDamaged(f"the log says twice what can be said once: {text}")
    if isinstance(error, duckdb.FatalException | duckdb.InternalException | duckdb.SerializationException) or (
        "orrupt" in text or "checksum" in text or "not a valid DuckDB" in text or "not read enough bytes" in text
    ):
        return ProjectionDamaged(f"{path.name} is damaged: {text}", path=str(path))
    if isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException | duckdb.TransactionException):
        return ProjectionUnwritable(f"{path.name} cannot be written or read: {text}", path=str(path))
    return error


class Transaction:
    """Writes that become visible together. Valid inside ``with store.transaction()`` only."""

    def __init__(self, file: _File) -> None:
        self._file = file

    def write(self, write: Write) -> None:
        """Insert, update or replace rows, in bulk: 3 to 7 us a row, where a statement for each would cost 500."""
        appender = self._file.appender(write)
        appender.append_rows(write.rows)
        appender.flush()

    def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> Rows:
        """Run one statement and answer its rows."""
        found: Rows = self._file.connection.execute(sql, parameters).fetchall()
        return found


class Snapshot:
    """One consistent state of all tables, for reading. Valid inside ``with store.read()`` only."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> Rows:
        """The rows of one query."""
        found: Rows = self._cursor.execute(sql, parameters).fetchall()
        return found

    def records(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """The rows of one query as dicts by column name."""
        found = self._cursor.execute(sql, parameters)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    @property
    def position(self) -> int:
        """The position in EVENTS that this snapshot is of."""
        found = self.rows("SELECT position FROM checkpoint WHERE stream = 'EVENTS'")
        return int(found[0][0]) if found else 0


class _File:
    """One open DuckDB file. ``retired``: another one is current, the last reader to leave closes this one, and deletes
    it where it is ``unwanted``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.retired = False
        self.unwanted = False
        self.readers = 0
        self.connection = duckdb.connect(str(path), config={"threads": THREADS})
        self.connection.execute(f"SET wal_autocheckpoint = '{WAL_MAX}'")
        self.cursors: dict[int, duckdb.DuckDBPyConnection] = {}
        self._appenders: dict[tuple[str, Action, tuple[str, ...]], Any] = {}

    def appender(self, write: Write) -> Any:
        """An appender for such rows. Making one costs as much as appending a hundred rows, so each is kept for its next use."""
        kind = (write.table, write.action, write.columns)
        if kind not in self._appenders:
            self._appenders[kind] = self.connection.appender(
                write.table, columns=list(write.columns), action=write.action, **({"key": list(write.key)} if write.key else {})
            )
        return self._appenders[kind]

    def rollback(self) -> None:
        """Undo the transaction. Appenders may hold rows of it still, which would come to the next one: they are dropped."""
        with suppress(duckdb.Error):
            self.connection.rollback()
        for appender in self._appenders.values():
            appender.clear()

    def close(self) -> None:
        with suppress(duckdb.Error):
            for cursor in self.cursors.values():
                cursor.close()
            self.connection.close()
        if self.unwanted:
            _delete(self.path)


@contextmanager
def _transaction(file: _File) -> Generator[Transaction]:
    try:
        file.connection.begin()
        try:
            yield Transaction(file)
            file.connection.commit()
        except BaseException:
            file.rollback()
            raise
    except duckdb.Error as error:
        raise _translated(error, file.path) from error


class Store:
    """The current file of a folder. Open it with :meth:`open`; close it with :meth:`close`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock_file = lock
        self._rebuild: Rebuild | None = None
        self._guard = threading.Lock()
        self._file = _open_current(folder)
        self.damage: ProjectionDamaged | None = None
        """Set when a read or write found the file damaged; whoever owns the projector calls :meth:`start_over`."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the current file of ``folder``, created where missing; a bad or outdated file is moved aside.

        Raises :class:`ProjectionBusy` while another process has the folder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        try:
            return cls(folder, lock)
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Merge the WAL and let the folder go. No thread may be reading or writing."""
        self._file.close()
        os.close(self._lock_file)

    @property
    def path(self) -> Path:
        """The current file."""
        return self._file.path

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """All writes within are committed together, with one fsync, or not at all. For the writing thread."""
        try:
            with _transaction(self._file) as transaction:
                yield transaction
        except ProjectionDamaged as error:
            self.damage = error
            raise

    @contextmanager
    def read(self) -> Generator[Snapshot]:
        """All queries within see the state of one moment. For any thread; a thread's cursor is kept for its next read."""
        file = self._enter()
        try:
            cursor = self._cursor(file)
            cursor.begin()
            try:
                yield Snapshot(cursor)
            finally:
                with suppress(duckdb.Error):
                    cursor.rollback()
        except duckdb.Error as error:
            translated = _translated(error, file.path)
            if isinstance(translated, ProjectionDamaged):
                self.damage = translated
            raise translated from error
        finally:
            self._leave(file)

    def new_rebuild(self) -> Rebuild:
        """An empty file beside the current one, to be filled and then made current with :meth:`replace`.

        Raises :class:`ProjectionBusy` while there is one already and :class:`ProjectionUnwritable` where none can be made. End
        it with :meth:`Rebuild.discard` in any case.
        """
        if self._rebuild is not None and not self._rebuild.discarded:
            raise ProjectionBusy("a rebuild or verification of this projection is running already")
        self._rebuild = Rebuild(self.folder)
        return self._rebuild

    def take_digests(self, rebuild: Rebuild) -> int:
        """Leave a digest of every row of one moment beside ``rebuild``, to compare with; answers its position in EVENTS."""
        with self.read() as snapshot:
            for table in COMPARED:
                snapshot.rows(f"COPY ({_digests(table)}) TO '{_quoted(rebuild.digest_path(table))}' (FORMAT parquet)")
            return snapshot.position

    def replace(self, rebuilt: Rebuild) -> None:
        """Make a filled rebuild the current file. Reads in progress finish on the old one, none is refused.

        For the writing thread, between transactions. Raises ``ProjectionUnwritable`` with the old file still the current one.
        """
        rebuilt.finish()
        old = self._file
        path = _path_of(self.folder, _generation(old.path) + 1)
        os.replace(rebuilt.path, path)
        _sync_folder(self.folder)
        self._switch_to(_File(path), delete_old=True)

    def start_over(self) -> None:
        """Move the current file aside and begin with an empty one. For the writing thread.

        Raises :class:`ProjectionUnwritable` where no new file can be made now; calling again is right then.
        """
        old = self._file
        path = _path_of(self.folder, _generation(old.path) + 1)
        set_aside(old.path)
        try:
            fresh = _create(path)
        except duckdb.Error as error:
            raise ProjectionUnwritable(f"{path.name} cannot be created: {error}", path=str(path)) from error
        self._switch_to(fresh, delete_old=False)
        self.damage = None

    @property
    def erasure_noted(self) -> bool:
        """Whether the files of this folder may hold, in unused places or set aside, bytes of what was erased."""
        return (self.folder / _ERASURE).exists()

    def note_erasure(self) -> None:
        """Remember, over a crash too, that something is about to be erased from the tables."""
        if not self.erasure_noted:
            (self.folder / _ERASURE).touch()
            _sync_folder(self.folder)

    def forget_erasures(self) -> None:
        """Nothing of what was erased is in the current file: delete those that were set aside, which may have it still."""
        for path in self.folder.glob(_SET_ASIDE):
            _delete(path)
        (self.folder / _ERASURE).unlink(missing_ok=True)

    def _switch_to(self, fresh: _File, *, delete_old: bool) -> None:
        with self._guard:
            old, self._file = self._file, fresh
            old.retired, old.unwanted = True, delete_old
            idle = old.readers == 0
        if idle:
            old.close()

    def _enter(self) -> _File:
        with self._guard:
            file = self._file
            file.readers += 1
            return file

    def _leave(self, file: _File) -> None:
        with self._guard:
            file.readers -= 1
            last = file.retired and file.readers == 0
        if last:
            file.close()

    def _cursor(self, file: _File) -> duckdb.DuckDBPyConnection:
        me = threading.get_ident()
        cursor = file.cursors.get(me)
        if cursor is None:
            cursor = file.cursors[me] = file.connection.cursor()
        return cursor


class Rebuild:
    """A file being filled beside the current one. Not durable until it replaces the current one, so it needs no WAL."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _REBUILD
        self.discarded = False
        self._clean()
        try:
            self._file = _create(self.path)
        except duckdb.Error as error:
            raise ProjectionUnwritable(f"{self.path.name} cannot be created: {error}", path=str(self.path)) from error
        self._file.connection.execute("SET wal_autocheckpoint = '1GB'")

    @contextmanager
    def transaction(self) -> Generator[Transaction]:
        """As :meth:`Store.transaction`."""
        with _transaction(self._file) as transaction:
            yield transaction

    def compare(self, contents_aside: Mapping[str, Sequence[str]]) -> tuple[dict[str, tuple[int, str]], list[Difference]]:
        """The live tables' row counts and hashes, and the first difference of each table from this file's rows.
        ``contents_aside``: by table, the keys of rows that must be there on both sides, whatever they hold."""
        tables: dict[str, tuple[int, str]] = {}
        differences: list[Difference] = []
        run = self._file.connection.execute
        for table in COMPARED:
            live = f"read_parquet('{_quoted(self.digest_path(table))}')"
            total = run(f"SELECT count(*), coalesce(bit_xor(md5_number(digest)), 0) FROM {live}").fetchone()
            assert total is not None
            tables[table] = (total[0], f"{total[1]:032x}")
            differing = run(
                f"SELECT coalesce(live.key, log.key), coalesce(live.position, log.position),"
                f" live.key IS NOT NULL, log.key IS NOT NULL"
                f" FROM {live} AS live FULL JOIN ({_digests(table)}) AS log ON live.key = log.key"
                f" WHERE live.digest IS DISTINCT FROM log.digest"
                f" AND (live.key IS NULL OR log.key IS NULL OR live.key NOT IN (SELECT unnest($1::VARCHAR[])))"
                f" ORDER BY 2, 1 LIMIT 1",
                [list(contents_aside.get(table, ()))],
            ).fetchone()
            if differing is not None:
                differences.append(Difference(table, *differing))
        return tables, differences

    def digest_path(self, table: str) -> Path:
        """Where the digests of the live table are left."""
        return self.path.with_name(f"rebuild-{table}.parquet")

    def finish(self) -> None:
        """Merge everything into the file and close it. Raises ``ProjectionUnwritable`` where that cannot be done: what is not
        merged stands in the WAL, which does not come along."""
        try:
            self._file.connection.execute("CHECKPOINT")
        except duckdb.Error as error:
            raise ProjectionUnwritable(f"{self.path.name} cannot be finished: {error}", path=str(self.path)) from error
        self.close()

    def close(self) -> None:
        """Close the file, whatever is in it."""
        self._file.close()

    def discard(self) -> None:
        """Close and delete what is left of it, which after :meth:`Store.replace` is nothing."""
        self.close()
        self._clean()
        self.discarded = True

    def _clean(self) -> None:
        for path in (self.path, _wal_of(self.path), *map(self.digest_path, COMPARED)):
            path.unlink(missing_ok=True)


def _digests(table: str) -> str:
    return f"SELECT CAST({COMPARED[table]} AS VARCHAR) AS key, position, md5(CAST(t AS VARCHAR)) AS digest FROM {table} AS t"


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _lock(folder: Path) -> int:
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ProjectionBusy(
            f"another process has the projection in {folder} open: ask it (its API), or stop it first", path=str(folder)
        ) from error
    return lock


def _generations(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _GENERATION.fullmatch(path.name))


def _generation(path: Path) -> int:
    found = _GENERATION.fullmatch(path.name)
    return int(found.group(1)) if found else 0


def _path_of(folder: Path, generation: int) -> Path:
    return folder / f"projection-{generation:06d}.duckdb"


def _wal_of(path: Path) -> Path:
    return path.with_name(path.name + ".wal")


def _open_current(folder: Path) -> _File:
    found = _generations(folder)
    for outdated in found[:-1]:  # a crash came between the rename of a rebuild and the deletion of the file before it
        _delete(outdated)
    if not found:
        return _create(_path_of(folder, 1))
    path = found[-1]
    try:
        if _wal_of(path).exists():
            _recover_in_child(path)
        file = _File(path)
        try:
            _check(file)
        except BaseException:
            file.close()
            raise
    except (duckdb.Error, ProjectionDamaged) as error:
        log.warning("projection.set_aside", path=path.name, reason=str(error)[:500])
        set_aside(path)
        return _create(_path_of(folder, _generation(path) + 1))
    return file


def _check(file: _File) -> None:
    version = file.connection.execute("SELECT schema_version FROM meta").fetchone()
    file.connection.execute("SELECT * FROM checkpoint").fetchall()
    if version is None or version[0] != SCHEMA_VERSION:
        raise ProjectionDamaged(f"schema version {version and version[0]}, this program writes {SCHEMA_VERSION}")


_RECOVER = "import duckdb, sys; duckdb.connect(sys.argv[1]).close()"


def _recover_in_child(path: Path) -> None:
    """Replay and merge the WAL in a child process. Raises :class:`ProjectionDamaged` if the child does not survive it."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", _RECOVER, str(path)],
            capture_output=True,
            text=True,
            timeout=RECOVERY_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProjectionDamaged(f"replaying the WAL of {path.name} took over {RECOVERY_TIMEOUT_S:g} s") from error
    if child.returncode != 0:
        last = child.stderr.strip().splitlines()[-1:] or [""]
        raise ProjectionDamaged(f"replaying the WAL of {path.name} failed ({child.returncode}): {last[0]}")


def _create(path: Path) -> _File:
    file = _File(path)
    file.connection.execute(files("eventq.projections").joinpath("schema.sql").read_text())
    file.connection.execute("INSERT INTO meta VALUES (?)", [SCHEMA_VERSION])
    return file


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    _wal_of(path).unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a bad file and its WAL to ``damaged-<name>``; of all such files in the folder the newest three are kept."""
    aside = path.with_name(f"damaged-{path.name}")
    for source, target in ((path, aside), (_wal_of(path), _wal_of(aside))):
        if source.exists():
            os.replace(source, target)
    kept = sorted(path.parent.glob(_SET_ASIDE))
    for old in kept[:-DAMAGED_KEPT]:
        _delete(old)
    return aside


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
