"""OpenTelemetry in a worker: a span for each call, a child of the host's. Does nothing unless the adapter imports
OpenTelemetry.

An exception of the SDK, an exporter or a processor is logged, and affects no call.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from snakepit_trio._exceptions import type_name

if TYPE_CHECKING:
    from .context import ToolContext

__all__ = ["CallSpan", "begin_span"]

_log = logging.getLogger(__name__)


class CallSpan:
    """The span of one call, current in the call's context."""

    def __init__(self, tool: str, call: ToolContext) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(call.metadata)
        self._error = trace.StatusCode.ERROR
        self._span = trace.get_tracer("snakepit_trio.worker").start_span(
            tool,
            parent,
            kind=trace.SpanKind.SERVER,
            attributes={
                "rpc.system.name": "snakepit",
                "rpc.method": tool,
                "snakepit.request_id": call.request_id,
                "snakepit.worker_id": call.worker_id,
            },
        )
        context.attach(trace.set_span_in_context(self._span, parent))

    def end(self, error: BaseException | None, message: str = "") -> None:
        """End the span. ``message`` describes an error, without secrets."""
        try:
            if error is not None and self._span.is_recording():
                self._span.set_attribute("error.type", type_name(error))
                self._span.set_status(self._error, message)
            self._span.end()
        except Exception:
            _log.warning("a call's span could not be ended", exc_info=True)


def begin_span(tool: str, call: ToolContext) -> CallSpan | None:
    """Begin a span; None if OpenTelemetry is not used."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    try:
        return CallSpan(tool, call)
    except Exception:
        _log.warning("a call's span could not be begun", exc_info=True)
        return None
