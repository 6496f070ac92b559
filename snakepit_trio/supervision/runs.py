"""The runs of a state directory, for who only looks: nothing is opened for writing, made, or changed.

Each live run holds a lock on a file of its own (see :mod:`snakepit_trio.supervision.locks`), and that file says in a line of
JSON whose run it is. Whether the run lives is told by the lock, whatever the process id has come to mean since.
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

#: A lock file is a line; what is longer is none of ours.
_LONGEST = 16 * 1024
#: An empty lock file that nobody holds belongs to a run that is just beginning, for so long, in seconds.
_BEGINNING = 5.0
#: What the path of a Unix socket may have, in bytes: the last of ``sun_path`` is a NUL; see unix(7).
LONGEST_SOCKET_PATH = SOCKET_PATH_MAX


@attrs.frozen(kw_only=True)
class RunEntry:
    """One run.

    Attributes:
        run_id: Its id.
        alive: Its host holds the lock. Any other was killed, and what it left is cleared away by the next run.
        pid: The host's process id; 0 when that is not known.
        started: Wall-clock time, in seconds since the epoch; 0.0 when that is not known.
        program: The host program's name, without its path and arguments.
        run_dir: Its private directory.
        control: The path of its control socket; ``""`` when that is not known.
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
    """Where a run's control socket is: beside its lock, or in its short directory where that path would be too long."""
    path = Path(os.path.abspath(locks / f"{run_id}.sock"))
    return path if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH else run_dir / "control.sock"


def describe_run(run_id: str, run_dir: Path, control: Path) -> bytes:
    """What a run writes into its lock file. Of the command line only the program's own name: arguments may be secret."""
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
    """The runs of a state directory, the oldest first; none when there is no such directory."""
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
        return None  # It has ended in between, or somebody else has put it there.
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
