"""What killed runs have left: found, and cleared away.

A run is dead when its lock is free. Of its processes those are ended that are certainly its own: they belong to this user, say
that they are the run's, in their environment or on their command line, and besides

- they are the very process that was written down, with the same start time in the same boot;
- or they run a worker or a template of the run, and their program is the interpreter that they name;
- or they are the process that was about to be written down, by the worker's id in its environment;
- or they are in the process group of one of those, as what a worker starts is.

What only says that it is a run's, like a shell into which somebody has copied a worker's environment, is left alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

from snakepit_trio import _forks

from .identity import Seen, is_older, kill_tree, own_processes
from .locks import Locks
from .process_registry import ProcessRow, Registry, RunRow, connect, is_run_id, read_processes
from .runs import RunEntry, list_runs
from .state_directory import private_directory

__all__ = ["Swept", "clear", "look", "sweep"]

#: A lock file in which nothing is written belongs to a run that is just being opened, for so long, in seconds.
_OPENING = 60.0


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


def clear(directory: Path) -> list[Swept]:
    """Clear away what dead runs have left in a state directory; nothing where there is none.

    Raises:
        ConfigError: It is not this user's.
        OSError, sqlite3.Error: It can't be used.
    """
    if not directory.exists():
        return []
    directory = private_directory(directory)
    registry = Registry(directory)
    try:
        return sweep(directory, Locks(directory), registry)
    finally:
        registry.close()


def sweep(directory: Path, locks: Locks, registry: Registry) -> list[Swept]:
    """Clear away what dead runs have left.

    Args:
        directory: The state directory.
        locks: Its locks.
        registry: Its registry.
    """
    found: list[Swept] = []
    dead = _not_alive(directory, registry.runs())
    seen = list(own_processes()) if dead else []
    for run_id, run_dir in dead.items():
        lock = locks.seize(run_id)
        if lock is None:
            continue
        try:
            left = left_by(run_id, registry.processes(run_id), seen)
            killed = [pid for pid, started in left.items() if kill_tree(pid, started)]
            place = _run_dir_of(run_id, run_dir)
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
            registry.end_run(run_id)
            locks.remove(run_id)
            found.append(Swept(run_id, tuple(sorted(killed)), place))
        finally:
            _forks.close(lock)
    return found


def look(directory: Path) -> list[Swept]:
    """What :func:`clear` would clear away. Nothing is changed: the registry is read from a copy.

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
        db = connect(Path(place) / "registry.sqlite3")
        try:
            seen = list(own_processes())
            return [
                Swept(
                    run.run_id,
                    tuple(sorted(left_by(run.run_id, read_processes(db, run.run_id), seen))),
                    _run_dir_of(run.run_id, run.run_dir),
                )
                for run in dead
            ]
        finally:
            db.close()


def left_by(run_id: str, written: Mapping[str, ProcessRow], seen: Collection[Seen]) -> dict[int, int]:
    """The processes of a dead run among those that were seen: their start times by pid.

    Args:
        run_id: Which run.
        written: What the registry knows of its processes.
        seen: The processes of this user.
    """
    identities = {(row.pid, row.start_time) for row in written.values()}
    unborn = {process_id for process_id, row in written.items() if row.pid is None}
    ours: dict[int, int] = {}
    members: list[Seen] = []
    for process in seen:
        program = process.is_program_of(run_id)
        if not program and not process.says(SNAKEPIT_RUN_ID=run_id):
            continue
        if (
            program
            or (process.pid, process.started) in identities
            or any(process.says(SNAKEPIT_WORKER_ID=worker) and process.group == process.pid for worker in unborn)
        ):
            ours[process.pid] = process.started
        else:
            members.append(process)
    # The number of a group is not given away while anybody is in it, be its leader dead or alive.
    groups = ours | {row.pid: row.start_time for row in written.values() if row.pid and row.start_time}
    return ours | {
        process.pid: process.started
        for process in members
        if process.started >= groups.get(process.group, process.started + 1)
    }


def _not_alive(directory: Path, written: Mapping[str, RunRow]) -> dict[str, str]:
    """The runs that may be dead, with their directories: those in the registry, and those that have only a lock."""
    locked = {entry.run_id: entry for entry in list_runs(directory)}
    found = {}
    for run_id, row in written.items():
        # A live run whose lock file was taken, by a cleaner, has its host still.
        if not locked[run_id].alive if run_id in locked else not is_older(row.pid, row.started):
            found[run_id] = row.run_dir
    for run_id, entry in locked.items():
        if run_id not in found and not entry.alive and is_run_id(run_id) and not _is_opening(directory, entry):
            found[run_id] = entry.run_dir
    return found


def _is_opening(directory: Path, entry: RunEntry) -> bool:
    if entry.pid:
        return False
    try:
        return time.time() - (directory / "runs" / f"{entry.run_id}.lock").stat().st_mtime < _OPENING
    except OSError:
        return True


def _run_dir_of(run_id: str, path: str) -> str | None:
    """The directory of a run, if there is one at this path that a run of this user has made."""
    if not os.path.isabs(path) or not os.path.basename(path).startswith(f"snakepit-{run_id}-"):
        return None
    try:
        facts = os.lstat(path)
    except (OSError, ValueError):
        return None
    return path if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() else None
