"""Which request goes to which worker, when, and how each request ends: the pool's decisions, without any I/O.

Theory of operation
-------------------
A request is in one of three phases::

    submit -> QUEUED --dispatch--> RUNNING --reply--> DONE
                |  ^                  |
                |  +--- retry --------+--- worker gone, cancel, deadline --> DONE
                +------ cancel, deadline, close --------------------------> DONE

Every method is synchronous, takes the time from its caller, and leaves the books in order; what has to be sent is sent
through the :class:`Port` of a worker after the decision is made, and a waiter is woken through ``Request.wake``.

A worker incarnation has one :class:`Seats` record: how many calls it may hold (``capacity``), which it is running, and
which it is *leaving*, that is: whose caller is gone while the worker has not confirmed yet that it stopped. A seat
comes back only by a reply or with the end of the incarnation, so two requests can't overlap in one seat, and a cancel
at the wrong moment can't lose a seat.

Invariants, checked by the model tests after every step:

- ``accepted == completed + failed + cancelled + timed_out + in_flight + queued``
- every request that was accepted ends exactly once
- ``len(running) + len(leaving) <= capacity`` for every incarnation
- no request waits while a seat that it may take is free
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from snakepit_trio._interrupts import protected
from snakepit_trio.errors import (
    PoolClosed,
    QueueTimeout,
    RequestTimeout,
    SessionWorkerUnavailable,
    SnakepitError,
    WorkerBusy,
    WorkerCrashed,
)

from .cancel_set import CancelSet
from .deadlines import DeadlineWheel
from .queue import RequestQueue

if TYPE_CHECKING:
    from snakepit_trio.wire.frames import Payload

__all__ = ["Binding", "Ledger", "Observer", "Outcome", "Phase", "Port", "Request", "Seats", "Totals", "UnexpectedReply"]


#: The weight of one call in the average of how long calls take.
_SMOOTHING = 0.1


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


class UnexpectedReply(Exception):
    """A worker answered a call that it was never given, or answered one twice."""


class Binding:
    """A session's tie to a worker, made when its first request is dispatched.

    Attributes:
        affinity: ``"hint"``, ``"strict_queue"`` or ``"strict_fail_fast"``.
        strict: Only the worker that it is tied to may run the session's requests.
        fail_fast: A strict request is refused at once when that worker has no seat free.
        seats: The incarnation that the session is tied to, None before the first dispatch.
        lost: The incarnation that a strict session was tied to has ended.
    """

    __slots__ = ("affinity", "fail_fast", "lost", "seats", "strict")

    def __init__(self, affinity: str) -> None:
        self.affinity = affinity
        self.strict = affinity != "hint"
        self.fail_fast = affinity == "strict_fail_fast"
        self.seats: Seats | None = None
        self.lost = False


class Request:
    """One request, from its acceptance to its end. Owned by the task that made it; changed by the ledger alone.

    Args:
        wake: Called when it has ended.
        deadline: When the ledger ends it.
        queue_deadline: When the ledger ends it if it still waits for a worker.
        chunk: Called with each chunk of a stream.
        released: Called when the worker holds it no longer, which after a cancel is later than its end.
        until: What the worker is told of its deadline, when that is earlier than ``deadline``: its caller's own scope ends then.
        chain: The requests whose tools wait for this one by way of the host, the outermost first.
        time_limit: Seconds from its first dispatch to its deadline, for a request whose waiting does not count.
    """

    __slots__ = (
        "attempt",
        "binding",
        "chain",
        "chunk",
        "credits",
        "deadline",
        "deadline_node",
        "deaths",
        "dispatched_at",
        "error",
        "id",
        "idempotent",
        "metadata",
        "outcome",
        "payload",
        "phase",
        "pin",
        "priority",
        "queue_deadline",
        "queue_node",
        "released",
        "result",
        "seats",
        "session",
        "share",
        "stream",
        "submitted_at",
        "time_limit",
        "tool",
        "trace",
        "until",
        "wake",
        "worker_id",
    )

    def __init__(
        self,
        id: int,
        tool: str,
        payload: Payload,
        *,
        wake: Callable[[], object],
        deadline: float = math.inf,
        queue_deadline: float = math.inf,
        priority: int = 0,
        session: str | None = None,
        share: str | None = None,
        binding: Binding | None = None,
        idempotent: bool = False,
        metadata: Mapping[str, str] | None = None,
        stream: bool = False,
        credits: int = 0,
        chunk: Callable[[Payload], object] | None = None,
        released: Callable[[], object] | None = None,
        until: float = math.inf,
        time_limit: float | None = None,
        chain: tuple[Request, ...] = (),
    ) -> None:
        self.id = id
        self.tool = tool
        self.payload = payload
        self.wake = wake
        self.deadline = deadline
        self.queue_deadline = queue_deadline
        self.priority = priority
        self.session = session
        self.share = share
        self.binding = binding
        self.idempotent = idempotent
        self.metadata = metadata or {}
        self.stream = stream
        self.credits = credits
        self.chunk = chunk
        self.released = released
        self.until = until
        self.time_limit = time_limit
        self.chain = chain
        self.phase = Phase.NEW
        self.outcome: Outcome | None = None
        self.result: Payload | None = None
        self.error: SnakepitError | None = None
        self.seats: Seats | None = None
        self.pin: Seats | None = None
        #: Follows it; None: nobody does. And the worker that has or had it.
        self.trace: Any = None
        self.worker_id: str | None = None
        self.attempt = 0
        self.deaths = 0
        self.submitted_at = math.nan
        self.dispatched_at = math.nan
        self.queue_node: Any = None
        self.deadline_node: Any = None

    def __repr__(self) -> str:
        return f"<Request {self.id} {self.tool!r} {self.phase.value} attempt={self.attempt}>"


class Port(Protocol):
    """The way to one worker, as the ledger uses it. Neither method waits or calls back."""

    def start(self, request: Request) -> None:
        """Send the call."""

    @protected
    def cancel(self, request: Request) -> None:
        """Tell the worker that the call's caller is gone, and see to it that the seat comes back."""


