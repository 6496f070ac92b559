"""OpenTelemetry in the host: one span for each request, and metrics. Uses only the API, once the application has imported
it.

Names follow https://opentelemetry.io/docs/specs/semconv/rpc/; names that are not defined there begin with
``snakepit.``.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from snakepit_trio.errors import GRPC_STATUS, ToolError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import Span

    from .prometheus import PoolFacts

__all__ = ["RequestTrace", "Telemetry"]

#: The bucket bounds that the semantic conventions advise for durations of calls, in seconds.
_BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
#: The names of the gRPC status codes by number.
_STATUS = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


class RequestFacts(Protocol):
    """The trace's view of a request."""

    id: int
    tool: str
    metadata: Any
    session: str | None
    error: Any
    attempt: int
    worker_id: str | None
    submitted_at: float
    dispatched_at: float


class Telemetry:
    """A runtime's spans and metrics.

    Args:
        version: The library's version.
        pools: A method that returns the current pools.
        redact: Removes secrets from the application's values.
    """

    def __init__(self, version: str, pools: Callable[[], Iterable[PoolFacts]], redact: Callable[[str], str]) -> None:
        from opentelemetry import metrics, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._redact = redact
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = trace.get_tracer("snakepit_trio", version)
        meter = metrics.get_meter("snakepit_trio", version)
        self._durations = meter.create_histogram(
            "rpc.client.call.duration", "s", "Duration of a request, its wait included.",
            explicit_bucket_boundaries_advisory=_BOUNDS,
        )  # fmt: skip
        self._waits = meter.create_histogram(
            "snakepit.queue.wait", "s", "From a request's arrival to its dispatch.",
            explicit_bucket_boundaries_advisory=_BOUNDS,
        )  # fmt: skip
        self._open = True
        # The API can't remove an instrument, so it must not keep the runtime alive, and observes nothing after the
        # runtime's end.
        self._pools = weakref.WeakMethod(pools)
        for name, unit, text, read in (
            ("snakepit.workers", "{worker}", "Workers by state.", _workers),
            ("snakepit.queue.length", "{request}", "Requests that wait.", _queued),
            ("snakepit.requests.in_flight", "{request}", "Requests that a worker is running.", _running),
        ):
            meter.create_observable_gauge(name, [self._callback(read)], unit, text)

    def __repr__(self) -> str:
        return f"<Telemetry {'open' if self._open else 'closed'}>"

    def close(self) -> None:
        """Stop observing."""
        self._open = False

    def begin(self, request: RequestFacts, *, pool: str, request_id: str, decodes: bool) -> RequestTrace:
        """Begin a request's span in its caller's context; its ``carrier`` goes to the worker in the request's metadata.

        Args:
            request: The request, not yet submitted.
            pool: The name of its pool.
            request_id: Its id.
            decodes: Whether its result is decoded in the span, and :meth:`RequestTrace.decode` ends it.
        """
        attributes = {
            "rpc.system.name": "snakepit",
            "rpc.method": request.tool,
            "snakepit.pool": pool,
            "snakepit.request_id": request_id,
        }
        if request.session is not None:
            attributes["snakepit.session_id"] = self._redact(request.session)
        span = self._tracer.start_span(request.tool, kind=self._trace.SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        if span.get_span_context().is_valid:
            self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return RequestTrace(self, span, pool, carrier, decodes=decodes)

    def _callback(
        self, read: Callable[[PoolFacts], Iterable[Any]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        ours = weakref.ref(self)

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            from opentelemetry.metrics import Observation

            telemetry = ours()
            pools = telemetry._pools() if telemetry is not None and telemetry._open else None
            for pool in () if pools is None else pools():
                for value, extra in read(pool):
                    yield Observation(value, {"snakepit.pool": pool.name, **extra})

        return observe

    @classmethod
    def of(
        cls, mode: str, version: str, pools: Callable[[], Iterable[PoolFacts]], redact: Callable[[str], str]
    ) -> Telemetry | None:
        """Return the telemetry of a runtime; None if it is off, or if the application has not imported OpenTelemetry."""
        return cls(version, pools, redact) if mode == "auto" and "opentelemetry.trace" in sys.modules else None


def _workers(pool: PoolFacts) -> Iterator[tuple[int, dict[str, str]]]:
    for state, count in Counter(info.state for info in pool.workers()).items():
        yield count, {"snakepit.worker.state": state}


def _queued(pool: PoolFacts) -> Iterator[tuple[int, dict[str, str]]]:
    yield pool.stats().queued, {}


def _running(pool: PoolFacts) -> Iterator[tuple[int, dict[str, str]]]:
    yield pool.stats().in_flight, {}


class RequestTrace:
    """The span of one request; the scheduler's steps become its phases, as events.

    ``queue`` is the wait, ``dispatch`` the moment at which a worker gets the request (again for another attempt),
    ``execute`` the time in the worker including transfer, ``decode`` the decoding of the result. Each event is at the
    beginning of its phase.

    Attributes:
        carrier: The span's context, as metadata for the worker.
    """

    __slots__ = ("_decodes", "_ended", "_offset", "_pool", "_span", "_telemetry", "carrier")

    def __init__(
        self, telemetry: Telemetry, span: Span, pool: str, carrier: Mapping[str, str], *, decodes: bool
    ) -> None:
        self.carrier: Mapping[str, str] = carrier
        self._telemetry = telemetry
        self._span = span
        self._pool = pool
        self._decodes = decodes
        self._ended = False
        # The wall clock minus the event loop's clock, in nanoseconds.
        self._offset = time.time_ns() - int(anyio.current_time() * 1e9)

    def note(self, event: str, request: RequestFacts, now: float) -> None:
        """Record a step of the request."""
        span = self._span
        if event == "queued":
            return
        if event == "dispatched":
            wait = now - request.submitted_at
            if span.is_recording():
                if request.attempt == 1:
                    span.add_event("queue", {"snakepit.duration": wait}, self._at(request.submitted_at))
                worker = request.worker_id or ""
                span.add_event(
                    "dispatch", {"snakepit.worker_id": worker, "snakepit.attempt": request.attempt}, self._at(now)
                )
                span.set_attribute("snakepit.worker_id", worker)
            self._telemetry._waits.record(wait, {"snakepit.pool": self._pool})
            return
        self._finish(event, request, now)
        if not (self._decodes and event == "completed"):
            self.end(now)

    @contextmanager
    def decode(self) -> Iterator[None]:
        """Wrap the decoding of the result; the span ends with the block."""
        begun = anyio.current_time()
        try:
            yield
        finally:
            now = anyio.current_time()
            self._span.add_event("decode", {"snakepit.duration": now - begun}, self._at(begun))
            self.end(now)

    def end(self, now: float | None = None) -> None:
        """End the span, if it has not ended."""
        if not self._ended:
            self._ended = True
            self._span.end(None if now is None else self._at(now))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the span current during the block, for work of the host on the request: spans that begin in it are
        children.
        """
        with self._telemetry._trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
            yield

    def _at(self, moment: float) -> int:
        return int(moment * 1e9) + self._offset

    def _finish(self, outcome: str, request: RequestFacts, now: float) -> None:
        span, error = self._span, request.error
        status = "CANCELLED" if outcome == "cancelled" else "OK"
        if error is not None:
            status = _STATUS[GRPC_STATUS.get(error.code, 13)]
        attributes = {
            "rpc.system.name": "snakepit",
            "rpc.method": request.tool,
            "rpc.response.status_code": status,
            "snakepit.pool": self._pool,
        }
        if error is not None:
            # Exceptions and codes of tools share one value in metrics, because their number is unbounded.
            attributes["error.type"] = error.code if error.code in GRPC_STATUS else ToolError.default_code
        if span.is_recording():
            if request.dispatched_at == request.dispatched_at:
                span.add_event(
                    "execute", {"snakepit.duration": now - request.dispatched_at}, self._at(request.dispatched_at)
                )
            else:
                span.add_event(
                    "queue", {"snakepit.duration": now - request.submitted_at}, self._at(request.submitted_at)
                )
            span.set_attributes({"rpc.response.status_code": status, "snakepit.outcome": outcome})
            if error is not None:
                span.set_attribute("error.type", error.remote_type if isinstance(error, ToolError) else error.code)
                span.set_status(self._telemetry._trace.StatusCode.ERROR, error.message)
        self._telemetry._durations.record(
            now - request.submitted_at, attributes, context=self._telemetry._trace.set_span_in_context(span)
        )
