"""The platform seam by POSIX, the standard library and psutil; what it can't promise is in docs/architecture.md.

A process's end is told by an event wherever there is one: a thread that waits for a child, or a pipe whose write end only the
process has. psutil is imported by what needs it, and not with this module, which workers import.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from snakepit_trio import _forks

from .facts import Identity, Peer, ProcessFacts, receive

if TYPE_CHECKING:
    import psutil

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

#: How many bytes the path of a Unix socket may have: the least that a system in use allows.
SOCKET_PATH_MAX = 103
#: Whether a process can open a file by another process's number for it; see :func:`open_shared_file`.
OFFERS_FILES = False

#: How often a process is looked at of whose end no event tells, in seconds.
_LOOK = 0.01
#: By so much two processes may differ in what they read of one start time, in hundredths of a second: the clock may be set.
_CLOCK_MOVES = 200
#: How long the system may take to end a thread that Python has joined, in seconds.
_THREAD_ENDS = 1.0
_ZEROS = bytes(1 << 20)


def what_is_missing() -> str | None:
    """What this form needs and this system lacks, in words; None: nothing."""
    if not hasattr(os, "waitid"):
        return "this interpreter has no os.waitid; on macOS Python has it from 3.13 on"
    return None


# ---- processes that can be waited for and signalled ------------------------------------------------------


class ProcessHandle:
    """A process, held by its id and start time.

    Args:
        pid: Its id.
        end: A descriptor that becomes readable when it ends, owned from here on; -1: nothing tells, and it is looked at.
        child: It is this process's child, which nobody reaps before this has seen its end, so that its id stays its own.
    """

    def __init__(self, pid: int, end: int = -1, *, child: bool = False) -> None:
        self.pid = pid
        self._end = end
        self._identity = None if child else Identity(pid, start_time(pid) or 0)

    def __repr__(self) -> str:
        return f"<ProcessHandle {self.pid}>"

    async def wait(self) -> None:
        """Wait until the process has ended; it need not be reaped. One task at a time. A cancellation changes nothing."""
        import anyio

        if self._end >= 0:
            await anyio.wait_readable(self._end)
        else:
            while not self.ended():
                await anyio.sleep(_LOOK)

    def ended(self, timeout: float = 0.0) -> bool:
        """Whether the process has ended; waits so many seconds for it, and blocks meanwhile."""
        if self._end >= 0:
            poll = select.poll()
            poll.register(self._end, select.POLLIN)
            return bool(poll.poll(timeout * 1000))
        until = time.monotonic() + timeout
        while self._is_alive():
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK)
        return True

    def _is_alive(self) -> bool:
        return self._identity is not None and is_same(self._identity) and not _is_zombie(self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal to the process alone.

        Raises:
            ProcessLookupError: The process has ended and is reaped.
            PermissionError: It belongs to another user.
        """
        # As long as it holds its pipe, it is known to be there, and nobody has to look.
        if self._identity is not None and (self._end < 0 or self.ended()) and not is_same(self._identity):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        os.kill(self.pid, number)

    def close(self) -> None:
        """Let go of the process, whatever it does. Idempotent."""
        if self._end >= 0:
            fd, self._end = self._end, -1
            _forks.close(fd)


def open_process(pid: int) -> ProcessHandle:
    """Hold a process of this user that is not this process's child.

    Raises:
        OSError, OverflowError: There is no such process, or too many files are open.
    """
    if start_time(pid) is None:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return ProcessHandle(pid)


def open_child(pid: int) -> ProcessHandle:
    """Hold a child of this process, which is not to be reaped before it has been seen to end.

    A thread waits for it, which ends with the child.

    Raises:
        OSError: Too many files are open, or what is missing here.
    """
    missing = what_is_missing()
    if missing is not None:
        raise OSError(errno.ENOSYS, missing)
    end, telling = _forks.pipe()
    try:
        # A daemon, for the child may outlive an interpreter that ends in disorder.
        threading.Thread(target=_tell_end, args=(pid, telling), name=f"snakepit-child-{pid}", daemon=True).start()
    except BaseException:
        _forks.close(end)
        _forks.close(telling)
        raise
    return ProcessHandle(pid, end, child=True)


