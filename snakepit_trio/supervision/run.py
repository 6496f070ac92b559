"""One live run: its private directory, and its records in the state directory.

Both may be lost during its life: a cleaner removes old files, a disk is full, another process locks the registry or
writes garbage into it. No worker depends on them. The run remembers its records, and writes them again with the next
change when that is possible.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from snakepit_trio import _forks, _platform
from snakepit_trio.errors import ConfigError

from .leftovers import Swept, sweep
from .locks import Locks
from .process_registry import ProcessRow, Registry
from .run_directory import RunDirectory
from .state_directory import private_directory, state_directory

__all__ = ["Records", "Run", "open_run"]

_log = logging.getLogger(__name__)

#: Seconds. After a failed write, no other is tried for this time.
_PAUSE = 1.0
_FAILURES = (sqlite3.Error, OSError, ConfigError)


class Records:
    """A run's records in the state directory: its lock and its processes.

    Args:
        directory: The state directory.
        run_id, run_dir: The run's id and private directory.

    Attributes:
        control: The path of the run's control socket.
        swept: What dead runs had left when this one began.

    Raises:
        ConfigError: The state directory does not belong to this user.
        OSError: The lock can't be created.
    """

    def __init__(self, directory: Path, run_id: str, run_dir: Path) -> None:
        self._directory = private_directory(directory)
        self._run_id = run_id
        self._run_dir = run_dir
        self._book: dict[str, ProcessRow] = {}
        self._written: set[str] = set()
        self._changed: set[str] = set()
        self._registry: Registry | None = None
        self._failing = False
        self._next_try = 0.0
        self.swept: list[Swept] = []
        self._locks = Locks(self._directory)
        self._lock = self._locks.begin(run_id, run_dir)
        self.control: Path = self._locks.control_path(run_id, run_dir)
        try:
            with self._told():
                self.swept = sweep(self._directory, self._locks, self._open(hurried=False))
        except BaseException:
            self.close()
            raise

    def change(self, process_id: str, row: ProcessRow | None) -> None:
        """Record the state of a process; None: it has ended. Never raises: a failed write is made up later."""
        if row is not None:
            self._book[process_id] = row
        else:
            self._book.pop(process_id, None)
        self._changed.add(process_id)
        self._changed &= self._book.keys() | self._written
        if not self._changed or time.monotonic() < self._next_try:
            return
        with self._told():
            if not self._locks.stands(self._run_id, self._lock):
                self._begin_again()
            self._write(self._registry or self._open())

    def restore(self) -> None:
        """Register the run again if a cleaner has removed the state directory or its content. Never raises."""
        if not self._locks.stands(self._run_id, self._lock) and time.monotonic() >= self._next_try:
            with self._told():
                self._begin_again()
                self._write(self._open())

    def row(self, process_id: str) -> ProcessRow | None:
        """Return the state of a process."""
        return self._book.get(process_id)

    def close(self) -> None:
        """Remove the records of the ended run, and release the lock. Idempotent."""
        if self._lock < 0:
            return
        # Each step runs even if another one fails.
        with contextlib.ExitStack() as steps:
            steps.callback(self._give_lock_back)
            steps.callback(self._close_registry)
            steps.callback(self._locks.remove, self._run_id)
            with contextlib.suppress(*_FAILURES):
                (self._registry or self._open()).end_run(self._run_id)

    def _give_lock_back(self) -> None:
        lock, self._lock = self._lock, -1
        _forks.close(lock)

    def _open(self, *, hurried: bool = True) -> Registry:
        registry = Registry(self._directory, hurried=hurried)
        try:
            registry.begin_run(self._run_id, self._run_dir)
        except BaseException:
            registry.close()
            raise
        self._registry = registry
        self._written.clear()
        self._changed.update(self._book)
        return registry

    def _begin_again(self) -> None:
        """Create the state directory, or its content, again after it was removed."""
        _log.warning("the state directory %s was cleaned up; this run is registered again", self._directory)
        self._close_registry()
        private_directory(self._directory)
        self._locks = Locks(self._directory)
        before, self._lock = self._lock, self._locks.begin(self._run_id, self._run_dir)
        _forks.close(before)

    def _write(self, registry: Registry) -> None:
        registry.write(self._run_id, {process_id: self._book.get(process_id) for process_id in self._changed})
        self._written = set(self._book)
        self._changed.clear()

    def _close_registry(self) -> None:
        if self._registry is not None:
            self._registry.close()
            self._registry = None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Report a failure once, until the operation succeeds again; meanwhile it is not tried all the time."""
        try:
            yield
        except _FAILURES as exc:
            if not isinstance(exc, sqlite3.OperationalError):
                # Corrupt, or gone: it is opened again.
                self._close_registry()
            if not self._failing:
                _log.warning("the registry of processes in %s can't be written: %s", self._directory, exc)
            self._failing = True
            self._next_try = time.monotonic() + _PAUSE
        else:
            self._failing = False


