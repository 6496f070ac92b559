"""The decisions of a pool when its workers come, stop accepting calls, give calls back, and end.

:mod:`.scheduler` describes the theory.
"""

from __future__ import annotations

import math
from collections.abc import Container

from snakepit_trio._interrupts import protected
from snakepit_trio.errors import PoolClosed, SnakepitError, WorkerCrashed, WorkerStartupError

from .assignment import Assignment
from .failures import copy_error, no_worker, overdue, poisonous, worker_lost
from .ledger import Ledger, UnexpectedReply
from .repair import Repair
from .request import Outcome, Phase, Request, Seats

__all__ = ["Incarnations"]


class Incarnations:
    """The decisions of one pool about its workers.

    Args:
        ledger: The pool's ledger.
        assignment: Assigns waiting requests to workers with room.
        repair: Repairs the ledger after an unexpected exception.
        poison_limit: A request that has ended this number of workers is not run again; None: no limit.
    """

    def __init__(self, ledger: Ledger, assignment: Assignment, repair: Repair, *, poison_limit: int | None) -> None:
        self._ledger = ledger
        self._assignment = assignment
        self._repair = repair
        self._poison_limit = poison_limit

    # ---- they come, and take calls or don't ------------------------------------------------------------

    @protected
    def open(self, seats: Seats, now: float) -> None:
        """Handle an incarnation that is ready for calls, and assign waiting requests to it."""
        ledger = self._ledger
        ledger.seats[seats] = None
        self.clear_failure()
        seats.open = True
        try:
            ledger.placement.admit(seats)
            ledger.placement.place(seats)
            self._assignment.fill(seats, now)
        except Exception as exc:
            ledger.fail(exc, now)
        if not ledger.sound:
            self._repair.run(now)

    @protected
    def cordon(self, seats: Seats, now: float) -> None:
        """Give an incarnation no more calls; its running calls continue, and its prefetched calls are recalled."""
        try:
            self._shut(seats)
        except Exception as exc:
            self._ledger.fail(exc, now)
        if not self._ledger.sound:
            self._repair.run(now)

    def _shut(self, seats: Seats) -> None:
        if seats.open:
            seats.open = False
            self._ledger.placement.place(seats)
            self._ledger.recall.recall(seats)

    @protected
    def uncordon(self, seats: Seats, now: float) -> None:
        """Undo :meth:`cordon`."""
        ledger = self._ledger
        if not seats.open and not seats.over and seats in ledger.seats:
            seats.open = True
            try:
                ledger.placement.place(seats)
                self._assignment.fill(seats, now)
            except Exception as exc:
                ledger.fail(exc, now)
            if not ledger.sound:
                self._repair.run(now)

    @protected
    def retire(self, seats: Seats, now: float) -> None:
        """Give an incarnation no more calls, ever; its running calls continue. Requests that wait for this worker alone
        end at once.
        """
        try:
            self._retire(seats, now)
        except Exception as exc:
            self._ledger.fail(exc, now)
        if not self._ledger.sound:
            self._repair.run(now)

    def _retire(self, seats: Seats, now: float) -> None:
        seats.over = True
        self._shut(seats)
        for request in self._ledger.queue.drop_pin(seats):
            self._ledger.finish(request, Outcome.FAILED, None, worker_lost(request, seats.end), now)

    def stuck(self, seats: Seats, call_id: int) -> None:
        """Record that a call whose caller has left does not stop: its seat is freed by its worker's end, after the calls
        beside it.
        """
        request = seats.leaving.get(call_id)
        if request is not None:
            request.stuck = True

    @protected
    def fail_all(self, why: WorkerStartupError, next_attempt: float, now: float) -> None:
        """End all waiting requests, and refuse new ones, until a worker is ready, because no worker can serve.

        Args:
            why: The reason why no worker can start.
            next_attempt: The time of the next start.
        """
        ledger = self._ledger
        ledger.broken = why
        ledger.next_attempt = next_attempt
        ledger.end_waiting(no_worker(why, next_attempt, now), now)
        if not ledger.sound:
            self._repair.run(now)

    @protected
    def clear_failure(self) -> None:
        """Let new requests wait again, because a worker may come. Undoes :meth:`fail_all`."""
        self._ledger.broken = None

    # ---- they give calls back --------------------------------------------------------------------------

    @protected
    def returned(self, seats: Seats, call_id: int, now: float) -> None:
        """Handle a call that a worker gives back unbegun: the request returns to its place in the queue.

        Raises:
            UnexpectedReply: The worker holds no such call.
        """
        self._take_back(seats, call_id, now, None)

    @protected
    def stopped(self, seats: Seats, call_id: int, error: WorkerCrashed, now: float) -> None:
        """Handle a begun call that an ending worker has stopped: it runs again if it may, else it ends with ``error``.

        Raises:
            UnexpectedReply: The worker holds no such call.
        """
        self._take_back(seats, call_id, now, error)

    def _take_back(self, seats: Seats, call_id: int, now: float, error: WorkerCrashed | None) -> None:
        """Remove a call that a worker has not completed from the worker's tables, and decide about its request.

        Args:
            error: The reason of the stop; None: the call had not begun.
        """
        ledger = self._ledger
        request = seats.ahead.get(call_id) or seats.running.get(call_id) or seats.leaving.get(call_id)
        if request is None:
            raise UnexpectedReply(f"call {call_id} is given back, which is not under way")
        try:
            if seats.ahead.pop(call_id, None) is not None:
                if request.phase is Phase.QUEUED:
                    ledger.placement.left(request)
            elif seats.running.pop(call_id, None) is not None:
                # It had not begun, but the call before it had ended, so it counted as running.
                ledger.in_flight -= 1
            else:
                del seats.leaving[call_id]
            if request.phase is Phase.DONE:
                request.release()
            elif error is not None:
                self._retry_or_fail(request, error, now, started=True)
            else:
                self._go_back(request, seats, now)
            self._assignment.advance(seats, now)
            self._assignment.fill_all(now)
        except Exception as exc:
            ledger.fail(exc, now, request)
        if not ledger.sound:
            self._repair.run(now)

    def _go_back(self, request: Request, seats: Seats, now: float) -> None:
        ledger = self._ledger
        if request.binding is not None and request.binding.lost:
            ledger.finish(request, Outcome.FAILED, None, worker_lost(request, seats.end), now)
        elif ledger.closed is not None:
            # No worker gets further calls.
            ledger.finish(request, Outcome.FAILED, None, copy_error(ledger.closed), now)
        elif ledger.broken is not None:
            # The waiting requests have already ended because there is no worker.
            error = no_worker(ledger.broken, ledger.next_attempt, now)
            ledger.finish(request, Outcome.FAILED, None, error, now)
        else:
            request.attempt -= 1
            ledger.requeue(request, now)
            if request.phase is Phase.QUEUED and min(request.deadline, request.queue_deadline) <= now:
                # It was never begun, so its whole time was a wait.
                ledger.leave(request, Outcome.EXPIRED, overdue(request, now), now)

    # ---- they end --------------------------------------------------------------------------------------

    @protected
    def gone(
        self,
        seats: Seats,
        error: WorkerCrashed | PoolClosed,
        now: float,
        *,
        unbegun: Container[int] = (),
        blamed: bool = True,
    ) -> None:
        """Handle the end of an incarnation, and of the state in it.

        A call that never began there, or that may run again, returns to its place in the queue; any other ends with
        ``error``.

        Args:
            error: What happened to the worker.
            unbegun: The ids of calls that it had not begun.
            blamed: Whether its running calls may have caused its end.
        """
        ledger = self._ledger
        if seats not in ledger.seats:
            return
        seats.open = False
        seats.over = True
        seats.end = error
        try:
            ledger.placement.place(seats)
            ledger.placement.forget(seats)
            self._retire(seats, now)
            ledger.seats.pop(seats, None)
            held = [*seats.running.values(), *seats.ahead.values()]
            begun = sum(id not in unbegun for table in (seats.running, seats.leaving, seats.ahead) for id in table)
            blame = 1 / max(1, begun) if blamed else 0.0
            if blamed:
                for request in held:
                    if request.id not in unbegun:
                        ledger.placement.beware(request.tool)
            for request in seats.leaving.values():
                request.release()
            seats.running.clear()
            seats.leaving.clear()
            seats.ahead.clear()
            # The last first, because each returns to the front of later ones.
            for request in reversed(held):
                try:
                    self._settle(request, error, now, blame if request.id not in unbegun else None)
                except Exception as exc:
                    ledger.fail(exc, now, request)
            self._assignment.fill_all(now)
            ledger.look_idle()
        except Exception as exc:
            ledger.fail(exc, now)
        if not ledger.sound:
            self._repair.run(now)

    def _settle(self, request: Request, error: WorkerCrashed | PoolClosed, now: float, blame: float | None) -> None:
        """Decide about a call that an ended incarnation held.

        Args:
            blame: The call's share in that end, 1 if it ran alone; None: it had not begun.
        """
        if request.phase is Phase.DONE:
            request.release()
            return
        if request.phase is Phase.RUNNING:
            self._ledger.in_flight -= 1
        else:
            self._ledger.placement.left(request)
        if blame is not None:
            self._note_blame(request, blame)
        self._retry_or_fail(request, error, now, started=blame is not None)
        if request.outcome is not None:
            request.seats = None

    def _note_blame(self, request: Request, blame: float) -> None:
        """Record that a worker ended while it ran a call. With several calls, the cause is found when one of them runs
        alone.
        """
        if blame == 1.0:
            request.deaths += 1
        elif self._poison_limit is not None:
            request.suspicion += blame
            request.suspect = request.suspicion >= self._poison_limit

    def _retry_or_fail(self, request: Request, error: WorkerCrashed | PoolClosed, now: float, *, started: bool) -> None:
        ledger = self._ledger
        crashed = isinstance(error, WorkerCrashed)
        again = crashed and ledger.closed is None and request.deadline > now
        if again and started:
            again = request.idempotent and not request.stream
        if crashed and request.binding is not None and request.binding.strict:
            self._fail(request, worker_lost(request, error), now)
        elif again and self._poison_limit is not None and request.deaths >= self._poison_limit:
            self._fail(request, poisonous(request, error), now)
        elif again:
            if request.phase is Phase.RUNNING:
                request.queue_deadline = math.inf
            ledger.requeue(request, now)
        else:
            self._fail(request, copy_error(error), now)

    def _fail(self, request: Request, error: SnakepitError, now: float) -> None:
        self._ledger.finish(request, Outcome.FAILED, None, error, now)
