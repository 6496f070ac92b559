"""Which process a process id means, and whether that is one of ours: an id is used again, an id with its start time and the
system's boot is not; what a process says of itself is only words, unless its program is ours too."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import attrs
import psutil

from snakepit_trio import _platform
from snakepit_trio._platform import Identity

__all__ = ["Seen", "is_older", "kill_tree", "own_processes"]

#: How long a killed process may take to be gone, in seconds; one that stays longer hangs in the kernel.
_GONE = 2.0
#: By so much the wall clock may have been set in between, in seconds.
_CLOCK_MOVES = 60.0
#: The modules that our processes run.
_PROGRAMS = ("snakepit_trio.worker", "snakepit_trio.launch.template")


def is_older(pid: int, moment: float) -> bool:
    """Whether there is a process of this id that was there at a moment of the wall clock, in seconds since the epoch."""
    try:
        return psutil.Process(pid).create_time() <= moment + _CLOCK_MOVES
    except (psutil.Error, OSError, ValueError, OverflowError):
        return False


@attrs.frozen
class Seen:
    """One process of this user's, as the system shows it.

    Attributes:
        pid: Its id.
        started: See :class:`snakepit_trio._platform.Identity`.
        group: Its process group.
        program: The file that it runs.
        argv: Its command line.
        environment: What it was started with, as ``NAME=VALUE``.
    """

    pid: int
    started: int
    group: int
    program: str
    argv: tuple[str, ...]
    environment: frozenset[str]

    def is_program_of(self, run_id: str) -> bool:
        """Whether it is a worker or a template of a run: its program is the interpreter that it names, and runs one of
        our modules for that run."""
        argv = self.argv
        try:
            at = argv.index("--run")
        except ValueError:
            return False
        if at < 3 or argv[at - 1] not in _PROGRAMS or argv[at + 1 : at + 2] != (run_id,):
            return False
        # As launch/interpreter.py starts it: as a module, or by a line of code that finds this package.
        started = argv[at - 2] == "-m" or (at > 4 and argv[at - 4] == "-c" and "snakepit_trio" in argv[at - 3])
        return started and os.path.realpath(argv[0]) == self.program

    def says(self, **variables: str) -> bool:
        """Whether it was started with these environment variables."""
        return all(f"{name}={value}" in self.environment for name, value in variables.items())


def own_processes() -> Iterator[Seen]:
    """The processes of this user, but for this one and those that it descends from."""
    return (Seen(*facts) for facts in _platform.own_processes())


def kill_tree(pid: int, started: int) -> bool:
    """End a process, and the group that it leads, if it is the one that was started then. Waits until it is gone.

    Returns whether there was such a process.
    """
    try:
        # From here on the id can't come to mean another process unseen.
        process = _platform.open_process(pid)
    except OSError:
        return False
    try:
        if not _platform.is_same(Identity(pid, started)):
            return False
        try:
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            process.send_signal(signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        process.ended(_GONE)
        return True
    finally:
        process.close()