class Observer(Protocol):
    """Hears of what happens to requests."""

    def __call__(self, event: str, request: Request, now: float) -> None:
        """``event`` is ``"queued"``, ``"dispatched"``, or the value of an :class:`Outcome`."""


class Seats:
    """The books of one worker incarnation.

    Attributes:
        port: The way to the worker.
        capacity: How many calls it may hold at once.
        open: New calls may be given to it.
        running: Calls whose callers wait, by id.
        leaving: Calls whose callers are gone, by id; the worker has not confirmed that it stopped them.
        served: How many calls have come to an end here.
    """

    __slots__ = ("capacity", "leaving", "open", "port", "running", "served")

    def __init__(self, port: Port, capacity: int) -> None:
        self.port = port
        self.capacity = capacity
        self.open = False
        self.running: dict[int, Request] = {}
        self.leaving: dict[int, Request] = {}
        self.served = 0

    @property
    def load(self) -> int:
        """Seats that are taken."""
        return len(self.running) + len(self.leaving)

    def __repr__(self) -> str:
        state = "open" if self.open else "closed"
        return f"<Seats {state} running={len(self.running)} leaving={len(self.leaving)} of {self.capacity}>"


@attrs.frozen
class Totals:
    """The ledger's counters at one moment; see ``snakepit_trio.PoolStats`` for what each means."""

    accepted: int
    rejected: int
    completed: int
    failed: int
    cancelled: int
    timed_out: int
    in_flight: int
    queued: int
    late_replies: int
    cancel_set_size: int


def _ignore(event: str, request: Request, now: float) -> None:
    """The observer of a ledger that nobody watches."""


