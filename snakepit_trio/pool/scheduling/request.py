"""A request, and the seats of a worker: the values that the scheduler decides about."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Hashable, Mapping
from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from snakepit_trio._call_options import NO_OPTIONS
from snakepit_trio._interrupts import protected
from snakepit_trio.policies.options import TIMEOUTS
from snakepit_trio.wire.frames import Payload

if TYPE_CHECKING:
    import anyio

    from snakepit_trio._call_options import CallOptions
    from snakepit_trio.errors import SnakepitError
    from snakepit_trio.policies.options import Timeouts
    from snakepit_trio.wire.frames import Buffer

__all__ = ["CLIENT", "Binding", "Outcome", "Phase", "Port", "Request", "Seats"]

#: The client for which requests are made in this context; see :class:`Request`.
CLIENT: ContextVar[Hashable | None] = ContextVar("snakepit_client", default=None)
_DEFAULTS: Timeouts = TIMEOUTS["balanced"]


class Phase(Enum):
    """The phase of a request."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Outcome(Enum):
    """The outcome of a request; the value is the last word of its final event."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"


class Binding:
    """A session's binding to a worker, made when its first request is dispatched.

    Attributes:
        session: The session's id.
        strict: Whether only the bound worker may run the session's requests.
        seats: The incarnation to which the session is bound; None before the first dispatch.
        whole: Whether the worker has the state of the session's previous worker: there was none, or it has been
            rebuilt.
        rebuilt: Held by the task that rebuilds the state.
    """

    __slots__ = ("rebuilt", "seats", "session", "strict", "whole")

    def __init__(self, session: str, *, strict: bool, seats: Seats | None = None, whole: bool = True) -> None:
        self.session: str = session
        self.strict: bool = strict
        self.seats: Seats | None = seats
        self.whole: bool = whole
        self.rebuilt: anyio.Lock | None = None

    @property
    def lost(self) -> bool:
        """Whether the session is strict, and its worker accepts no more calls."""
        return self.strict and self.seats is not None and self.seats.over


class StreamEnd(Protocol):
    """The caller's end of a stream.

    Attributes:
        window: The number of chunks that the worker may send at first.
        window_bytes: The bytes of chunks that it may send at first.
        released: Set when the call has ended in the worker.
    """

    window: int
    window_bytes: int
    released: anyio.Event

    def put(self, chunk: Payload) -> None:
        """Add a received chunk.

        Raises:
            ValueError: The worker had no credit for it.
        """


class Request:
    """One request, from its acceptance to its end. Owned by the task that made it; changed only by the scheduler.

    Args:
        id: Its number in the runtime.
        tool: The name of the tool.
        payload: The encoded arguments.
        options: The caller's options.
        on_end: Called when it has ended.
        deadline: The time at which the scheduler ends it.
        queue_deadline: The time at which the scheduler ends it if it is still waiting.
        scope_deadline: The deadline of its caller's own scope; sent to the worker if it is earlier than ``deadline``.
        binding: The binding of its session.
        stream: The caller's end of its stream; None: it has one result.

    Attributes:
        priority: Requests of greater priority go first.
        metadata: The strings that the tool finds in ``ctx.metadata``.
        idempotent: Whether it may run again if its worker dies.
        defaults: The pool's defaults for time limits, for errors.
        session: The id of its session.
        fairness_key: In a fair queue, requests of the same priority take turns by this key.
        fail_fast: Whether it is refused while its session's worker is busy.
        time_limit: Seconds from its first dispatch to its deadline, for a request whose wait does not count.
        chain: The calls that wait for this one through the host, outermost first; see :mod:`snakepit_trio.tools.waits`.
        permits: The permits of limits that it holds until its end.
        client: The client whose share of the queue it uses; None: the host itself.
        beside: The requests of the same call, itself included: each needs its own worker. None: there is only this one.
        trace: The request's tracing span, or None.
        worker_id: The id of its current or last worker.
        released: Called when the worker holds it no longer, which after a cancellation is later than its end.
        recalled: Whether it was prefetched and has been recalled.
    """

    __slots__ = (
        "attempt",
        "beside",
        "binding",
        "chain",
        "client",
        "deadline",
        "deadline_node",
        "deaths",
        "defaults",
        "dispatched_at",
        "error",
        "fail_fast",
        "fairness_key",
        "id",
        "idempotent",
        "metadata",
        "on_end",
        "options",
        "outcome",
        "payload",
        "permits",
        "phase",
        "pin",
        "priority",
        "queue_deadline",
        "queue_node",
        "recalled",
        "released",
        "result",
        "scope_deadline",
        "seats",
        "session",
        "stream",
        "stuck",
        "submitted_at",
        "suspect",
        "suspicion",
        "time_limit",
        "tool",
        "trace",
        "worker_id",
    )

    def __init__(
        self,
        id: int,
        tool: str,
        payload: Payload,
        options: CallOptions = NO_OPTIONS,
        *,
        on_end: Callable[[], object],
        deadline: float = math.inf,
        queue_deadline: float = math.inf,
        scope_deadline: float = math.inf,
        binding: Binding | None = None,
        stream: StreamEnd | None = None,
    ) -> None:
        self.id: int = id
        self.tool: str = tool
        self.payload: Payload = payload
        self.options: CallOptions = options
        self.on_end: Callable[[], object] = on_end
        self.deadline: float = deadline
        self.queue_deadline: float = queue_deadline
        self.scope_deadline: float = scope_deadline
        self.binding: Binding | None = binding
        self.stream: StreamEnd | None = stream
        self.priority: int = options.priority
        self.metadata: Mapping[str, str] = options.metadata
        self.idempotent: bool = options.idempotent is True
        self.defaults: Timeouts = _DEFAULTS
        self.session: str | None = None if binding is None else binding.session
        self.fairness_key: str | None = self.session
        self.fail_fast: bool = False
        self.time_limit: float | None = None
        self.chain: tuple[Any, ...] = ()
        self.permits: tuple[Any, ...] = ()
        self.client: Hashable | None = None
        self.beside: list[Request] | None = None
        self.released: Callable[[], object] | None = None if stream is None else stream.released.set
        self.phase: Phase = Phase.NEW
        self.outcome: Outcome | None = None
        self.result: Payload | None = None
        self.error: SnakepitError | None = None
        self.seats: Seats | None = None
        self.pin: Seats | None = None
        self.trace: Any = None
        self.worker_id: str | None = None
        self.recalled: bool = False
        #: Whether its caller has left and it has not stopped in time.
        self.stuck: bool = False
        self.attempt: int = 0
        self.deaths: int = 0
        self.suspicion: float = 0.0
        self.suspect: bool = False
        self.submitted_at: float = math.nan
        self.dispatched_at: float = math.nan
        self.queue_node: Any = None
        self.deadline_node: Any = None

    def __repr__(self) -> str:
        return f"<Request {self.id} {self.tool!r} {self.phase.value} attempt={self.attempt}>"

    @property
    def held_by(self) -> Seats | None:
        """The worker that runs it, has prefetched it, or has not confirmed its end."""
        seats, id = self.seats, self.id
        if seats is None or not (id in seats.running or id in seats.ahead or id in seats.leaving):
            return None
        return seats

    def release(self) -> None:
        """Record that the call has ended in the worker."""
        if self.released is not None:
            self.released()

    def avoids(self, seats: Seats) -> bool:
        """Return whether a worker has another request of the same call."""
        return self.beside is not None and any(other is not self and other.held_by is seats for other in self.beside)

    def stops_after(self, blocked: Container[object]) -> bool:
        """Return whether it stops only with its worker, which ends after one of these."""
        seats = self.seats
        return self.stuck and seats is not None and not seats.over and seats.empties_after(blocked)

    def keep_values(self) -> None:
        """Copy binary values whose owner may change them, because the request waits."""
        payload = self.payload
        self.payload = Payload(payload.encoding, payload.data, [*map(_as_it_is, payload.buffers)])

    def keep_permits(self) -> None:
        """Leave its permits with the worker until the call has ended there too, because the request has ended here."""
        if self.held_by is None:
            return
        for permit in self.permits:
            permit.hold(self)
        then = self.released

        def released() -> None:
            for permit in self.permits:
                permit.leave(self)
            if then is not None:
                then()

        self.released = released


def _as_it_is(buffer: Buffer) -> Buffer:
    if isinstance(buffer, memoryview) and not isinstance(buffer.obj, bytes) and not memoryview(buffer.obj).readonly:
        return bytes(buffer)
    return buffer


class Port(Protocol):
    """The scheduler's way to one worker. None of these methods waits or calls back."""

    def start(self, request: Request) -> None:
        """Send the call. The worker begins it when a thread is free, in the order of sending."""

    @protected
    def cancel(self, request: Request) -> None:
        """Cancel a running call whose caller has left, and ensure that its seat is freed."""

    def withdraw(self, request: Request) -> None:
        """Take back a call that has probably not begun, whose caller has left."""

    def recall(self, request: Request) -> None:
        """Ask the worker to give back a call that it has not begun."""

    def credit(self, request: Request, chunks: int, size: int) -> None:
        """Grant a stream credit for further chunks and bytes."""


