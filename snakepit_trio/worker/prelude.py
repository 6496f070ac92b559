"""The first steps of a started process, with the standard library only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

__all__ = ["follow", "joined", "read_boot"]

_LONGEST = 16 * 1024 * 1024


def _read_exactly(fd: int, size: int) -> bytes:
    parts = []
    while size:
        data = os.read(fd, size)
        if not data:
            raise EOFError("the host went away before it had said what to do")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def read_boot(fd: int) -> bytes:
    """Read the boot message from the lifeline, and no byte more.

    Raises:
        EOFError: The host is gone.
        ValueError: The message is malformed.
    """
    size = int.from_bytes(_read_exactly(fd, 4), "big")
    if size > _LONGEST:
        raise ValueError(f"a boot message of {size} bytes")
    return _read_exactly(fd, size)


def joined(host: Iterable[str], own: Iterable[str]) -> list[str]:
    """Return the host's path in its order, combined with this process's own.

    Own entries before any entry that the host has too come from ``PYTHONPATH``, and stay first; the other own entries
    go to the end.
    """
    theirs, mine = list(dict.fromkeys(host)), list(dict.fromkeys(own))
    shared = next((entry for entry in mine if entry in theirs), None)
    at, until = (len(theirs), 0) if shared is None else (theirs.index(shared), mine.index(shared))
    return list(dict.fromkeys([*theirs[:at], *mine[:until], *theirs[at:], *mine[until:]]))


def follow(host: Iterable[str]) -> None:
    """Use the host's import path from now on."""
    sys.path[:] = joined(host, sys.path)