class Ledger:
    """The books of one pool.

    Args:
        queue: Where requests wait.
        cancel_set: Remembers the ids of requests whose callers are gone.
        poison_limit: A request that has ended this many workers is not given to another; None means no limit.
        reject_hopeless: Refuse a request whose deadline would pass while it waits.
        observer: Hears of what happens to requests.
        on_idle: Called when the last running request has ended.
    """

    def __init__(
        self,
        *,
        queue: RequestQueue[Request],
        cancel_set: CancelSet,
        poison_limit: int | None = 2,
        reject_hopeless: bool = False,
        observer: Observer = _ignore,
        on_idle: Callable[[], object] = lambda: None,
    ) -> None:
        self._queue = queue
        self._cancel_set = cancel_set
        self._wheel: DeadlineWheel[Request] = DeadlineWheel()
        self._poison_limit = poison_limit
        self._reject_hopeless = reject_hopeless
        # How long a call holds its seat: an exponential average, 0 before the first.
        self._service_time = 0.0
        self._observe = observer
        self._on_idle = on_idle
        self._all: dict[Seats, None] = {}
        # Open incarnations with a free seat, by how many they have taken: the emptiest goes first, each bucket in turn.
        self._free: list[dict[Seats, None]] = [{}]
        self._closed: SnakepitError | None = None
        self._broken: SnakepitError | None = None
        self._in_flight = 0
        self._accepted = 0
        self._rejected = 0
        self._ended = dict.fromkeys(Outcome, 0)
        self._late_replies = 0

    def __repr__(self) -> str:
        return f"<Ledger workers={len(self._all)} in_flight={self._in_flight} queued={len(self._queue)}>"

    # ---- reading the books -----------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that a worker is running for a caller who waits."""
        return self._in_flight

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue)

    @property
    def seats(self) -> Iterable[Seats]:
        """Every incarnation that is known here."""
        return self._all.keys()

    @property
    def closed(self) -> SnakepitError | None:
        """Why nothing is accepted any more, if so."""
        return self._closed

    def totals(self) -> Totals:
        """The counters, which obey the conservation law at every moment."""
        ended = self._ended
        return Totals(
            accepted=self._accepted,
            rejected=self._rejected,
            completed=ended[Outcome.COMPLETED],
            failed=ended[Outcome.FAILED],
            cancelled=ended[Outcome.CANCELLED],
            timed_out=ended[Outcome.EXPIRED],
            in_flight=self._in_flight,
            queued=len(self._queue),
            late_replies=self._late_replies,
            cancel_set_size=len(self._cancel_set),
        )

    def requests(self) -> Iterable[Request]:
        """Every request that has not ended: those that run, then those that wait."""
        for seats in self._all:
            yield from seats.running.values()
        yield from self._queue

    def next_deadline(self) -> float:
        """When :meth:`expire` has something to do at the earliest; infinity when nothing is due ever."""
        return min(self._wheel.next_deadline(), self._cancel_set.next_expiry())

    # ---- requests --------------------------------------------------------------------------------

    @protected
    def submit(self, request: Request, now: float) -> None:
        """Take a request: give it to a free worker, or let it wait.

        Raises:
            PoolClosed: The pool takes nothing more.
            WorkerStartupError: No worker can ever serve it.
            QueueFull: As many requests wait as may.
            WorkerBusy: Its session's worker is busy, and the session does not wait.
            SessionWorkerUnavailable: Its session's worker is gone.
            RequestTimeout: Its deadline has passed already.
            QueueTimeout: Its deadline would pass while it waits, and hopeless requests are refused.
        """
        request.submitted_at = now
        try:
            seats = self._admit(request, now)
        except SnakepitError as exc:
            self._rejected += 1
            request.phase, request.outcome = Phase.DONE, Outcome.REJECTED
            request.error = _copy(exc)
            self._observe(Outcome.REJECTED.value, request, now)
            raise
        self._accepted += 1
        if seats is not None:
            if request.deadline != math.inf:
                self._wheel.add(request, request.deadline)
            self._start(request, seats, now)
        else:
            request.phase = Phase.QUEUED
            due = min(request.deadline, request.queue_deadline)
            if due != math.inf:
                self._wheel.add(request, due)
            self._observe("queued", request, now)

    def _admit(self, request: Request, now: float) -> Seats | None:
        refused = self._closed or self._broken
        if refused is not None:
            raise refused.__class__(refused.message, details=refused.details)
        if request.deadline <= now:
            raise RequestTimeout("the request's deadline had passed when it was made", details={"phase": "queued"})
        binding = request.binding
        if binding is None:
            seats = self._pick()
        else:
            if binding.lost:
                raise SessionWorkerUnavailable(
                    f"the worker of session {request.session!r} is gone", details={"session": request.session}
                )
            tied = binding.seats
            if tied is not None and tied.open and tied.load < tied.capacity:
                seats = tied
            elif tied is not None and binding.strict:
                if binding.fail_fast:
                    raise WorkerBusy(
                        f"the worker of session {request.session!r} is busy", details={"session": request.session}
                    )
                seats, request.pin = None, tied
            else:
                seats = self._pick()
        if seats is None:
            if self._reject_hopeless:
                self._check_hope(request, now)
            self._queue.push(request, now)
        return seats

    def expected_wait(self) -> float:
        """How long a request that came now would wait for a seat, in seconds, by how long calls took of late."""
        capacity = sum(seats.capacity for seats in self._all if seats.open)
        if not capacity:
            return 0.0
        return self._service_time * (len(self._queue) + 1) / capacity

    def _check_hope(self, request: Request, now: float) -> None:
        wait = self.expected_wait()
        due = min(request.deadline, request.until, request.queue_deadline)
        if now + wait > due:
            raise QueueTimeout(
                f"a worker would be free after about {wait:.3g} s, and the request has {max(0.0, due - now):.3g} s",
                details={"expected_wait": wait, "hopeless": True, "tool": request.tool},
            )

    def cancel(self, request: Request, now: float) -> None:
        """The caller is gone: a waiting request leaves the queue, a running one is cancelled in its worker.

        Does nothing when the request has ended.
        """
        self._leave(request, Outcome.CANCELLED, None, now)

    def end(self, request: Request, error: SnakepitError, now: float) -> None:
        """End a request with an error, wherever it is; in a worker it is cancelled. Does nothing when it has ended."""
        self._leave(request, Outcome.FAILED, _copy(error), now)

    def stuck_on(self, blocked: Container[Request]) -> bool:
        """Whether no seat can come free, because each is held by a request of these."""
        return all(
            not seats.leaving and seats.load >= seats.capacity and all(r in blocked for r in seats.running.values())
            for seats in self._all
            if seats.open
        )

    @protected
    def expire(self, now: float) -> None:
        """End the requests whose time is spent, and forget the cancelled ids that are old enough."""
        self._cancel_set.expire(now)
        for request in self._wheel.expire(now):
            self._leave(request, Outcome.EXPIRED, _overdue(request, now), now)

    @protected
    def replied(
        self, seats: Seats, call_id: int, now: float, *, result: Payload | None, error: SnakepitError | None
    ) -> Request | None:
        """A worker has ended a call; its seat is free and goes to the next in the queue.

        Returns the request that ended by it, None for the late reply of a cancelled one.

        Raises:
            UnexpectedReply: The worker holds no such call.
        """
        request = seats.running.get(call_id)
        if request is None:
            left = seats.leaving.get(call_id)
            if left is None:
                if self._cancel_set.seen(call_id, now):
                    self._late_replies += 1
                    return None
                raise UnexpectedReply(f"a reply to call {call_id}, which is not under way")
            if error is None or error.code != "request_cancelled":
                self._late_replies += 1
            self._give_back(seats, seats.leaving, call_id)
            _release(left)
        else:
            self._give_back(seats, seats.running, call_id)
            self._in_flight -= 1
            spent = now - request.dispatched_at
            self._service_time += (spent - self._service_time) * (_SMOOTHING if self._service_time else 1.0)
            if error is None:
                self._finish(request, Outcome.COMPLETED, result, None, now)
            elif error.code == "request_timeout":
                # The worker keeps the same deadline and may be the first to see it pass.
                self._finish(request, Outcome.EXPIRED, None, _deadline_passed(request, now), now)
            else:
                self._finish(request, Outcome.FAILED, None, error, now)
        seats.served += 1
        self._fill(seats, now)
        self._note_idle()
        return request

    # ---- workers ---------------------------------------------------------------------------------

    @protected
    def open(self, seats: Seats, now: float) -> None:
        """An incarnation is ready for calls; it gets what waits for it."""
        self._all[seats] = None
        self._broken = None
        seats.open = True
        while len(self._free) < seats.capacity:
            self._free.append({})
        self._place(seats)
        self._fill(seats, now)

    @protected
    def cordon(self, seats: Seats) -> None:
        """Give an incarnation no more calls; those that it has go on."""
        if seats.open:
            self._unplace(seats)
            seats.open = False

    @protected
    def uncordon(self, seats: Seats, now: float) -> None:
        """Undo :meth:`cordon`."""
        if not seats.open and seats in self._all:
            seats.open = True
            self._place(seats)
            self._fill(seats, now)

    @protected
    def gone(
        self, seats: Seats, error: WorkerCrashed | PoolClosed, now: float, *, unbegun: Container[int] = ()
    ) -> None:
        """An incarnation has ended: its books end with it.

        A call that was never started there, and one that may be run again, goes back to its place in the queue; any
        other ends with ``error``.

        Args:
            error: What happened to the worker.
            unbegun: Ids of the calls that it had not begun to run.
        """
        if seats not in self._all:
            return
        self.cordon(seats)
        del self._all[seats]
        running = list(seats.running.values())
        for request in seats.leaving.values():
            _release(request)
        seats.running.clear()
        seats.leaving.clear()
        for request in running:
            self._in_flight -= 1
            request.seats = None
            self._retry_or_fail(request, error, now, started=request.id not in unbegun)
        for request in self._queue.drop_pin(seats):
            self._unbind(request)
            self._end_queued(request, Outcome.FAILED, _worker_lost(request), now)
        self._fill_all(now)
        self._note_idle()

    @protected
    def fail_all(self, error: SnakepitError, now: float) -> None:
        """No worker can serve: whoever waits is told at once, and so is whoever comes, until a worker is ready."""
        self._broken = error
        self._end_queue(error, now)

    @protected
    def close(self, error: SnakepitError, now: float) -> None:
        """Accept nothing more, and end what waits. What runs goes on."""
        self._closed = error
        self._end_queue(error, now)

    @protected
    def abort(self, error: SnakepitError, now: float) -> None:
        """End every running request with ``error``; their calls are cancelled in the workers."""
        for seats in tuple(self._all):
            for request in tuple(seats.running.values()):
                self._leave(request, Outcome.FAILED, _copy(error), now)

    # ---- inside ----------------------------------------------------------------------------------

    def _pick(self) -> Seats | None:
        for bucket in self._free:
            if bucket:
                return next(iter(bucket))
        return None

    def _place(self, seats: Seats) -> None:
        if seats.open and seats.load < seats.capacity:
            self._free[seats.load][seats] = None

    def _unplace(self, seats: Seats) -> None:
        if seats.load < seats.capacity:
            self._free[seats.load].pop(seats, None)

    def _start(self, request: Request, seats: Seats, now: float) -> None:
        if request.time_limit is not None and not request.attempt:
            request.deadline = min(request.deadline, now + request.time_limit)
            self._wheel.remove(request)
            self._wheel.add(request, request.deadline)
        self._unplace(seats)
        seats.running[request.id] = request
        self._place(seats)
        self._in_flight += 1
        request.phase = Phase.RUNNING
        request.seats = seats
        request.attempt += 1
        request.dispatched_at = now
        binding = request.binding
        if binding is not None and binding.seats is not seats:
            if binding.strict and binding.seats is None and request.session is not None:
                # Those that wait behind it were made when no worker was chosen yet.
                self._queue.pin(request.session, binding, seats)
            binding.seats = seats
        self._observe("dispatched", request, now)
        seats.port.start(request)

    def _give_back(self, seats: Seats, table: dict[int, Request], call_id: int) -> None:
        self._unplace(seats)
        del table[call_id]
        self._place(seats)

    def _fill(self, seats: Seats, now: float) -> None:
        queue = self._queue
        while seats.open and len(queue) and seats.load < seats.capacity:
            request = queue.pop(now, seats)
            if request is None:
                return
            if min(request.deadline, request.queue_deadline) <= now:
                # Its time ran out before the clock's owner could say so.
                self._end_queued(request, Outcome.EXPIRED, _overdue(request, now), now)
                continue
            if request.queue_deadline < request.deadline:
                self._wheel.move(request, request.deadline)
            self._start(request, seats, now)

    def _fill_all(self, now: float) -> None:
        for bucket in self._free:
            for seats in tuple(bucket):
                if not len(self._queue):
                    return
                self._fill(seats, now)

    def _leave(self, request: Request, outcome: Outcome, error: SnakepitError | None, now: float) -> None:
        """End a request for its caller, wherever it is."""
        if request.phase is Phase.QUEUED:
            self._queue.discard(request)
            self._finish(request, outcome, None, error, now)
        elif request.phase is Phase.RUNNING:
            seats = request.seats
            assert seats is not None
            # The seat stays taken: it moves from one table to the other within the same bucket.
            del seats.running[request.id]
            seats.leaving[request.id] = request
            self._in_flight -= 1
            self._cancel_set.add(request.id, now)
            self._finish(request, outcome, None, error, now)
            seats.port.cancel(request)
            self._note_idle()

    def _retry_or_fail(self, request: Request, error: WorkerCrashed | PoolClosed, now: float, *, started: bool) -> None:
        if started:
            request.deaths += 1
        again = isinstance(error, WorkerCrashed) and self._closed is None and request.deadline > now
        if again and started:
            again = request.idempotent and not request.stream
        if again and self._poison_limit is not None and request.deaths >= self._poison_limit:
            self._finish(request, Outcome.FAILED, None, _poisonous(request, error), now)
        elif again and request.binding is not None and request.binding.strict:
            self._unbind(request)
            self._finish(request, Outcome.FAILED, None, _worker_lost(request), now)
        elif again:
            request.phase = Phase.QUEUED
            request.queue_deadline = math.inf
            self._queue.push_front(request, now)
            self._observe("queued", request, now)
        else:
            failure: SnakepitError = _copy(error)
            if request.binding is not None and request.binding.strict:
                self._unbind(request)
                failure = _worker_lost(request)
            self._finish(request, Outcome.FAILED, None, failure, now)

    @staticmethod
    def _unbind(request: Request) -> None:
        if request.binding is not None and request.binding.strict:
            request.binding.lost = True

    def _end_queued(self, request: Request, outcome: Outcome, error: SnakepitError, now: float) -> None:
        """End a request that has been taken out of the queue already."""
        self._finish(request, outcome, None, error, now)

    def _end_queue(self, error: SnakepitError, now: float) -> None:
        for request in list(self._queue):
            self._queue.discard(request)
            self._finish(request, Outcome.FAILED, None, _copy(error), now)

    def _finish(
        self, request: Request, outcome: Outcome, result: Payload | None, error: SnakepitError | None, now: float
    ) -> None:
        if request.deadline != math.inf or request.queue_deadline != math.inf:
            self._wheel.remove(request)
        request.phase = Phase.DONE
        request.outcome = outcome
        request.result = result
        request.error = error
        self._ended[outcome] += 1
        self._observe(outcome.value, request, now)
        request.wake()

    def _note_idle(self) -> None:
        if not self._in_flight:
            self._on_idle()


