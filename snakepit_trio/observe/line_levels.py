"""The level of a line on a worker's standard error, as a prefix like ``<4>``, as in systemd's sd-daemon(3).

A worker marks lines of ``logging`` and ``warnings``; the host removes the marks. A line without a mark was printed.
"""

from __future__ import annotations

import logging

__all__ = ["marked", "unmarked"]

#: Levels by syslog's numbers; the first two are alert and emergency, the sixth is notice.
_LEVELS = {
    "0": logging.CRITICAL,
    "1": logging.CRITICAL,
    "2": logging.CRITICAL,
    "3": logging.ERROR,
    "4": logging.WARNING,
    "5": logging.INFO,
    "6": logging.INFO,
    "7": logging.DEBUG,
}
_NUMBERS = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))


def marked(text: str, level: int) -> str:
    """Prefix each line with the mark of a ``logging`` level."""
    mark = next(f"<{number}>" for least, number in _NUMBERS if level >= least or least == logging.NOTSET)
    return "\n".join(f"{mark}{line}" for line in text.split("\n"))


def unmarked(line: str) -> tuple[str, int | None]:
    """Return a line without its mark, and the marked level; None without a mark."""
    if line.startswith("<") and line[2:3] == ">" and line[1] in _LEVELS:
        return line[3:], _LEVELS[line[1]]
    return line, None