def _tell_end(pid: int, telling: int) -> None:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        pass  # Somebody has reaped it: it has ended.
    finally:
        _forks.close(telling)


def fork_watched() -> tuple[int, int]:
    """Fork, for another process that is to hold the child.

    Returns:
        In the child ``(0, -1)``; in the parent the child's id, and a descriptor for :func:`open_forked`, to be sent to that
        process and closed here. The parent must not reap the child before that process asks for it.

    Raises:
        OSError: It can't be forked, or be held; then the child is not to be told what to do.
    """
    # Its hang-up tells the child's end, for only the child has its write end, which its own forks lose.
    end, telling = os.pipe()
    try:
        telling = _forks.above_streams(telling)
        pid = os.fork()
    except BaseException:
        os.close(end)
        os.close(telling)
        raise
    if pid == 0:
        os.close(end)
        _forks.keep(telling)
        return 0, -1
    os.close(telling)
    return pid, end


def open_forked(pid: int, fd: int) -> ProcessHandle:
    """Hold what another process has forked by :func:`fork_watched`; the descriptor is owned from here on."""
    return ProcessHandle(pid, _forks.keep(fd))


# ---- facts of processes ----------------------------------------------------------------------------------


def _psutil() -> Any:
    """psutil; None in a worker whose interpreter does not have it."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil


def _process(pid: int) -> psutil.Process | None:
    library = _psutil()
    if library is None:
        return None
    try:
        found: psutil.Process = library.Process(pid)
    except (library.Error, OSError, ValueError, OverflowError):
        return None
    return found


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """Around a look at a process that may end meanwhile, or hide what it is."""
    library = _psutil()
    with contextlib.suppress(OSError, ValueError, *(() if library is None else (library.Error,))):
        yield


def start_time(pid: int) -> int | None:
    """When a process was started, in hundredths of a second since the epoch; None: there is none, or nobody tells."""
    with _unless_gone():
        process = _process(pid)
        if process is not None:
            return round(process.create_time() * 100)
    return None


def is_same(identity: Identity) -> bool:
    """Whether the process is there, reaped or not, and is the one that was started then, or within two seconds of it."""
    found = start_time(identity.pid)
    return found is not None and abs(found - identity.started) <= _CLOCK_MOVES


def _is_zombie(pid: int) -> bool:
    with _unless_gone():
        process = _process(pid)
        return process is not None and process.status() == "zombie"
    return True


def descendants(pid: int) -> list[Identity]:
    """The processes that descend from one and are alive. Those whose parent has ended descend from nobody that is known."""
    found = []
    for child in _below(pid):
        with _unless_gone():
            if child.status() != "zombie":
                found.append(Identity(child.pid, round(child.create_time() * 100)))
    return found


def _below(pid: int) -> list[psutil.Process]:
    with _unless_gone():
        process = _process(pid)
        if process is not None:
            return process.children(recursive=True)
    return []


def _family(pid: int) -> list[psutil.Process]:
    process = _process(pid)
    return [] if process is None else [process, *_below(pid)]


def _all_processes() -> list[psutil.Process]:
    """All that there are; nothing where there is no descriptor to look with."""
    library = _psutil()
    with _unless_gone():
        return [] if library is None else list(library.process_iter())
    return []


def _environment(process: psutil.Process) -> frozenset[str]:
    return frozenset(f"{name}={value}" for name, value in process.environ().items())


def was_given(pid: int, variable: str) -> bool:
    """Whether a process was started with this ``NAME=VALUE`` in its environment."""
    with _unless_gone():
        process = _process(pid)
        return process is not None and variable in _environment(process)
    return False


def in_sessions(sessions: set[int], variable: str) -> list[Identity]:
    """The processes of these sessions that are alive and were started with this ``NAME=VALUE``, which tells them from those of
    another session that has got the same number since."""
    found = []
    for process in _all_processes() if sessions else ():
        with _unless_gone():
            if (
                os.getsid(process.pid) in sessions
                and process.status() != "zombie"
                and variable in _environment(process)
            ):
                found.append(Identity(process.pid, round(process.create_time() * 100)))
    return found


def own_processes() -> Iterator[ProcessFacts]:
    """The processes of this user, but for this one and those that it descends from."""
    user, me = os.geteuid(), _process(os.getpid())
    ancestry = set() if me is None else {me.pid, *(parent.pid for parent in me.parents())}
    for process in _all_processes():
        if process.pid not in ancestry:
            with _unless_gone():
                if set(process.uids()) == {user}:
                    yield ProcessFacts(
                        process.pid,
                        round(process.create_time() * 100),
                        os.getpgid(process.pid),
                        os.path.realpath(process.exe().removesuffix(" (deleted)")),
                        tuple(process.cmdline()),
                        _environment(process),
                    )


def cpu_time(pid: int) -> float | None:
    """CPU time of a process, all its threads, in seconds; None when it has gone, or the system does not tell."""
    with _unless_gone():
        process = _process(pid)
        if process is not None and process.status() != "zombie":
            return _used(process)
    return None


def cpu_time_of_family(pid: int) -> float | None:
    """The same of a process and its descendants. It falls when one of them ends."""
    found = [used for member in _family(pid) if (used := cpu_time(member.pid)) is not None]
    return sum(found) if found else None


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def resident_memory(pid: int) -> int:
    """Resident memory of a process and its descendants in bytes, 0 where it can't be told cheaply."""
    total = 0
    for member in _family(pid):
        with _unless_gone():
            total += member.memory_info().rss
    return total


