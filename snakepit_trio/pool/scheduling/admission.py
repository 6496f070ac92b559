"""Whether a request is taken, and where it goes: to a free seat, into a worker's line, or into the queue."""

from __future__ import annotations

from collections.abc import Collection

from snakepit_trio._timeouts import seconds
from snakepit_trio.errors import QueueTimeout, RequestTimeout, SnakepitError, WorkerStartupError

from .failures import copy_error, no_worker, worker_busy, worker_lost
from .placement import Placement, Recall
from .queue import RequestQueue
from .request import Request, Seats

__all__ = ["Admission"]

#: The weight of one call in the average of how long calls take.
_SMOOTHING = 0.1


class Admission:
    """The door of one pool.

    Args:
        known: All incarnations that there are.
        reject_hopeless: Refuse a request whose deadline would pass while it waits.

    Attributes:
        closed: Why nothing is accepted any more, if so.
        broken: Why nothing is accepted until a worker is ready, if so.
        next_attempt: When the next worker is started, while that is so.
        service_time: How long calls took of late, in seconds: an exponential average, 0 before the first.
    """

    def __init__(
        self,
        queue: RequestQueue[Request],
        placement: Placement,
        recall: Recall,
        known: Collection[Seats],
        *,
        reject_hopeless: bool = False,
    ) -> None:
        self.closed: SnakepitError | None = None
        self.broken: WorkerStartupError | None = None
        self.next_attempt: float = 0.0
        self.service_time: float = 0.0
        self._queue = queue
        self._placement = placement
        self._recall = recall
        self._known = known
        self._reject_hopeless = reject_hopeless

    def note(self, seconds: float) -> None:
        """A call has held its seat for so long."""
        self.service_time += (seconds - self.service_time) * (_SMOOTHING if self.service_time else 1.0)

    def admit(self, request: Request, now: float) -> Seats | None:
        """The incarnation that gets a request, to run it or to hold it in line; None when it has been put in the queue."""
        if self.closed is not None:
            raise copy_error(self.closed)
        if self.broken is not None:
            raise no_worker(self.broken, self.next_attempt, now)
        if request.deadline <= now:
            raise RequestTimeout("the request's deadline had passed when it was made", details={"phase": "queued"})
        binding = request.binding
        if request.beside is not None:
            seats = next((seats for seats in self._placement.seats() if not request.avoids(seats)), None)
        elif binding is None:
            seats = self._placement.seat()
        else:
            if binding.lost:
                raise worker_lost(request, None if binding.seats is None else binding.seats.end)
            tied = binding.seats
            if tied is not None and tied.open and not tied.alone and tied.load < tied.capacity:
                seats = tied
            elif tied is not None and binding.strict:
                if request.fail_fast:
                    raise worker_busy(request)
                seats, request.pin = None, tied
            else:
                seats = self._placement.seat()
        if seats is None:
            if self._reject_hopeless:
                self._check_hope(request, now)
            placement = self._placement
            late = placement.waiting and placement.overtaken(request, now)
            if not len(self._queue) and request.pin is None and not late:
                seats = placement.line(request, now)
            if seats is None:
                self._queue.push(request, now, others=placement.waiting)
                if late:
                    self._recall.recall_below(request.priority)
            else:
                self._queue.admit(request, now, others=placement.waiting)
        return seats

    def _expected_wait(self, request: Request) -> float:
        """How long a request that came now would wait for a seat, in seconds, by how long calls took of late."""
        pin = request.pin
        capacity = pin.capacity if pin is not None else sum(seats.capacity for seats in self._known if seats.open)
        if not capacity:
            return 0.0
        before = self._queue.before(request.priority, pin)
        if pin is None:
            before += self._placement.before(request.priority)
        return self.service_time * (before + 1) / capacity

    def _check_hope(self, request: Request, now: float) -> None:
        wait = self._expected_wait(request)
        due = min(request.deadline, request.scope_deadline, request.queue_deadline)
        if now + wait > due:
            raise QueueTimeout(
                f"a worker would be free after about {seconds(wait)}, and the request has {seconds(max(0.0, due - now))}",
                details={"expected_wait": wait, "hopeless": True, "tool": request.tool},
            )
