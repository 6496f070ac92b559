"""Which request goes to which worker, when, and how each request ends: the pool's decisions, without any I/O.

Theory of operation
-------------------
A request is in one of three phases::

    submit -> QUEUED --dispatch--> RUNNING --reply--> DONE
                |  ^                  |
                |  +--- retry --------+--- worker gone, cancel, deadline --> DONE
                +------ cancel, deadline, close --------------------------> DONE

Every method is synchronous, takes the time from its caller, and leaves the tables in order; what has to be sent is sent
through the :class:`Port` of a worker after the decision is made, and a waiter is woken through ``Request.on_end``.

A worker incarnation has one :class:`Seats` record: how many calls it may run (``capacity``), which it is running, and
which it is *leaving*, that is: whose caller is gone while the worker has not confirmed yet that it stopped. A seat
comes back only by a reply or with the end of the incarnation, so two requests can't overlap in one seat, and a cancel
at the wrong moment can't lose a seat.

A worker with one seat may also hold calls *ahead* of their time: they were sent to it, in line behind the one that runs,
and it begins them one after the other. Such a request is QUEUED in every respect but where it waits, until the call
before it has ended. It is asked back, by :meth:`Port.recall`, when the call that runs turns out long while others have
room, when one of higher priority comes, and when the worker is to get no more calls; the worker then answers either that
it gives it back unbegun (:meth:`.Incarnations.returned`), or in the usual way, for it had begun it by then.

Invariants, checked by the model tests after every step:

- ``accepted == completed + failed + cancelled + timed_out + in_flight + queued``
- every request that was accepted ends exactly once
- ``len(running) + len(leaving) <= capacity`` for every incarnation
- no request waits in the queue while a seat that it may take is free
- nobody stands in line behind a free seat

The parts, each of which knows only those before it: the :class:`.Ledger` keeps the tables; :class:`.Assignment` gives requests to
workers; :class:`.Repair` puts the tables in order; :class:`.Incarnations` decides when workers come and go; the
:class:`Scheduler` decides about requests, and owns the others.

What is called from here (a port, an observer, ``Request.on_end``) and what decides here may raise what nobody expected: the
request that a decision was about fails then, and at the end of the decision the tables are put in order from what is certain
(:mod:`.repair`). Only the exceptions that a method names leave it.
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

#: Seconds by which a worker may see a deadline pass before the host does.
_AHEAD = 0.01


def _ignore(event: str, request: Request, now: float) -> None:
    """The observer of a pool that nobody watches."""


class Scheduler:
    """The decisions of one pool.

    Args:
        queue: Where requests wait.
        cancel_set: Remembers the ids of requests whose callers are gone.
        poison_limit: A request that has ended this many workers is not given to another; None means no limit.
        reject_hopeless: Refuse a request whose deadline would pass while it waits.
        observer: Hears of what happens to requests. It may also be set later, as ``ledger.observer``.
        on_idle: Called when the last running request has ended; as ``ledger.on_idle``, too.
        on_due: Called with a time when something is due then, which is earlier than was known.
        errors: Where unexpected exceptions are told.
        pool: The pool's name.

    Attributes:
        ledger: The tables. Others read them only.
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
        ledger = self.ledger
        request.submitted_at = now
        try:
            way, seats = self._assignment.admit(request, now)
        except SnakepitError as exc:
            ledger.reject(request, copy_error(exc), now)
            raise
        except Exception as exc:
            # It may be in the queue, but it is not among the living, and what is put in order again leaves it out.
            ledger.fail(exc, now)
            self._repair.run(now)
            error = internal_error(exc)
            ledger.reject(request, copy_error(error), now)
            raise error from exc
        ledger.accepted += 1
        ledger.living[request] = None
        try:
            if way is Way.RUN:
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
                    ledger.note_due(due)
                if way is Way.QUEUE and request.payload.buffers:
                    request.keep_values()
                ledger.tell("queued", request, now)
                # Whoever was told of it may have ended it.
                if seats is not None and request.phase is Phase.QUEUED:
                    ledger.prefetch(request, seats, now)
        except Exception as exc:
            ledger.fail(exc, now, request)
        if not ledger.sound:
            self._repair.run(now)

    def cancel(self, request: Request, now: float) -> None:
        """The caller is gone: a waiting request leaves the queue, a running one is cancelled in its worker.

        Does nothing when the request has ended.
        """
        self._put_out(request, Outcome.CANCELLED, None, now)

    def end(self, request: Request, error: SnakepitError, now: float) -> None:
        """End a request with an error, wherever it is; in a worker it is cancelled. Does nothing when it has ended."""
        self._put_out(request, Outcome.FAILED, copy_error(error), now)

    def _put_out(self, request: Request, outcome: Outcome, error: SnakepitError | None, now: float) -> None:
        self.ledger.put_out(request, outcome, error, now)
        if not self.ledger.sound:
            self._repair.run(now)

    @protected
    def untie(self, session: str, binding: Binding, now: float) -> None:
        """A session is no longer tied strictly: what waits for its worker may go to any. Its order is kept."""
        binding.strict = False
        try:
            self.ledger.queue.pin(session, binding, None)
            self._assignment.fill_all(now)
        except Exception as exc:
            self.ledger.fail(exc, now)
        if not self.ledger.sound:
            self._repair.run(now)

    def hopeless(self, request: Request, blocked: Container[object]) -> bool:
        """Whether no seat that a waiting request may take can come free: each does only after one of these has ended."""
        known = self.ledger.seats if request.pin is None else (request.pin,)
        seen = [seats for seats in known if seats.open or seats.stuck]
        return bool(seen) and all(self._is_taken(seats, request, blocked) for seats in seen)

    @staticmethod
    def _is_taken(seats: Seats, request: Request, blocked: Container[object]) -> bool:
        if not seats.admits(request) or request.suspect or not seats.open:
            # Nothing of it comes free before all of it does, or before its worker ends.
            return seats.empties_after(blocked)
        if seats.leaving or seats.load < seats.capacity:
            return False
        return all(other in blocked for other in seats.running.values())

    # ---- answers ---------------------------------------------------------------------------------

    @protected
    def replied(
        self, seats: Seats, call_id: int, now: float, *, result: Payload | None, error: SnakepitError | None
    ) -> Request | None:
        """A worker has ended a call; its seat is free and goes to the next in the queue.

        Returns the request that ended by it, None for the late reply of a cancelled one.

        Raises:
            UnexpectedReply: The worker holds no such call.
        """
        ledger = self.ledger
        request = seats.running.get(call_id)
        ended = request
        try:
            if request is not None:
                # First of all: whatever fails from here on, the seat is free.
                del seats.running[call_id]
                ledger.in_flight -= 1
                if not request.stream:
                    # How long a stream takes is up to its reader.
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
            # The worker keeps the same deadline and may be the first to see it pass. (Earlier than that it is the tool
            # that let the timeout of a call of its own out.) When it is the caller's scope that ends, the caller is gone.
            outcome = Outcome.CANCELLED if request.scope_deadline < request.deadline else Outcome.EXPIRED
            error = deadline_passed(request, now)
        self.ledger.finish(request, outcome, None, error, now)

    def _reply_ahead(
        self, request: Request, seats: Seats, now: float, result: Payload | None, error: SnakepitError | None
    ) -> Request | None:
        """A worker answers a call whose turn, as far as is known here, had not come: it refuses it, or it is quick."""
        ledger = self.ledger
        if request.phase is Phase.DONE:
            self._let_go(request, error)
            return None
        ledger.placement.left(request)
        if error is not None:
            self._fail(request, error, now)
            return request
        # It began, and ended, before anything was known of it here.
        ledger.begin(request, seats, now)
        if request.outcome is not None:
            # Whoever was told of it has ended it.
            del seats.leaving[request.id]
            self._let_go(request, error)
            return None
        del seats.running[request.id]
        ledger.in_flight -= 1
        ledger.finish(request, Outcome.COMPLETED, result, None, now)
        return request

    def _let_go(self, request: Request, error: SnakepitError | None) -> None:
        """A worker has confirmed that it is through with a call whose caller is gone."""
        if error is None or error.code != "request_cancelled":
            self.ledger.late_replies += 1
        request.release()

    # ---- the clock -------------------------------------------------------------------------------

    @protected
    def expire(self, now: float) -> None:
        """End the requests whose time is spent, and forget the cancelled ids that are old enough."""
        ledger = self.ledger
        # Whoever calls this asks for the next deadline after it.
        ledger.announced = math.inf
        if not ledger.sound:
            ledger.fail(RuntimeError("the tables could not be put in order before"), now)
            self._repair.run(now)
        try:
            ledger.cancel_set.expire(now)
            for request in ledger.deadlines.expire(now):
                if request.phase is Phase.RUNNING and request.deadline > now:
                    # What has passed is the limit of its wait, which had ended in time.
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
        """Accept nothing more. What waits and what runs goes on."""
        self.ledger.closed = error

    @protected
    def close(self, error: SnakepitError, now: float) -> None:
        """Accept nothing more, and end what waits. What runs goes on."""
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