# ---- facts of this process and of the system -------------------------------------------------------------


def thread_count() -> int:
    """How many threads this process has, those that Python knows nothing of included, where psutil is there to tell."""
    with _unless_gone():
        process = _process(os.getpid())
        if process is not None:
            return process.num_threads()
    return threading.active_count()


def open_descriptors() -> dict[int, str]:
    """What each of this process's descriptors leads to, as far as can be told: its kind, and the file's numbers."""
    found = {}
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            facts = os.fstat(int(name))
            found[int(name)] = f"{facts.st_mode:o} {facts.st_dev}:{facts.st_ino}"
    return found


def deleted_directory() -> str:
    """The name that this process's working directory had before it was deleted, by what its shell has said."""
    return os.environ.get("PWD", "of this process")


def boot_id() -> str:
    """A name that this boot of the system does not share with any other, unless the clock was set in between."""
    return f"boot-{_psutil().boot_time():.0f}"


def oom_kills() -> int:
    """How many processes this system has killed for lack of memory since it started; 0 where it doesn't tell."""
    return 0


def most_processes() -> int | None:
    """How many processes and threads the whole system may have; None where it doesn't tell."""
    return None


def root_users() -> frozenset[int]:
    """Root, under the number that it has here."""
    return frozenset({0})


# ---- lifelines and orphans -------------------------------------------------------------------------------


def arm_lifeline(fd: int, group: int) -> None:
    """Nothing: the process at the pipe's read end watches it, by :class:`LifelineWatch`."""


class LifelineWatch:
    """Ends this process's group when its lifeline is cut. A thread waits for that, so code that holds the GIL delays it.

    Args:
        fd: The lifeline's read end; another's.
        die: Ends the group.
    """

    def __init__(self, fd: int, die: Callable[[], object]) -> None:
        self._fd = fd
        self._die = die
        self._wake_read, self._wake_write = _forks.pipe()
        self._thread: threading.Thread | None = threading.Thread(target=self._watch, name="snakepit-lifeline")
        self._thread.start()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._fd, 0)  # POLLHUP is always reported.
        poll.register(self._wake_read, select.POLLIN)
        for fd, _ in poll.poll():
            if fd == self._wake_read:
                return
        self._die()

    def stop_for_forks(self) -> bool:
        """This process is about to fork, and must not have other threads: end the one that watches, if there is one.

        Returns whether nobody watches from now on, so that whoever has the lifeline is to look at it.
        """
        before = thread_count()
        self.close()
        # The system may end a thread a moment after Python has joined it, and nothing tells.
        until = time.monotonic() + _THREAD_ENDS
        while thread_count() >= before > 1 and time.monotonic() < until:
            time.sleep(_LOOK / 10)
        return True

    def close(self) -> None:
        """Stop watching, for an end in good order. Idempotent."""
        if self._thread is not None:
            os.write(self._wake_write, b"x")
            self._thread.join()
            self._thread = None
            _forks.close(self._wake_read)
            _forks.close(self._wake_write)


