"""The processes of this user's runs, in a SQLite file, so that a later run can clear away what a killed one has left.

The state directory (0700) holds the file (0600) with the runs, each with its private directory, and their processes, each
with its process id, its start time and the system's boot id, written down before it is started and struck out when it is
reaped. What is done with them is in :mod:`.leftovers`.

This is the second line: workers end with their host by themselves, see ``snakepit_trio.worker.lifeline``.
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

#: How long to wait for another process that has the file locked, in seconds: before a run begins, and while its event loop
#: waits, too. What a run writes takes far less.
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
        pool: Its pool.
        pid: Its process id; None before it has been started.
        start_time: See :func:`snakepit_trio._platform.start_time`; None before it has been started.
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
        started: When it began, on the wall clock, in seconds since the epoch.
    """

    run_dir: str
    pid: int
    started: float


class Registry:
    """The registry of one state directory. Opened by each run for itself, and by nobody for a mere look.

    Args:
        directory: The state directory, as ``private_directory`` gives it.
        hurried: An event loop waits.

    Raises:
        ConfigError: One of its files is not this user's.
        OSError, sqlite3.Error: It can't be used: the disk is full, somebody has it locked, a later version has written it.
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
        """Write a run down."""
        row = (run_id, str(run_dir), os.getpid(), time.time())
        self._db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", row)

    def write(self, run_id: str, changes: Mapping[str, ProcessRow | None]) -> None:
        """Write down how processes of a run stand, by their ids; None: it has ended. All of it or nothing."""
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
        """Strike a run out, with all that belongs to it."""
        with self._transaction():
            self._db.execute("DELETE FROM processes WHERE run_id = ?", (run_id,))
            self._db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))

    def runs(self) -> dict[str, RunRow]:
        """All runs, by run id. A row that makes no sense is told of, and struck out."""
        found = {}
        for rowid, run_id, *row in self._db.execute("SELECT rowid, run_id, run_dir, pid, started FROM runs").fetchall():
            if isinstance(run_id, str) and is_run_id(run_id) and list(map(type, row)) == [str, int, float]:
                found[run_id] = RunRow(*row)
            else:
                _log.warning("the registry of processes has a run that makes no sense: %.100r", run_id)
                self._db.execute("DELETE FROM runs WHERE rowid = ?", (rowid,))
        return found

    def processes(self, run_id: str) -> dict[str, ProcessRow]:
        """The processes of a run that were started since the system was, by their ids, and those that were to be."""
        return read_processes(self._db, run_id)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite may have taken it back itself, as it does on a full disk.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def is_run_id(value: str) -> bool:
    """Whether it may be a run's id: paths are made of it."""
    return re.fullmatch(r"[0-9A-Za-z_]{1,64}", value) is not None


def connect(path: Path, patience: float = _PATIENCE) -> sqlite3.Connection:
    """Open a registry, and check it; ``patience`` is how long to wait for a lock, in seconds.

    Raises:
        sqlite3.OperationalError: It can't be used as it is.
        sqlite3.DatabaseError: It is no registry, or spoilt.
    """
    db = sqlite3.connect(path, timeout=patience, isolation_level=None)
    # Whoever has garbled a text has not garbled the others.
    db.text_factory = lambda data: data.decode(errors="backslashreplace")
    try:
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        if version > _FORMAT:
            raise sqlite3.OperationalError(f"a later version of this library has written it (format {version})")
        for table, names in _COLUMNS.items():
            found = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            if found and found != names:
                raise sqlite3.DatabaseError(f"its table {table!r} has the columns {', '.join(found)}")
        # A power cut needs no clean-up of processes, so nothing has to reach the disk at once.
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
    """It is no registry, or was cut short. What it knew is lost to us; the lifelines were there first."""
    aside = path.with_name(f"{path.name}.spoilt-{time.time_ns()}")
    _log.warning("%s can't be read (%s): it is kept as %s, and begun anew", path, exc, aside.name)
    os.replace(path, aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}{suffix}")
    os.close(open_own(path, os.O_RDWR | os.O_CREAT))
