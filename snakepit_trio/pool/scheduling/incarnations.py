"""What a pool decides when its workers come, stop taking calls, and end; and who gets a worker's free seats.

The theory of it is written in :mod:`.scheduler`.
"""

from __future__ import annotations

import math
from collections.abc import Container

from snakepit_trio._interrupts import protected
from snakepit_trio.errors import PoolClosed, SnakepitError, WorkerCrashed, WorkerStartupError

from .failures import copy_error, no_worker, overdue, poisonous, worker_lost
from .ledger import release
from .placement import PATIENCE
from .repair import RepairableLedger
from .request import Outcome, Phase, Request, Seats

__all__ = ["Incarnations"]


class Incarnations(RepairableLedger):
    """The decisions of one pool about its workers; made as :class:`.Ledger` are."""

    @protected
    def open(self, seats: Seats, now: float) -> None:
        """An incarnation is ready for calls; it gets what waits for it."""
        self._all[seats] = None
        self.clear_failure()
        seats.open = True
        try:
            self._placement.admit(seats)
            self._placement.place(seats)
            self._fill(seats, now)
        except Exception as exc:
            self._recover(exc, now)

    @protected
    def cordon(self, seats: Seats, now: float) -> None:
        """Give an incarnation no more calls; those that it runs go on, those that it has not begun are asked back."""
        try:
            self._shut(seats)
        except Exception as exc:
            self._recover(exc, now)

    def _shut(self, seats: Seats) -> None:
        if seats.open:
            seats.open = False
            self._placement.place(seats)
            self._recall.recall(seats)

    def stuck(self, seats: Seats, call_id: int) -> None:
        """A call whose caller is gone does not stop: its seat comes back with its worker's end, after what runs beside it."""
        request = seats.leaving.get(call_id)
        if request is not None:
            request.stuck = True

    @protected
    def retire(self, seats: Seats, now: float) -> None:
        """Give an incarnation no more calls, ever; those that it has go on. What waits for it alone is told at once."""
        seats.over = True
        try:
            self._shut(seats)
            for request in self._queue.drop_pin(seats):
                self._finish(request, Outcome.FAILED, None, worker_lost(request, seats.end), now)
        except Exception as exc:
            self._recover(exc, now)

    @protected
    def uncordon(self, seats: Seats, now: float) -> None:
        """Undo :meth:`cordon`."""
        if not seats.open and not seats.over and seats in self._all:
            seats.open = True
            try:
                self._placement.place(seats)
                self._fill(seats, now)
            except Exception as exc:
                self._recover(exc, now)

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
        """An incarnation has ended: its books end with it.

        A call that was never started there, and one that may be run again, goes back to its place in the queue; any
        other ends with ``error``.

        Args:
            error: What happened to the worker.
            unbegun: Ids of the calls that it had not begun to run.
            blamed: The calls that it ran may have brought its end about.
        """
        if seats not in self._all:
            return
        seats.open = False
        seats.over = True
        seats.end = error
        try:
            self._placement.place(seats)
            self._placement.forget(seats)
            self.retire(seats, now)
            self._all.pop(seats, None)
            held = [*seats.running.values(), *seats.ahead.values()]
            begun = sum(id not in unbegun for table in (seats.running, seats.leaving, seats.ahead) for id in table)
            blame = 1 / max(1, begun) if blamed else 0.0
            if blamed:
                for request in held:
                    if request.id not in unbegun:
                        self._placement.beware(request.tool)
            for request in seats.leaving.values():
                release(request)
            seats.running.clear()
            seats.leaving.clear()
            seats.ahead.clear()
            # The last first: each goes back to the front of those that came after it.
            for request in reversed(held):
                try:
                    self._settle(request, error, now, blame if request.id not in unbegun else None)
                except Exception as exc:
                    self._recover(exc, now, request)
            self._fill_all(now)
            if not self._in_flight:
                self._on_idle()
        except Exception as exc:
            self._recover(exc, now)

    def _settle(self, request: Request, error: WorkerCrashed | PoolClosed, now: float, blame: float | None) -> None:
        """What becomes of a call that an incarnation held which has ended.

        Args:
            blame: The call's part in that end, 1 if no other ran there; None: it had not begun.
        """
        if request.phase is Phase.DONE:
            release(request)
            return
        if request.phase is Phase.RUNNING:
            self._in_flight -= 1
        else:
            self._placement.left(request)
        if blame is not None:
            self._note_blame(request, blame)
        self._retry_or_fail(request, error, now, started=blame is not None)
        if request.outcome is not None:
            request.seats = None

    def _note_blame(self, request: Request, blame: float) -> None:
        """A worker has ended while it ran a call. Which of several calls was the cause is seen when one of them runs alone."""
        if blame == 1.0:
            request.deaths += 1
        elif self._poison_limit is not None:
            request.suspicion += blame
            request.suspect = request.suspicion >= self._poison_limit

    @protected
    def fail_all(self, why: WorkerStartupError, next_attempt: float, now: float) -> None:
        """No worker can serve: whoever waits is told at once, and so is whoever comes, until one is ready.

        Args:
            why: What keeps workers from starting.
            next_attempt: When the next one is started.
        """
        self._admission.broken = why
        self._admission.next_attempt = next_attempt
        self._end_queue(no_worker(why, next_attempt, now), now)

    @protected
    def clear_failure(self) -> None:
        """A worker may come that can serve: whoever comes may wait for it. Undoes :meth:`fail_all`."""
        self._admission.broken = None

    def refuse(self, error: SnakepitError) -> None:
        """Accept nothing more. What waits and what runs goes on."""
        self._admission.closed = error

    @protected
    def close(self, error: SnakepitError, now: float) -> None:
        """Accept nothing more, and end what waits. What runs goes on."""
        self.refuse(error)
        self._end_queue(error, now)

    @protected
    def abort(self, error: SnakepitError, now: float) -> None:
        """End every running request with ``error``; their calls are cancelled in the workers."""
        for seats in tuple(self._all):
            for request in tuple(seats.running.values()):
                self._put_out(request, Outcome.FAILED, copy_error(error), now)

    # ---- inside ----------------------------------------------------------------------------------

    def _advance(self, seats: Seats, now: float) -> None:
        """A worker has ended a call: the next in its line runs now, and it gets more."""
        placement = self._placement
        if seats.alone and not seats.running and not seats.leaving:
            seats.alone = False
        while seats.ahead and len(seats.running) + len(seats.leaving) < seats.capacity:
            call_id = next(iter(seats.ahead))
            request = seats.ahead.pop(call_id)
            if request.phase is Phase.QUEUED:
                placement.left(request)
                self._begin(request, seats, now)
            else:
                # Its caller is gone, and it may have begun: its seat is taken until the worker confirms.
                seats.leaving[call_id] = request
                placement.began(seats, now)
                seats.port.cancel(request)
        placement.place(seats)
        self._fill(seats, now)
        if placement.waiting and now > placement.hostage_since() + PATIENCE:
            self._recall.look(now)
        if not self._in_flight:
            self._on_idle()

    def _fill(self, seats: Seats, now: float) -> None:
        """Give a worker what it may have of what waits: calls for its free seats, then some in line behind a short one."""
        queue, placement = self._queue, self._placement
        aside: list[Request] = []
        while len(queue) and seats.open and not seats.alone:
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
                # It runs where nothing else does: this worker takes no more until it is empty, if none does so already.
                aside.append(request)
                seats.alone = not any(other.alone for other in self._all)
                if request.session is not None:
                    break  # Its younger sisters wait behind it.
                continue
            if min(request.deadline, request.queue_deadline) <= now:
                # Its time ran out before the clock's owner could say so.
                self._finish(request, Outcome.EXPIRED, None, overdue(request, now), now)
            elif len(seats.running) + len(seats.leaving) < seats.capacity:
                self._start(request, seats, now)
            else:
                self._line_up(request, seats, now)
        for request in aside:
            queue.push_front(request, now)
        if aside:
            placement.place(seats)
        if placement.waiting and seats.open and len(seats.running) + len(seats.leaving) < seats.capacity:
            self._recall.look_later()

    def _fill_all(self, now: float) -> None:
        if not len(self._queue):
            return
        for seats in self._placement.seats():
            self._fill(seats, now)

    def _retry_or_fail(self, request: Request, error: WorkerCrashed | PoolClosed, now: float, *, started: bool) -> None:
        crashed = isinstance(error, WorkerCrashed)
        again = crashed and self._admission.closed is None and request.deadline > now
        if again and started:
            again = request.idempotent and not request.stream
        if crashed and request.binding is not None and request.binding.strict:
            self._finish(request, Outcome.FAILED, None, worker_lost(request, error), now)
        elif again and self._poison_limit is not None and request.deaths >= self._poison_limit:
            self._finish(request, Outcome.FAILED, None, poisonous(request, error), now)
        elif again:
            if request.phase is Phase.RUNNING:
                request.queue_deadline = math.inf
            self._queue_again(request, now)
        else:
            self._finish(request, Outcome.FAILED, None, copy_error(error), now)

    def _end_queue(self, error: SnakepitError, now: float) -> None:
        try:
            self._end_all_that_wait(error, now)
        except Exception as exc:
            self._recover(exc, now)

    def _end_all_that_wait(self, error: SnakepitError, now: float) -> None:
        for seats in tuple(self._all):
            for request in tuple(seats.ahead.values()):
                self._put_out(request, Outcome.FAILED, copy_error(error), now)
        for request in list(self._queue):
            self._put_out(request, Outcome.FAILED, copy_error(error), now)
