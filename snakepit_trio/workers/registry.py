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

__all__ = ["Run", "open_run", "state_directory"]

_log = logging.getLogger(__name__)


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
    run_dir = Path(tempfile.mkdtemp(prefix=f"snakepit-{run_id}-"))
    lock = _lock(state_directory(state_dir), run_id)
    try:
        yield Run(run_id, run_dir)
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
        if lock is not None:
            path, fd = lock
            path.unlink(missing_ok=True)
            os.close(fd)


def _lock(directory: Path, run_id: str) -> tuple[Path, int] | None:
    runs = directory / "runs"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        runs.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(directory.stat().st_mode) & 0o077:
            directory.chmod(0o700)
        path = runs / f"{run_id}.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        # A run without a lock works; only its clean-up after a crash is left to the lifelines alone.
        _log.warning("no state directory at %s: %s", directory, exc)
        return None
    fcntl.flock(fd, fcntl.LOCK_EX)
    return path, fd
