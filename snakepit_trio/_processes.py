"""What the system tells of processes, where it has a ``/proc``; see proc_pid_stat(5) and proc_tid_children(5)."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

__all__ = ["Identity", "descendants", "in_sessions", "start_time", "stat_of", "was_given"]


class Identity(NamedTuple):
    """A process that no other can be taken for: an id is used again, an id with its start time is not."""

    pid: int
    started: int


def stat_of(pid: int) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` from the third on: state, parent, group, session, ...

    Raises:
        OSError: There is no such process.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The second field is the command in parentheses, which may hold anything.
        return file.read().rpartition(b")")[2].split()


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot, which no change of the clock touches; None: there is none."""
    try:
        return int(stat_of(pid)[19])
    except (OSError, IndexError):
        return None


def descendants(pid: int) -> list[Identity]:
    """The processes that descend from one and are alive. Those whose parent has ended descend from whoever has got them."""
    family, found = [pid], []
    for parent in family:
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    family += map(int, file.read().split())
    for child in family[1:]:
        with contextlib.suppress(OSError, IndexError):
            stat = stat_of(child)
            if stat[0] != b"Z":
                found.append(Identity(child, int(stat[19])))
    return found


def was_given(pid: int, variable: str) -> bool:
    """Whether a process was started with this ``NAME=VALUE`` in its environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return os.fsencode(variable) in file.read().split(b"\0")
    except OSError:
        return False


def in_sessions(sessions: set[int], variable: str) -> list[Identity]:
    """The processes of these sessions that are alive and were started with this ``NAME=VALUE``, which tells them from those of
    another session that has got the same number since."""
    found = []
    try:
        names = os.listdir("/proc") if sessions else []
    except OSError:
        return []  # There is none, or no descriptor to look with.
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = stat_of(int(name))
                if int(stat[3]) in sessions and stat[0] != b"Z" and was_given(int(name), variable):
                    found.append(Identity(int(name), int(stat[19])))
    return found