def adopt_orphans(wanted: bool) -> None:
    """Nothing: the system gets the descendants whose parents end."""


def orphans(pid: int, variables: Collection[str]) -> list[Identity]:
    """The processes that were started after this one, in the same environment, and whose parent has ended.

    Args:
        pid: The process that they must have descended from; alive.
        variables: By these it is told from others, by their values or by their absence.
    """
    found: list[psutil.Process] = []
    with _unless_gone():
        process = _process(pid)
        if process is not None:
            first, environment = process.create_time(), process.environ()
            given = {name: environment.get(name) for name in variables}
            found = [other for other in _all_processes() if other.pid != pid and _is_orphan(other, first, given)]
    return [Identity(other.pid, round(other.create_time() * 100)) for other in found]


def _is_orphan(process: psutil.Process, first: float, given: Mapping[str, str | None]) -> bool:
    with _unless_gone():
        if process.create_time() >= first and _has(process, given) and process.status() != "zombie":
            parent = process.parent()
            return parent is None or not _has(parent, given)
    return False


def _has(process: psutil.Process, given: Mapping[str, str | None]) -> bool:
    with _unless_gone():
        environment = process.environ()
        return all(environment.get(name) == value for name, value in given.items())
    return False


# ---- files in memory -------------------------------------------------------------------------------------


def make_private_file(name: str) -> int:
    """A new empty file that has no path; the descriptor is close-on-exec.

    Raises:
        OSError: There is no room, or too many files are open.
    """
    with tempfile.TemporaryFile(prefix=name) as file:
        return os.dup(file.fileno())


def has_shared_files() -> bool:
    """Whether :func:`make_shared_file` can work here."""
    return sys.maxsize > 1 << 32


def make_shared_file(name: str, size: int) -> int:
    """A new sparse file of this size for processes to share; the descriptor is close-on-exec.

    A process that makes it shorter ends those that look at it there.

    Raises:
        OSError: There is no room, too many files are open, or a limit forbids files of this (apparent) size.
    """
    fd = make_private_file(name)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_shared_file(pid: int, fd: int, name: str) -> int | None:
    """None: no process can open what another one has open."""
    return None


def reserve_space(fd: int, offset: int, size: int) -> None:
    """Have a part of a file really be there, so that to write to it can't fail. It reads as zeros where nothing was written.

    Raises:
        OSError: There is no room.
    """
    end = offset + size
    while offset < end:
        offset += os.pwrite(fd, _ZEROS[: end - offset], offset)


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Nothing: the file goes with the last process that has it."""


def populate_pages(address: int, size: int) -> None:
    """Nothing: pages come as they are written to."""


def collapse_pages(address: int, size: int) -> None:
    """Nothing: pages are as the system has them."""


def discard_pages(address: int, size: int) -> None:
    """Nothing: the file goes with the last process that has it."""


# ---- sockets ---------------------------------------------------------------------------------------------


def peer_of(sock: socket.socket) -> Peer | None:
    """The user that has connected a Unix socket to this one, where the system has ``getpeereid``; else None.

    Raises:
        OSError: The socket is closed, or of another kind.
    """
    ask = getattr(ctypes.CDLL(None, use_errno=True), "getpeereid", None)
    if ask is None:
        return None
    user, group = ctypes.c_uint32(), ctypes.c_uint32()
    if ask(sock.fileno(), ctypes.byref(user), ctypes.byref(group)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return Peer(None, user.value, group.value)


def receive_descriptors(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive up to so many bytes from a Unix socket, and the descriptors with them; they are close-on-exec.

    Raises:
        OSError: As the socket's own ``recv``.
    """
    with _forks.unforked() if not sock.getblocking() else contextlib.nullcontext():
        data, fds = receive(sock, size, most, 0)
        for fd in fds:
            os.set_inheritable(fd, False)
    return data, fds
