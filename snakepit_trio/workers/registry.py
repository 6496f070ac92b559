"""The runs on this machine and their processes, so that a later run can clear away what a killed one has left.

The state directory (0700) holds a SQLite file (0600) with the runs, each with its private directory, and their processes,
each with its process id, its start time and the system's boot id, written down before it is started and struck out when it
is reaped. A live run holds a lock on a file of its own, which the system gives back when the run's process ends, however
it ends: what belongs to a run whose lock is free is swept by whoever comes next. Swept are processes that are the ones
that were written down, or carry the run's id on their command line or in their environment; never a stranger with a
used-again process id, never a live run's.

This is the second line: workers end with their host by themselves, see ``snakepit_trio.worker.lifeline``.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from .identity import boot_id, kill_tree, of_run, start_time
from .runs import control_path, describe_run, list_runs

__all__ = ["Registry", "Run", "Swept", "look", "open_run", "state_directory"]

_log = logging.getLogger(__name__)

#: A socket's name and the random end of the directory's take 26 of the 107 bytes.
_LONGEST_RUN_DIR = 80
#: How long a write waits for another process's, in seconds.
_BUSY = 0.5
#: A lock file whose run is not in the books belongs to one that is just being opened, for so long, in seconds.
_OPENING = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, run_dir TEXT NOT NULL, pid INTEGER NOT NULL, started REAL NOT NULL);
CREATE TABLE IF NOT EXISTS processes (
    run_id TEXT NOT NULL, process_id TEXT NOT NULL, kind TEXT NOT NULL, pool TEXT NOT NULL,
    pid INTEGER, start_time INTEGER, boot_id TEXT NOT NULL, PRIMARY KEY (run_id, process_id)
) WITHOUT ROWID;
"""


@attrs.frozen
class Swept:
    """What one dead run had left, and is gone now.

    Attributes:
        run_id: Which run.
        pids: Its processes that were alive still, and were killed.
        run_dir: Its directory; None when it was gone already.
    """

    run_id: str
    pids: tuple[int, ...]
    run_dir: str | None


