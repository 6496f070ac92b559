"""The repair of a pool's tables after an unexpected exception.

After an exception in the middle of a decision it is certain which requests have not ended, which calls each worker was
sent, and which workers are ending; everything else is rebuilt from that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from snakepit_trio.errors import SnakepitError

from .assignment import Assignment
from .failures import copy_error, worker_lost
from .ledger import Ledger
from .request import Outcome, Phase, Request

if TYPE_CHECKING:
    from snakepit_trio._bulkhead import InternalErrors

__all__ = ["Repair"]

#: The largest number of repairs after one exception, if repairs raise others.
_MOST_ROUNDS = 10


class Repair:
    """Repairs an unsound ledger.

    Args:
        ledger: The pool's ledger.
        assignment: Assigns the waiting requests again.
        errors: Reports unexpected exceptions.
        pool: The pool's name.
    """

    def __init__(self, ledger: Ledger, assignment: Assignment, *, errors: InternalErrors, pool: str) -> None:
        self._ledger = ledger
        self._assignment = assignment
        self._errors = errors
        self._pool = pool
        self._running = False

    def run(self, now: float) -> None:
        """Make the tables consistent again. Raises nothing. If this fails, it is tried again at the next expiry."""
        ledger = self._ledger
        if self._running:
            return  # A nested call: the outer one will repeat the repair.
        self._running = True
        try:
            for _ in range(_MOST_ROUNDS):
                ledger.sound = True
                try:
                    self._reconcile(now)
                except Exception as exc:
                    ledger.fail(exc, now)
                if ledger.sound:
                    return
        finally:
            self._running = False
        with self._errors.bulkhead("operation", pool=self._pool):
            ledger.look_again()

    def _reconcile(self, now: float) -> None:
        """Rebuild the tables from what is certain: the requests that have not ended, the calls that each worker was sent,
        and the workers that are ending.
        """
        ledger = self._ledger
        for seats in [seats for seats in ledger.seats if seats.end is not None]:
            del ledger.seats[seats]
            for table in (seats.running, seats.leaving, seats.ahead):
                for request in table.values():
                    if request.phase is Phase.DONE:
                        request.release()
                table.clear()
        waiting, lost = [], []
        for request in ledger.living:
            where = request.seats
            if where is None and request.phase is Phase.QUEUED:
                waiting.append(request)
                continue
            if where is not None and where in ledger.seats:
                table = where.running if request.phase is Phase.RUNNING else where.ahead
                if table.get(request.id) is request:
                    continue
            lost.append(request)
        for request in lost:
            error = SnakepitError("an internal error of snakepit_trio has lost the request", code="internal")
            ledger.finish(request, Outcome.FAILED, None, error, now)
        for request in ledger.living:
            request.deadline_node = None
        ledger.deadlines.clear()
        ledger.queue.refill(waiting)
        for request in ledger.living:
            running = request.phase is Phase.RUNNING
            due = request.deadline if running else min(request.deadline, request.queue_deadline)
            ledger.deadlines.add(request, due)
        for seats in ledger.seats:
            for request in [request for request in seats.running.values() if request.phase is Phase.DONE]:
                seats.leaving[request.id] = seats.running.pop(request.id)
            seats.open = seats.open and not seats.over
            seats.alone = any(request.suspect for request in seats.running.values())
        ledger.placement.rebuild(ledger.seats)
        ledger.in_flight = sum(len(seats.running) for seats in ledger.seats)
        ledger.accepted = sum(ledger.ended.values()) + len(ledger.living)
        self._end_hopeless(waiting, now)
        for seats in list(ledger.seats):
            # The worker may not have been informed; informing it twice does no harm.
            for request in list(seats.leaving.values()):
                seats.port.cancel(request)
            for request in [request for request in seats.ahead.values() if request.phase is Phase.DONE]:
                seats.port.withdraw(request)
            self._assignment.advance(seats, now)
        ledger.look_idle()
        ledger.look_again()

    def _end_hopeless(self, waiting: Iterable[Request], now: float) -> None:
        """End the requests that wait for a worker that will not come."""
        ledger = self._ledger
        refused = ledger.closed or ledger.broken
        for request in waiting:
            pin = request.pin
            if refused is not None:
                error = copy_error(refused)
            elif pin is not None and pin.over:
                error = worker_lost(request, pin.end)
            else:
                continue
            ledger.queue.discard(request)
            ledger.finish(request, Outcome.FAILED, None, error, now)
        if refused is not None:
            for seats in tuple(ledger.seats):
                for request in tuple(seats.ahead.values()):
                    if request.phase is Phase.QUEUED:
                        ledger.leave(request, Outcome.FAILED, copy_error(refused), now)
