"""Numbers and text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from snakepit_trio.observe.printable import printable

__all__ = ["cell", "duration", "quantile", "size"]


def cell(value: Any) -> str:
    """Return text for one cell of a table, without line ends and control characters."""
    return "" if value is None else " ".join(printable(str(value)).split())


def duration(seconds: float | None) -> str:
    """Return a duration in a fitting unit: ``"1.2 ms"``, ``"3.0 s"``, ``"5 min"``."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    # At these bounds the shorter unit would round up to the longer one.
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 0.99995:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86220 else f"{seconds / 86400:.1f} d"


def size(count: float | None) -> str:
    """Return a number of bytes with a unit: ``"12.3 MiB"``."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def quantile(values: Sequence[float], part: float) -> float:
    """Return the smallest of the sorted values that is at least as great as this fraction of them."""
    return values[max(0, math.ceil(len(values) * part) - 1)]
