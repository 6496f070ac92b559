"""Which process a process id means, and whether that is one of ours: an id is used again, an id with its start time and the
system's boot is not; what a process says of itself is only words, unless its program is ours too."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator

import attrs
import psutil

from snakepit_trio import _processes
from snakepit_trio._processes import stat_of

__all__ = ["Seen", "boot_id", "is_older", "kill_tree", "own_processes", "start_time"]

#: How long a killed process may take to be gone, in seconds; one that stays longer hangs in the kernel.
_GONE = 2.0
#: By so much the wall clock may have been set in between, in seconds.
_CLOCK_MOVES = 60.0
#: The modules that our processes run.
_PROGRAMS = ("snakepit_trio.worker", "snakepit_trio.launch.template")


def boot_id() -> str:
    """What tells this boot of the system from all others."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return f"boot-{psutil.boot_time():.0f}"


def start_time(pid: int) -> int | None:
    """When the process was started, in the system's own unit; None when there is no such process."""
    if sys.platform == "linux":
        return _processes.start_time(pid)
    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None


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
        started: See :func:`start_time`.
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
    """The processes of this user, but for this one and those that it descends from. Nothing where there is no ``/proc``."""
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return
    ancestry = _ancestry()
    for pid in map(int, names):
        if pid not in ancestry:
            # It has ended meanwhile, or hides what it is.
            with contextlib.suppress(OSError, IndexError, ValueError):
                found = _see(pid)
                if found is not None:
                    yield found


def _ancestry() -> set[int]:
    found, pid = set(), os.getpid()
    with contextlib.suppress(OSError, IndexError):
        while pid and pid not in found:
            found.add(pid)
            pid = int(stat_of(pid)[1])
    return found


def _see(pid: int) -> Seen | None:
    user = os.geteuid()
    if os.stat(f"/proc/{pid}").st_uid != user:
        return None
    before = stat_of(pid)
    with open(f"/proc/{pid}/status", "rb") as file:
        users = next((line for line in file if line.startswith(b"Uid:")), b"").split()[1:]
    if {int(number) for number in users} != {user}:
        return None
    program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        argv = tuple(map(os.fsdecode, file.read().split(b"\0")[:-1]))
    with open(f"/proc/{pid}/environ", "rb") as file:
        environment = frozenset(map(os.fsdecode, file.read().split(b"\0")[:-1]))
    started = int(before[19])
    if start_time(pid) != started:
        return None
    return Seen(pid, started, int(before[2]), program, argv, environment)


def kill_tree(pid: int, started: int) -> bool:
    """End a process, and the group that it leads, if it is the one that was started then. Waits until it is gone.

    Returns whether there was such a process.
    """
    try:
        # From here on the id can't come to mean another process without this descriptor telling.
        pidfd = os.pidfd_open(pid)
    except (OSError, AttributeError):
        return False
    try:
        if start_time(pid) != started:
            return False
        try:
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(_GONE * 1000)
        return True
    finally:
        os.close(pidfd)
