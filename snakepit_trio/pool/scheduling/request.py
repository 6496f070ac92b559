"""One request, and the seats of the worker that runs it: the values that the scheduler decides about."""

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

#: Whose requests are made in this context; see :class:`Request`.
CLIENT: ContextVar[Hashable | None] = ContextVar("snakepit_client", default=None)
_DEFAULTS: Timeouts = TIMEOUTS["balanced"]


class Phase(Enum):
    """Where a request is in its life."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Outcome(Enum):
    """How a request ended; the value is the last word of its final event."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"


class Binding:
    """A session's tie to a worker, made when its first request is dispatched.

    Attributes:
        session: The session's id.
        strict: Only the worker that it is tied to may run the session's requests.
        seats: The incarnation that the session is tied to, None before the first dispatch.
        whole: The worker has what the session had in the one before it: there was none, or it has been rebuilt.
        rebuilt: While that is done: held by the task that does it.
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
        """Whether the session is strict, and the worker that it is tied to takes calls no more."""
        return self.strict and self.seats is not None and self.seats.over


class StreamEnd(Protocol):
    """The caller's end of a stream.

    Attributes:
        window: How many chunks the worker may send at first.
        window_bytes: Bytes of chunks that it may send at first.
        released: Set when the worker is through with the call.
    """

    window: int
    window_bytes: int
    released: anyio.Event

    def put(self, chunk: Payload) -> None:
        """A chunk has arrived.

        Raises:
            ValueError: It is beyond what the worker was given credit for.
        """


class Request:
    """One request, from its acceptance to its end. Owned by the task that made it; changed by the scheduler alone.

    Args:
        id: Its number in the runtime.
        tool: What it asks for.
        payload: The encoded arguments.
        options: What its caller said of it.
        on_end: Called when it has ended.
        deadline: When the scheduler ends it.
        queue_deadline: When the scheduler ends it if it still waits for a worker.
        scope_deadline: When its caller's own scope ends; the worker is told of it when it is earlier than ``deadline``.
        binding: The tie of the session that it belongs to.
        stream: The caller's end of its stream; None: it has one result.

    Attributes:
        priority: Greater goes first.
        metadata: What the tool finds in ``ctx.metadata``.
        idempotent: It may run again when a worker dies under it.
        defaults: What its pool says of time where its caller has said nothing; for errors.
        session: The id of its session.
        fairness_key: In a fair queue, requests of the same priority take turns by this.
        fail_fast: It does not wait for the worker of its session.
        time_limit: Seconds from its first dispatch to its deadline, for a request whose waiting does not count.
        chain: The calls that wait for this one by way of the host, the outermost first; see :mod:`snakepit_trio.tools.waits`.
        permits: What it holds of limits, until it ends.
        client: The client that is to have no more than its share of the queue; None: the host itself.
        beside: The requests for the same call, itself among them: none runs in the worker of another. None: it runs alone.
        trace: The request's tracing span, or None.
        worker_id: The worker that has or had it.
        released: Called when the worker holds it no longer, which after a cancel is later than its end.
        recalled: It was sent ahead to a worker, and has been recalled.
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
        #: Its caller is gone, and it has not stopped in time.
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
        """The worker that runs it, has it in its line, or has yet to confirm that it is through with it."""
        seats, id = self.seats, self.id
        if seats is None or not (id in seats.running or id in seats.ahead or id in seats.leaving):
            return None
        return seats

    def release(self) -> None:
        """The worker is through with the call."""
        if self.released is not None:
            self.released()

    def avoids(self, seats: Seats) -> bool:
        """Whether a worker has a part in another request for the same call."""
        return self.beside is not None and any(other is not self and other.held_by is seats for other in self.beside)

    def stops_after(self, blocked: Container[object]) -> bool:
        """Whether it stops only with its worker, which ends after one of these."""
        seats = self.seats
        return self.stuck and seats is not None and not seats.over and seats.empties_after(blocked)

    def keep_values(self) -> None:
        """It waits: its owner may change a binary value before it is sent, so such a one is copied."""
        payload = self.payload
        self.payload = Payload(payload.encoding, payload.data, [*map(_as_it_is, payload.buffers)])

    def keep_permits(self) -> None:
        """It has ended here: its permits stay with the worker until that is through with it, too."""
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
    """The way to one worker, as the scheduler uses it. None of these methods waits or calls back."""

    def start(self, request: Request) -> None:
        """Send the call. The worker begins it when it has a thread free, in the order in which calls were sent."""

    @protected
    def cancel(self, request: Request) -> None:
        """Tell the worker that the caller of a running call is gone, and see to it that the seat comes back."""

    def withdraw(self, request: Request) -> None:
        """Tell the worker that the caller of a call is gone that has not begun, as far as is known here."""

    def recall(self, request: Request) -> None:
        """Ask the worker to give a call back that it has not begun."""

    def credit(self, request: Request, chunks: int, size: int) -> None:
        """A stream's consumer has room for so many chunks and bytes more."""


class Seats:
    """What one worker incarnation may run, runs and holds.

    Attributes:
        port: The way to the worker.
        capacity: How many calls it runs at once.
        depth: How many more it may hold, in line behind those that run.
        worker_id: The worker's id; None where nobody asks for it.
        open: New calls may be given to it.
        over: They never will be again.
        alone: No more calls until it is empty: one that may have ended workers runs here, or waits to, and would be no sign of
            anything beside others.
        end: How the worker ended, once it has.
        running: Calls whose callers wait, by id.
        leaving: Calls whose callers are gone, by id; the worker has not confirmed that it stopped them.
        ahead: Calls that the worker holds and has not begun, by id, first in, first out. For everybody else those whose
            callers wait are still queued; of the others the worker has not confirmed that it dropped them.
        since: When the call that runs began; only kept where there is a line.
        served: How many calls have come to an end here.
        place: Where it stands among those that have room, for the scheduler.
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
        """Seats that are taken."""
        return len(self.running) + len(self.leaving)

    @property
    def stuck(self) -> bool:
        """Whether its worker takes no calls and ends because of one that does not stop, after those that run beside it."""
        return not self.over and any(request.stuck for request in self.leaving.values())

    def needs(self, request: Request) -> bool:
        """Whether a call that runs here waits for this request."""
        return any(running in request.chain for running in self.running.values())

    def admits(self, request: Request) -> bool:
        """Whether a request may run beside what runs here.

        Nothing runs beside a suspect, nor in a worker that is to become empty for one, but what a call waits for that runs here:
        the worker becomes empty only after that.
        """
        return not self.alone or (not request.suspect and self.needs(request))

    def empties_after(self, blocked: Container[object]) -> bool:
        """Whether one of these has to end before nothing runs here for anybody."""
        return any(request in blocked for request in self.running.values())

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        line = f" ahead={len(self.ahead)}" if self.depth else ""
        return f"<Seats {state} running={len(self.running)} leaving={len(self.leaving)} of {self.capacity}{line}>"
