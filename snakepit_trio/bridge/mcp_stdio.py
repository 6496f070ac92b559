"""MCP over standard input and output: no other output gets there, and a cancellation never waits for them.

The SDK reads and writes in threads, which can't be interrupted while a pipe is silent or full; here the event loop
waits for readiness. The descriptors stay blocking, because other processes may share them: a read returns the available
data, and a ready pipe accepts at least ``PIPE_BUF`` bytes.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

__all__ = ["Lines", "Writer", "claim"]

_CHUNK = 64 * 1024


@contextmanager
def claim() -> Iterator[tuple[Lines, Writer]]:
    """Reserve standard input and output for the protocol: other readers get end of file, other output goes to standard
    error.
    """
    taken = os.dup(0), os.dup(1)
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        yield Lines(taken[0]), Writer(taken[1])
    finally:
        os.dup2(taken[0], 0)
        os.dup2(taken[1], 1)
        for fd in taken:
            os.close(fd)


def _waits(fd: int) -> bool:
    """Return whether a wait for readiness is possible: files are always ready, and event loops refuse them."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


class Lines:
    """An async iterator over the lines of standard input, for one task."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waits = _waits(fd)
        self._rest = b""
        self._lines: list[bytes] = []

    def __aiter__(self) -> Lines:
        return self

    async def __anext__(self) -> str:
        """Wait for the next line. A cancellation loses no line."""
        while not self._lines:
            if self._waits:
                await anyio.wait_readable(self._fd)
            data = os.read(self._fd, _CHUNK)
            if not data:
                last, self._rest = self._rest, b""
                if not last:
                    raise StopAsyncIteration
                return last.decode(errors="replace")
            *lines, rest = (self._rest + data).split(b"\n")
            self._rest = rest
            self._lines = lines[::-1]
        return self._lines.pop().decode(errors="replace")


class Writer:
    """Writes text. A cancellation may truncate a line."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waits = _waits(fd)

    async def write(self, text: str) -> None:
        """Write text, as fast as the reader reads. A cancellation may truncate it."""
        left = memoryview(text.encode())
        while left:
            if self._waits:
                await anyio.wait_writable(self._fd)
            left = left[os.write(self._fd, left[: select.PIPE_BUF]) :]

    async def flush(self) -> None:
        """Do nothing, because nothing is buffered."""
