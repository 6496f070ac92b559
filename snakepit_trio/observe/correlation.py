"""Associates log records with the request of the current task or thread, in workers and in the host."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, NamedTuple

__all__ = ["CURRENT", "Correlation", "CorrelationFilter", "in_worker"]


class Correlation(NamedTuple):
    """The request for which a host tool runs."""

    request_id: str
    worker_id: str
    session_id: str | None


#: The object with these attributes while a tool runs: a ToolContext in a worker, a Correlation in the host.
CURRENT: ContextVar[Any] = ContextVar("snakepit_correlation", default=None)


class CorrelationFilter(logging.Filter):
    """Adds ``request_id``, ``worker_id`` and ``session_id`` to log records; ``"-"`` for a missing one.

    In a worker it is installed automatically. In the host, add it to a handler:
    ``handler.addFilter(CorrelationFilter())``; then records of host tools have these fields.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields, and return True."""
        _mark(record)
        return True


def _mark(record: logging.LogRecord) -> None:
    current = CURRENT.get()
    for name in Correlation._fields:
        if not hasattr(record, name):
            setattr(record, name, (getattr(current, name) if current is not None else None) or "-")


def in_worker() -> None:
    """Add the fields to every log record of this process."""
    make = logging.getLogRecordFactory()

    def made(*arguments: object, **options: object) -> logging.LogRecord:
        record = make(*arguments, **options)
        _mark(record)
        return record

    logging.setLogRecordFactory(made)
