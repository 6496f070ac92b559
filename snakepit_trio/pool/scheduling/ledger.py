"""The tables of one pool, and the operations that keep them consistent: each moves one request from one table to the next.

:mod:`.scheduler` and its parts, :mod:`.assignment` and :mod:`.incarnations`, decide which operations happen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import attrs

from snakepit_trio._bulkhead import internal_error
from snakepit_trio.errors import SnakepitError
from snakepit_trio.wire.frames import NO_PAYLOAD

from .expiry import CancelSet, DeadlineWheel
from .failures import copy_error, worker_busy
from .placement import Placement, Recall
from .queue import RequestQueue
from .request import Outcome, Phase, Request, Seats

if TYPE_CHECKING:
    from snakepit_trio._bulkhead import InternalErrors
    from snakepit_trio.errors import WorkerStartupError
    from snakepit_trio.wire.frames import Payload

__all__ = ["Ledger", "Observer", "Totals", "UnexpectedReply"]


class UnexpectedReply(Exception):
    """A worker answered a call that it does not hold, or answered one twice."""


class Observer(Protocol):
    """Is informed of each step of a request, and changes nothing."""

    def __call__(self, event: str, request: Request, now: float) -> None:
        """Handle a step: ``"queued"``, ``"dispatched"``, or the value of an :class:`Outcome`."""


@attrs.frozen
class Totals:
    """The scheduler's counters at one moment; see ``snakepit_trio.PoolStats`` for each."""

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


