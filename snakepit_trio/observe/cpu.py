"""How much CPU time a process of this machine has used."""

from __future__ import annotations

import time

from .memory import family

__all__ = ["cpu_time", "cpu_time_of_family"]


def cpu_time(pid: int) -> float | None:
    """CPU time of a process, all its threads, in seconds; None when it has gone, or the system does not tell."""
    try:
        # The id that Linux gives to the clock of another process, as clock_getcpuclockid(3) does: 2 is CPUCLOCK_SCHED.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return None


def cpu_time_of_family(pid: int) -> float | None:
    """The same of a process and its descendants. It falls when one of them ends."""
    found = [used for member in family(pid) if (used := cpu_time(int(member))) is not None]
    return sum(found) if found else None
