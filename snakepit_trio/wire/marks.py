"""Which calls a worker has begun: a page of memory that its host can read after it has died.

A worker writes a call's id before it runs anything of it, so a host knows of each call that died with its worker whether
it had begun, at no cost on the wire, however the worker ended. A call that had not begun may be run elsewhere.

The page is a table of the ids of the calls begun last, by their remainder. Ids only grow: a place that holds a greater id
says nothing of a smaller one, which then counts as begun, the safe answer.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile

__all__ = ["Marks", "begun_in", "marks_file"]

_PLACES = 512
_SIZE = _PLACES * 8


def marks_file() -> int:
    """A new file for a table, of no name; the descriptor is close-on-exec.

    Raises:
        OSError: There is no room, or too many files are open.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("snakepit-marks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, _SIZE)
        # A worker that cut it short would end the host, by SIGBUS, when that looks at it.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd
    with tempfile.TemporaryFile() as file:
        fd = os.dup(file.fileno())
    os.ftruncate(fd, _SIZE)
    return fd


class Marks:
    """The table, on either side.

    Args:
        fd: Its file; may be closed afterwards.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)
        self._ids = memoryview(self._map).cast("Q")

    def begin(self, call_id: int) -> None:
        """The call is about to run."""
        self._ids[call_id % _PLACES] = call_id

    def begun(self, call_id: int) -> bool:
        """Whether the call may have run."""
        return self._ids[call_id % _PLACES] >= call_id

    def table(self) -> bytes:
        """What is in it now, for :func:`begun_in`."""
        return bytes(self._map)

    def close(self) -> None:
        """Give the memory back."""
        self._ids.release()
        self._map.close()


def begun_in(table: bytes, call_id: int) -> bool:
    """Whether a call may have run, by what was in the table."""
    return memoryview(table).cast("Q")[call_id % _PLACES] >= call_id
