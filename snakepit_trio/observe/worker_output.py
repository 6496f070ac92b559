"""A worker's output lines: logged, or printed on the host's standard error with the worker's name."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import anyio

__all__ = ["Mode", "WorkerOutput"]

Mode = Literal["auto", "stderr", "logging", "discard"]

_log = logging.getLogger("snakepit_trio.worker")
_library = logging.getLogger("snakepit_trio")
#: The level of a printed line.
_PRINTED = logging.INFO
#: The bytes that a pipe with room accepts at once: PIPE_BUF on Linux, minus the note about omitted lines.
_PIECE = 4096 - 256
#: Seconds. The longest time for which standard error may be full.
_PATIENCE = 1.0


class WorkerOutput:
    """Handles the output of one worker.

    Args:
        mode: ``"auto"``: a line is logged if the application's logging takes it, and printed on standard error
            otherwise; ``"stderr"``, ``"logging"``, ``"discard"``: always the same.
        name: The worker's name for people.
        fields: Extra attributes of the log records.
    """

    def __init__(self, mode: Mode, name: str, fields: Mapping[str, object]) -> None:
        self._mode = mode
        self._name = name
        self._fields = fields
        #: The number of lines that standard error has not accepted.
        self._left_out = 0

    def put(self, lines: Iterable[tuple[str, int | None]]) -> None:
        """Handle lines, each with its level (None: printed). Never raises or blocks; see :meth:`tell`."""
        for stream, piece, count in self._pieces(lines):
            if not self._write(stream, piece, count):
                self._left_out += count

    async def tell(self, lines: Iterable[tuple[str, int | None]]) -> None:
        """Handle lines, and wait up to a second for room in standard error. After that, lines are omitted.

        A cancellation during the wait loses lines.
        """
        for stream, piece, count in self._pieces(lines):
            while not self._write(stream, piece, count):
                # After such a timeout there is no further wait until the reader reads again.
                if self._left_out or not await _room(stream.fileno()):
                    self._left_out += count
                    break

    def _pieces(self, lines: Iterable[tuple[str, int | None]]) -> Iterable[tuple[Any, str, int]]:
        """Log the lines for the log; yield the others as texts for standard error, with the number of lines in each."""
        shown: list[str] = []
        set_up = self._mode == "logging" or (self._mode == "auto" and _is_set_up())
        for line, level in lines if self._mode != "discard" else ():
            number = _PRINTED if level is None else level
            if set_up or (self._mode == "auto" and _is_taken(number)):
                _log.log(number, "%s", line, extra=dict(self._fields))
            else:
                shown.append(f"[{self._name}] {line}\n")
        stream = sys.stderr
        if shown and stream is not None:
            for piece, count in _pieces(shown):
                yield stream, piece, count

    def _write(self, stream: Any, piece: str, count: int) -> bool:
        """Write a text unless that would block, after a note about omitted lines, and return whether it was written."""
        if not _has_room(stream):
            return False
        if self._left_out:
            piece = f"[{self._name}] ({self._left_out} lines were left out: nobody read standard error)\n{piece}"
            self._left_out = 0
        try:
            stream.write(piece)
            stream.flush()
        except Exception:
            pass  # The stream is closed, or the application's own stream fails, so nothing can be reported there.
        return True


def _is_set_up() -> bool:
    """Return whether the application has configured logging for this library; its configuration is then final, also if it
    drops records.

    The library's own null handler does not count.
    """
    return any(
        logger.level or logger.filters or not logger.propagate
        or any(type(handler) is not logging.NullHandler for handler in logger.handlers)
        for logger in (_log, _library)
    )  # fmt: skip


def _is_taken(level: int) -> bool:
    """Return whether the application's root logging takes a line of this level."""
    return bool(logging.root.handlers) and _log.isEnabledFor(level)


def _pieces(lines: list[str]) -> Iterable[tuple[str, int]]:
    """Yield the lines in texts that a pipe with room accepts at once, each with the number of lines that end in it."""
    piece, size, count = "", 0, 0
    for line in lines:
        # An escaped character has up to ten bytes.
        length = len(line) if line.isascii() else len(line) * 10
        if size + length > _PIECE:
            if piece:
                yield piece, count
                piece, size, count = "", 0, 0
            step = _PIECE if line.isascii() else _PIECE // 10
            while length > _PIECE:
                yield line[:step], 0
                line = line[step:]
                length = len(line) if line.isascii() else len(line) * 10
        piece, size, count = piece + line, size + length, count + 1
    yield piece, count


def _has_room(stream: Any) -> bool:
    """Return whether a piece can be written without waiting. The application's own stream is always ready."""
    try:
        descriptor = stream.fileno()
    except Exception:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


async def _room(descriptor: int) -> bool:
    """Wait for room in a pipe for a limited time, and return whether there is any."""
    # A separate descriptor, because the output of each worker may wait for the same standard error.
    own = -1
    try:
        own = os.dup(descriptor)
        with anyio.move_on_after(_PATIENCE):
            await anyio.wait_writable(own)
            return True
    except OSError:
        pass  # The application has closed the stream meanwhile.
    finally:
        if own >= 0:
            os.close(own)
    return False
