"""Which request goes to which worker, when, and how each request ends: the pool's decisions, without any I/O.

Theory of operation
-------------------
A request is in one of three phases::

    submit -> QUEUED --dispatch--> RUNNING --reply--> DONE
                |  ^                  |
                |  +--- retry --------+--- worker gone, cancel, deadline --> DONE
                +------ cancel, deadline, close --------------------------> DONE

Every method is synchronous, takes the time from its caller, and leaves the books in order; what has to be sent is sent
through the :class:`Port` of a worker after the decision is made, and a waiter is woken through ``Request.on_end``.

A worker incarnation has one :class:`Seats` record: how many calls it may run (``capacity``), which it is running, and
which it is *leaving*, that is: whose caller is gone while the worker has not confirmed yet that it stopped. A seat
comes back only by a reply or with the end of the incarnation, so two requests can't overlap in one seat, and a cancel
at the wrong moment can't lose a seat.

A worker with one seat may also hold calls *ahead* of their time: they were sent to it, in line behind the one that runs,
and it begins them one after the other. Such a request is QUEUED in every respect but where it waits, until the call
before it has ended. It is asked back, by :meth:`Port.recall`, when the call that runs turns out long while others have
room, when one of higher priority comes, and when the worker is to get no more calls; the worker then answers either that
it gives it back unbegun (:meth:`Scheduler.returned`), or in the usual way, for it had begun it by then.

Invariants, checked by the model tests after every step:

- ``accepted == completed + failed + cancelled + timed_out + in_flight + queued``
- every request that was accepted ends exactly once
- ``len(running) + len(leaving) <= capacity`` for every incarnation
- no request waits in the queue while a seat that it may take is free
- nobody stands in line behind a free seat

What is called from here (a port, an observer, ``Request.on_end``) and what decides here may raise what nobody expected: the
request that a decision was about fails then, and the books are put in order from what is certain (:mod:`.repair`). Only the
exceptions that a method names leave it. What is decided when workers come and go is in :mod:`.incarnations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import TYPE_CHECKING

from snakepit_trio._bulkhead import internal_error
from snakepit_trio._interrupts import protected
from snakepit_trio.errors import SnakepitError, WorkerCrashed

from .failures import copy_error, deadline_passed, no_worker, overdue, worker_lost
from .incarnations import Incarnations
from .ledger import release
from .request import Binding, Outcome, Phase, Request, Seats

if TYPE_CHECKING:
    from snakepit_trio.wire.frames import Payload

__all__ = ["Scheduler", "UnexpectedReply"]

#: Seconds by which a worker may see a deadline pass before the host does.
_AHEAD = 0.01


class UnexpectedReply(Exception):
    """A worker answered a call that it was never given, or answered one twice."""


class Scheduler(Incarnations):
    """The decisions of one pool, over its books; made as they are."""

    # ---- requests --------------------------------------------------------------------------------

    @protected
    def submit(self, request: Request, now: float) -> None:
        """Take a request: give it to a free worker, or let it wait.

        Raises:
            PoolClosed: The pool takes nothing more.
            WorkerStartupError: No worker can be started at present.
            QueueFull: As many requests wait as may.
            WorkerBusy: Its session's worker is busy, and the session does not wait.
            SessionWorkerUnavailable: Its session's worker is gone.
            RequestTimeout: Its deadline has passed already.
            QueueTimeout: Its deadline would pass while it waits, and hopeless requests are refused.
        """
        request.submitted_at = now
        try:
            seats = self._admission.admit(request, now)
        except SnakepitError as exc:
            self._reject(request, exc, now)
            raise
        except Exception as exc:
            # It may be in the queue, but it is not among the living, and what is put in order again leaves it out.
            self._recover(exc, now)
            error = internal_error(exc)
            self._reject(request, error, now)
            raise error from exc
        self._accepted += 1
        self._living[request] = None
        try:
            if seats is not None and len(seats.running) + len(seats.leaving) < seats.capacity:
                if request.deadline != math.inf:
                    self._wheel.add(request, request.deadline)
                self._start(request, seats, now)
                return
            request.phase = Phase.QUEUED
            due = min(request.deadline, request.queue_deadline)
            if due != math.inf:
                self._wheel.add(request, due)
            self._tell("queued", request, now)
            # Whoever was told of it may have ended it.
            if seats is not None and request.phase is Phase.QUEUED:
                self._line_up(request, seats, now)
        except Exception as exc:
            self._recover(exc, now, request)

    def _reject(self, request: Request, error: SnakepitError, now: float) -> None:
        self._rejected += 1
        request.phase, request.outcome = Phase.DONE, Outcome.REJECTED
        request.error = copy_error(error)
        self._tell(Outcome.REJECTED.value, request, now)

    def cancel(self, request: Request, now: float) -> None:
        """The caller is gone: a waiting request leaves the queue, a running one is cancelled in its worker.

        Does nothing when the request has ended.
        """
        self._put_out(request, Outcome.CANCELLED, None, now)

    def end(self, request: Request, error: SnakepitError, now: float) -> None:
        """End a request with an error, wherever it is; in a worker it is cancelled. Does nothing when it has ended."""
        self._put_out(request, Outcome.FAILED, copy_error(error), now)

    @protected
    def untie(self, session: str, binding: Binding, now: float) -> None:
        """A session is no longer tied strictly: what waits for its worker may go to any. Its order is kept."""
        binding.strict = False
        try:
            self._queue.pin(session, binding, None)
            self._fill_all(now)
        except Exception as exc:
            self._recover(exc, now)

    def hopeless(self, request: Request, blocked: Container[object]) -> bool:
        """Whether no seat that a waiting request may take can come free: each does only after one of these has ended."""
        seen = [seats for seats in (self._all if request.pin is None else (request.pin,)) if seats.open or seats.stuck]
        return bool(seen) and all(self._is_taken(seats, request, blocked) for seats in seen)

    @staticmethod
    def _is_taken(seats: Seats, request: Request, blocked: Container[object]) -> bool:
        if seats.alone or request.suspect or not seats.open:
            # Nothing of it comes free before all of it does, or before its worker ends.
            return seats.empties_after(blocked)
        if seats.leaving or seats.load < seats.capacity:
            return False
        return all(other in blocked for other in seats.running.values())

    @protected
    def expire(self, now: float) -> None:
        """End the requests whose time is spent, and forget the cancelled ids that are old enough."""
        if self._unsound:
            self._recover(RuntimeError("the books could not be put in order before"), now)
        try:
            self._cancel_set.expire(now)
            due = self._wheel.expire(now)
        except Exception as exc:
            self._recover(exc, now)
            return
        for request in due:
            try:
                if request.phase is Phase.RUNNING and request.deadline > now:
                    # What has passed is the limit of its wait, which had ended in time.
                    self._wheel.add(request, request.deadline)
                else:
                    self._leave(request, Outcome.EXPIRED, overdue(request, now), now)
            except Exception as exc:
                self._recover(exc, now, request)
        try:
            if now >= self._recall.look_at:
                self._recall.look(now)
        except Exception as exc:
            self._recover(exc, now)

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
        ended = request
        try:
            if request is not None:
                del seats.running[call_id]
                self._in_flight -= 1
                spent = now - request.dispatched_at
                if not request.stream:
                    # How long a stream takes is up to its reader.
                    self._admission.note(spent)
                    self._placement.note(request.tool, spent)
                self._answer(request, result, error, now)
            elif call_id in seats.ahead:
                request = seats.ahead.pop(call_id)
                ended = self._reply_ahead(request, now, result, error)
            else:
                left = seats.leaving.pop(call_id, None)
                if left is None:
                    if self._cancel_set.seen(call_id, now):
                        self._late_replies += 1
                        return None
                    raise UnexpectedReply(f"a reply to call {call_id}, which is not under way")
                self._let_go(left, error)
            seats.served += 1
            self._advance(seats, now)
        except UnexpectedReply:
            raise
        except Exception as exc:
            self._recover(exc, now, request)
        return ended

    @protected
    def returned(self, seats: Seats, call_id: int, now: float) -> None:
        """A worker gives a call back that it had not begun. The request returns to its place in the queue.

        Raises:
            UnexpectedReply: The worker holds no such call.
        """
        self._take_back(seats, call_id, now, lambda request: self._go_back(request, seats, now))

    def _go_back(self, request: Request, seats: Seats, now: float) -> None:
        if request.binding is not None and request.binding.lost:
            self._finish(request, Outcome.FAILED, None, worker_lost(request, seats.end), now)
        elif self._admission.closed is not None:
            # No worker gets anything more.
            self._finish(request, Outcome.FAILED, None, copy_error(self._admission.closed), now)
        elif self._admission.broken is not None:
            # Whoever waits has been told already that no worker can be had for now.
            error = no_worker(self._admission.broken, self._admission.next_attempt, now)
            self._finish(request, Outcome.FAILED, None, error, now)
        else:
            request.attempt -= 1
            self._queue_again(request, now)
            if request.phase is Phase.QUEUED and min(request.deadline, request.queue_deadline) <= now:
                # It was never begun, so it has waited all the time.
                self._leave(request, Outcome.EXPIRED, overdue(request, now), now)

    @protected
    def stopped(self, seats: Seats, call_id: int, error: WorkerCrashed, now: float) -> None:
        """A worker that ends has stopped a call that it had begun. It runs again if it may, else it ends with ``error``.

        Raises:
            UnexpectedReply: The worker holds no such call.
        """
        self._take_back(seats, call_id, now, lambda request: self._retry_or_fail(request, error, now, started=True))

    def _take_back(self, seats: Seats, call_id: int, now: float, settle: Callable[[Request], None]) -> None:
        """Take a call that a worker has not carried out out of that one's tables, and settle what becomes of its request."""
        request = seats.ahead.get(call_id) or seats.running.get(call_id) or seats.leaving.get(call_id)
        if request is None:
            raise UnexpectedReply(f"call {call_id} is given back, which is not under way")
        try:
            if seats.ahead.pop(call_id, None) is not None:
                if request.phase is Phase.QUEUED:
                    self._placement.left(request)
            elif seats.running.pop(call_id, None) is not None:
                # Of one that had not begun: the call before it had ended, so it was taken to run.
                self._in_flight -= 1
            else:
                del seats.leaving[call_id]
            if request.phase is Phase.DONE:
                release(request)
            else:
                settle(request)
            self._advance(seats, now)
            self._fill_all(now)
        except Exception as exc:
            self._recover(exc, now, request)

    def _answer(self, request: Request, result: Payload | None, error: SnakepitError | None, now: float) -> None:
        if error is None:
            self._finish(request, Outcome.COMPLETED, result, None, now)
        elif error.code == "request_timeout" and min(request.deadline, request.scope_deadline) <= now + _AHEAD:
            # The worker keeps the same deadline and may be the first to see it pass. (Earlier than that it is the tool
            # that let the timeout of a call of its own out.) When it is the caller's scope that ends, the caller is gone.
            outcome = Outcome.CANCELLED if request.scope_deadline < request.deadline else Outcome.EXPIRED
            self._finish(request, outcome, None, deadline_passed(request, now), now)
        else:
            self._finish(request, Outcome.FAILED, None, error, now)

    def _reply_ahead(
        self, request: Request, now: float, result: Payload | None, error: SnakepitError | None
    ) -> Request | None:
        """A worker answers a call whose turn, as far as is known here, had not come: it refuses it, or it is quick."""
        if request.phase is Phase.DONE:
            self._let_go(request, error)
            return None
        self._placement.left(request)
        if error is None:
            # It began, and ended, before anything was known of it here.
            seats = request.seats
            assert seats is not None
            request.phase, request.dispatched_at = Phase.RUNNING, now
            seats.running[request.id] = request
            self._in_flight += 1
            self._tell("dispatched", request, now)
            if request.outcome is not None:
                # Whoever was told of it has ended it.
                del seats.leaving[request.id]
                self._let_go(request, error)
                return None
            del seats.running[request.id]
            self._in_flight -= 1
        self._answer(request, result, error, now)
        return request

    def _let_go(self, request: Request, error: SnakepitError | None) -> None:
        """A worker has confirmed that it is through with a call whose caller is gone."""
        if error is None or error.code != "request_cancelled":
            self._late_replies += 1
        release(request)
