"""What ``logging`` and ``warnings`` write to a worker's standard error: each line says its level, for the host."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TextIO

from snakepit_trio.observe.line_levels import marked

__all__ = ["mark_levels"]


def mark_levels() -> None:
    """Have each line of theirs begin with its level; idempotent.

    That holds for every handler that writes to the process's own standard error: logging's last resort, which gets the
    request's id, and what the adapter sets up (so does ``logging.warning()``, which sets up a handler by itself). A stream that
    a tool puts in the place of ``sys.stderr`` is not the host's to read.
    """
    if warnings.showwarning is _show_warning:
        return
    warnings.showwarning = _show_warning
    logging.StreamHandler.format = _format  # type: ignore[method-assign,assignment]
    if logging.lastResort is not None:
        words = "%(levelname)s %(name)s [%(request_id)s] %(message)s"
        logging.lastResort.setFormatter(logging.Formatter(words, defaults={"request_id": "-"}))


def _format(self: logging.StreamHandler[TextIO], record: logging.LogRecord) -> str:
    text = logging.Handler.format(self, record)
    stream = self.stream
    return marked(text, record.levelno) if stream is sys.__stderr__ and stream is not None else text


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In the place of ``warnings.showwarning``."""
    stream = sys.stderr if file is None else file
    if stream is None:
        return
    text = warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")
    try:
        stream.write(f"{marked(text, logging.WARNING) if stream is sys.__stderr__ else text}\n")
    except OSError:
        pass  # As in the standard library's own: a warning that nobody hears is no error.
