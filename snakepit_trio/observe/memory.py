"""How much memory a family of processes holds."""

from __future__ import annotations

import os

__all__ = ["resident"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
#: More descendants than this are not counted.
_LARGEST_FAMILY = 200


def resident(pid: int | str = "self") -> int:
    """Resident memory of a process and its descendants in bytes, 0 where it can't be told cheaply."""
    total = 0
    family = [str(pid)]
    for member in family:
        try:
            with open(f"/proc/{member}/statm", "rb") as file:
                total += int(file.read().split()[1]) * _PAGE
            for task in os.listdir(f"/proc/{member}/task"):
                with open(f"/proc/{member}/task/{task}/children") as file:
                    family += file.read().split()
        except OSError:
            continue  # It has just ended, or this system does not tell.
        if len(family) > _LARGEST_FAMILY:
            break
    return total
