"""The begun table: which calls a worker has begun, in a page of memory that its host can read after the worker's death.

A worker writes a call's id before it runs any part of it. So the host knows which calls a dead worker had begun, at no
cost on the wire, however the worker died. A call that had not begun may run on another worker.

The page is a table of ids by their remainder; each entry holds the greatest begun id. Calls may begin in any order
(priorities, sessions, several threads): an entry with a greater id says nothing about a smaller one, which then counts
as begun, the safe answer.

The page is the first one of the file that host and worker share (:mod:`.memory`), which no process can truncate: a
missing page would kill its reader.
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
    """Return a new unnamed file for a table, and for large values where the system allows it; close-on-exec.

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
    """The table, in the worker or in the host.

    Args:
        fd: Its file; owned from here on.
    """

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        # Without the lock an older id might overwrite a newer one of another thread.
        self._lock = threading.Lock()
        self._ids = map_file(fd, 0, _SIZE).view(_SIZE).cast("Q")
        _forks.keep(fd)

    def begin(self, call_id: int) -> None:
        """Record that the call is about to run. May be called by several threads."""
        place = call_id % _PLACES
        with self._lock:
            if self._ids[place] < call_id:
                self._ids[place] = call_id

    def begun(self, call_id: int) -> bool:
        """Return whether the call may have run."""
        return self._ids[call_id % _PLACES] >= call_id

    def table(self) -> bytes:
        """Return the current content, for :func:`begun_in`."""
        return bytes(self._ids)

    def share(self) -> int | None:
        """Return a new descriptor of the file, for large values; None if it is too small for any, or closed."""
        if self._fd is None or os.fstat(self._fd).st_size <= memory.HEAD:
            return None
        return os.dup(self._fd)

    def close(self) -> None:
        """Release file and memory. Idempotent."""
        if self._fd is not None:
            self._ids.release()
            _forks.close(self._fd)
            self._fd = None


def begun_in(table: bytes, call_id: int) -> bool:
    """Return whether a call may have run, by the content of a table."""
    return memoryview(table).cast("Q")[call_id % _PLACES] >= call_id
