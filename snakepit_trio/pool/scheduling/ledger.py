"""The books of one pool, and the moves that keep them true: each takes one request from one place to the next.

What may happen, and which moves follow from it, is decided in :mod:`.scheduler`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import attrs

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.errors import SnakepitError
from snakepit_trio.wire.frames import NO_PAYLOAD

from .admission import Admission
from .expiry import CancelSet, DeadlineWheel
from .failures import worker_busy
from .placement import Placement, Recall
from .queue import RequestQueue
from .request import Outcome, Phase, Request, Seats

if TYPE_CHECKING:
    from snakepit_trio.wire.frames import Payload

__all__ = ["Ledger", "Observer", "Totals", "release"]


class Observer(Protocol):
    """Hears of what happens to requests."""

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


def _ignore(event: str, request: Request, now: float) -> None:
    """The observer of a scheduler that nobody watches."""


class Ledger(ABC):
    """The books of one pool.

    Args:
        queue: Where requests wait.
        cancel_set: Remembers the ids of requests whose callers are gone.
        poison_limit: A request that has ended this many workers is not given to another; None means no limit.
        reject_hopeless: Refuse a request whose deadline would pass while it waits.
        observer: Hears of what happens to requests.
        on_idle: Called when the last running request has ended.
        on_due: Called with a time when :meth:`next_deadline` may be that now, which is earlier than was known.
        errors: Where unexpected exceptions are told.
        pool: The pool's name.
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
        on_due: Callable[[float], object] = lambda when: None,
        errors: InternalErrors | None = None,
        pool: str = "",
    ) -> None:
        self._queue = queue
        self._cancel_set = cancel_set
        self._wheel: DeadlineWheel[Request] = DeadlineWheel()
        self._poison_limit = poison_limit
        self._observe = observer
        self._on_idle = on_idle
        self._on_due = on_due
        self._errors = InternalErrors() if errors is None else errors
        self._pool = pool
        # Every request that was accepted and has not ended, in the order of their arrival.
        self._living: dict[Request, None] = {}
        self._all: dict[Seats, None] = {}
        self._placement = Placement()
        self._recall = Recall(self._placement, self._all, on_due)
        self._admission = Admission(queue, self._placement, self._recall, self._all, reject_hopeless=reject_hopeless)
        self._in_flight = 0
        self._accepted = 0
        self._rejected = 0
        self._ended = dict.fromkeys((outcome.value for outcome in Outcome), 0)
        self._late_replies = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} workers={len(self._all)} in_flight={self._in_flight} queued={len(self._queue)}>"

    # ---- reading the books -----------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that a worker is running for a caller who waits."""
        return self._in_flight

    @property
    def queued(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue) + self._placement.waiting

    @property
    def has_room(self) -> bool:
        """Whether a request that came now, and that any worker may run, would get a seat or a place in the queue."""
        return self._placement.seat() is not None or self._queue.has_room(self._placement.waiting)

    @property
    def service_time(self) -> float:
        """How long calls took of late, in seconds; 0 before the first."""
        return self._admission.service_time

    def oldest_wait(self, now: float) -> float:
        """How long the request has waited that came first of those that any worker may run; 0 when none waits."""
        return max(0.0, now - min(self._queue.oldest_arrival(), self._placement.oldest_arrival()))

    @property
    def waiting_for_any(self) -> int:
        """Requests that wait for a worker, and that one more would serve: not those that are tied to a worker that there is."""
        return self._queue.unpinned + self._placement.waiting

    @property
    def seats(self) -> Iterable[Seats]:
        """Every incarnation that is known here."""
        return self._all.keys()

    @property
    def broken(self) -> bool:
        """Whether nothing is accepted because no worker can serve it."""
        return self._admission.broken is not None

    @property
    def closed(self) -> SnakepitError | None:
        """Why nothing is accepted any more, if so."""
        return self._admission.closed

    def is_short(self, tool: str) -> bool:
        """Whether the calls of a tool take so little time that the way to a worker counts."""
        return self._placement.is_short(tool)

    def totals(self) -> Totals:
        """The counters, which obey the conservation law at every moment."""
        ended = self._ended
        return Totals(
            accepted=self._accepted,
            rejected=self._rejected,
            completed=ended[Outcome.COMPLETED.value],
            failed=ended[Outcome.FAILED.value],
            cancelled=ended[Outcome.CANCELLED.value],
            timed_out=ended[Outcome.EXPIRED.value],
            in_flight=self._in_flight,
            queued=len(self._queue) + self._placement.waiting,
            late_replies=self._late_replies,
            cancel_set_size=len(self._cancel_set),
        )

    def requests(self) -> Iterable[Request]:
        """Every request that has not ended: those that run, then those that wait."""
        for seats in self._all:
            yield from seats.running.values()
        for seats in self._all:
            yield from (request for request in seats.ahead.values() if request.phase is Phase.QUEUED)
        yield from self._queue

    def next_deadline(self) -> float:
        """When :meth:`expire` has something to do at the earliest; infinity when nothing is due ever."""
        return min(self._wheel.next_deadline(), self._cancel_set.next_expiry(), self._recall.look_at)

    # ---- moves -----------------------------------------------------------------------------------

    def _start(self, request: Request, seats: Seats, now: float) -> None:
        """Give a request a free seat."""
        try:
            request.attempt += 1
            self._begin(request, seats, now)
            seats.alone = seats.alone or request.suspect
            if request.phase is Phase.DONE:
                # Whoever was told of it has ended it. It was not sent, so no worker will confirm that it has stopped.
                del seats.leaving[request.id]
                release(request)
            self._placement.place(seats)
            if request.phase is Phase.RUNNING:
                seats.port.start(request)
        except Exception as exc:
            self._not_started(request, seats, exc, now)

    def _line_up(self, request: Request, seats: Seats, now: float) -> None:
        """Send a request to a worker ahead of its time. It goes on waiting."""
        try:
            request.attempt += 1
            request.recalled = False
            request.seats = seats
            seats.ahead[request.id] = request
            self._placement.joined(seats, request)
            self._placement.place(seats)
            seats.port.start(request)
        except Exception as exc:
            self._not_started(request, seats, exc, now)

    def _not_started(self, request: Request, seats: Seats, exc: Exception, now: float) -> None:
        """A request could not be sent: it fails, and its seat is free. Should it have been sent all the same, the reply to
        it will be one to a call that the worker was never given, and end the worker."""
        seats.running.pop(request.id, None)
        seats.ahead.pop(request.id, None)
        self._recover(exc, now, request)

    def _begin(self, request: Request, seats: Seats, now: float) -> None:
        """A request runs from now on."""
        if request.time_limit is not None and request.deadline == math.inf:
            request.deadline = now + request.time_limit
            self._wheel.move(request, request.deadline)
            self._on_due(request.deadline)
        seats.running[request.id] = request
        self._in_flight += 1
        if seats.depth:
            self._placement.began(seats, now)
        request.phase = Phase.RUNNING
        request.seats = seats
        request.dispatched_at = now
        binding = request.binding
        if binding is not None and binding.seats is not seats:
            if binding.strict and binding.seats is None and request.session is not None:
                # Those that wait behind it were made when no worker was chosen yet.
                waiting = self._queue.pin(request.session, binding, seats)
                for other in waiting[seats.capacity - seats.load :]:
                    if other.fail_fast:
                        self._queue.discard(other)
                        self._finish(other, Outcome.FAILED, None, worker_busy(other), now)
            binding.seats = seats
        # As in _tell, whose own call would be a seventh of what the books cost.
        try:
            self._observe("dispatched", request, now)
        except Exception as exc:
            self._errors.report(exc, "observer", pool=self._pool)

    def _queue_again(self, request: Request, now: float) -> None:
        """Put a request back where it was in the queue."""
        ran = request.phase is Phase.RUNNING
        request.phase = Phase.QUEUED
        request.seats = None
        if request.time_limit is not None:
            # Its waiting does not count, the second time either.
            request.deadline = math.inf
        due = min(request.deadline, request.queue_deadline)
        self._wheel.move(request, due)
        self._on_due(due)
        self._queue.push_front(request, now)
        if ran:
            self._tell("queued", request, now)

    def _leave(self, request: Request, outcome: Outcome, error: SnakepitError | None, now: float) -> None:
        """End a request for its caller, wherever it is."""
        if request.phase is Phase.QUEUED:
            seats = request.seats
            if seats is None:
                self._queue.discard(request)
                self._finish(request, outcome, None, error, now)
            else:
                # It stays in the line until the worker confirms that it has dropped it.
                self._placement.left(request)
                self._cancel_set.add(request.id, now)
                self._on_due(self._cancel_set.next_expiry())
                self._finish(request, outcome, None, error, now)
                seats.port.withdraw(request)
        elif request.phase is Phase.RUNNING:
            seats = request.seats
            assert seats is not None
            # The seat stays taken: it moves from one table to the other.
            del seats.running[request.id]
            seats.leaving[request.id] = request
            self._in_flight -= 1
            self._cancel_set.add(request.id, now)
            self._on_due(self._cancel_set.next_expiry())
            self._finish(request, outcome, None, error, now)
            seats.port.cancel(request)
            self._placement.place(seats)
            if not self._in_flight:
                self._on_idle()

    def _finish(
        self, request: Request, outcome: Outcome, result: Payload | None, error: SnakepitError | None, now: float
    ) -> None:
        del self._living[request]
        request.phase = Phase.DONE
        request.outcome = outcome
        request.result = result
        request.error = error
        # Whoever looks at it later, an error's traceback among them, keeps no arguments.
        request.payload = NO_PAYLOAD
        self._ended[outcome._value_] += 1
        try:
            if request.deadline_node is not None:
                self._wheel.remove(request)
        except Exception as exc:
            # It comes up some time, and is passed over then.
            request.deadline_node = None
            self._errors.report(exc, "operation", pool=self._pool)
        try:
            self._observe(outcome._value_, request, now)
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

    def _tell(self, event: str, request: Request, now: float) -> None:
        """Let the observer hear of something. When it fails, the request goes on."""
        try:
            self._observe(event, request, now)
        except Exception as exc:
            self._errors.report(exc, "observer", pool=self._pool)

    @abstractmethod
    def _recover(self, exc: Exception, now: float, request: Request | None = None) -> None:
        """An unexpected exception came out of a decision: the request that it was about fails, and the books agree again.

        Raises nothing.
        """


def release(request: Request) -> None:
    """The worker is through with a call."""
    if request.released is not None:
        request.released()
