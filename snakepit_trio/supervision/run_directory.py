"""A run's private directory, in which its sockets are: made, held against those who clean up, and made again."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from snakepit_trio import _forks
from snakepit_trio.errors import ConfigError

__all__ = ["RunDirectory"]

_log = logging.getLogger(__name__)

#: A socket's name and the random end of the directory's take 26 of the 107 bytes that ``sun_path`` has; see unix(7).
_LONGEST = 80


class RunDirectory:
    """A new directory for one run, of its user alone (0700), short enough for paths of sockets.

    A shared lock is held on it: systemd-tmpfiles leaves alone what is locked, see https://systemd.io/TEMPORARY_DIRECTORIES.

    Args:
        run_id: The run's id; the directory's name holds it, and the host's pid.

    Attributes:
        path: Where it is.

    Raises:
        ConfigError: None can be made anywhere; names where it was tried.
    """

    def __init__(self, run_id: str) -> None:
        # The pid is for whoever finds it: a run that is only starting has no other sign of whose it is.
        self.path: Path = _make(f"snakepit-{run_id}-{os.getpid()}-")
        try:
            self._fd = self._hold()
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def __repr__(self) -> str:
        return f"<RunDirectory {str(self.path)!r}>"

    def restore(self) -> None:
        """Make it again if somebody has removed it, at the same path.

        Raises:
            ConfigError: Somebody else has something there.
            OSError: It can't be made.
        """
        try:
            facts = os.lstat(self.path)
        except FileNotFoundError:
            _log.warning("the run's directory %s was removed; it is made again", self.path)
            os.makedirs(self.path.parent, 0o700, exist_ok=True)
            os.mkdir(self.path, 0o700)
        else:
            if os.path.samestat(facts, os.fstat(self._fd)):
                return
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
                raise ConfigError(
                    f"the run's directory {self.path} was removed, and somebody else has put something in its place",
                    details={"source": "code", "key": "TMPDIR", "expected": "a directory that nobody cleans up"},
                )
        fd, self._fd = self._fd, self._hold()
        _forks.close(fd)

    def close(self) -> None:
        """Remove it, with all that is in it. Idempotent."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            shutil.rmtree(self.path, ignore_errors=True)
        finally:
            _forks.close(fd)

    def _hold(self) -> int:
        with _forks.unforked():
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _forks.keep(fd)
            except BaseException:
                os.close(fd)
                raise
        with contextlib.suppress(OSError):  # Some file systems have no locks.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd


def _make(prefix: str) -> Path:
    tried = []
    # Where a socket's path would be too long a directory may do still: workers can be asked to listen on TCP.
    for parent in sorted(_places(), key=lambda place: len(os.fsencode(place)) + len(prefix) > _LONGEST):
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except OSError as exc:
            tried.append(f"{parent} ({exc.strerror})")
    raise ConfigError(
        f"TMPDIR: expected a directory in which files can be made; tried {', '.join(tried)}",
        details={"source": "environment", "key": "TMPDIR", "expected": "a directory in which files can be made"},
    )


def _places() -> Iterator[str]:
    """Where a run's directory may be, the best first. A path that is no text can't be told to a worker."""
    places = []
    with contextlib.suppress(FileNotFoundError):
        places.append(tempfile.gettempdir())
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    places += ["/tmp", "/var/tmp", *([runtime] if os.path.isabs(runtime) else []), "/dev/shm"]
    for place in dict.fromkeys(places):
        with contextlib.suppress(UnicodeEncodeError):
            place.encode()
            yield place
