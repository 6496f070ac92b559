"""Which calls a worker has begun: a page of memory that its host can read after it has died.

A worker writes a call's id before it runs anything of it, so a host knows of each call that died with its worker whether
it had begun, at no cost on the wire, however the worker ended. A call that had not begun may be run elsewhere.

The page is a table of ids by their remainder; each place holds the greatest id of those that have begun. Calls may begin in any
order (priorities, sessions, several threads): a place that holds a greater id says nothing of a smaller one, which then counts
as begun, the safe answer.

The page is the first one of the file that host and worker share (:mod:`.memory`), which no process can cut short: a page that is
missing would end whoever looks at it.
"""

from __future__ import annotations

import errno
import os
import threading

from snakepit_trio import _forks, _platform

from . import memory
from .mapping import map_file

__all__ = ["BegunTable", "begun_in", "marks_file"]

_PLACES = 512
_SIZE = _PLACES * 8


def marks_file() -> int:
    """A new file for a table, of no name, and for large values where the system allows it; close-on-exec.

    Raises:
        OSError: There is no room, or too many files are open.
    """
    if _platform.has_shared_files():
        try:
            return memory.make_file()
        except OSError as exc:
            if exc.errno not in (errno.EFBIG, errno.EINVAL, errno.EPERM, errno.ENOSYS):
                raise
    fd = _platform.make_private_file("snakepit-calls")
    try:
        os.ftruncate(fd, _SIZE)
    except OSError:
        os.close(fd)
        raise
    return fd


class BegunTable:
    """The table, on either side.

    Args:
        fd: Its file; owned once this is made.
    """

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        # Without it an older id might be written over a newer one that another thread has written meanwhile.
        self._lock = threading.Lock()
        self._ids = map_file(fd, 0, _SIZE).view(_SIZE).cast("Q")
        _forks.keep(fd)

    def begin(self, call_id: int) -> None:
        """The call is about to run. May be called by several threads."""
        place = call_id % _PLACES
        with self._lock:
            if self._ids[place] < call_id:
                self._ids[place] = call_id

    def begun(self, call_id: int) -> bool:
        """Whether the call may have run."""
        return self._ids[call_id % _PLACES] >= call_id

    def table(self) -> bytes:
        """What is in it now, for :func:`begun_in`."""
        return bytes(self._ids)

    def share(self) -> int | None:
        """A new descriptor of the file, for large values; None when it is too small for any, or closed."""
        if self._fd is None or os.fstat(self._fd).st_size <= memory.HEAD:
            return None
        return os.dup(self._fd)

    def close(self) -> None:
        """Give file and memory back. Idempotent."""
        if self._fd is not None:
            self._ids.release()
            _forks.close(self._fd)
            self._fd = None


def begun_in(table: bytes, call_id: int) -> bool:
    """Whether a call may have run, by what was in the table."""
    return memoryview(table).cast("Q")[call_id % _PLACES] >= call_id
