"""Assigns requests to workers: a new request on its arrival, and waiting requests when a seat is free."""

from __future__ import annotations

from enum import Enum

from snakepit_trio._timeouts import seconds
from snakepit_trio.errors import QueueTimeout

from .failures import copy_error, deadline_passed, no_worker, overdue, worker_busy, worker_lost
from .ledger import Ledger
from .placement import PATIENCE
from .request import Outcome, Phase, Request, Seats

__all__ = ["Assignment", "Way"]


class Way(Enum):
    """The first step of an accepted request."""

    RUN = "run"
    PREFETCH = "prefetch"
    QUEUE = "queue"


_RUN, _PREFETCH, _QUEUE = Way.RUN, Way.PREFETCH, Way.QUEUE


class Assignment:
    """Assigns requests to workers.

    Args:
        ledger: The pool's ledger.
        reject_hopeless: Refuse a request whose deadline would pass while it waits.
    """

    def __init__(self, ledger: Ledger, *, reject_hopeless: bool = False) -> None:
        self._ledger = ledger
        self._reject_hopeless = reject_hopeless

    # ---- on their way in -----------------------------------------------------------------------------

    def admit(self, request: Request, now: float) -> tuple[Way, Seats | None]:
        """Decide about a new request, and return the worker that runs or prefetches it.

        A request that has to wait is then in the queue; a prefetched request has a place in the queue to which it can
        return.
        """
        ledger = self._ledger
        if ledger.closed is not None:
            raise copy_error(ledger.closed)
        if ledger.broken is not None:
            raise no_worker(ledger.broken, ledger.next_attempt, now)
        if request.deadline <= now:
            raise deadline_passed(request, now)
        placement = ledger.placement
        binding = request.binding
        if request.beside is not None:
            seats = next((seats for seats in placement.seats() if not request.avoids(seats)), None)
        elif binding is None:
            seats = placement.seat()
        else:
            if binding.lost:
                raise worker_lost(request, None if binding.seats is None else binding.seats.end)
            tied = binding.seats
            if tied is not None and tied.open and tied.load < tied.capacity and tied.admits(request):
                seats = tied
            elif tied is not None and binding.strict:
                if request.fail_fast:
                    raise worker_busy(request)
                seats, request.pin = None, tied
            else:
                seats = placement.seat()
        if seats is None and request.chain and request.pin is None:
            seats = self._where_needed(request)
        return (_RUN, seats) if seats is not None else self._wait(request, now)

    def _where_needed(self, request: Request) -> Seats | None:
        """Return a worker with a free seat that accepts only this request, because one of its calls waits for it."""
        if request.suspect:
            return None
        for seats in self._ledger.seats:
            free = seats.open and seats.alone and seats.load < seats.capacity
            if free and seats.needs(request) and (request.beside is None or not request.avoids(seats)):
                return seats
        return None

    def _wait(self, request: Request, now: float) -> tuple[Way, Seats | None]:
        """Decide as :meth:`admit` about a request without a free seat."""
        if self._reject_hopeless:
            self._check_hope(request, now)
        queue, placement = self._ledger.queue, self._ledger.placement
        late = placement.waiting and placement.overtaken(request, now)
        if not queue.live and request.pin is None and not late:
            seats = placement.line(request, now)
            if seats is not None:
                queue.admit(request, now, others=placement.waiting)
                return _PREFETCH, seats
        queue.push(request, now, others=placement.waiting)
        if late:
            self._ledger.recall.recall_below(request.priority)
        return _QUEUE, None

    def _expected_wait(self, request: Request) -> float:
        """Return the estimated wait of a new request for a seat, in seconds, from recent call durations."""
        ledger, pin = self._ledger, request.pin
        capacity = pin.capacity if pin is not None else sum(seats.capacity for seats in ledger.seats if seats.open)
        if not capacity:
            return 0.0
        before = ledger.queue.before(request.priority, pin)
        if pin is None:
            before += ledger.placement.before(request.priority)
        return ledger.placement.service_time * (before + 1) / capacity

    def _check_hope(self, request: Request, now: float) -> None:
        wait = self._expected_wait(request)
        due = min(request.deadline, request.scope_deadline, request.queue_deadline)
        if now + wait > due:
            raise QueueTimeout(
                f"a worker would be free after about {seconds(wait)}, and the request has {seconds(max(0.0, due - now))}",
                details={"expected_wait": wait, "hopeless": True, "tool": request.tool},
            )

    # ---- when a seat comes free ------------------------------------------------------------------------

    def advance(self, seats: Seats, now: float) -> None:
        """Handle a free seat of a worker: its next prefetched call runs now, and it gets more calls."""
        ledger = self._ledger
        placement = ledger.placement
        if seats.alone and not seats.running and not seats.leaving:
            seats.alone = False
        began: float | None = None
        while seats.ahead and len(seats.running) + len(seats.leaving) < seats.capacity:
            call_id = next(iter(seats.ahead))
            request = seats.ahead.pop(call_id)
            began = now
            if request.phase is Phase.QUEUED:
                placement.left(request)
                ledger.begin(request, seats, now)
            else:
                # Its caller has left, and it may have begun: its seat is taken until the worker confirms.
                seats.leaving[call_id] = request
                seats.port.cancel(request)
        placement.place(seats, began=began)
        if ledger.queue.live or placement.waiting:
            self.fill(seats, now)
            if placement.waiting and now > placement.hostage_since() + PATIENCE:
                ledger.recall.look(now)
        if ledger.on_idle is not None:
            ledger.look_idle()

    def fill(self, seats: Seats, now: float) -> None:
        """Assign waiting requests to a worker: calls for its free seats, and then prefetched calls."""
        ledger = self._ledger
        queue, placement = ledger.queue, ledger.placement
        aside: list[Request] = []
        while queue.live and seats.open and not seats.alone:
            if len(seats.running) + len(seats.leaving) < seats.capacity:
                request = queue.pop(now, seats)
            elif placement.has_line(seats, now):
                request = queue.pop(now, seats, lambda request: placement.may_stand(request, now))
            else:
                break
            if request is None:
                break
            if request.beside is not None and request.avoids(seats):
                aside.append(request)
                continue
            if request.suspect and seats.load:
                # It must run alone: this worker accepts no more calls until it is empty, unless another one already does.
                aside.append(request)
                seats.alone = not any(other.alone for other in ledger.seats)
                if request.session is not None:
                    break  # Later calls of its session wait behind it.
                continue
            if min(request.deadline, request.queue_deadline) <= now:
                # Its time passed before the deadline task could end it.
                ledger.finish(request, Outcome.EXPIRED, None, overdue(request, now), now)
            elif len(seats.running) + len(seats.leaving) < seats.capacity:
                ledger.start(request, seats, now)
            else:
                ledger.prefetch(request, seats, now)
        for request in aside:
            queue.push_front(request, now)
        if aside:
            placement.place(seats)
        if seats.alone and seats.open and seats.running and seats.load < seats.capacity:
            self._fill_needed(seats, now)
        if placement.waiting and seats.open and len(seats.running) + len(seats.leaving) < seats.capacity:
            ledger.recall.look_later()

    def _fill_needed(self, seats: Seats, now: float) -> None:
        """Assign to a worker that accepts no other calls the requests for which its own calls wait.

        They do not wait behind earlier requests of their session, because those run only after them.
        """
        ledger = self._ledger
        for request in [request for request in ledger.living if request.chain and request.phase is Phase.QUEUED]:
            if seats.load == seats.capacity:
                return
            if request.pin not in (None, seats) or (request.beside is not None and request.avoids(seats)):
                continue
            if seats.admits(request) and ledger.queue.discard(request):
                ledger.start(request, seats, now)

    def fill_all(self, now: float) -> None:
        """Assign waiting requests to every worker with a free seat."""
        if self._ledger.queue.live:
            for seats in self._ledger.placement.seats():
                self.fill(seats, now)
