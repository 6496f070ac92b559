"""A place in the pool, and the supervisor that keeps a worker in it.

A slot has one worker, or two during a replacement: the old one serves until the new one is ready, and then drains.
After an unexpected exit the worker is restarted at once, or after a pause if others have ended shortly before
(:mod:`.restarts`). When too many starts have failed, and no worker serves, the slot is *failed*, with the reason.
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
    """The owner of a slot. None of these methods waits."""

    def make_worker(self, slot: int, incarnation: int) -> Worker:
        """Create a new incarnation, not yet started."""

    def take_spare(self, slot: int, incarnation: int) -> Worker | None:
        """Return a ready spare that becomes this incarnation, or None."""

    def slot_restarted(self, slot: Slot) -> None:
        """A worker was restarted after an unexpected exit."""

    def slot_settled(self, slot: Slot) -> None:
        """The slot has a ready worker, or its attempt has failed, or it has failed altogether."""


class _Change:
    """The replacement of an old worker by a new one."""

    def __init__(self, old: Worker, new: Worker) -> None:
        self.old = old
        self.new = new
        self.done = False
        self.over = anyio.Event()


class Slot:
    """One place in the pool.

    Attributes:
        index: Its number, from 0.
        incarnation: The number of workers that it has had.
        current: The worker that serves, or will serve next.
        failed: Whether too many starts have failed, and no worker serves; :attr:`reason` gives the reason.
        next_attempt: When it may start another worker after failed attempts, on the event loop's clock; None if the
            last attempt did not fail.
        reason: The reason of its last worker's end or failed start; ``""`` if there is none to give.
        last_exit: The end of its last worker.
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
        #: The number of consecutive internal errors that have ended the supervisor.
        self._internal = 0
        self._nursery: anyio.abc.TaskGroup | None = None
        self._retiring = False
        self._renewing = False
        self._alive: dict[Worker, None] = {}
        self._successor: Worker | None = None
        #: The last replacement that was begun.
        self._change: _Change | None = None
        self._changed = Bell()

    def __repr__(self) -> str:
        return f"<Slot {self.index} {'failed' if self.failed else 'up'} current={self.current!r}>"

    @property
    def workers(self) -> list[Worker]:
        """Return its live workers, or its last one if there is none."""
        alive = [worker for worker in self._alive if not worker.ended.is_set()]
        return alive or ([self.current] if self.current is not None else [])

    @property
    def expecting(self) -> bool:
        """Whether it is starting a worker, or soon will."""
        worker = self.current
        if self._retiring or self.failed:
            return False
        return (
            self._successor is not None
            or worker is None
            or worker.state.over
            # It ends on its own.
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
        """Whether its worker accepts no more calls, and the next one starts only after that worker has ended by itself."""
        worker = self.current
        if worker is None or worker.state not in (WorkerState.READY, WorkerState.BUSY):
            return False
        return worker.tainted and worker.due is None and self._successor is None

    async def run(self) -> None:
        """Keep a worker in the slot until :meth:`retire` is done. A cancellation ends its workers."""
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
        """Give up the state of an earlier run of this that an exception has ended."""
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
        """End its workers because of an unexpected exception, which has been reported."""
        for worker in list(self._alive):
            worker.fail(exc)

    def abandon(self, exc: BaseException) -> None:
        """End the slot and its workers because of an unexpected exception, which has been reported."""
        self._retiring = True
        self._changed.ring()
        self.fail(exc)

    def _failed(self, exc: Exception) -> None:
        """Handle a failure of the supervisor: the slot is empty until the next attempt, after a pause as for a worker."""
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
        """Replace a worker, by default the current one: the new one becomes ready first, then the old one drains and
        stops.

        Returns whether the worker was replaced, by this or another request; False if the new one could not start (the
        old one continues), or if there is nothing to replace any more. At most ``surge`` replacements run in the pool
        at a time, and others wait. With ``renew`` the new worker is not a spare, and may have another version. A
        cancellation before its turn changes nothing; after that, the replacement is completed.
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
                    # No replacement uses the turn.
                    self._surge.release()
        await change.over.wait()
        return change.done

    def replaces(self, worker_id: str) -> Worker | None:
        """Return the worker of this id if another is replacing it, or has replaced it while it drains."""
        change = self._change
        return None if change is None or change.over.is_set() or change.old.id != worker_id else change.old

    def _change_of(self, old: Worker | None) -> _Change | None:
        """Return the last replacement of a worker."""
        return self._change if self._change is not None and self._change.old is old else None

    def _begin_change(self, old: Worker, reason: str, *, renew: bool) -> _Change:
        """Begin to replace a worker. The replacement holds its turn until it has ended."""
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
            # Not in the caller's task, because the old worker must be stopped even if that task is cancelled.
            self._start(self._carry_out, change, reason, on_error=functools.partial(self._abandon, change))
        except Exception as exc:
            self._abandon(change, exc)
            raise
        return change

    def _abandon(self, change: _Change, exc: Exception) -> None:
        """End a replacement after an unexpected exception: one worker stays, the new one if it already serves."""
        if self.current is change.new:
            change.old.fail(exc)
        else:
            self._successor = None
            change.new.fail(exc)
        self._settle(change)

    def _settle(self, change: _Change) -> None:
        """Release the turn of a replacement. Idempotent."""
        if not change.over.is_set():
            self._surge.release()
            change.over.set()

    async def insist(self, old: Worker, reason: str) -> None:
        """Replace this worker as :meth:`replace` does, and if the new one can't start, try again after the pause of a
        restart.

        Returns when it has been replaced, or has ended. A cancellation has the same effect as in :meth:`replace`.
        """

        def settled() -> bool:
            return self.current is not old or old.state.over or self._retiring

        while not settled() and not await self.replace(reason):
            await self._until(lambda: settled() or self._successor is None)
            pause = 0.0 if self.next_attempt is None else self.next_attempt - anyio.current_time()
            with anyio.move_on_after(pause):
                await self._until(settled)

    def renew(self) -> None:
        """Start the next worker at once, in a slot without a worker; it may have another version."""
        self._renewing = True
        self._changed.ring()

    def give(self) -> Worker | None:
        """Give its worker, if ready, to another slot; this slot starts a new one."""
        worker = self.current
        # Already given away: it stays the current one until this slot's task has run.
        if worker is None or not self.holds(worker) or worker.due is not None or worker.tainted:
            return None
        if self._retiring or worker.state is not WorkerState.READY or self._successor is not None:
            return None
        self._changed.ring()
        self._given = worker
        self._alive.pop(worker, None)
        return worker

    def holds(self, worker: Worker) -> bool:
        """Return whether this worker serves here; a worker that was given away remains the current one for a moment."""
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
        """Start a task that manages this worker. If the task fails, the worker ends, whether or not it has begun."""
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
            # A followed worker runs elsewhere, and ends there.
            worker.bury()
        self._alive.pop(worker, None)
        if worker is self._successor:
            self._successor = None
        self._changed.ring()

    @protected
    async def _follow(self, worker: Worker) -> None:
        """Hold a worker that runs in the nursery of its original slot."""
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
                # The number of simultaneous starts is limited to the cores; a ready worker makes room for the next.
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
        """Settle the result of a replacement's start: the new worker serves now, or has failed. Idempotent."""
        if worker is self._successor:
            self._successor = None
            if worker.ready.is_set():
                self.current = worker
        self._changed.ring()

    def _pause_after(self, worker: Worker) -> float:
        """Return the seconds until the next attempt."""
        if self._retiring or worker is self._given or worker.exit is None or worker.exit.expected:
            return 0.0
        if worker.ready.is_set():
            self._host.slot_restarted(self)
        return self._write_down(worker)

    def _write_down(self, worker: Worker) -> float:
        """Record an unexpected exit, and return the seconds until the next attempt."""
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
