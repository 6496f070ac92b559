"""The locks of runs: one file per run in the state directory, locked while the run lives.

The system releases a lock when its process ends, in any way. So a free lock belongs to a dead run, and the process that
takes it may remove what that run has left. The file describes the run in a line of JSON; see :mod:`.runs`.
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
        ConfigError: The directory of the locks does not belong to this user.
        OSError: It can't be created.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = private_directory(directory / "runs")

    def begin(self, run_id: str, run_dir: Path) -> int:
        """Create and hold the lock of a new run. Returns its descriptor; closing it ends the run.

        Raises:
            OSError: The file can't be created or written.
        """
        path = self._path(run_id)
        # An existing file was not created for this run, because no other run has its id.
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
        """Return whether the file of a lock is still at its path."""
        try:
            return os.path.samestat(os.lstat(self._path(run_id)), os.fstat(fd))
        except OSError:
            return False

    def seize(self, run_id: str) -> int | None:
        """Take the lock of a dead run; None if the run lives, another process has the lock, or the file does not belong to
        this user.
        """
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
        """Remove the files of an ended run; a file that can't be removed stays."""
        for path in (self._directory / f"{run_id}.sock", self._path(run_id)):
            with contextlib.suppress(OSError):
                path.unlink()

    def control_path(self, run_id: str, run_dir: Path) -> Path:
        """Return the path of a run's control socket."""
        return control_path(self._directory, run_id, run_dir)

    def _path(self, run_id: str) -> Path:
        return self._directory / f"{run_id}.lock"


def _open(path: Path, flags: int = 0) -> int:
    """Open a lock's file. Forks of this process do not get it, because they would hold the lock as long as they live."""
    with _forks.unforked():
        return _forks.keep(open_own(path, os.O_RDWR | os.O_CREAT | flags))
