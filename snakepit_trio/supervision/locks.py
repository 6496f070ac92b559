"""The locks of runs: a file for each, in the state directory, that a live run holds locked.

The system gives a lock back when its process ends, however it ends, so a lock that is free belongs to a dead run, and whoever
takes it may clear away what that run has left. The file says in a line of JSON whose run it is; see :mod:`.runs`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from snakepit_trio import _forks
from snakepit_trio.errors import ConfigError

from .runs import control_path, describe_run
from .state_directory import open_own, private_directory

__all__ = ["Locks"]


class Locks:
    """The lock files of one state directory.

    Args:
        directory: The state directory.

    Raises:
        ConfigError: The folder of the locks is not this user's.
        OSError: It can't be made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = private_directory(directory / "runs")

    def begin(self, run_id: str, run_dir: Path) -> int:
        """Make the lock of a new run, and hold it. Returns its descriptor: closing it is the run's end.

        Raises:
            OSError: It can't be made, or written.
        """
        path = self._path(run_id)
        # Whoever has made one in its place has not made it for this run: nobody else has the id.
        path.unlink(missing_ok=True)
        fd = _open(path, os.O_EXCL)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, describe_run(run_id, run_dir, self.control_path(run_id, run_dir)))
        except BaseException:
            path.unlink(missing_ok=True)
            _forks.close(fd)
            raise
        return fd

    def stands(self, run_id: str, fd: int) -> bool:
        """Whether the file of a lock is still where others look for it."""
        try:
            return os.path.samestat(os.lstat(self._path(run_id)), os.fstat(fd))
        except OSError:
            return False

    def seize(self, run_id: str) -> int | None:
        """Take the lock of a dead run; None when the run lives, somebody else has the lock, or the file is not this user's."""
        try:
            fd = _open(self._path(run_id))
        except (OSError, ConfigError):
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _forks.close(fd)
            return None
        return fd

    def remove(self, run_id: str) -> None:
        """Remove the files of a run that has ended; a file that can't be removed stays."""
        for path in (self._directory / f"{run_id}.sock", self._path(run_id)):
            with contextlib.suppress(OSError):
                path.unlink()

    def control_path(self, run_id: str, run_dir: Path) -> Path:
        """Where a run's control socket is."""
        return control_path(self._directory, run_id, run_dir)

    def _path(self, run_id: str) -> Path:
        return self._directory / f"{run_id}.lock"


def _open(path: Path, flags: int = 0) -> int:
    """A lock's file. A fork of this process does not get it: it would hold the lock for as long as it lives."""
    with _forks.unforked():
        return _forks.keep(open_own(path, os.O_RDWR | os.O_CREAT | flags))
