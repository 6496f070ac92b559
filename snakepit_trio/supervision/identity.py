"""Identification of processes, and the check whether a process belongs to a run.

A process id is reused; the id together with its start time and the system's boot is unique. What a process says of
itself counts only if its program is one of this package's too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import attrs
import psutil

from snakepit_trio import _platform
from snakepit_trio._platform import Identity

__all__ = ["Seen", "is_older", "kill_tree", "own_processes"]

#: Seconds. The time in which a killed process must be gone; one that stays longer hangs in the kernel.
_GONE = 2.0
#: Seconds. The largest assumed change of the wall clock.
_CLOCK_MOVES = 60.0
#: The modules that processes of this package run.
_PROGRAMS = ("snakepit_trio.worker", "snakepit_trio.launch.template")


def is_older(pid: int, moment: float) -> bool:
    """Return whether a process with this id existed at a moment of the wall clock, in seconds since the epoch."""
    try:
        return psutil.Process(pid).create_time() <= moment + _CLOCK_MOVES
    except (psutil.Error, OSError, ValueError, OverflowError):
        return False


@attrs.frozen
class Seen:
    """A process of this user.

    Attributes:
        pid: The process id.
        started: See :class:`snakepit_trio._platform.Identity`.
        group: The process group.
        program: The file that it runs.
        argv: The command line.
        environment: The initial environment, as ``NAME=VALUE``.
    """

    pid: int
    started: int
    group: int
    program: str
    argv: tuple[str, ...]
    environment: frozenset[str]

    def is_program_of(self, run_id: str) -> bool:
        """Return whether it is a worker or a template of a run: its program is the interpreter that its command line
        names, and runs one of this package's modules for that run.
        """
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
        """Return whether it was started with these environment variables."""
        return all(f"{name}={value}" in self.environment for name, value in variables.items())


def own_processes() -> Iterator[Seen]:
    """Yield the processes of this user, except this one and its ancestors."""
    return (Seen(*facts) for facts in _platform.own_processes())


def kill_tree(pid: int, started: int) -> bool:
    """Kill a process and the group that it leads, if it is the process that was started at that time. Waits until it is
    gone.

    Returns whether there was such a process.
    """
    try:
        # From here on a reuse of the id would be noticed.
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