def state_directory(state_dir: str | None) -> Path:
    """Where runs are registered: the given directory, ``$SNAKEPIT_STATE_DIR``, or the user's state directory."""
    import platformdirs

    chosen = state_dir or os.environ.get("SNAKEPIT_STATE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_state_dir("snakepit_trio"))


class Registry:
    """The books of one state directory. Opened privately by each run, and by nobody for a mere look.

    Raises:
        OSError, sqlite3.Error: The directory can't be used.
    """

    def __init__(self, directory: Path) -> None:
        self._locks = directory / "runs"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            directory.chmod(0o700)
        self._locks.mkdir(mode=0o700, exist_ok=True)
        path = directory / "registry.sqlite3"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            self._db = self._connect(path)
        except sqlite3.DatabaseError as exc:
            if isinstance(exc, sqlite3.OperationalError):
                raise
            self._put_aside(path, exc)
            self._db = self._connect(path)

    @staticmethod
    def _put_aside(path: Path, exc: Exception) -> None:
        """It is no database, or was cut short. What it knew is lost to us; the lifelines were there first."""
        aside = path.with_name(f"{path.name}.spoilt-{time.time_ns()}")
        _log.warning("%s can't be read (%s): it is kept as %s, and begun anew", path, exc, aside.name)
        os.replace(path, aside)
        for name in (f"{path}-wal", f"{path}-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None)
        try:
            # A power cut needs no clean-up of processes, so nothing has to reach the disk at once.
            db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_SCHEMA}")
            [(verdict,)] = db.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def begin_run(self, run_id: str, run_dir: Path) -> int:
        """Write a run down, and lock it. Returns the lock's descriptor: closing it is the run's end."""
        path = self._lock_path(run_id)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, describe_run(run_id, run_dir, self.control_path(run_id, run_dir)))
            self._db.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", (run_id, str(run_dir), os.getpid(), time.time()))
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(fd)
            raise
        return fd

    def end_run(self, run_id: str) -> None:
        """Strike a run out, with all that belongs to it."""
        self._db.execute("DELETE FROM processes WHERE run_id = ?", (run_id,))
        self._db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))
        self._locks.joinpath(f"{run_id}.sock").unlink(missing_ok=True)
        self._lock_path(run_id).unlink(missing_ok=True)

    def control_path(self, run_id: str, run_dir: Path) -> Path:
        """Where a run's control socket is."""
        return control_path(self._locks, run_id, run_dir)

    def reserve(self, run_id: str, process_id: str, kind: str, pool: str) -> None:
        """A process is about to be started."""
        row = (run_id, process_id, kind, pool, boot_id())
        self._db.execute("INSERT OR REPLACE INTO processes VALUES (?, ?, ?, ?, NULL, NULL, ?)", row)

    def begun(self, run_id: str, process_id: str, pid: int) -> None:
        """It exists."""
        row = (pid, start_time(pid), run_id, process_id)
        self._db.execute("UPDATE processes SET pid = ?, start_time = ? WHERE run_id = ? AND process_id = ?", row)

    def ended(self, run_id: str, process_id: str) -> None:
        """It is over."""
        self._db.execute("DELETE FROM processes WHERE run_id = ? AND process_id = ?", (run_id, process_id))

    def sweep(self) -> list[Swept]:
        """Clear away what dead runs have left."""
        found = []
        for run_id, run_dir in self._db.execute("SELECT run_id, run_dir FROM runs").fetchall():
            lock = self._try_lock(run_id)
            if lock is None:
                continue
            try:
                found.append(self._sweep_run(run_id, Path(run_dir)))
            finally:
                os.close(lock)
        self._sweep_locks()
        return found

    # ---- inside ----------------------------------------------------------------------------------

    def _lock_path(self, run_id: str) -> Path:
        return self._locks / f"{run_id}.lock"

    def _try_lock(self, run_id: str) -> int | None:
        """Take a dead run's lock; None when it lives, or somebody else is sweeping it."""
        try:
            fd = os.open(self._lock_path(run_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd

    def _sweep_run(self, run_id: str, run_dir: Path) -> Swept:
        found = _left_by(self._db, run_id)
        killed = [pid for pid, started in found.items() if kill_tree(pid, started)]
        mine = _is_run_dir(run_dir, run_id)
        if mine:
            shutil.rmtree(run_dir, ignore_errors=True)
        self.end_run(run_id)
        return Swept(run_id, tuple(sorted(killed)), str(run_dir) if mine else None)

    def _sweep_locks(self) -> None:
        """Remove lock files whose runs ended between their first two steps, or their last two."""
        known = {run_id for (run_id,) in self._db.execute("SELECT run_id FROM runs")}
        for path in self._locks.glob("*.lock"):
            with contextlib.suppress(OSError):
                if path.stem not in known and time.time() - path.stat().st_mtime > _OPENING:
                    lock = self._try_lock(path.stem)
                    if lock is not None:
                        try:
                            path.with_suffix(".sock").unlink(missing_ok=True)
                            path.unlink(missing_ok=True)
                        finally:
                            os.close(lock)


def _is_run_dir(run_dir: Path, run_id: str) -> bool:
    return run_dir.is_absolute() and run_dir.name.startswith(f"snakepit-{run_id}-") and run_dir.exists()


def _left_by(db: sqlite3.Connection, run_id: str) -> dict[int, int]:
    """The processes of a dead run that are alive, with their start times."""
    rows = db.execute("SELECT pid, start_time, boot_id FROM processes WHERE run_id = ?", (run_id,)).fetchall()
    now = boot_id()
    alive = {pid: started for pid, started, boot in rows if pid and boot == now and start_time(pid) == started}
    # Those that were being started when the host was killed are in the books without an id, and what workers have started
    # is not in them at all.
    for pid in of_run(run_id):
        started = start_time(pid)
        if started is not None:
            alive[pid] = started
    return alive


def look(directory: Path) -> list[Swept]:
    """What a sweep would clear away. Nothing is changed: the registry is read from a copy.

    Raises:
        OSError, sqlite3.Error: It can't be read.
    """
    dead = [run for run in list_runs(directory) if not run.alive]
    if not dead:
        return []
    with tempfile.TemporaryDirectory(prefix="snakepit-look-") as place:
        for name in ("registry.sqlite3", "registry.sqlite3-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(directory / name, Path(place) / name)
        db = Registry._connect(Path(place) / "registry.sqlite3")
        try:
            return [
                Swept(
                    run.run_id,
                    tuple(sorted(_left_by(db, run.run_id))),
                    run.run_dir if _is_run_dir(Path(run.run_dir), run.run_id) else None,
                )
                for run in dead
            ]
        finally:
            db.close()


class Run:
    """One live run, and the book of its processes; see :class:`snakepit_trio.launch.base.ProcessBook`.

    Attributes:
        run_id: Random, unique on this machine.
        run_dir: Private to this user (0700), short enough for socket paths, removed at the end.
        swept: What dead runs had left when this one began.
        control: Where its control socket is to be; None without a usable state directory, where nobody would find it.
    """

    def __init__(self, run_id: str, run_dir: Path, registry: Registry | None, swept: list[Swept]) -> None:
        self.run_id = run_id
        self.run_dir = run_dir
        self.swept = swept
        self.control: Path | None = None if registry is None else registry.control_path(run_id, run_dir)
        self._registry = registry

    def reserve(self, process_id: str, kind: str, pool: str) -> None:
        """A process is about to be started."""
        if self._registry is not None:
            with self._told():
                self._registry.reserve(self.run_id, process_id, kind, pool)

    def begun(self, process_id: str, pid: int) -> None:
        """It exists."""
        if self._registry is not None:
            with self._told():
                self._registry.begun(self.run_id, process_id, pid)

    def ended(self, process_id: str) -> None:
        """It is over."""
        if self._registry is not None:
            with self._told():
                self._registry.ended(self.run_id, process_id)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as exc:
            _log.warning("the registry of processes can't be written: %s", exc)


@contextmanager
def open_run(state_dir: str | None = None) -> Iterator[Run]:
    """Begin a run: sweep what dead ones have left, write this one down.

    Its lock is held until the block ends, or until the process does, however that ends. Without a usable state directory
    the run goes on unregistered, with a warning.
    """
    run_id = secrets.token_hex(5)
    directory = state_directory(state_dir)
    # The host's pid is for whoever finds it: a run that is only starting has no other sign of whose it is.
    run_dir = _short_directory(f"snakepit-{run_id}-{os.getpid()}-")
    registry = lock = None
    swept: list[Swept] = []
    try:
        try:
            registry = Registry(directory)
            swept = registry.sweep()
            lock = registry.begin_run(run_id, run_dir)
        except (OSError, sqlite3.Error) as exc:
            _log.warning("no state directory at %s: %s", directory, exc)
        for run in swept:
            if run.pids:
                _log.warning("ended processes %s of run %s, whose host was killed", list(run.pids), run.run_id)
        yield Run(run_id, run_dir, registry if lock is not None else None, swept)
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
        if registry is not None:
            if lock is not None:
                with contextlib.suppress(OSError, sqlite3.Error):
                    registry.end_run(run_id)
                os.close(lock)
            registry.close()


def _short_directory(prefix: str) -> Path:
    """A new private directory whose sockets have paths that fit: ``sun_path`` holds 107 bytes, see unix(7)."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if len(os.fsencode(parent)) + len(prefix) < _LONGEST_RUN_DIR and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    return Path(tempfile.mkdtemp(prefix=prefix))
