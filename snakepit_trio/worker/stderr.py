"""Level marks on the lines that ``logging`` and ``warnings`` write to a worker's standard error, for the host."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TextIO

from snakepit_trio.observe.line_levels import marked

__all__ = ["mark_levels"]


def mark_levels() -> None:
    """Make each of these lines begin with its level; idempotent.

    This applies to every handler that writes to the process's own standard error: logging's last resort, which gets the
    request's id, and handlers of the adapter (including the one that ``logging.warning()`` installs). A stream that a
    tool assigns to ``sys.stderr`` is not read by the host.
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
    """Replaces ``warnings.showwarning``."""
    stream = sys.stderr if file is None else file
    if stream is None:
        return
    text = warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")
    try:
        stream.write(f"{marked(text, logging.WARNING) if stream is sys.__stderr__ else text}\n")
    except OSError:
        pass  # As in the standard library: a warning that can't be shown is not an error.
