"""What is this process's alone: no child that it forks keeps it.

``os.fork()``, and with it multiprocessing's "fork", copies every descriptor, close-on-exec or not. A copied lifeline would keep
workers alive without their host, a copied lock would make a dead run look alive, a copied connection would leave its peer
waiting. So what is kept here leads to ``/dev/null`` in every child, before any of the child's code runs. The numbers stay taken:
whoever closes one later closes nothing else, and nothing that the child does with it (``shutdown``, ``flock``, ``epoll_ctl``)
reaches the parent.

The call stack is copied, too: a child that returned from where it was forked would go on as a second parent.
:class:`contained` ends it where the library's own code would go on.

All functions may be called from any thread. Processes that subprocess starts are no forks in this sense: no Python runs in
them before they are another program, and they get nothing that is close-on-exec.
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

#: What is kept, by number. The file's identity tells when somebody else has closed it, and the number leads elsewhere by now.
_kept: dict[int, tuple[int, int]] = {}
_callbacks: list[weakref.WeakMethod[Callable[[], None]]] = []
_lock = threading.RLock()
_mask: set[int] = set()

#: Whether this process is a fork of one that had this module, and has not become a process in its own right by :func:`adopt`.
forked = False


def adopt() -> None:
    """This fork is what its parent made it for: what has been copied is its own from here on."""
    global forked  # noqa: PLW0603
    forked = False


def unforked() -> contextlib.AbstractContextManager[object]:
    """A block in which no other thread forks: for what makes a descriptor and keeps it. It must not wait for anything."""
    return _lock


def keep(fd: int) -> int:
    """Keep a descriptor for this process alone; returns it."""
    with _lock:
        found = os.fstat(fd)
        _kept[fd] = (found.st_dev, found.st_ino)
    return fd


def close(fd: int) -> None:
    """Close a descriptor, kept or not."""
    with _lock:
        _kept.pop(fd, None)
        os.close(fd)


def above_streams(fd: int) -> int:
    """The same file under a number that is no standard stream's; takes the descriptor over, if it raises nothing.

    A process without standard streams gives their numbers to the next files that it opens, and a child that is to inherit such
    a file would get its standard streams in its place.
    """
    if fd > 2:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(fd)
    return moved


def pipe() -> tuple[int, int]:
    """A new pipe, kept; see :func:`above_streams`."""
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
    """A new pair of connected Unix sockets, kept; see :func:`above_streams`. They block, whatever the default timeout is."""
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
    """Have this method called in every child that is forked while its object lives, before anything else runs there."""
    with _lock:
        _callbacks[:] = [callback for callback in _callbacks if callback() is not None]
        _callbacks.append(weakref.WeakMethod(method))


class contained:
    """A child that is forked in this block, and comes out of it, ends there, whichever way it comes out.

    Its exit code is what the block's end would mean for a program: 0, that of a ``SystemExit``, or 1 after a traceback.
    """

    def __enter__(self) -> None:
        self._pid = os.getpid()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The collector closes generators wherever it finds them: that is no way out.
        if os.getpid() != self._pid and not isinstance(exc, GeneratorExit):
            end(exc)


def end(exc: BaseException | None) -> NoReturn:
    """End this process, which is a fork, without what its parent has registered for the exit. See :class:`contained`."""
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
    # Whoever held it is the one that has forked, the only thread here.
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
    # One that came to the child before the callbacks have said what it means there would be lost.
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
    # The first makes room for what takes the place of all.
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
