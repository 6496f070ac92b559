"""A place in the pool, and the supervisor that keeps a worker in it.

A slot has one worker, or for the time of a replacement two: the old one serves until the new one is ready, and is then
drained. A worker that ends unbidden is replaced at once, and after a pause when others have ended shortly before
(:mod:`.restarts`). When too many starts have failed, and no worker serves, the slot is *failed*: it says so, and says why.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.abc

from snakepit_trio._bell import Bell
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected
from snakepit_trio.observe.printable import one_line

from .exits import Exit
from .restarts import Restarts
from .states import WorkerState

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig

    from .worker import Worker

__all__ = ["Slot", "SlotHost"]

_log = logging.getLogger(__name__)


class SlotHost(Protocol):
    """Who a slot belongs to. None of these methods waits."""

    def make_worker(self, slot: int, incarnation: int) -> Worker:
        """A new incarnation, not yet started."""

    def take_spare(self, slot: int, incarnation: int) -> Worker | None:
        """A worker that is up already, and is to be this incarnation; None when there is none."""

    def slot_restarted(self, slot: Slot) -> None:
        """A worker was started in place of one that ended unbidden."""

    def slot_settled(self, slot: Slot) -> None:
        """The slot has got a ready worker, or its attempt has failed, or it has failed altogether."""


class _Change:
    """A new worker that is to take the place of an old one."""

    def __init__(self, old: Worker, new: Worker) -> None:
        self.old = old
        self.new = new
        self.done = False
        self.over = anyio.Event()


class Slot:
    """One place in the pool.

    Attributes:
        index: Its number, from 0.
        incarnation: How many workers it has had.
        current: The worker that serves, or is to serve next.
        failed: Too many starts have failed, and it has no worker that serves; :attr:`reason` says why.
        next_attempt: When it may start another worker after attempts that failed, on the event loop's clock; None when
            the last one did not fail.
        reason: Why its last worker ended or could not start, ``""`` when there is nothing to say.
        last_exit: How its last worker ended.
    """

    def __init__(
        self,
        index: int,
        *,
        settings: PoolConfig,
        host: SlotHost,
        surge: anyio.Semaphore,
        starting: anyio.Semaphore,
        rng: random.Random,
        errors: InternalErrors,
    ) -> None:
        self.index = index
        self.incarnation: int = 0
        self.current: Worker | None = None
        self.failed: bool = False
        self.reason: str = ""
        self.last_exit: Exit | None = None
        self.next_attempt: float | None = None
        self._given: Worker | None = None
        self._settings = settings
        self._host = host
        self._surge = surge
        self._starting = starting
        self._errors = errors
        self._restarts = Restarts(settings, rng)
        #: Internal errors in a row that have ended what keeps a worker here.
        self._internal = 0
        self._nursery: anyio.abc.TaskGroup | None = None
        self._retiring = False
        self._renewing = False
        self._alive: dict[Worker, None] = {}
        self._successor: Worker | None = None
        #: The replacement that was begun last.
        self._change: _Change | None = None
        self._changed = Bell()

    def __repr__(self) -> str:
        return f"<Slot {self.index} {'failed' if self.failed else 'up'} current={self.current!r}>"

    @property
    def workers(self) -> list[Worker]:
        """Its live workers, and its last one when there is none."""
        alive = [worker for worker in self._alive if not worker.ended.is_set()]
        return alive or ([self.current] if self.current is not None else [])

    @property
    def expecting(self) -> bool:
        """Whether it starts a worker, or soon will."""
        worker = self.current
        if self._retiring or self.failed:
            return False
        return (
            self._successor is not None
            or worker is None
            or worker.state.over
            # It ends on its own account.
            or worker.state is WorkerState.DRAINING
            or worker.tainted
            or not worker.ready.is_set()
        )

    @property
    def hopeless(self) -> bool:
        """Whether it has failed, or has no worker and the next one would not start either."""
        exit = None if self.next_attempt is None else self.last_exit
        return self.failed or (exit is not None and exit.hopeless and not self._serves())

    @property
    def lingers(self) -> bool:
        """Whether its worker takes no more calls, and no other comes before that one has ended by itself."""
        worker = self.current
        if worker is None or worker.state not in (WorkerState.READY, WorkerState.BUSY):
            return False
        return worker.tainted and worker.due is None and self._successor is None

    async def run(self) -> None:
        """Keep a worker in the slot until :meth:`retire` has done its work. A cancellation ends its workers."""
        self._clear()
        async with anyio.create_task_group() as nursery:
            self._nursery = nursery
            while not self._retiring:
                try:
                    await self._keep_one()
                except Exception as exc:
                    self._errors.report(exc, "operation", pool=self._settings.name)
                    self._failed(exc)
                    with anyio.CancelScope(deadline=self.next_attempt or 0.0):
                        await self._until(lambda: self._retiring or self._renewing)
                    await self._until(lambda: not self._alive)

    def _clear(self) -> None:
        """Give up what an exception that has ended an earlier run of this has left: nothing sees to it any more."""
        for worker in list(self._alive):
            worker.fail(RuntimeError("its slot has begun anew"))
            if not worker.ready.is_set():
                worker.bury()
        self._alive.clear()
        self._successor = None
        if self._change is not None:
            self._settle(self._change)

    async def _keep_one(self) -> None:
        """Keep one worker, from its start to the end of the pause after it."""
        renew, self._renewing = self._renewing, False
        self.current = self._begin(renew=renew)
        await self._until(self._vacant)
        pause = self._pause_after(self.current)
        if pause:
            with anyio.move_on_after(pause):
                await self._until(lambda: self._retiring or self._renewing)

    def fail(self, exc: BaseException) -> None:
        """End its workers by an exception that nobody expected, which has been reported."""
        for worker in list(self._alive):
            worker.fail(exc)

    def abandon(self, exc: BaseException) -> None:
        """End the slot, and its workers with it, by an exception that nobody expected, which has been reported."""
        self._retiring = True
        self._changed.ring()
        self.fail(exc)

    def _failed(self, exc: Exception) -> None:
        """What keeps a worker here has failed: the slot is empty until it is tried again, after a pause like that of a worker."""
        settings = self._settings
        self._internal += 1
        self.failed = settings.restart_limit is not None and self._internal > settings.restart_limit
        pause = min(settings.backoff_max, settings.backoff_base * 2.0 ** min(self._internal - 1, 60))
        self.next_attempt = anyio.current_time() + pause
        self.reason = f"an internal error of the host ({type(exc).__name__})"
        self.fail(exc)
        self._host.slot_settled(self)

    def _start(
        self,
        function: Callable[..., Awaitable[object]],
        *args: object,
        on_error: Callable[[Exception], object],
    ) -> None:
        """Start a task that has to do with one of its workers; an unexpected exception ends no more than that worker."""
        assert self._nursery is not None
        self._errors.start(self._nursery, function, *args, on_error=on_error, pool=self._settings.name)

    async def retire(self, grace: float) -> bool:
        """Drain and stop its worker, and end the slot. Returns whether nothing had to be killed."""
        self._retiring = True
        self._changed.ring()
        clean = True
        for worker in list(self._alive):
            clean = await worker.stop(grace) and clean
        return clean

    @protected
    async def replace(self, reason: str, old: Worker | None = None, *, renew: bool = False) -> bool:
        """Put a new worker in place of an old one, the current one by default: ready first, then the old one drains and stops.

        Returns whether that happened, by whomever it was asked for; False when the new one could not start (the old one goes
        on), or when there is nothing to replace any more. At most ``surge`` replacements run in the pool at a time; others
        wait their turn. With ``renew`` the new one is no spare, and may be of another version. A cancellation before its turn
        leaves all as it was; a later one leaves the replacement to be carried out.
        """
        old = self.current if old is None else old
        change = self._change_of(old)
        if change is not None and renew:
            change.new.renews = True
        if change is None or change.over.is_set():
            await self._surge.acquire()
            last = self._change
            try:
                change = self._change_of(old)
                if change is None or (change.over.is_set() and not change.done):
                    if old is None or old is not self.current or old.state.over:
                        return False
                    if self._retiring or self._successor is not None:
                        return False
                    change = self._begin_change(old, reason, renew=renew)
            finally:
                if self._change is last:
                    # No replacement has taken the turn.
                    self._surge.release()
        await change.over.wait()
        return change.done

    def replaces(self, worker_id: str) -> Worker | None:
        """The worker of this id, if another is about to take its place, or has done so while it drains."""
        change = self._change
        return None if change is None or change.over.is_set() or change.old.id != worker_id else change.old

    def _change_of(self, old: Worker | None) -> _Change | None:
        """The replacement of a worker that was begun last."""
        return self._change if self._change is not None and self._change.old is old else None

    def _begin_change(self, old: Worker, reason: str, *, renew: bool) -> _Change:
        """Begin to replace a worker. It has its turn, which comes back when the change is over."""
        new: Worker | None = None
        try:
            new = self._begin(renew=renew)
            change = _Change(old, new)
        except BaseException as exc:
            if new is not None:
                new.fail(exc)
            raise
        self._change = change
        self._successor = change.new
        try:
            # Not in the caller's task: when that is cancelled, somebody has yet to stop the old one.
            self._start(self._carry_out, change, reason, on_error=functools.partial(self._abandon, change))
        except Exception as exc:
            self._abandon(change, exc)
            raise
        return change

    def _abandon(self, change: _Change, exc: Exception) -> None:
        """A replacement that an unexpected exception has ended: one worker stays, the new one if it serves already."""
        if self.current is change.new:
            change.old.fail(exc)
        else:
            self._successor = None
            change.new.fail(exc)
        self._settle(change)

    def _settle(self, change: _Change) -> None:
        """It makes room for others. Idempotent."""
        if not change.over.is_set():
            self._surge.release()
            change.over.set()

    async def insist(self, old: Worker, reason: str) -> None:
        """:meth:`replace` this worker, and when the new one can't start, try again after the pause of a restart.

        Returns when it has been replaced, or has ended. A cancellation does what it does in :meth:`replace`.
        """

        def settled() -> bool:
            return self.current is not old or old.state.over or self._retiring

        while not settled() and not await self.replace(reason):
            await self._until(lambda: settled() or self._successor is None)
            pause = 0.0 if self.next_attempt is None else self.next_attempt - anyio.current_time()
            with anyio.move_on_after(pause):
                await self._until(settled)

    def renew(self) -> None:
        """Start the next worker at once, in a slot that has none; it may be of another version."""
        self._renewing = True
        self._changed.ring()

    def give(self) -> Worker | None:
        """Give its worker away, if that is ready: another slot has it from now on, and this one gets a new one."""
        worker = self.current
        # Given away already: it is still the current one until this slot's task has run.
        if worker is None or not self.holds(worker) or worker.due is not None or worker.tainted:
            return None
        if self._retiring or worker.state is not WorkerState.READY or self._successor is not None:
            return None
        self._changed.ring()
        self._given = worker
        self._alive.pop(worker, None)
        return worker

    def holds(self, worker: Worker) -> bool:
        """Whether this is the worker that serves here; one that was given away is the current one for a moment longer."""
        return worker is self.current and worker is not self._given

    # ---- inside ----------------------------------------------------------------------------------

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _vacant(self) -> bool:
        assert self.current is not None
        gone = self.current.ended.is_set() or self.current not in self._alive
        return gone and self._successor is None

    def _serves(self) -> bool:
        worker = self.current
        return worker is not None and worker.state in (WorkerState.READY, WorkerState.BUSY) and not worker.tainted

    def _begin(self, *, renew: bool = False) -> Worker:
        assert self._nursery is not None
        self.incarnation += 1
        spare = None if renew else self._host.take_spare(self.index, self.incarnation)
        if spare is not None:
            try:
                self._keep(spare, self._follow)
            except Exception as exc:
                spare.fail(exc)
                raise
            return spare
        worker = self._host.make_worker(self.index, self.incarnation)
        worker.renews = renew
        self._keep(worker, self._run_worker)
        return worker

    def _keep(self, worker: Worker, function: Callable[[Worker], Awaitable[None]]) -> None:
        """Have a task see to this worker. When that fails, the worker ends, whether or not it has begun."""
        self._alive[worker] = None
        lose = functools.partial(self._lose, worker, function)
        try:
            self._start(function, worker, on_error=lose)
        except Exception as exc:
            lose(exc)
            raise

    def _lose(self, worker: Worker, function: Callable[[Worker], Awaitable[None]], exc: Exception) -> None:
        worker.fail(exc)
        if function == self._run_worker:
            # One that is only followed runs elsewhere, and ends there.
            worker.bury()
        self._alive.pop(worker, None)
        if worker is self._successor:
            self._successor = None
        self._changed.ring()

    @protected
    async def _follow(self, worker: Worker) -> None:
        """Hold a worker that runs in the nursery of the place that it comes from."""
        try:
            self._up()
            self._adopt(worker)
            self._host.slot_settled(self)
            await worker.ended.wait()
        finally:
            self._alive.pop(worker, None)
            self._changed.ring()

    def _up(self) -> None:
        self._internal = 0
        self.failed = False
        self.reason = ""
        self.next_attempt = None

    @protected
    async def _run_worker(self, worker: Worker) -> None:
        try:
            async with anyio.create_task_group() as nursery:
                # Starting is bounded by the cores; a worker that is up makes room for the next.
                async with self._starting:
                    nursery.start_soon(worker.run)
                    await _first(worker.ready, worker.ended)
                if worker.ready.is_set():
                    self._up()
                self._adopt(worker)
                self._host.slot_settled(self)
        finally:
            self._alive.pop(worker, None)
            self._changed.ring()

    @protected
    async def _carry_out(self, change: _Change, reason: str) -> None:
        new = change.new
        try:
            await _first(new.ready, new.ended)
            self._adopt(new)
            if self.current is new:
                await change.old.stop(self._settings.stop_grace)
                change.done = True
                return
            self._write_down(new)
            _log.warning(
                "pool %s, slot %d: no replacement (%s): %s",
                new.pool,
                self.index,
                reason,
                one_line(self.reason),
                extra={"pool": new.pool, "slot": self.index},
            )
        finally:
            self._settle(change)

    def _adopt(self, worker: Worker) -> None:
        """Settle what a successor has come to: it serves now, or it is of no use. Idempotent."""
        if worker is self._successor:
            self._successor = None
            if worker.ready.is_set():
                self.current = worker
        self._changed.ring()

    def _pause_after(self, worker: Worker) -> float:
        """How long to wait before the next attempt, in seconds."""
        if self._retiring or worker is self._given or worker.exit is None or worker.exit.expected:
            return 0.0
        if worker.ready.is_set():
            self._host.slot_restarted(self)
        return self._write_down(worker)

    def _write_down(self, worker: Worker) -> float:
        """Write an unbidden end into the slot's books; how long to wait before the next attempt."""
        exit = self.last_exit = worker.exit
        assert exit is not None
        self.reason = exit.message
        now = anyio.current_time()
        pause = self._restarts.note(
            now,
            up_for=None if worker.ready_at is None else now - worker.ready_at,
            excused=worker.had_begun or worker.killed_on_demand,
            answered=worker.served > 0,
            hopeless=exit.hopeless,
        )
        if self._restarts.exhausted:
            self.failed = not self._serves()
            if self.failed:
                _log.error(
                    "pool %s, slot %d has failed: %s",
                    worker.pool,
                    self.index,
                    one_line(exit.message),
                    extra={"pool": worker.pool, "slot": self.index},
                )
        self.next_attempt = now + pause
        self._host.slot_settled(self)
        return pause


async def _first(*events: anyio.Event) -> None:
    """Wait until one of the events is set."""
    async with anyio.create_task_group() as nursery:

        @protected
        async def wait(event: anyio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
