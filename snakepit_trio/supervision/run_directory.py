"""A run's private directory for its sockets: created, protected against cleaners, and created again if removed."""

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

#: A socket's name and the random suffix of the directory take 26 of the 107 bytes of ``sun_path``; see unix(7).
_LONGEST = 80


class RunDirectory:
    """A new directory for one run, private to its user (0700), short enough for socket paths.

    It holds a shared lock on the directory, because systemd-tmpfiles leaves locked directories alone; see
    https://systemd.io/TEMPORARY_DIRECTORIES.

    Args:
        run_id: The run's id; the directory's name contains it, and the host's pid.

    Attributes:
        path: The path.

    Raises:
        ConfigError: No directory can be created; the error names the places that were tried.
    """

    def __init__(self, run_id: str) -> None:
        # The pid identifies the owner of the directory while its run is starting and has left no other sign.
        self.path: Path = _make(f"snakepit-{run_id}-{os.getpid()}-")
        try:
            self._fd = self._hold()
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def __repr__(self) -> str:
        return f"<RunDirectory {str(self.path)!r}>"

    def restore(self) -> None:
        """Create the directory again at the same path if it was removed.

        Raises:
            ConfigError: Another user's file is in its place.
            OSError: It can't be created.
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
        """Remove the directory and its content. Idempotent."""
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
    # A directory may be usable even if a socket's path is too long, because workers can listen on TCP.
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
    """Yield the possible parents of a run's directory, best first. A path without a UTF-8 form can't be sent to a worker."""
    places = []
    with contextlib.suppress(FileNotFoundError):
        places.append(tempfile.gettempdir())
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    places += ["/tmp", "/var/tmp", *([runtime] if os.path.isabs(runtime) else []), "/dev/shm"]
    for place in dict.fromkeys(places):
        with contextlib.suppress(UnicodeEncodeError):
            place.encode()
            yield place
