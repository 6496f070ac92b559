"""The books of one pool, put in order after an exception that nobody expected.

What is certain after an exception in the middle of a decision is which requests have not ended, what each worker was given, and
which workers are at their end; all the rest is made anew from that.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from snakepit_trio._bulkhead import internal_error
from snakepit_trio.errors import SnakepitError

from .failures import copy_error, worker_lost
from .ledger import Ledger, release
from .request import Outcome, Phase, Request, Seats

__all__ = ["RepairableLedger"]

#: How often the books are gone over after one exception, when to do so raises others.
_MOST_ROUNDS = 10


class RepairableLedger(Ledger):
    """Ledger that agree again after an exception; made as :class:`.Ledger` are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._recovering = False
        self._unsound = False

    def _put_out(self, request: Request, outcome: Outcome, error: SnakepitError | None, now: float) -> None:
        """End a request for its caller, wherever it is, whatever comes of that."""
        try:
            self._leave(request, outcome, error, now)
        except Exception as exc:
            self._recover(exc, now, request)

    def _recover(self, exc: Exception, now: float, request: Request | None = None) -> None:
        """An unexpected exception came out of a decision: the request that it was about fails, and the books agree again.

        Raises nothing. When even this fails, it is tried again at the next :meth:`Scheduler.expire`.
        """
        self._errors.report(exc, "operation" if request is None else "request", pool=self._pool)
        with self._errors.bulkhead("operation", self._note_unsound, pool=self._pool):
            if request is not None and request in self._living:
                self._finish(request, Outcome.FAILED, None, internal_error(exc), now)
            if self._recovering:
                # It came from the one below, which will go over everything once more.
                self._unsound = True
                return
            self._recovering = True
            try:
                for _ in range(_MOST_ROUNDS):
                    self._unsound = False
                    self._reconcile(now)
                    if not self._unsound:
                        break
            finally:
                self._recovering = False
        if self._unsound:
            self._note_unsound(exc)

    def _note_unsound(self, exc: Exception) -> None:
        self._unsound = True
        with self._errors.bulkhead("operation", pool=self._pool):
            self._on_due(-math.inf)

    def _reconcile(self, now: float) -> None:
        """Make the books agree again, from what is certain: which requests have not ended, what each worker was given,
        which workers are at their end."""
        for seats in [seats for seats in self._all if seats.end is not None]:
            del self._all[seats]
            for table in (seats.running, seats.leaving, seats.ahead):
                for request in table.values():
                    if request.phase is Phase.DONE:
                        release(request)
                table.clear()
        waiting, lost = [], []
        for request in self._living:
            where = request.seats
            if where is None and request.phase is Phase.QUEUED:
                waiting.append(request)
                continue
            if where is not None and where in self._all:
                table = where.running if request.phase is Phase.RUNNING else where.ahead
                if table.get(request.id) is request:
                    continue
            lost.append(request)
        for request in lost:
            error = SnakepitError("an internal error of snakepit_trio has lost the request", code="internal")
            self._finish(request, Outcome.FAILED, None, error, now)
        for request in self._living:
            request.deadline_node = None
        self._wheel.clear()
        self._queue.refill(waiting)
        for request in self._living:
            running = request.phase is Phase.RUNNING
            self._wheel.add(request, request.deadline if running else min(request.deadline, request.queue_deadline))
        for seats in self._all:
            for request in [request for request in seats.running.values() if request.phase is Phase.DONE]:
                seats.leaving[request.id] = seats.running.pop(request.id)
            seats.open = seats.open and not seats.over
            seats.alone = any(request.suspect for request in seats.running.values())
        self._placement.rebuild(self._all)
        self._in_flight = sum(len(seats.running) for seats in self._all)
        self._accepted = sum(self._ended.values()) + len(self._living)
        self._end_hopeless(waiting, now)
        for seats in list(self._all):
            # What was to be told to the worker may not have been; to tell it twice does no harm.
            for request in list(seats.leaving.values()):
                seats.port.cancel(request)
            for request in [request for request in seats.ahead.values() if request.phase is Phase.DONE]:
                seats.port.withdraw(request)
            self._advance(seats, now)
        if not self._in_flight:
            self._on_idle()
        self._on_due(-math.inf)

    def _end_hopeless(self, waiting: Iterable[Request], now: float) -> None:
        """End those that wait for what will not come."""
        refused = self._admission.closed or self._admission.broken
        for request in waiting:
            pin = request.pin
            if refused is not None:
                error = copy_error(refused)
            elif pin is not None and pin.over:
                error = worker_lost(request, pin.end)
            else:
                continue
            self._queue.discard(request)
            self._finish(request, Outcome.FAILED, None, error, now)
        if refused is not None:
            for seats in tuple(self._all):
                for request in tuple(seats.ahead.values()):
                    if request.phase is Phase.QUEUED:
                        self._leave(request, Outcome.FAILED, copy_error(refused), now)

    @abstractmethod
    def _advance(self, seats: Seats, now: float) -> None:
        """A worker has ended a call: the next in its line runs now, and it gets more."""
