"""The worker ends when its host does, whatever the worker is doing then.

The host holds the write end of a pipe and nobody else does, so the pipe hangs up when the host is gone, however it went.
On Linux the kernel is asked to send SIGKILL to the worker's whole process group at that moment: no thread has to run for it,
so it also reaches C code that holds the GIL, and the worker's children. The host asks for it first, as soon as it has said all
that it has to say, so that an interpreter that is still starting is not left either; the worker asks again, and looks, for the
host may have gone in between. Elsewhere a thread waits for the hang-up; see :mod:`snakepit_trio._platform`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

from snakepit_trio import _forks, _platform

__all__ = ["Lifeline", "end_children"]


def end_children() -> None:
    """Kill what this process has started and not ended, as its last act.

    Its host kills the group of a worker that has ended; a host that is itself killed in between would leave them for ever,
    for the lifeline ends with the worker. Does nothing where the system does not tell a process's children.
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
    """The read end of the pipe, armed. The process must lead a process group of its own.

    Args:
        fd: The read end; owned from here on. Everything that was written to it has been read.
    """

    def __init__(self, fd: int) -> None:
        #: Nobody watches any more: it is to be looked at, by :meth:`linger`, when something else tells that the host may be gone.
        self.unwatched: bool = False
        self._fd = _forks.keep(fd)
        os.set_inheritable(fd, False)
        self._watch = _platform.LifelineWatch(fd, _die)
        # A host that went before the watch began has cut it for nobody.
        if _hung_up(fd, 0):
            _die()

    def linger(self, seconds: float) -> None:
        """Before an end that nobody has asked for: wait so long for the host's own end, and if it comes, die of it.

        A connection may be lost a moment before the lifeline is. A worker that left in between would leave its children.
        """
        if _hung_up(self._fd, seconds):
            _die()

    def stop_for_forks(self) -> None:
        """End the thread that watches, where there is one, for this process is about to fork; see :attr:`unwatched`."""
        self.unwatched = self._watch.stop_for_forks()

    def close(self) -> None:
        """Stop watching, for an end in good order. Where the kernel watches, it goes on until the process has ended."""
        self._watch.close()