class Seats:
    """The calls that one worker incarnation may run, runs and holds.

    Attributes:
        port: The way to the worker.
        capacity: The number of calls that it runs at once.
        depth: The number of further calls that may be prefetched to it.
        worker_id: The worker's id; None if it is not needed.
        open: Whether it may get new calls.
        over: Whether it never will again.
        alone: Whether it gets no more calls until it is empty: a call that may have ended workers runs here, or waits
            to, and must run alone to show whether it is the cause.
        end: How the worker ended, after its end.
        running: The running calls with waiting callers, by id.
        leaving: The calls whose callers have left, by id; the worker has not confirmed that it stopped them.
        ahead: The prefetched calls, by id, first in, first out. Those with waiting callers still count as queued; of
            the others the worker has not confirmed that it dropped them.
        since: The start of the running call; kept only if there are prefetched calls.
        served: The number of calls that have ended here.
        place: Its bucket among those with room, for the scheduler.
    """

    __slots__ = (
        "ahead",
        "alone",
        "capacity",
        "depth",
        "end",
        "leaving",
        "open",
        "over",
        "place",
        "port",
        "running",
        "served",
        "since",
        "worker_id",
    )

    def __init__(self, port: Port, capacity: int, depth: int = 0, worker_id: str | None = None) -> None:
        self.port: Port = port
        self.worker_id: str | None = worker_id
        self.capacity: int = capacity
        self.depth: int = depth
        self.open: bool = False
        self.over: bool = False
        self.alone: bool = False
        self.end: SnakepitError | None = None
        self.running: dict[int, Request] = {}
        self.leaving: dict[int, Request] = {}
        self.ahead: dict[int, Request] = {}
        self.since: float = -math.inf
        self.served: int = 0
        self.place: dict[Seats, None] | None = None

    @property
    def load(self) -> int:
        """The number of taken seats."""
        return len(self.running) + len(self.leaving)

    @property
    def stuck(self) -> bool:
        """Whether its worker accepts no calls and ends because of a call that does not stop, after the calls beside it."""
        return not self.over and any(request.stuck for request in self.leaving.values())

    def needs(self, request: Request) -> bool:
        """Return whether a call that runs here waits for this request."""
        return any(running in request.chain for running in self.running.values())

    def admits(self, request: Request) -> bool:
        """Return whether a request may run beside the calls that run here.

        Nothing runs beside a suspect, nor in a worker that must become empty for one, except a request for which a
        running call waits, because the worker becomes empty only after that.
        """
        return not self.alone or (not request.suspect and self.needs(request))

    def empties_after(self, blocked: Container[object]) -> bool:
        """Return whether one of these has to end before this worker has no call with a waiting caller."""
        return any(request in blocked for request in self.running.values())

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        line = f" ahead={len(self.ahead)}" if self.depth else ""
        return f"<Seats {state} running={len(self.running)} leaving={len(self.leaving)} of {self.capacity}{line}>"
