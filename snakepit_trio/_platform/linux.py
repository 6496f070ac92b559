"""The platform seam by what Linux has: pidfds, ``/proc``, memfds, peer credentials, signals on hang-up. It needs Linux 5.3."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import re
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from snakepit_trio import _forks

from .facts import Identity, Peer, ProcessFacts, receive

__all__ = [
    "OFFERS_FILES",
    "SOCKET_PATH_MAX",
    "LifelineWatch",
    "ProcessHandle",
    "adopt_orphans",
    "arm_lifeline",
    "boot_id",
    "collapse_pages",
    "cpu_time",
    "cpu_time_of_family",
    "deleted_directory",
    "descendants",
    "discard_pages",
    "fork_watched",
    "has_shared_files",
    "in_sessions",
    "is_same",
    "make_private_file",
    "make_shared_file",
    "most_processes",
    "oom_kills",
    "open_child",
    "open_descriptors",
    "open_forked",
    "open_process",
    "open_shared_file",
    "orphans",
    "own_processes",
    "peer_of",
    "populate_pages",
    "punch_hole",
    "receive_descriptors",
    "reserve_space",
    "resident_memory",
    "root_users",
    "start_time",
    "thread_count",
    "was_given",
    "what_is_missing",
]

#: How many bytes the path of a Unix socket may have, see unix(7).
SOCKET_PATH_MAX = 107
#: Whether a process can open a file by another process's number for it; see :func:`open_shared_file`.
OFFERS_FILES = True

_PAGE = os.sysconf("SC_PAGE_SIZE")
#: In larger families not all members are looked for.
_LARGEST_FAMILY = 200
_PR_SET_CHILD_SUBREAPER = 36
#: ``struct ucred``, see unix(7).
_CREDENTIALS = struct.Struct("3i")
# Numbers that :mod:`mmap` does not name, the same on all machines; older kernels say that they are invalid.
_MADV_POPULATE_WRITE, _MADV_COLLAPSE = 23, 25
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02


def _system() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return library


_libc = _system()


def what_is_missing() -> str | None:
    """What this form needs and this system lacks, in words; None: nothing."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except AttributeError:
        return "this system has no pidfd_open; Linux has it from 5.3 on"
    except OSError as exc:
        return f"pidfd_open does not work here: {exc.strerror}"
    return None


# ---- processes that can be waited for and signalled ------------------------------------------------------


class ProcessHandle:
    """A process held by a pidfd, so that no signal goes to another process that has got its id since.

    Args:
        pid: Its id.
        fd: The pidfd; owned from here on, and kept from forks of this process.
    """

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self._fd = _forks.keep(fd)

    def __repr__(self) -> str:
        return f"<ProcessHandle {self.pid}>"

    async def wait(self) -> None:
        """Wait until the process has ended; it need not be reaped. One task at a time. A cancellation changes nothing."""
        import anyio

        await anyio.wait_readable(self._fd)

    def ended(self, timeout: float = 0.0) -> bool:
        """Whether the process has ended; waits so many seconds for it, and blocks meanwhile."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def send_signal(self, number: int) -> None:
        """Send a signal to the process alone.

        Raises:
            ProcessLookupError: The process has ended and is reaped.
            PermissionError: It belongs to another user.
        """
        signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        """Let go of the process, whatever it does. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            _forks.close(fd)


def open_process(pid: int) -> ProcessHandle:
    """Hold a process of this user that is not this process's child. From here on the id can't come to mean another one.

    Raises:
        OSError, OverflowError: There is no such process, or too many files are open.
    """
    with _forks.unforked():
        return ProcessHandle(pid, os.pidfd_open(pid))


def open_child(pid: int) -> ProcessHandle:
    """Hold a child of this process, which is not to be reaped before it has been seen to end.

    Raises:
        OSError: Too many files are open.
    """
    return open_process(pid)


def fork_watched() -> tuple[int, int]:
    """Fork, for another process that is to hold the child.

    Returns:
        In the child ``(0, -1)``; in the parent the child's id, and a descriptor for :func:`open_forked`, to be sent to that
        process and closed here. The parent must not reap the child before that process asks for it.

    Raises:
        OSError: It can't be forked, or be held; then the child is not to be told what to do.
    """
    pid = os.fork()
    return (pid, os.pidfd_open(pid)) if pid else (0, -1)


def open_forked(pid: int, fd: int) -> ProcessHandle:
    """Hold what another process has forked by :func:`fork_watched`; the descriptor is owned from here on."""
    return ProcessHandle(pid, fd)


# ---- facts of processes ----------------------------------------------------------------------------------


