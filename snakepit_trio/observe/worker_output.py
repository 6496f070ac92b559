"""What becomes of the lines that a worker writes: they are logged, or shown on the host's standard error with its name."""

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
#: A line that was printed has this level.
_PRINTED = logging.INFO
#: Bytes that a pipe with room takes at once: PIPE_BUF on Linux, less what tells of lines that were left out.
_PIECE = 4096 - 256
#: Seconds that standard error may be without room.
_PATIENCE = 1.0


class WorkerOutput:
    """Tells what one worker writes.

    Args:
        mode: ``"auto"``: a line is logged where the application takes it, and shown on standard error elsewhere;
            ``"stderr"``, ``"logging"``, ``"discard"``: always the same.
        name: The worker's, for people.
        fields: Extra attributes of the log records.
    """

    def __init__(self, mode: Mode, name: str, fields: Mapping[str, object]) -> None:
        self._mode = mode
        self._name = name
        self._fields = fields
        #: Lines that standard error has not taken.
        self._left_out = 0

    def put(self, lines: Iterable[tuple[str, int | None]]) -> None:
        """Tell lines, each with its level, None for one that was printed. Never raises or blocks; see :meth:`tell`."""
        for stream, piece, count in self._pieces(lines):
            if not self._write(stream, piece, count):
                self._left_out += count

    async def tell(self, lines: Iterable[tuple[str, int | None]]) -> None:
        """The same; waits for whoever reads standard error, up to a second without any room in it. Then lines are left out.

        A cancellation while it waits loses lines.
        """
        for stream, piece, count in self._pieces(lines):
            while not self._write(stream, piece, count):
                # Once nobody has read for so long, nothing is waited for until somebody does again.
                if self._left_out or not await _room(stream.fileno()):
                    self._left_out += count
                    break

    def _pieces(self, lines: Iterable[tuple[str, int | None]]) -> Iterable[tuple[Any, str, int]]:
        """Log the lines that are for the log; the others as texts for standard error, with the number of lines in each."""
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
        """Write a text unless that would block, after the number of those that were left out; whether it is done."""
        if not _has_room(stream):
            return False
        if self._left_out:
            piece = f"[{self._name}] ({self._left_out} lines were left out: nobody read standard error)\n{piece}"
            self._left_out = 0
        try:
            stream.write(piece)
            stream.flush()
        except Exception:
            pass  # It is closed, or is a stream of the application's that fails: nobody is there to be told.
        return True


def _is_set_up() -> bool:
    """Whether the application has set up logging for this library: then its word is final, also where it wants to hear nothing.

    The library's own handler, which does nothing, does not count.
    """
    return any(
        logger.level or logger.filters or not logger.propagate
        or any(type(handler) is not logging.NullHandler for handler in logger.handlers)
        for logger in (_log, _library)
    )  # fmt: skip


def _is_taken(level: int) -> bool:
    """Whether the application's logging, set up for everything, takes a line of this level."""
    return bool(logging.root.handlers) and _log.isEnabledFor(level)


def _pieces(lines: list[str]) -> Iterable[tuple[str, int]]:
    """The lines in texts that a pipe with room takes whole, each with the number of lines that end in it."""
    piece, size, count = "", 0, 0
    for line in lines:
        # A character has up to ten bytes, escaped.
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
    """Whether a piece can be written without waiting. A stream of the application's own is always ready."""
    try:
        descriptor = stream.fileno()
    except Exception:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


async def _room(descriptor: int) -> bool:
    """Wait for room in a pipe; whether there is any after a while."""
    # One of its own, because each worker's output may wait for the same standard error.
    own = -1
    try:
        own = os.dup(descriptor)
        with anyio.move_on_after(_PATIENCE):
            await anyio.wait_writable(own)
            return True
    except OSError:
        pass  # The application has closed it meanwhile.
    finally:
        if own >= 0:
            os.close(own)
    return False
