"""Resources that belong to one process and that no forked child may keep.

``os.fork()``, and multiprocessing's "fork" method, copy every descriptor, close-on-exec or not. A copied lifeline would
keep workers alive without their host, a copied lock would make a dead run look alive, a copied connection would leave its
peer waiting. So every descriptor registered here leads to ``/dev/null`` in every child, before any of the child's code
runs. The numbers stay in use: closing one later closes nothing else, and ``shutdown``, ``flock`` or ``epoll_ctl`` in the
child do not reach the parent.

The call stack is copied too: a child that returned from the place of the fork would continue as a second parent.
:class:`contained` ends the child where the library's own code would continue.

All functions may be called from any thread. Processes started by subprocess are not forks in this sense: they run no
Python before they become another program, and they inherit nothing that is close-on-exec.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

__all__ = [
    "above_streams",
    "adopt",
    "at_fork",
    "close",
    "contained",
    "end",
    "forked",
    "keep",
    "pipe",
    "socketpair",
    "unforked",
]

#: The registered descriptors. The file's identity reveals that a number was closed by other code and reused.
_kept: dict[int, tuple[int, int]] = {}
_callbacks: list[weakref.WeakMethod[Callable[[], None]]] = []
_lock = threading.RLock()
_mask: set[int] = set()

#: Whether this process is a fork of a process with this module, and has not called :func:`adopt`.
forked = False


def adopt() -> None:
    """Make this fork an independent process that owns everything copied from its parent."""
    global forked  # noqa: PLW0603
    forked = False


def unforked() -> contextlib.AbstractContextManager[object]:
    """Return a block in which no other thread forks, for creating and registering a descriptor. The block must not wait."""
    return _lock


def keep(fd: int) -> int:
    """Register a descriptor as this process's own, and return it."""
    with _lock:
        found = os.fstat(fd)
        _kept[fd] = (found.st_dev, found.st_ino)
    return fd


def close(fd: int) -> None:
    """Close a descriptor, registered or not."""
    with _lock:
        _kept.pop(fd, None)
        os.close(fd)


def above_streams(fd: int) -> int:
    """Return a descriptor of the same file with a number above the standard streams; takes over the given one unless it
    raises.

    A process without standard streams assigns their numbers to the next files that it opens. A child that inherits such a
    file would get its standard streams instead.
    """
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def pipe() -> tuple[int, int]:
    """Return a new registered pipe; see :func:`above_streams`."""
    with _lock:
        read, write = os.pipe()
        try:
            read = above_streams(read)
            write = above_streams(write)
        except BaseException:
            os.close(read)
            os.close(write)
            raise
        return keep(read), keep(write)


def socketpair() -> tuple[socket.socket, socket.socket]:
    """Return a registered pair of connected Unix sockets, blocking whatever the default timeout is; see
    :func:`above_streams`.
    """
    with _lock:
        first, second = socket.socketpair()
        try:
            first, second = _socket_above_streams(first), _socket_above_streams(second)
        except BaseException:
            first.close()
            second.close()
            raise
        for end in (first, second):
            end.settimeout(None)
            keep(end.fileno())
        return first, second


def _socket_above_streams(sock: socket.socket) -> socket.socket:
    if sock.fileno() > 2:
        return sock
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


def at_fork(method: Callable[[], None]) -> None:
    """Call this method in every child that is forked while its object lives, before anything else runs there."""
    with _lock:
        _callbacks[:] = [callback for callback in _callbacks if callback() is not None]
        _callbacks.append(weakref.WeakMethod(method))


class contained:
    """A block that ends a child which was forked inside it, when the child leaves the block in any way.

    The child's exit code is 0, the code of a ``SystemExit``, or 1 after a traceback.
    """

    def __enter__(self) -> None:
        self._pid = os.getpid()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The garbage collector closes generators anywhere, so GeneratorExit does not mean that the child leaves.
        if os.getpid() != self._pid and not isinstance(exc, GeneratorExit):
            end(exc)


def end(exc: BaseException | None) -> NoReturn:
    """End this process, which is a fork, without its parent's exit handlers. See :class:`contained`."""
    code = 0
    with contextlib.suppress(BaseException):
        if isinstance(exc, SystemExit):
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
            if exc.code is not None and not isinstance(exc.code, int):
                print(exc.code, file=sys.stderr)  # noqa: T201
        elif exc is not None:
            code = 1
            traceback.print_exception(exc)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(code & 0xFF)


def _in_child() -> None:
    global _lock, forked  # noqa: PLW0603
    forked = True
    # The forking thread, the only one in the child, held the lock.
    _lock = threading.RLock()
    _let_go([fd for fd, identity in _kept.items() if _is_still(fd, identity)])
    _kept.clear()
    for reference in _callbacks:
        callback = reference()
        if callback is not None:
            callback()
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


def _before() -> None:
    global _mask  # noqa: PLW0603
    _lock.acquire()
    # A signal that reached the child before the callbacks have installed its handling would be lost.
    _mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
    _lock.release()


def _is_still(fd: int, identity: tuple[int, int]) -> bool:
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == identity


def _let_go(fds: list[int]) -> None:
    if not fds:
        return
    # Closing the first makes room for the descriptor that replaces all of them.
    os.close(fds[0])
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        for fd in fds[1:]:
            os.close(fd)
        return
    for fd in fds:
        if fd != null:
            os.dup2(null, fd, inheritable=False)
    if null not in fds:
        os.close(null)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
