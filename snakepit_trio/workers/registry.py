"""A run on this machine: its identity, its private directories, and the lock that tells whether it lives."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

__all__ = ["Run", "open_run", "state_directory", "sweep"]

_log = logging.getLogger(__name__)

#: A socket's name and the random end of the directory's take 26 of the 107 bytes.
_LONGEST_RUN_DIR = 80


@attrs.frozen
class Run:
    """One live run.

    Attributes:
        run_id: Random, unique on this machine.
        run_dir: Private to this user (0700), short enough for socket paths, removed at the end.
    """

    run_id: str
    run_dir: Path


def state_directory(state_dir: str | None) -> Path:
    """Where runs are registered: the given directory, ``$SNAKEPIT_STATE_DIR``, or the user's state directory."""
    import platformdirs

    chosen = state_dir or os.environ.get("SNAKEPIT_STATE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_state_dir("snakepit_trio"))


@contextmanager
def open_run(state_dir: str | None = None) -> Iterator[Run]:
    """Begin a run. Its lock is held until the block ends, or until the process does, however that ends."""
    run_id = secrets.token_hex(5)
    run_dir = _short_directory(f"snakepit-{run_id}-")
    lock = _lock(state_directory(state_dir), run_id, run_dir)
    try:
        yield Run(run_id, run_dir)
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
        if lock is not None:
            path, fd = lock
            path.unlink(missing_ok=True)
            os.close(fd)


def _short_directory(prefix: str) -> Path:
    """A new private directory whose sockets have paths that fit: ``sun_path`` holds 107 bytes, see unix(7)."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if len(os.fsencode(parent)) + len(prefix) < _LONGEST_RUN_DIR and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    return Path(tempfile.mkdtemp(prefix=prefix))


def _lock(directory: Path, run_id: str, run_dir: Path) -> tuple[Path, int] | None:
    runs = directory / "runs"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        runs.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) & 0o077:
            directory.chmod(0o700)
        sweep(runs)
        path = runs / f"{run_id}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, os.fsencode(run_dir))
    except OSError as exc:
        # A run without a lock works; only what it leaves behind when it is killed is not found later.
        _log.warning("no state directory at %s: %s", directory, exc)
        return None
    return path, fd


def sweep(runs: Path) -> list[str]:
    """Remove what runs have left whose processes were killed. Returns their ids.

    A live run holds the lock of its file, whatever its process id; the system gives it back when the process ends.
    """
    swept = []
    for path in runs.glob("*.lock"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = Path(os.fsdecode(os.read(fd, 4096)))
            # A run that has just made its file, and not locked it yet, has not written its directory either.
            if left.name.startswith(f"snakepit-{path.stem}-") and left.is_absolute():
                shutil.rmtree(left, ignore_errors=True)
                path.unlink(missing_ok=True)
                swept.append(path.stem)
        except OSError:
            continue
        finally:
            os.close(fd)
    return swept
