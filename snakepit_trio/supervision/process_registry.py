"""The registry of processes of this user's runs, in a SQLite file, so that a later run can remove what a killed one has
left.

The state directory (0700) holds the file (0600). It lists the runs with their private directories, and their processes
with process id, start time and boot id. A process is registered before it starts, and removed when it is reaped.
:mod:`.leftovers` uses the registry.

This is the second safeguard; workers end with their host by themselves, see ``snakepit_trio.worker.lifeline``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs

from snakepit_trio._platform import boot_id

from .state_directory import check_owner, open_own

__all__ = ["ProcessRow", "Registry", "RunRow", "connect", "is_run_id", "read_processes"]

_log = logging.getLogger(__name__)

#: Seconds. The wait for another process that has locked the file: before a run begins, and while its event loop waits
#: too. A run's own writes take far less.
_PATIENCE, _SHORT_PATIENCE = 0.5, 0.02
_FORMAT = 1
_TABLES = {
    "runs": "run_id TEXT PRIMARY KEY, run_dir TEXT NOT NULL, pid INTEGER NOT NULL, started REAL NOT NULL",
    "processes": (
        "run_id TEXT NOT NULL, process_id TEXT NOT NULL, kind TEXT NOT NULL, pool TEXT NOT NULL,"
        " pid INTEGER, start_time INTEGER, boot_id TEXT NOT NULL, PRIMARY KEY (run_id, process_id)"
    ),
}
_COLUMNS = {
    "runs": ["run_id", "run_dir", "pid", "started"],
    "processes": ["run_id", "process_id", "kind", "pool", "pid", "start_time", "boot_id"],
}


@attrs.frozen
class ProcessRow:
    """One process of a run.

    Attributes:
        kind: ``"worker"``, ``"template"`` or ``"helper"``.
        pool: The name of its pool.
        pid: The process id; None before its start.
        start_time: See :func:`snakepit_trio._platform.start_time`; None before its start.
    """

    kind: str
    pool: str
    pid: int | None = None
    start_time: int | None = None


@attrs.frozen
class RunRow:
    """One run.

    Attributes:
        run_dir: Its private directory.
        pid: Its host's process id.
        started: Its begin on the wall clock, in seconds since the epoch.
    """

    run_dir: str
    pid: int
    started: float


class Registry:
    """The registry of one state directory. Each run opens it for itself; diagnostics never open it.

    Args:
        directory: The state directory, from ``private_directory``.
        hurried: Whether an event loop waits.

    Raises:
        ConfigError: One of its files does not belong to this user.
        OSError, sqlite3.Error: It can't be used: the disk is full, another process has locked it, or a later version
            has written it.
    """

    def __init__(self, directory: Path, *, hurried: bool = False) -> None:
        path = directory / "registry.sqlite3"
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                check_owner(os.lstat(f"{path}{suffix}"), f"{path}{suffix}")
        os.close(open_own(path, os.O_RDWR | os.O_CREAT))
        try:
            self._db = connect(path, _SHORT_PATIENCE if hurried else _PATIENCE)
        except sqlite3.DatabaseError as exc:
            if isinstance(exc, sqlite3.OperationalError):
                raise
            _put_aside(path, exc)
            self._db = connect(path)
        self._db.execute(f"PRAGMA busy_timeout = {_SHORT_PATIENCE * 1000:.0f}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def begin_run(self, run_id: str, run_dir: Path) -> None:
        """Register a run."""
        row = (run_id, str(run_dir), os.getpid(), time.time())
        self._db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", row)

    def write(self, run_id: str, changes: Mapping[str, ProcessRow | None]) -> None:
        """Update a run's processes by their ids, all or none; None removes a process."""
        with self._transaction():
            for process_id, row in changes.items():
                if row is None:
                    self._db.execute("DELETE FROM processes WHERE run_id = ? AND process_id = ?", (run_id, process_id))
                else:
                    self._db.execute(
                        "INSERT OR REPLACE INTO processes VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (run_id, process_id, row.kind, row.pool, row.pid, row.start_time, boot_id()),
                    )

    def end_run(self, run_id: str) -> None:
        """Remove a run and its processes."""
        with self._transaction():
            self._db.execute("DELETE FROM processes WHERE run_id = ?", (run_id,))
            self._db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))

    def runs(self) -> dict[str, RunRow]:
        """Return all runs by id. A malformed row is reported and removed."""
        found = {}
        for rowid, run_id, *row in self._db.execute("SELECT rowid, run_id, run_dir, pid, started FROM runs").fetchall():
            if isinstance(run_id, str) and is_run_id(run_id) and list(map(type, row)) == [str, int, float]:
                found[run_id] = RunRow(*row)
            else:
                _log.warning("the registry of processes has a run that makes no sense: %.100r", run_id)
                self._db.execute("DELETE FROM runs WHERE rowid = ?", (rowid,))
        return found

    def processes(self, run_id: str) -> dict[str, ProcessRow]:
        """Return the processes of a run, by id, that were started in this boot or were about to be."""
        return read_processes(self._db, run_id)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back itself, as on a full disk.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def is_run_id(value: str) -> bool:
    """Return whether a string may be a run's id; paths are built from it."""
    return re.fullmatch(r"[0-9A-Za-z_]{1,64}", value) is not None


def connect(path: Path, patience: float = _PATIENCE) -> sqlite3.Connection:
    """Open and check a registry; ``patience`` is the wait for a lock, in seconds.

    Raises:
        sqlite3.OperationalError: It can't be used as it is.
        sqlite3.DatabaseError: It is not a registry, or corrupt.
    """
    db = sqlite3.connect(path, timeout=patience, isolation_level=None)
    # One malformed text must not make the others unreadable.
    db.text_factory = lambda data: data.decode(errors="backslashreplace")
    try:
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        if version > _FORMAT:
            raise sqlite3.OperationalError(f"a later version of this library has written it (format {version})")
        for table, names in _COLUMNS.items():
            found = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            if found and found != names:
                raise sqlite3.DatabaseError(f"its table {table!r} has the columns {', '.join(found)}")
        # A power failure ends all processes, so nothing has to reach the disk at once.
        db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;")
        for table, columns in _TABLES.items():
            db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
        if version < _FORMAT:
            db.execute(f"PRAGMA user_version = {_FORMAT}")
        [(verdict,)] = db.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    except BaseException:
        db.close()
        raise
    return db


def read_processes(db: sqlite3.Connection, run_id: str) -> dict[str, ProcessRow]:
    """See :meth:`Registry.processes`."""
    rows = db.execute(
        "SELECT process_id, kind, pool, pid, start_time, boot_id FROM processes WHERE run_id = ?", (run_id,)
    ).fetchall()
    found = {}
    now = boot_id()
    for process_id, kind, pool, pid, started, boot in rows:
        fits = all(isinstance(text, str) for text in (process_id, kind, pool, boot))
        if not fits or not all(number is None or type(number) is int for number in (pid, started)):
            _log.warning("run %s has a process in the registry that makes no sense: %.100r", run_id, process_id)
        elif boot == now:
            found[process_id] = ProcessRow(kind, pool, pid, started)
    return found


def _put_aside(path: Path, exc: Exception) -> None:
    """Move a corrupt file aside. Its content is lost; the lifelines are the first safeguard."""
    aside = path.with_name(f"{path.name}.spoilt-{time.time_ns()}")
    _log.warning("%s can't be read (%s): it is kept as %s, and begun anew", path, exc, aside.name)
    os.replace(path, aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")
    os.close(open_own(path, os.O_RDWR | os.O_CREAT))