def _stat_of(pid: int) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` from the third on: state, parent, group, session, ..., see proc_pid_stat(5).

    Raises:
        OSError: There is no such process.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The second field is the command in parentheses, which may hold anything.
        return file.read().rpartition(b")")[2].split()


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot, which no change of the clock touches; None: there is none."""
    try:
        return int(_stat_of(pid)[19])
    except (OSError, IndexError):
        return None


def is_same(identity: Identity) -> bool:
    """Whether the process is there, reaped or not, and is the one that was started then."""
    return start_time(identity.pid) == identity.started


def descendants(pid: int) -> list[Identity]:
    """The processes that descend from one and are alive. Those whose parent has ended descend from whoever has got them."""
    family, found = [pid], []
    for parent in family:
        family += _children(parent)
    for child in family[1:]:
        with contextlib.suppress(OSError, IndexError):
            stat = _stat_of(child)
            if stat[0] != b"Z":
                found.append(Identity(child, int(stat[19])))
    return found


def _children(pid: int) -> list[int]:
    """See proc_tid_children(5)."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # It has ended meanwhile.
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found


def _family(pid: int) -> Iterator[int]:
    """A process and its descendants, dead or alive, as far as the system tells."""
    members = [pid]
    for member in members:
        yield member
        if len(members) > _LARGEST_FAMILY:
            return
        members += _children(member)


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
        return []  # There is no descriptor to look with.
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                stat = _stat_of(int(name))
                if int(stat[3]) in sessions and stat[0] != b"Z" and was_given(int(name), variable):
                    found.append(Identity(int(name), int(stat[19])))
    return found


def own_processes() -> Iterator[ProcessFacts]:
    """The processes of this user, but for this one and those that it descends from."""
    ancestry = _ancestry()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in ancestry:
            # It has ended meanwhile, or hides what it is.
            with contextlib.suppress(OSError, IndexError, ValueError):
                found = _see(int(name))
                if found is not None:
                    yield found


def _ancestry() -> set[int]:
    found, pid = set(), os.getpid()
    with contextlib.suppress(OSError, IndexError):
        while pid and pid not in found:
            found.add(pid)
            pid = int(_stat_of(pid)[1])
    return found


def _see(pid: int) -> ProcessFacts | None:
    user = os.geteuid()
    if os.stat(f"/proc/{pid}").st_uid != user:
        return None
    before = _stat_of(pid)
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
    return ProcessFacts(pid, started, int(before[2]), program, argv, environment)


def cpu_time(pid: int) -> float | None:
    """CPU time of a process, all its threads, in seconds; None when it has gone, or the system does not tell."""
    try:
        # The id that Linux gives to the clock of another process, as clock_getcpuclockid(3) does: 2 is CPUCLOCK_SCHED.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return None


def cpu_time_of_family(pid: int) -> float | None:
    """The same of a process and its descendants. It falls when one of them ends."""
    found = [used for member in _family(pid) if (used := cpu_time(member)) is not None]
    return sum(found) if found else None


def resident_memory(pid: int) -> int:
    """Resident memory of a process and its descendants in bytes, 0 where it can't be told cheaply."""
    total = 0
    for member in _family(pid):
        try:
            with open(f"/proc/{member}/statm", "rb") as file:
                total += int(file.read().split()[1]) * _PAGE
        except OSError:
            continue  # It has just ended.
    return total


# ---- facts of this process and of the system -------------------------------------------------------------


def thread_count() -> int:
    """How many threads this process has, those that Python knows nothing of included."""
    return len(os.listdir("/proc/self/task"))


def open_descriptors() -> dict[int, str]:
    """What each of this process's descriptors leads to, in the system's words; without those that only look at the system."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return {fd: target for fd, target in found.items() if not target.startswith("/proc/")}


def deleted_directory() -> str:
    """The name that this process's working directory had before it was deleted."""
    try:
        return os.readlink("/proc/self/cwd").removesuffix(" (deleted)")
    except OSError:
        return os.environ.get("PWD", "of this process")


def boot_id() -> str:
    """A name that this boot of the system does not share with any other."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        import psutil

        return f"boot-{psutil.boot_time():.0f}"


def oom_kills() -> int:
    """How many processes this system has killed for lack of memory since it started; 0 where it doesn't tell.

    See ``oom_kill`` in https://docs.kernel.org/filesystems/proc.html; it counts kills by cgroup limits too.
    """
    try:
        with open("/proc/vmstat", "rb") as file:
            found = re.search(rb"^oom_kill (\d+)", file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def most_processes() -> int | None:
    """How many processes and threads the whole system may have; None where it doesn't tell."""
    try:
        with open("/proc/sys/kernel/pid_max") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def root_users() -> frozenset[int]:
    """Root; and in a user namespace that has no number for it, as in a sandbox, the one that stands for all such users.

    See user_namespaces(7), "Unmapped user and group IDs".
    """
    try:
        with open("/proc/self/uid_map") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
        with open("/proc/sys/kernel/overflowuid") as file:
            nobody = int(file.read())
    except (OSError, ValueError):
        return frozenset({0})
    if any(first <= nobody < first + count for first, _, count in ranges):
        return frozenset({0})
    return frozenset({0, nobody})


# ---- lifelines and orphans -------------------------------------------------------------------------------


def arm_lifeline(fd: int, group: int) -> None:
    """Have the kernel kill a process group when the pipe's write end is closed for good, see fcntl(2).

    What is set belongs to the pipe's end and not to this descriptor of it: it may be set by one process for another, and
    stays as long as anybody has that end open. Whatever is written to the pipe afterwards kills, too.

    Raises:
        OSError: There is no such group, or the system does not allow it.
    """
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETOWN, -group)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


class LifelineWatch:
    """Ends this process's group when its lifeline is cut. The kernel does, so no thread has to run for it.

    Args:
        fd: The lifeline's read end; another's.
        die: Ends the group; for forms in which the process has to do that itself.
    """

    def __init__(self, fd: int, die: Callable[[], object]) -> None:
        arm_lifeline(fd, os.getpgrp())

    def stop_for_forks(self) -> bool:
        """This process is about to fork, and must not have other threads: end the one that watches, if there is one.

        Returns whether nobody watches from now on, so that whoever has the lifeline is to look at it.
        """
        return False

    def close(self) -> None:
        """Stop watching, for an end in good order. The kernel goes on until the process has ended."""


def adopt_orphans(wanted: bool) -> None:
    """Whether this process gets its descendants whose parents end, so that they stay its descendants; see prctl(2)."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(wanted), *[ctypes.c_ulong(0)] * 3)


def orphans(pid: int, variables: Collection[str]) -> list[Identity]:
    """Nothing: a process that has called :func:`adopt_orphans` has them among its descendants."""
    return []


# ---- files in memory -------------------------------------------------------------------------------------


def make_private_file(name: str) -> int:
    """A new empty file that has no path; the descriptor is close-on-exec.

    Raises:
        OSError: There is no room, or too many files are open.
    """
    return os.memfd_create(name, os.MFD_CLOEXEC)


def has_shared_files() -> bool:
    """Whether :func:`make_shared_file` can work here."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS") and sys.maxsize > 1 << 32


def make_shared_file(name: str, size: int) -> int:
    """A new sparse file of this size for processes to share; the descriptor is close-on-exec. No process can make it shorter.

    Raises:
        OSError: There is no room, too many files are open, or a limit forbids files of this (apparent) size.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_shared_file(pid: int, fd: int, name: str) -> int | None:
    """A descriptor of a file that another process of this user has made by :func:`make_shared_file`; None: it is none."""
    path = f"/proc/{pid}/fd/{fd}"
    try:
        # What has no such name is not even opened: it may be anything.
        if not os.readlink(path).startswith(f"/memfd:{name} "):
            return None
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None


def reserve_space(fd: int, offset: int, size: int) -> None:
    """Have a part of a file really be there, so that to write to it can't fail. It reads as zeros where nothing was written.

    Raises:
        OSError: There is no room.
    """
    os.posix_fallocate(fd, offset, size)


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Free a part of a file; it reads as zeros from then on."""
    _libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, size)


def populate_pages(address: int, size: int) -> None:
    """Have all pages of a mapping at once: a fault for each would cost more than to fill them.

    Raises:
        OSError: There is no room.
    """
    if _libc.madvise(address, size, _MADV_POPULATE_WRITE) and ctypes.get_errno() != errno.EINVAL:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def collapse_pages(address: int, size: int) -> None:
    """Put whole large pages of a mapping into such pages, as far as the system has some: it is then copied faster."""
    _libc.madvise(address, size, _MADV_COLLAPSE)


def discard_pages(address: int, size: int) -> None:
    """Free what is in the file where it is mapped; it reads as zeros from then on."""
    _libc.madvise(address, size, mmap.MADV_REMOVE)


# ---- sockets ---------------------------------------------------------------------------------------------


def peer_of(sock: socket.socket) -> Peer | None:
    """The process that has connected a Unix socket to this one; None where the system doesn't tell.

    Raises:
        OSError: The socket is closed, or of another kind.
    """
    return Peer(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


def receive_descriptors(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive up to so many bytes from a Unix socket, and the descriptors with them; they are close-on-exec.

    Raises:
        OSError: As the socket's own ``recv``.
    """
    return receive(sock, size, most, socket.MSG_CMSG_CLOEXEC)
