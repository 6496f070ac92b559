"""Which request a task or a thread works for, so that its log records can say so; on both sides."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, NamedTuple

__all__ = ["CURRENT", "Correlation", "CorrelationFilter", "in_worker"]


class Correlation(NamedTuple):
    """The request that a host tool runs for."""

    request_id: str
    worker_id: str
    session_id: str | None


#: What has these attributes, while a tool runs: in a worker its ToolContext, in the host a Correlation.
CURRENT: ContextVar[Any] = ContextVar("snakepit_correlation", default=None)


class CorrelationFilter(logging.Filter):
    """Adds ``request_id``, ``worker_id`` and ``session_id`` to log records, ``"-"`` where there is none.

    In a worker this happens by itself. In the host, add it to a handler: ``handler.addFilter(CorrelationFilter())``; then what
    host tools log says for which request.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass."""
        _mark(record)
        return True


def _mark(record: logging.LogRecord) -> None:
    current = CURRENT.get()
    for name in Correlation._fields:
        if not hasattr(record, name):
            setattr(record, name, (getattr(current, name) if current is not None else None) or "-")


def in_worker() -> None:
    """Make every log record of this process say for which request it is."""
    make = logging.getLogRecordFactory()

    def made(*arguments: object, **options: object) -> logging.LogRecord:
        record = make(*arguments, **options)
        _mark(record)
        return record

    logging.setLogRecordFactory(made)
