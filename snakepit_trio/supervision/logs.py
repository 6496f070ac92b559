"""Reading a worker's output without ever blocking the worker or the event loop."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint

from snakepit_trio.observe.line_levels import unmarked
from snakepit_trio.observe.printable import printable
from snakepit_trio.observe.redaction import LineRedactor

if TYPE_CHECKING:
    from snakepit_trio.launch.base import Output
    from snakepit_trio.observe.worker_output import WorkerOutput

__all__ = ["Tail", "pump"]

#: A longer line, in bytes, is split.
_LONGEST = 16 * 1024
#: The number of lines that are handled before other tasks run.
_BATCH = 50
#: A line and its end; a carriage return at the very end of what has arrived may be half of one.
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r(?=[^\n]))")


class Tail:
    """The last lines of a stream: at most ``lines`` lines and ``size`` characters."""

    def __init__(self, lines: int = 60, size: int = 8192) -> None:
        self._lines: deque[str] = deque(maxlen=lines)
        self._size = size

    def add(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)

    def __str__(self) -> str:
        return "\n".join(self._lines)[-self._size :]


def _split(data: bytes) -> list[bytes]:
    """The lines, and what follows the last one. A progress bar ends a line by going back to its beginning, and draws again."""
    if b"\r" not in data:
        return data.split(b"\n")
    lines, at = [], 0
    # Each from where the last one ended: a search would look at a long rest from each of its bytes.
    while found := _LINE.match(data, at):
        at = found.end()
        if found[1] or found[2] != b"\r":
            lines.append(found[1])
    return [*lines, data[at:]]


async def pump(
    source: Output, output: WorkerOutput, *, tail: Tail, redact: Callable[[str], str], levels: bool = False
) -> None:
    """Handle each arriving line, until the stream ends. Never raises for anything that the worker does.

    Args:
        source: The worker's output.
        output: Receives each line, redacted.
        tail: Receives each line, redacted.
        redact: Removes secrets from a line.
        levels: Whether a line may begin with its level, which is removed.
    """
    clean = LineRedactor(redact)

    def told(raw: bytes) -> tuple[str, int | None]:
        text, level = raw.decode(errors="backslashreplace").rstrip("\r"), None
        if levels:
            text, level = unmarked(text)
        line = clean(printable(text))
        tail.add(line)
        return line, level

    rest = b""
    while data := await source.receive():
        *lines, rest = _split(rest + data)
        for begin in range(0, len(lines), _BATCH):
            if begin:
                await checkpoint()
            await output.tell([told(raw) for raw in lines[begin : begin + _BATCH]])
        while len(rest) > _LONGEST:
            await output.tell([told(rest[:_LONGEST])])
            rest = rest[_LONGEST:]
    if rest:
        await output.tell([told(rest)])
