"""What a worker prints, pumped into logging so that it can never block the worker."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from snakepit_trio.observe.printable import printable
from snakepit_trio.observe.redaction import LineRedactor

if TYPE_CHECKING:
    from snakepit_trio.launch.base import Output

__all__ = ["Tail", "pump"]

_log = logging.getLogger("snakepit_trio.worker")
#: A line longer than this, in bytes, is logged in pieces.
_LONGEST = 16 * 1024


class Tail:
    """The last lines of a stream: at most ``lines`` of them and ``size`` characters."""

    def __init__(self, lines: int = 60, size: int = 8192) -> None:
        self._lines: deque[str] = deque(maxlen=lines)
        self._size = size

    def add(self, line: str) -> None:
        """Remember a line."""
        self._lines.append(line)

    def __str__(self) -> str:
        return "\n".join(self._lines)[-self._size :]


async def pump(source: Output, *, stream: str, tail: Tail, redact: Callable[[str], str], **fields: object) -> None:
    """Log each line that arrives, until the stream ends. Never raises for what the worker does.

    Args:
        source: What it writes.
        stream: ``"stdout"`` or ``"stderr"``, for the records.
        tail: Gets each line, redacted.
        redact: Takes secrets out of a line.
        fields: Extra attributes of the log records, such as ``worker_id``.
    """
    extra = {"stream": stream, **fields}
    clean = LineRedactor(redact)

    def put(raw: bytes) -> None:
        line = clean(printable(raw.decode(errors="backslashreplace").rstrip("\r")))
        tail.add(line)
        _log.info("%s", line, extra=extra)

    rest = b""
    while True:
        data = await source.receive()
        if not data:
            if rest:
                put(rest)
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            put(line)
        while len(rest) > _LONGEST:
            put(rest[:_LONGEST])
            rest = rest[_LONGEST:]
