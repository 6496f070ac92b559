"""The tables of one pool, and the moves that keep them true: each takes one request from one place to the next.

What may happen, and which moves follow from it, is decided by :mod:`.scheduler` and by what that has: :mod:`.assignment` and
:mod:`.incarnations`.
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
    """A worker answered a call that it was never given, or answered one twice."""


class Observer(Protocol):
    """Hears of what happens to requests, and changes nothing of them."""

    def __call__(self, event: str, request: Request, now: float) -> None:
        """``event`` is ``"queued"``, ``"dispatched"``, or the value of an :class:`Outcome`."""


@attrs.frozen
class Totals:
    """The scheduler's counters at one moment; see ``snakepit_trio.PoolStats`` for what each means."""

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
    """The tables of one pool. Whoever is concerned by a move is told of it: the worker, the observer, the caller.

    Args:
        on_due: Called with a time when something is due then, which is earlier than was known.
        errors: Where unexpected exceptions are told.
        pool: The pool's name.

    Attributes:
        queue: The requests that wait, and that no worker holds.
        cancel_set: The ids of requests whose callers are gone.
        deadlines: The requests that may expire.
        placement: Which workers have room, and which hold calls that have not begun.
        recall: Asks for such calls.
        seats: The incarnations that there are.
        living: The requests that were accepted and have not ended, in the order of their arrival.
        in_flight: How many requests a worker is running for a caller who waits.
        accepted, rejected, ended, late_replies: What :class:`Totals` counts; ``ended`` by outcome.
        closed: Why nothing is accepted any more, if so.
        broken: Why nothing is accepted until a worker is ready, if so.
        next_attempt: When the next worker is started, while that is so, on the event loop's clock.
        observer: Hears of what happens to requests.
        on_idle: Called when the last running request has ended; None: nobody waits for that.
        announced: When the clock looks again, as far as it was told.
        sound: The tables agree. They may not after an unexpected exception in a move; see :mod:`.repair`.
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
        """Requests that wait for a worker."""
        return self.queue.live + self.placement.waiting

    @property
    def has_room(self) -> bool:
        """Whether a request that came now, and that any worker may run, would get a seat or a place in the queue."""
        return self.placement.seat() is not None or self.queue.has_room(self.placement.waiting)

    def oldest_wait(self, now: float) -> float:
        """How long the request has waited that came first of those that any worker may run; 0 when none waits."""
        return max(0.0, now - min(self.queue.oldest_arrival(), self.placement.oldest_arrival()))

    @property
    def waiting_for_any(self) -> int:
        """Requests that wait for a worker, and that one more would serve: not those that are tied to a worker that there is."""
        return self.queue.unpinned + self.placement.waiting

    def totals(self) -> Totals:
        """The counters, which obey the conservation law at every moment."""
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
        """Every request that has not ended: those that run, then those that wait."""
        for seats in self.seats:
            yield from seats.running.values()
        for seats in self.seats:
            yield from (request for request in seats.ahead.values() if request.phase is Phase.QUEUED)
        yield from self.queue

    def next_deadline(self) -> float:
        """When something expires at the earliest; infinity when nothing does ever."""
        return min(self.deadlines.next_deadline(), self.cancel_set.next_expiry(), self.recall.look_at)

    def arm(self) -> float:
        """The same for the clock, which hears by ``on_due`` from now on when that becomes earlier."""
        self.announced = self.next_deadline()
        return self.announced

    def note_due(self, when: float) -> None:
        """Something is due at that time."""
        if when < self.announced:
            # Should this fail, the next is told.
            self.announced = math.inf
            self._on_due(when)
            self.announced = min(when, self.announced)

    def look_again(self) -> None:
        """Something may be due at another time than was told."""
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
                # Whoever was told of it has ended it. It was not sent, so no worker will confirm that it has stopped.
                del seats.leaving[request.id]
                request.release()
            self.placement.place(seats, began=now)
            if request.phase is Phase.RUNNING:
                seats.port.start(request)
        except Exception as exc:
            self._not_started(request, seats, exc, now)

    def prefetch(self, request: Request, seats: Seats, now: float) -> None:
        """Send a request to a worker ahead of its time. It goes on waiting."""
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
        """A request could not be sent: it fails, and its seat is free. Should it have been sent all the same, the reply to
        it will be one to a call that the worker was never given, and end the worker."""
        seats.running.pop(request.id, None)
        seats.ahead.pop(request.id, None)
        self.fail(exc, now, request)

    def begin(self, request: Request, seats: Seats, now: float) -> None:
        """A request runs from now on; the worker's place is the caller's to see to."""
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
                # Those that wait behind it were made when no worker was chosen yet.
                waiting = self.queue.pin(request.session, binding, seats)
                for other in waiting[seats.capacity - seats.load :]:
                    if other.fail_fast:
                        self.queue.discard(other)
                        self.finish(other, Outcome.FAILED, None, worker_busy(other), now)
            binding.seats = seats
        # As in tell, whose own call would be a seventh of what the tables cost.
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
            # It comes up some time, and is passed over then.
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
        """Whoever waits for a request that has ended could not be woken; if that fails twice, nothing is left to try."""
        self._errors.report(exc, "request", pool=self._pool)
        with self._errors.bulkhead("request", pool=self._pool):
            request.on_end()

    def reject(self, request: Request, error: SnakepitError, now: float) -> None:
        """A request is not accepted."""
        self.rejected += 1
        request.phase, request.outcome = Phase.DONE, Outcome.REJECTED
        request.error = error
        self.tell(Outcome.REJECTED.value, request, now)

    def look_idle(self) -> None:
        """Tell whoever waits for it when nothing runs."""
        if not self.in_flight and self.on_idle is not None:
            self.on_idle()

    def tell(self, event: str, request: Request, now: float) -> None:
        """Let the observer hear of something. When it fails, the request goes on."""
        try:
            self.observer(event, request, now)
        except Exception as exc:
            self._errors.report(exc, "observer", pool=self._pool)

    def fail(self, exc: Exception, now: float, request: Request | None = None) -> None:
        """An unexpected exception came out of a decision: the request that it was about fails, and the tables are not certain.

        Raises nothing. Whoever decides has them put in order at the end of the decision, by :class:`.Repair`.
        """
        self.sound = False
        self._errors.report(exc, "operation" if request is None else "request", pool=self._pool)
        with self._errors.bulkhead("operation", pool=self._pool):
            if request is not None and request in self.living:
                self.finish(request, Outcome.FAILED, None, internal_error(exc), now)
