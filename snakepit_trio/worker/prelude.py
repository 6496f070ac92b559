"""What a process that a host has started does before it can import more than the standard library."""

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
    """Read the boot message from the lifeline, and not a byte more.

    Raises:
        EOFError: The host is gone.
        ValueError: It is not a boot message.
    """
    size = int.from_bytes(_read_exactly(fd, 4), "big")
    if size > _LONGEST:
        raise ValueError(f"a boot message of {size} bytes")
    return _read_exactly(fd, size)


def joined(host: Iterable[str], own: Iterable[str]) -> list[str]:
    """The host's path in its order, and one's own.

    What comes in one's own before anything that the host has too is from ``PYTHONPATH``, and stays before that; the rest
    of what the host does not have goes to the end.
    """
    theirs, mine = list(dict.fromkeys(host)), list(dict.fromkeys(own))
    shared = next((entry for entry in mine if entry in theirs), None)
    at, until = (len(theirs), 0) if shared is None else (theirs.index(shared), mine.index(shared))
    return list(dict.fromkeys([*theirs[:at], *mine[:until], *theirs[at:], *mine[until:]]))


def follow(host: Iterable[str]) -> None:
    """Find from now on what the host finds."""
    sys.path[:] = joined(host, sys.path)