def _release(request: Request) -> None:
    if request.released is not None:
        request.released()


def _copy(error: SnakepitError) -> SnakepitError:
    """The same failure for another caller: a traceback belongs to one raise."""
    return error.__class__(error.message, code=error.code, details=error.details, retryable=error.retryable)


def _overdue(request: Request, now: float) -> SnakepitError:
    """Which of its limits a request has reached."""
    if request.phase is Phase.QUEUED and request.deadline > now:
        waited = now - request.submitted_at
        return QueueTimeout(f"no worker was free for {waited:.3g} s", details={"waited": waited, "tool": request.tool})
    return _deadline_passed(request, now)


def _deadline_passed(request: Request, now: float) -> RequestTimeout:
    phase = "running" if request.phase is Phase.RUNNING else "queued"
    spent = now - request.submitted_at
    return RequestTimeout(
        f"{request.tool!r} was {phase} when its time of {spent:.3g} s was spent",
        details={"phase": phase, "tool": request.tool, "elapsed": spent},
    )


def _worker_lost(request: Request) -> SessionWorkerUnavailable:
    return SessionWorkerUnavailable(
        f"the worker of session {request.session!r} is gone", details={"session": request.session}
    )


def _poisonous(request: Request, error: SnakepitError) -> WorkerCrashed:
    return WorkerCrashed(
        f"{request.tool!r} has ended {request.deaths} workers and is not given to another; the last: {error.message}",
        details={**error.details, "poison": True, "deaths": request.deaths},
        retryable=False,
    )
