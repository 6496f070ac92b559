"""The lifeline: the worker ends when its host does, whatever the worker is doing then.

Only the host holds the write end of a pipe, so the pipe hangs up when the host is gone, for any reason. On Linux the
kernel is asked to send SIGKILL to the worker's whole process group at that moment. No thread has to run for it, so it
reaches C code that holds the GIL, and the worker's children. The host arms it first, as soon as it has written
everything, so that an interpreter that is still starting is covered too; the worker arms it again, and checks it,
because the host may have ended in between. On other systems a thread waits for the hang-up; see
:mod:`snakepit_trio._platform`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

from snakepit_trio import _forks, _platform

__all__ = ["Lifeline", "end_children"]


def end_children() -> None:
    """Kill the remaining child processes of this process, as its last act.

    The host kills the group of an ended worker. If the host itself is killed in between, the children would remain for
    ever, because the lifeline ends with the worker. Does nothing if the system does not list a process's children.
    """
    group = os.getpgrp()
    for child in _platform.descendants(os.getpid()):
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
    """The armed read end of the pipe. The process must lead its own process group.

    Args:
        fd: The read end; owned from here on. Everything written to it has been read.
    """

    def __init__(self, fd: int) -> None:
        #: Nobody watches any more: it is to be looked at, by :meth:`linger`, when something else tells that the host may be gone.
        self.unwatched: bool = False
        self._fd = _forks.keep(fd)
        os.set_inheritable(fd, False)
        self._watch = _platform.LifelineWatch(fd, _die)
        # A host that ended before the watch began has cut it unnoticed.
        if _hung_up(fd, 0):
            _die()

    def linger(self, seconds: float) -> None:
        """Before an unexpected end, wait this long for the host's own end, and die of it if it comes.

        A connection may be lost a moment before the lifeline is cut. A worker that ended in between would leave its
        children.
        """
        if _hung_up(self._fd, seconds):
            _die()

    def stop_for_forks(self) -> None:
        """End the watching thread, if there is one, before this process forks; see :attr:`unwatched`."""
        self.unwatched = self._watch.stop_for_forks()

    def close(self) -> None:
        """Stop watching, for an orderly end. Where the kernel watches, it continues until the process has ended."""
        self._watch.close()
