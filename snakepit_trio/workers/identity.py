"""Which process a process id means: an id is used again, an id with its start time and the system's boot is not."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator

import psutil

__all__ = ["boot_id", "kill_tree", "of_run", "start_time"]

#: How long a killed process may take to be gone, in seconds; one that stays longer hangs in the kernel.
_GONE = 2.0


def boot_id() -> str:
    """What tells this boot of the system from all others."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return f"boot-{psutil.boot_time():.0f}"


def start_time(pid: int) -> int | None:
    """When the process was started, in the system's own unit; None when there is no such process.

    On Linux that is field 22 of ``/proc/PID/stat``, clock ticks since the boot, which no change of the clock touches; see
    proc_pid_stat(5).
    """
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                # The second field is the command in parentheses, which may hold anything.
                return int(file.read().rpartition(b")")[2].split()[19])
        except (OSError, IndexError):
            return None
    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None


def of_run(run_id: str) -> Iterator[int]:
    """The ids of this user's processes that say that they belong to a run: on the command line, as a worker or a template
    does, or in the environment, as the processes do that a worker has started."""
    argument = f"\0--run\0{run_id}\0"
    # Whoever asks may have been started by that run itself.
    me = psutil.Process()
    own = {me.pid, *(parent.pid for parent in me.parents())}
    for process in psutil.process_iter():
        try:
            if process.pid in own or process.uids().real != os.getuid():
                continue
            if (
                argument in "\0".join(["", *process.cmdline(), ""])
                or process.environ().get("SNAKEPIT_RUN_ID") == run_id
            ):
                yield process.pid
        except (psutil.Error, OSError):
            continue


def kill_tree(pid: int, started: int) -> bool:
    """End a process that leads a group, and its group, if it is the one that was started then. Waits until it is gone.

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