class Run:
    """One live run and the book of its processes; see :class:`snakepit_trio.launch.base.ProcessBook`.

    Args:
        run_id: A random id, unique on this machine.
        run_dir: See below.
        records: Its records; None without a usable state directory.
        directory: Maintains its directory.

    Attributes:
        run_id: The id.
        run_dir: A directory private to this user (0700), short enough for socket paths, removed at the end.
        control: The path of its control socket; None without a usable state directory, because no command would find
            it.
        swept: What dead runs had left when this one began.
    """

    def __init__(
        self,
        run_id: str,
        run_dir: Path,
        records: Records | None = None,
        directory: RunDirectory | None = None,
    ) -> None:
        self.run_id = run_id
        self.run_dir = run_dir
        self.control: Path | None = None if records is None else records.control
        self.swept: list[Swept] = [] if records is None else records.swept
        self._records = records
        self._directory = directory

    def reserve(self, process_id: str, kind: str, pool: str) -> None:
        """Record that a process is about to be started, and ensure that the run's directory exists."""
        self._restore_directory()
        if self._records is not None:
            self._records.change(process_id, ProcessRow(kind, pool))

    def restore(self) -> None:
        """Create the run's directories again if a cleaner has removed them, and register the run again. Never raises."""
        self._restore_directory()
        if self._records is not None:
            self._records.restore()

    def _restore_directory(self) -> None:
        if self._directory is not None:
            try:
                self._directory.restore()
            except (OSError, ConfigError) as exc:
                # Operations that need the directory fail and name it.
                _log.warning("the run's directory %s can't be made again: %s", self.run_dir, exc)

    def begun(self, process_id: str, pid: int) -> None:
        """Record that a process exists."""
        if self._records is not None:
            row = self._records.row(process_id)
            if row is not None:
                self._records.change(process_id, attrs.evolve(row, pid=pid, start_time=_platform.start_time(pid)))

    def ended(self, process_id: str) -> None:
        """Record that a process has ended."""
        if self._records is not None:
            self._records.change(process_id, None)


@contextmanager
def open_run(state_dir: str | None = None) -> Iterator[Run]:
    """Begin a run: remove what dead runs have left, and register this one.

    Its lock is held until the block ends, or the process does. Without a usable state directory (another user's, a
    read-only or full disk) the run continues unregistered, with a warning.

    Raises:
        ConfigError: No directory for its sockets can be created.
    """
    run_id = secrets.token_hex(5)
    host = os.getpid()
    directory = RunDirectory(run_id)
    records = None
    try:
        try:
            records = Records(state_directory(state_dir), run_id, directory.path)
        except (OSError, ConfigError) as exc:
            _log.warning("this run is not registered: %s", exc)
        run = Run(run_id, directory.path, records, directory)
        for swept in run.swept:
            if swept.pids:
                _log.warning("ended processes %s of run %s, whose host was killed", list(swept.pids), swept.run_id)
        yield run
    finally:
        # A fork of the host does not own the run.
        if os.getpid() == host:
            with contextlib.ExitStack() as steps:
                # Each is tried twice, because no other code does it if it fails.
                ends = [directory.close, directory.close]
                if records is not None:
                    ends += [records.close, records.close]
                for end in ends:
                    steps.callback(end)