class Ledger:
    """The tables of one pool. Each operation informs the affected worker, the observer and the caller.

    Args:
        on_due: Called with a due time that is earlier than the known one.
        errors: Reports unexpected exceptions.
        pool: The pool's name.

    Attributes:
        queue: The waiting requests that no worker holds.
        cancel_set: The ids of requests whose callers have left.
        deadlines: The requests that may expire.
        placement: The workers with room, and those with prefetched calls.
        recall: Recalls prefetched calls.
        seats: The existing incarnations.
        living: The accepted requests that have not ended, in the order of their arrival.
        in_flight: The number of running requests with a waiting caller.
        accepted, rejected, ended, late_replies: The counts of :class:`Totals`; ``ended`` by outcome.
        closed: The error with which new requests are refused; None while the pool is open.
        broken: The error with which requests are refused until a worker is ready, or None.
        next_attempt: While ``broken`` is set, the time of the next start, on the event loop's clock.
        observer: The observer.
        on_idle: Called when the last running request has ended; None if no code waits for that.
        announced: The time at which the deadline task will look again, as far as it was told.
        sound: Whether the tables are consistent. They may not be after an unexpected exception; see :mod:`.repair`.
    """

    def __init__(
        self,
        *,
        queue: RequestQueue[Request],
        cancel_set: CancelSet,
        observer: Observer,
        on_idle: Callable[[], object] | None,
        on_due: Callable[[float], object],
        errors: InternalErrors,
        pool: str,
    ) -> None:
        self.queue = queue
        self.cancel_set = cancel_set
        self.deadlines: DeadlineWheel[Request] = DeadlineWheel()
        self.placement: Placement = Placement()
        self.seats: dict[Seats, None] = {}
        self.recall: Recall = Recall(self.placement, self.seats, self.note_due)
        self.living: dict[Request, None] = {}
        self.in_flight: int = 0
        self.accepted: int = 0
        self.rejected: int = 0
        self.ended: dict[str, int] = dict.fromkeys((outcome.value for outcome in Outcome), 0)
        self.late_replies: int = 0
        self.closed: SnakepitError | None = None
        self.broken: WorkerStartupError | None = None
        self.next_attempt: float = 0.0
        self.observer = observer
        self.on_idle = on_idle
        self.announced: float = math.inf
        self.sound: bool = True
        self._on_due = on_due
        self._errors = errors
        self._pool = pool

    def __repr__(self) -> str:
        return f"<Ledger workers={len(self.seats)} in_flight={self.in_flight} queued={self.queued}>"

    # ---- reading -----------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """The number of requests that wait for a worker."""
        return self.queue.live + self.placement.waiting

    @property
    def has_room(self) -> bool:
        """Whether a new request that any worker may run would get a seat or a place in the queue."""
        return self.placement.seat() is not None or self.queue.has_room(self.placement.waiting)

    def oldest_wait(self, now: float) -> float:
        """Return the wait of the oldest waiting request that any worker may run; 0 if there is none."""
        return max(0.0, now - min(self.queue.oldest_arrival(), self.placement.oldest_arrival()))

    @property
    def waiting_for_any(self) -> int:
        """Return the number of waiting requests that another worker would help, without those bound to an existing worker."""
        return self.queue.unpinned + self.placement.waiting

    def totals(self) -> Totals:
        """Return the counters, which obey the conservation law at every moment."""
        ended = self.ended
        return Totals(
            accepted=self.accepted,
            rejected=self.rejected,
            completed=ended[Outcome.COMPLETED.value],
            failed=ended[Outcome.FAILED.value],
            cancelled=ended[Outcome.CANCELLED.value],
            timed_out=ended[Outcome.EXPIRED.value],
            in_flight=self.in_flight,
            queued=self.queued,
            late_replies=self.late_replies,
            cancel_set_size=len(self.cancel_set),
        )

    def requests(self) -> Iterable[Request]:
        """Yield every request that has not ended: first the running ones, then the waiting ones."""
        for seats in self.seats:
            yield from seats.running.values()
        for seats in self.seats:
            yield from (request for request in seats.ahead.values() if request.phase is Phase.QUEUED)
        yield from self.queue

    def next_deadline(self) -> float:
        """Return the time of the next expiry; infinity if there is none."""
        return min(self.deadlines.next_deadline(), self.cancel_set.next_expiry(), self.recall.look_at)

    def arm(self) -> float:
        """Return :meth:`next_deadline` for the deadline task, which ``on_due`` informs from now on of an earlier time."""
        self.announced = self.next_deadline()
        return self.announced

    def note_due(self, when: float) -> None:
        """Record a due time."""
        if when < self.announced:
            # If this fails, the next due time is reported.
            self.announced = math.inf
            self._on_due(when)
            self.announced = min(when, self.announced)

    def look_again(self) -> None:
        """Make the deadline task look again, because something may be due at another time."""
        self.announced = math.inf
        self._on_due(-math.inf)

    # ---- moves -------------------------------------------------------------------------------------

    def start(self, request: Request, seats: Seats, now: float) -> None:
        """Give a request a free seat."""
        try:
            request.attempt += 1
            self.begin(request, seats, now)
            seats.alone = seats.alone or request.suspect
            if request.phase is Phase.DONE:
                # The observer has ended it. It was not sent, so no worker will confirm its end.
                del seats.leaving[request.id]
                request.release()
            self.placement.place(seats, began=now)
            if request.phase is Phase.RUNNING:
                seats.port.start(request)
        except Exception as exc:
            self._not_started(request, seats, exc, now)

    def prefetch(self, request: Request, seats: Seats, now: float) -> None:
        """Prefetch a request to a worker. It continues to wait."""
        try:
            request.attempt += 1
            request.recalled = False
            request.seats = seats
            seats.ahead[request.id] = request
            self.placement.joined(seats, request)
            self.placement.place(seats)
            seats.port.start(request)
        except Exception as exc:
            self._not_started(request, seats, exc, now)

    def _not_started(self, request: Request, seats: Seats, exc: Exception, now: float) -> None:
        """Handle a request that could not be sent: it fails, and its seat is free. If it was sent nevertheless, its reply
        will be an unexpected one, which ends the worker.
        """
        seats.running.pop(request.id, None)
        seats.ahead.pop(request.id, None)
        self.fail(exc, now, request)

    def begin(self, request: Request, seats: Seats, now: float) -> None:
        """Mark a request as running; the caller updates the worker's placement."""
        if request.time_limit is not None and request.deadline == math.inf:
            request.deadline = now + request.time_limit
            self.deadlines.move(request, request.deadline)
            self.note_due(request.deadline)
        seats.running[request.id] = request
        self.in_flight += 1
        request.phase = Phase.RUNNING
        request.seats = seats
        request.worker_id = seats.worker_id
        request.dispatched_at = now
        binding = request.binding
        if binding is not None and binding.seats is not seats:
            if binding.strict and binding.seats is None and request.session is not None:
                # Requests that wait behind it were made before a worker was chosen.
                waiting = self.queue.pin(request.session, binding, seats)
                for other in waiting[seats.capacity - seats.load :]:
                    if other.fail_fast:
                        self.queue.discard(other)
                        self.finish(other, Outcome.FAILED, None, worker_busy(other), now)
            binding.seats = seats
        # As in `tell`, inlined because the call would be a seventh of the tables' cost.
        try:
            self.observer("dispatched", request, now)
        except Exception as exc:
            self._errors.report(exc, "observer", pool=self._pool)

    def requeue(self, request: Request, now: float) -> None:
        """Put a request back where it was in the queue."""
        ran = request.phase is Phase.RUNNING
        request.phase = Phase.QUEUED
        request.seats = None
        if request.time_limit is not None:
            # Its waiting does not count, the second time either.
            request.deadline = math.inf
        due = min(request.deadline, request.queue_deadline)
        self.deadlines.move(request, due)
        self.note_due(due)
        self.queue.push_front(request, now)
        if ran:
            self.tell("queued", request, now)

    def leave(self, request: Request, outcome: Outcome, error: SnakepitError | None, now: float) -> None:
        """End a request for its caller, wherever it is."""
        if request.phase is Phase.QUEUED:
            seats = request.seats
            if seats is None:
                self.queue.discard(request)
                self.finish(request, outcome, None, error, now)
            else:
                # It stays in the line until the worker confirms that it has dropped it.
                self.placement.left(request)
                self._remember(request, now)
                self.finish(request, outcome, None, error, now)
                seats.port.withdraw(request)
        elif request.phase is Phase.RUNNING:
            seats = request.seats
            assert seats is not None
            # The seat stays taken: it moves from one table to the other.
            del seats.running[request.id]
            seats.leaving[request.id] = request
            self.in_flight -= 1
            self._remember(request, now)
            self.finish(request, outcome, None, error, now)
            seats.port.cancel(request)
            self.placement.place(seats)
            self.look_idle()

    def _remember(self, request: Request, now: float) -> None:
        """A worker may answer it late."""
        self.cancel_set.add(request.id, now)
        self.note_due(self.cancel_set.next_expiry())

    def put_out(self, request: Request, outcome: Outcome, error: SnakepitError | None, now: float) -> None:
        """:meth:`leave`, whatever comes of that."""
        try:
            self.leave(request, outcome, error, now)
        except Exception as exc:
            self.fail(exc, now, request)

    def end_waiting(self, error: SnakepitError, now: float) -> None:
        """End all that wait."""
        try:
            for seats in tuple(self.seats):
                for request in tuple(seats.ahead.values()):
                    self.put_out(request, Outcome.FAILED, copy_error(error), now)
            for request in list(self.queue):
                self.put_out(request, Outcome.FAILED, copy_error(error), now)
        except Exception as exc:
            self.fail(exc, now)

    def finish(
        self, request: Request, outcome: Outcome, result: Payload | None, error: SnakepitError | None, now: float
    ) -> None:
        """End a request, and wake whoever waits for it. It is the caller's to take it out of where it was."""
        del self.living[request]
        request.phase = Phase.DONE
        request.outcome = outcome
        request.result = result
        request.error = error
        # Whoever looks at it later, an error's traceback among them, keeps no arguments.
        request.payload = NO_PAYLOAD
        self.ended[outcome._value_] += 1
        try:
            if request.deadline_node is not None:
                self.deadlines.remove(request)
        except Exception as exc:
            # It is skipped when it comes up.
            request.deadline_node = None
            self._errors.report(exc, "operation", pool=self._pool)
        try:
            self.observer(outcome._value_, request, now)
        except Exception as exc:
            self._errors.report(exc, "observer", pool=self._pool)
        try:
            request.on_end()
        except Exception as exc:
            self._wake_again(request, exc)

    def _wake_again(self, request: Request, exc: Exception) -> None:
        """Try again to wake the caller of an ended request; after a second failure nothing is left to try."""
        self._errors.report(exc, "request", pool=self._pool)
        with self._errors.bulkhead("request", pool=self._pool):
            request.on_end()

    def reject(self, request: Request, error: SnakepitError, now: float) -> None:
        """Refuse a request."""
        self.rejected += 1
        request.phase, request.outcome = Phase.DONE, Outcome.REJECTED
        request.error = error
        self.tell(Outcome.REJECTED.value, request, now)

    def look_idle(self) -> None:
        """Call ``on_idle`` if nothing runs."""
        if not self.in_flight and self.on_idle is not None:
            self.on_idle()

    def tell(self, event: str, request: Request, now: float) -> None:
        """Inform the observer. If it fails, the request continues."""
        try:
            self.observer(event, request, now)
        except Exception as exc:
            self._errors.report(exc, "observer", pool=self._pool)

    def fail(self, exc: Exception, now: float, request: Request | None = None) -> None:
        """Handle an unexpected exception in a decision: its request fails, and the tables are marked as unsound.

        Raises nothing. At the end of the decision, :class:`.Repair` repairs the tables.
        """
        self.sound = False
        self._errors.report(exc, "operation" if request is None else "request", pool=self._pool)
        with self._errors.bulkhead("operation", pool=self._pool):
            if request is not None and request in self.living:
                self.finish(request, Outcome.FAILED, None, internal_error(exc), now)
