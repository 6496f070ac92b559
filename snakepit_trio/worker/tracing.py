"""OpenTelemetry inside a worker: a span for each call, the child of the host's. Does nothing unless the adapter imports it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .context import ToolContext

__all__ = ["CallSpan", "begin_span"]


class CallSpan:
    """The span of one call, current while its tool runs."""

    def __init__(self, tool: str, call: ToolContext) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(call.metadata)
        self._context = context
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
        self._token = context.attach(trace.set_span_in_context(self._span, parent))

    def end(self, error: BaseException | None, message: str = "") -> None:
        """The call has ended. ``message`` says how, without secrets."""
        if error is not None and self._span.is_recording():
            self._span.set_attribute("error.type", type(error).__qualname__)
            self._span.set_status(self._error, message)
        self._span.end()

    def leave(self) -> None:
        """The tool's task or thread goes on to something else."""
        self._context.detach(self._token)


def begin_span(tool: str, call: ToolContext) -> CallSpan | None:
    """Begin a span; None when nobody here uses OpenTelemetry."""
    return CallSpan(tool, call) if "opentelemetry.trace" in sys.modules else None
