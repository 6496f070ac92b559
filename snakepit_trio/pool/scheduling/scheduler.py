"""The pool's decisions, without any I/O: which request goes to which worker, when, and how each request ends.

Theory of operation
-------------------
A request is in one of three phases::

    submit -> QUEUED --dispatch--> RUNNING --reply--> DONE
                |  ^                  |
                |  +--- retry --------+--- worker gone, cancel, deadline --> DONE
                +------ cancel, deadline, close --------------------------> DONE

Every method is synchronous, takes the time from its caller, and leaves the tables consistent. After a decision, frames
are sent through the :class:`Port` of a worker, and a waiter is woken through ``Request.on_end``.

A worker incarnation has one :class:`Seats` record: the number of calls that it may run (``capacity``), its running
calls, and its *leaving* calls, whose callers have left while the worker has not confirmed that it stopped them. A seat
is freed only by a reply or by the end of the incarnation, so two requests can't overlap in one seat, and a cancellation
at the wrong moment can't lose a seat.

A worker with one seat may also hold prefetched calls (``ahead``): they were sent to it, and it begins them one after
the other. Such a request is QUEUED in every respect except its place, until the call before it has ended. It is
recalled, by :meth:`Port.recall`, when the running call turns out to be long while other workers have room, when a
request of higher priority arrives, and when the worker must get no more calls. The worker then either gives it back
unbegun (:meth:`.Incarnations.returned`), or answers as usual because it had begun.

Invariants, checked by the model tests after every step:

- ``accepted == completed + failed + cancelled + timed_out + in_flight + queued``
- every accepted request ends exactly once
- ``len(running) + len(leaving) <= capacity`` for every incarnation
- no request waits in the queue while a seat that it may take is free
- no call is prefetched behind a free seat

The parts, each of which knows only the earlier ones: the :class:`.Ledger` keeps the tables; :class:`.Assignment`
assigns requests to workers; :class:`.Repair` repairs the tables; :class:`.Incarnations` decides when workers come and
go; the :class:`Scheduler` decides about requests, and owns the others.

A function that is called from here (a port, an observer, ``Request.on_end``), and the code here, may raise an
unexpected exception. The request of the decision then fails, and at the end of the decision the tables are repaired
from what is certain (:mod:`.repair`). Only the exceptions that a method documents leave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import TYPE_CHECKING

from snakepit_trio._bulkhead import InternalErrors, internal_error
from snakepit_trio._interrupts import protected
from snakepit_trio.errors import SnakepitError

from .assignment import Assignment, Way
from .expiry import CancelSet
from .failures import copy_error, deadline_passed, overdue
from .incarnations import Incarnations
from .ledger import Ledger, Observer, UnexpectedReply
from .queue import RequestQueue
from .repair import Repair
from .request import Binding, Outcome, Phase, Request, Seats

if TYPE_CHECKING:
    from snakepit_trio.wire.frames import Payload

__all__ = ["Scheduler"]

#: Seconds by which a worker may notice a deadline before the host.
_AHEAD = 0.01
# Looked up once, not by each call.
_RUN, _QUEUE = Way.RUN, Way.QUEUE


def _ignore(event: str, request: Request, now: float) -> None:
    """The observer of a pool without one."""


class Scheduler:
    """The decisions of one pool.

    Args:
        queue: The queue of waiting requests.
        cancel_set: The ids of requests whose callers have left.
        poison_limit: A request that has ended this number of workers is not run again; None: no limit.
        reject_hopeless: Refuse a request whose deadline would pass while it waits.
        observer: The observer, which may also be set later, as ``ledger.observer``.
        on_idle: Called when the last running request has ended; also ``ledger.on_idle``.
        on_due: Called with a due time that is earlier than the known one.
        errors: Reports unexpected exceptions.
        pool: The pool's name.

    Attributes:
        ledger: The tables, read-only for others.
        incarnations: Decides when workers come and go.
    """

    def __init__(
        self,
        *,
        queue: RequestQueue[Request],
        cancel_set: CancelSet,
        poison_limit: int | None = 2,
        reject_hopeless: bool = False,
        observer: Observer = _ignore,
        on_idle: Callable[[], object] | None = None,
        on_due: Callable[[float], object] = lambda when: None,
        errors: InternalErrors | None = None,
        pool: str = "",
    ) -> None:
        errors = InternalErrors() if errors is None else errors
        self.ledger: Ledger = Ledger(
            queue=queue,
            cancel_set=cancel_set,
            observer=observer,
            on_idle=on_idle,
            on_due=on_due,
            errors=errors,
            pool=pool,
        )
        self._assignment = Assignment(self.ledger, reject_hopeless=reject_hopeless)
        self._repair = Repair(self.ledger, self._assignment, errors=errors, pool=pool)
        self.incarnations: Incarnations = Incarnations(
            self.ledger, self._assignment, self._repair, poison_limit=poison_limit
        )

    def __repr__(self) -> str:
        return f"<Scheduler {self.ledger!r}>"

    # ---- requests --------------------------------------------------------------------------------

    @protected
    def submit(self, request: Request, now: float) -> None:
        """Accept a request: give it to a free worker, or let it wait.

        Raises:
            PoolClosed: The pool accepts no more requests.
            WorkerStartupError: No worker can start at present.
            QueueFull: The queue is full.
            WorkerBusy: Its session's worker is busy, and the session does not wait.
            SessionWorkerUnavailable: Its session's worker has ended.
            RequestTimeout: Its deadline has already passed.
            QueueTimeout: Its deadline would pass while it waits, and hopeless requests are refused.
        """
        ledger = self.ledger
        request.submitted_at = now
        try:
            way, seats = self._assignment.admit(request, now)
        except SnakepitError as exc:
            ledger.reject(request, copy_error(exc), now)
            raise
        except Exception as exc:
            # It may be in the queue, but it is not in `living`, so a repair removes it.
            ledger.fail(exc, now)
            self._repair.run(now)
            error = internal_error(exc)
            ledger.reject(request, copy_error(error), now)
            raise error from exc
        ledger.accepted += 1
        ledger.living[request] = None
        try:
            if way is _RUN:
                assert seats is not None
                due = request.deadline
                if due != math.inf:
                    ledger.deadlines.add(request, due)
                    if due < ledger.announced:
                        ledger.note_due(due)
                ledger.start(request, seats, now)
            else:
                request.phase = Phase.QUEUED
                due = min(request.deadline, request.queue_deadline)
                if due != math.inf:
                    ledger.deadlines.add(request, due)
                    if due < ledger.announced:
                        ledger.note_due(due)
                if way is _QUEUE and request.payload.buffers:
                    request.keep_values()
                ledger.tell("queued", request, now)
                # The observer may have ended it.
                if seats is not None and request.phase is Phase.QUEUED:
                    ledger.prefetch(request, seats, now)
        except Exception as exc:
            ledger.fail(exc, now, request)
        if not ledger.sound:
            self._repair.run(now)

    def cancel(self, request: Request, now: float) -> None:
        """Cancel a request whose caller has left: a waiting one leaves the queue, a running one is cancelled in its
        worker.

        Does nothing if the request has ended.
        """
        self._put_out(request, Outcome.CANCELLED, None, now)

    def end(self, request: Request, error: SnakepitError, now: float) -> None:
        """End a request with an error, wherever it is; in a worker it is cancelled. Does nothing if it has ended."""
        self._put_out(request, Outcome.FAILED, copy_error(error), now)

    def _put_out(self, request: Request, outcome: Outcome, error: SnakepitError | None, now: float) -> None:
        self.ledger.put_out(request, outcome, error, now)
        if not self.ledger.sound:
            self._repair.run(now)

    @protected
    def untie(self, session: str, binding: Binding, now: float) -> None:
        """Let any worker run the waiting requests of a session that is no longer bound strictly. Their order is kept."""
        binding.strict = False
        try:
            self.ledger.queue.pin(session, binding, None)
            self._assignment.fill_all(now)
        except Exception as exc:
            self.ledger.fail(exc, now)
        if not self.ledger.sound:
            self._repair.run(now)

    def hopeless(self, request: Request, blocked: Container[object]) -> bool:
        """Return whether each seat that a waiting request may take is freed only after one of these has ended."""
        known = self.ledger.seats if request.pin is None else (request.pin,)
        seen = [seats for seats in known if seats.open or seats.stuck]
        return bool(seen) and all(self._is_taken(seats, request, blocked) for seats in seen)

    @staticmethod
    def _is_taken(seats: Seats, request: Request, blocked: Container[object]) -> bool:
        if not seats.admits(request) or request.suspect or not seats.open:
            # None of its seats is freed before all are, or before its worker ends.
            return seats.empties_after(blocked)
        if seats.leaving or seats.load < seats.capacity:
            return False
        return all(other in blocked for other in seats.running.values())

    # ---- answers ---------------------------------------------------------------------------------

    @protected
    def replied(
        self, seats: Seats, call_id: int, now: float, *, result: Payload | None, error: SnakepitError | None
    ) -> Request | None:
        """Handle the reply to a call: its seat is free and goes to the next request.

        Returns the request that ended by it; None for the late reply of a cancelled one.

        Raises:
            UnexpectedReply: The worker holds no such call.
        """
        ledger = self.ledger
        request = seats.running.get(call_id)
        ended = request
        try:
            if request is not None:
                # First, so that the seat is free whatever fails from here on.
                del seats.running[call_id]
                ledger.in_flight -= 1
                if not request.stream:
                    # The reader determines the duration of a stream.
                    ledger.placement.note(request.tool, now - request.dispatched_at)
                if error is None:
                    ledger.finish(request, Outcome.COMPLETED, result, None, now)
                else:
                    self._fail(request, error, now)
            elif call_id in seats.ahead:
                request = seats.ahead.pop(call_id)
                ended = self._reply_ahead(request, seats, now, result, error)
            else:
                left = seats.leaving.pop(call_id, None)
                if left is None:
                    if ledger.cancel_set.seen(call_id, now):
                        ledger.late_replies += 1
                        return None
                    raise UnexpectedReply(f"a reply to call {call_id}, which is not under way")
                self._let_go(left, error)
            seats.served += 1
            self._assignment.advance(seats, now)
        except UnexpectedReply:
            raise
        except Exception as exc:
            ledger.fail(exc, now, request)
        if not ledger.sound:
            self._repair.run(now)
        return ended

    def _fail(self, request: Request, error: SnakepitError, now: float) -> None:
        outcome = Outcome.FAILED
        if error.code == "request_timeout" and min(request.deadline, request.scope_deadline) <= now + _AHEAD:
            # The worker enforces the same deadline and may notice it first. (An earlier timeout is the tool's own, of one
            # of its calls.) If the caller's scope ends, the caller has left.
            outcome = Outcome.CANCELLED if request.scope_deadline < request.deadline else Outcome.EXPIRED
            error = deadline_passed(request, now)
        self.ledger.finish(request, outcome, None, error, now)

    def _reply_ahead(
        self, request: Request, seats: Seats, now: float, result: Payload | None, error: SnakepitError | None
    ) -> Request | None:
        """Handle the reply to a call whose turn had not come here: the worker refuses it, or was quick."""
        ledger = self.ledger
        if request.phase is Phase.DONE:
            self._let_go(request, error)
            return None
        ledger.placement.left(request)
        if error is not None:
            self._fail(request, error, now)
            return request
        # It began and ended before the host noticed.
        ledger.begin(request, seats, now)
        if request.outcome is not None:
            # The observer has ended it.
            del seats.leaving[request.id]
            self._let_go(request, error)
            return None
        del seats.running[request.id]
        ledger.in_flight -= 1
        ledger.finish(request, Outcome.COMPLETED, result, None, now)
        return request

    def _let_go(self, request: Request, error: SnakepitError | None) -> None:
        """Handle a worker's confirmation that a call whose caller has left has ended."""
        if error is None or error.code != "request_cancelled":
            self.ledger.late_replies += 1
        request.release()

    # ---- the clock -------------------------------------------------------------------------------

    @protected
    def expire(self, now: float) -> None:
        """End the expired requests, and forget expired ids."""
        ledger = self.ledger
        # The caller asks for the next deadline afterwards.
        ledger.announced = math.inf
        if not ledger.sound:
            ledger.fail(RuntimeError("the tables could not be put in order before"), now)
            self._repair.run(now)
        try:
            ledger.cancel_set.expire(now)
            for request in ledger.deadlines.expire(now):
                if request.phase is Phase.RUNNING and request.deadline > now:
                    # The passed limit is that of its wait, which had ended in time.
                    ledger.deadlines.add(request, request.deadline)
                else:
                    ledger.put_out(request, Outcome.EXPIRED, overdue(request, now), now)
            if now >= ledger.recall.look_at:
                ledger.recall.look(now)
        except Exception as exc:
            ledger.fail(exc, now)
        if not ledger.sound:
            self._repair.run(now)

    # ---- the end ---------------------------------------------------------------------------------

    def refuse(self, error: SnakepitError) -> None:
        """Accept no more requests. Waiting and running ones continue."""
        self.ledger.closed = error

    @protected
    def close(self, error: SnakepitError, now: float) -> None:
        """Accept no more requests, and end the waiting ones. Running ones continue."""
        self.refuse(error)
        self.ledger.end_waiting(error, now)
        if not self.ledger.sound:
            self._repair.run(now)

    @protected
    def abort(self, error: SnakepitError, now: float) -> None:
        """End every running request with ``error``; their calls are cancelled in the workers."""
        for seats in tuple(self.ledger.seats):
            for request in tuple(seats.running.values()):
                self._put_out(request, Outcome.FAILED, copy_error(error), now)
