"""The worker ends when its host does, whatever the worker is doing then.

The host holds the write end of a pipe and nobody else does, so the pipe hangs up when the host is gone, however it went.
On Linux the kernel is asked to send SIGKILL to the worker's whole process group at that moment (``O_ASYNC`` with
``F_SETSIG`` and ``F_SETOWN``, see fcntl(2)): no thread has to run for it, so it also reaches C code that holds the GIL, and
the worker's children. The host asks for it first, as soon as it has said all that it has to say (:func:`arm`), so that an
interpreter that is still starting is not left either; the worker asks again, and looks, for the host may have gone in
between. Elsewhere a thread waits for the hang-up; :meth:`Lifeline.close` ends and joins it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import threading

from snakepit_trio import _forks
from snakepit_trio._processes import descendants

__all__ = ["Lifeline", "arm", "end_children"]


def arm(fd: int, group: int) -> None:
    """Have the kernel kill a process group when the pipe's write end is closed for good. Does nothing elsewhere than on Linux.

    What is set belongs to the pipe's end and not to this descriptor of it: it may be set by one process for another, and
    stays as long as anybody has that end open. Whatever is written to the pipe afterwards kills, too.
    """
    if sys.platform == "linux":
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETOWN, -group)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def end_children() -> None:
    """Kill what this process has started and not ended, as its last act.

    Its host kills the group of a worker that has ended; a host that is itself killed in between would leave them for ever,
    for the lifeline ends with the worker. Does nothing where the system does not tell a process's children.
    """
    group = os.getpgrp()
    for child in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if os.getpgid(child.pid) == group:
                os.kill(child.pid, signal.SIGKILL)


def _hung_up(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP is always reported.
    return bool(poll.poll(timeout if timeout is None else timeout * 1000))


def _die() -> None:
    try:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    finally:
        os._exit(1)


class Lifeline:
    """The read end of the pipe, armed. The process must lead a process group of its own.

    Args:
        fd: The read end; owned from here on. Everything that was written to it has been read.
    """

    def __init__(self, fd: int) -> None:
        self._fd = _forks.keep(fd)
        self._thread: threading.Thread | None = None
        self._wake_read = self._wake_write = -1
        os.set_inheritable(fd, False)
        if sys.platform == "linux":
            arm(fd, os.getpgrp())
        else:
            self._wake_read, self._wake_write = _forks.pipe()
            self._thread = threading.Thread(target=self._watch, name="snakepit-lifeline")
            self._thread.start()
        # A host that went before this was armed sends no signal.
        if _hung_up(fd, 0):
            _die()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._fd, 0)
        poll.register(self._wake_read, select.POLLIN)
        for fd, _ in poll.poll():
            if fd == self._wake_read:
                return
        _die()

    def linger(self, seconds: float) -> None:
        """Before an end that nobody has asked for: wait so long for the host's own end, and if it comes, die of it.

        A connection may be lost a moment before the lifeline is. A worker that left in between would leave its children.
        """
        if _hung_up(self._fd, seconds):
            _die()

    def close(self) -> None:
        """Join the thread, for an end in good order. Where the kernel watches, it goes on until the process has ended."""
        if self._thread is not None:
            os.write(self._wake_write, b"x")
            self._thread.join()
            _forks.close(self._wake_read)
            _forks.close(self._wake_write)
