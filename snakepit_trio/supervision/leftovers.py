"""Finding and removing what killed runs have left.

A run is dead when its lock is free. Only processes that certainly belong to it are ended: they belong to this user,
name the run in their environment or on their command line, and in addition

- are the registered process, with the same start time in the same boot;
- or run a worker or a template of the run, with the interpreter that they name as their program;
- or are the process that was about to be registered, by the worker's id in its environment;
- or are in the process group of one of these, like a worker's children.

A process that only names a run, such as a shell with a copy of a worker's environment, is left alone.
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

#: Seconds. For this time an empty lock file belongs to a run that is being opened.
_OPENING = 60.0


@attrs.frozen
class Swept:
    """The removed remains of one dead run.

    Attributes:
        run_id: The id of the run.
        pids: Its living processes, which were killed.
        run_dir: Its directory; None if it was already gone.
    """

    run_id: str
    pids: tuple[int, ...]
    run_dir: str | None


def clear(directory: Path) -> list[Swept]:
    """Remove what dead runs have left in a state directory; does nothing if there is no such directory.

    Raises:
        ConfigError: The directory does not belong to this user.
        OSError, sqlite3.Error: The directory can't be used.
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
    """Remove what dead runs have left.

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
    """Return what :func:`clear` would remove. Nothing is changed: the registry is read from a copy.

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
    """Return the processes of a dead run among the seen ones: their start times by pid.

    Args:
        run_id: The id of the run.
        written: The registered processes.
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
    # The number of a group is not reused while the group has a member, whether its leader lives or not.
    groups = ours | {row.pid: row.start_time for row in written.values() if row.pid and row.start_time}
    return ours | {
        process.pid: process.started
        for process in members
        if process.started >= groups.get(process.group, process.started + 1)
    }


def _not_alive(directory: Path, written: Mapping[str, RunRow]) -> dict[str, str]:
    """Return the runs that may be dead, with their directories: the registered ones, and those with only a lock."""
    locked = {entry.run_id: entry for entry in list_runs(directory)}
    found = {}
    for run_id, row in written.items():
        # A live run whose lock file was removed by a cleaner still has its host.
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
    """Return the directory of a run at this path, if a run of this user has created it."""
    if not os.path.isabs(path) or not os.path.basename(path).startswith(f"snakepit-{run_id}-"):
        return None
    try:
        facts = os.lstat(path)
    except (OSError, ValueError):
        return None
    return path if stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() else None
