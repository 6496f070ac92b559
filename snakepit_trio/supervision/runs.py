"""The runs of a state directory, read without opening anything for writing, creating or changing anything.

Each live run holds a lock on its own file (see :mod:`snakepit_trio.supervision.locks`), which describes the run in a
line of JSON. The lock shows whether the run lives, even if its process id has been reused.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import attrs

from snakepit_trio._platform import SOCKET_PATH_MAX
from snakepit_trio.errors import ConfigError

from .state_directory import open_own

__all__ = ["RunEntry", "control_path", "describe_run", "list_runs"]

#: A lock file is one line; a longer file is not one.
_LONGEST = 16 * 1024
#: Seconds. For this time an empty and unlocked lock file belongs to a run that is beginning.
_BEGINNING = 5.0
#: The largest path of a Unix socket in bytes, without the final NUL of ``sun_path``; see unix(7).
LONGEST_SOCKET_PATH = SOCKET_PATH_MAX


@attrs.frozen(kw_only=True)
class RunEntry:
    """One run.

    Attributes:
        run_id: The id.
        alive: Whether its host holds the lock. The host of another run was killed, and the next run removes what it
            left.
        pid: The host's process id; 0 if unknown.
        started: Wall-clock time, in seconds since the epoch; 0.0 if unknown.
        program: The host program's name, without path and arguments.
        run_dir: Its private directory.
        control: The path of its control socket; ``""`` if unknown.
        python: The host's version of Python.
    """

    run_id: str
    alive: bool
    pid: int = 0
    started: float = 0.0
    program: str = ""
    run_dir: str = ""
    control: str = ""
    python: str = ""


def control_path(locks: Path, run_id: str, run_dir: Path) -> Path:
    """Return the path of a run's control socket: beside its lock, or in its short directory if that path would be too
    long.
    """
    path = Path(os.path.abspath(locks / f"{run_id}.sock"))
    return path if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH else run_dir / "control.sock"


def describe_run(run_id: str, run_dir: Path, control: Path) -> bytes:
    """Return the content of a run's lock file. It contains only the program's name, because arguments may be secret."""
    found = {
        "run_id": run_id,
        "pid": os.getpid(),
        "started": time.time(),
        "program": os.path.basename(sys.argv[0]) if sys.argv else "",
        "run_dir": str(run_dir),
        "control": str(control),
        "python": platform.python_version(),
    }
    return json.dumps(found).encode() + b"\n"


def list_runs(directory: Path) -> list[RunEntry]:
    """Return the runs of a state directory, oldest first; none if there is no such directory."""
    found = []
    try:
        names = [name for name in os.listdir(directory / "runs") if name.endswith(".lock")]
    except OSError:
        return []
    for name in names:
        entry = _read(directory / "runs" / name)
        if entry is not None:
            found.append(entry)
    return sorted(found, key=lambda entry: (entry.started, entry.run_id))


def _read(path: Path) -> RunEntry | None:
    try:
        fd = open_own(path, os.O_RDONLY)
    except (OSError, ConfigError):
        return None  # It has ended meanwhile, or is another user's file.
    try:
        data = os.read(fd, _LONGEST)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            alive = True
        else:
            alive = False
            facts = os.fstat(fd)
            # It has just ended, or is just beginning: the lock is taken before anything is written.
            if not facts.st_nlink or (not data and time.time() - facts.st_mtime < _BEGINNING):
                return None
    finally:
        os.close(fd)
    try:
        said: Any = json.loads(data) if data else {}
    except ValueError:
        said = {}
    if not isinstance(said, dict):
        said = {}
    known: dict[str, Any] = {}
    for field in attrs.fields(RunEntry):
        value = said.get(field.name)
        if field.name not in ("run_id", "alive") and type(value) is type(field.default):
            known[field.name] = value
    return RunEntry(run_id=path.stem, alive=alive, **known)
