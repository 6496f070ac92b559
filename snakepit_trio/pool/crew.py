"""The places of one pool's workers: kept filled, more or fewer of them, replaced, emptied."""

from __future__ import annotations

import itertools
import math
import random
import secrets
from collections.abc import Callable, Container
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.to_thread

from snakepit_trio._bell import Bell
from snakepit_trio._interrupts import protected
from snakepit_trio._timeouts import check_timeout
from snakepit_trio.errors import InvalidParameter, PoolClosed, WorkerStartupError
from snakepit_trio.workers.slot import Slot
from snakepit_trio.workers.states import WorkerState
from snakepit_trio.workers.worker import Worker

from .hiring import Hiring
from .ledger import Ledger
from .roster import Roster, no_such_worker
from .scaling import Load
from .seats import Seats
from .stats import WorkerInfo

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig

    from .parts import PoolParts

__all__ = ["Crew"]

#: As many as a configuration may ask for.
_MOST_WORKERS = 10_000


class _NotReadyInTime(WorkerStartupError, TimeoutError):
    """A wait for workers took longer than it may."""


class Crew:
    """The slots of one pool, and what is asked of all its workers. Nothing here waits but what is asked to.

    Attributes:
        slots: The places that are kept filled.
        size: How many there are meant to be.
        roster: The workers that are there.
        restarts: Workers started in place of one that ended unbidden.
    """

    def __init__(self, config: PoolConfig, parts: PoolParts, ledger: Ledger) -> None:
        self.config = config
        self.name: str = config.name
        self.slots: list[Slot] = []
        self.size = config.size
        self.roster = Roster(config, parts, ledger, on_due=self._replace_soon)
        self.restarts = 0
        self._parts = parts
        self._events = parts.events
        self._ledger = ledger
        self._retiring: list[Slot] = []
        #: Places of workers that are kept warm and take no calls before they are moved to a slot.
        self._spares: list[Slot] = []
        self._hiring = Hiring(config, parts)
        self._rng = random.Random(secrets.randbits(64))
        self._surge = anyio.Semaphore(max(1, config.surge))
        self._nursery: anyio.abc.TaskGroup | None = None
        # By worker: the next one of a slot may be due while the last one still drains.
        self._replacing: set[Worker] = set()
        self._failed: set[Slot] = set()
        self._settled = Bell()
        self._opening = True

    def __repr__(self) -> str:
        return f"<Crew of {self.name!r}: {self.roster.ready} of {self.size} ready>"

    @property
    def expecting(self) -> bool:
        """Whether a worker is to come that will take calls."""
        return any(slot.expecting for slot in self.slots)

    def infos(self) -> tuple[WorkerInfo, ...]:
        """A record of each worker, by slot."""
        # While no worker can serve, every slot has failed, though it makes another attempt before it gives up for long.
        broken = self._ledger.broken
        return tuple(
            _info(slot, worker, self.roster.seats.get(worker), failed=broken or slot.failed)
            for slot in [*self.slots, *self._retiring, *self._spares]
            for worker in slot.workers
        )

    async def open(self, nursery: anyio.abc.TaskGroup) -> None:
        """Start the slots, and wait until each has made its first attempt.

        Raises:
            WorkerStartupError: None of them has got a worker.
        """
        self._nursery = self.roster.nursery = nursery
        await self._hiring.open()
        self._add_slots(self.size)
        for _ in range(self.config.spares):
            self._add_slot(self._spares, -1)
        while any(not self._tried(slot) for slot in self.slots):
            await self._settled.wait()
        self._opening = False
        if not self.roster.ready:
            error = self._startup_error()
            self._fail(error)
            raise error
        self._events.emit("pool.opened", {"size": self.size, "ready": self.roster.ready}, pool=self.name)

    async def stop(self) -> None:
        """Stop every worker, each step bounded."""
        async with anyio.create_task_group() as nursery:
            for slot in [*self.slots, *self._retiring, *self._spares]:
                nursery.start_soon(self._retire, slot)

    def kill(self) -> None:
        """End every worker at once."""
        for slot in [*self.slots, *self._retiring, *self._spares]:
            for worker in slot.workers:
                worker.kill()

    async def wait_ready(self, n: int | None = None, timeout: float | None = None) -> None:
        """Wait until ``n`` workers are ready, all of them when None.

        Raises:
            WorkerStartupError: None can be: every slot has failed. Also when the time was spent; then it is a TimeoutError, too.
            InvalidParameter: An argument is refused.
            PoolClosed: The pool is closing or closed.
        """
        if n is not None and (type(n) is not int or n < 0):
            raise InvalidParameter(f"n must be a number of workers or None, not {n!r}", details={"path": "n"})
        timeout = check_timeout(timeout)
        with anyio.move_on_after(math.inf if timeout is None else timeout):
            await self._until_ready(lambda: self.size if n is None else n)
            return
        raise _NotReadyInTime(
            f"pool {self.name!r}: {self.roster.ready} of {self.size if n is None else n} workers were ready within {timeout:g} s",
            details={"pool": self.name, "reason": "timeout"},
        )

    async def _until_ready(self, needed: Callable[[], int]) -> None:
        """Wait until so many workers are ready; how many is asked anew each time, for sizes change meanwhile."""
        while True:
            if self._ledger.closed is not None:
                raise PoolClosed(self._ledger.closed.message, details={"pool": self.name})
            if self.roster.ready >= needed():
                return
            if self.slots and all(slot.failed for slot in self.slots):
                raise self._startup_error()
            await self._settled.wait()

    async def resize(self, size: int) -> None:
        """Change how many workers the pool has. Returns when the new ones are ready and the surplus ones have gone.

        Surplus workers finish the calls that they hold, within ``stop_grace``. A cancellation ends the wait; the new size stays.

        Raises:
            InvalidParameter: The size is not a positive int.
            WorkerStartupError: A new worker could not start.
        """
        if type(size) is not int or not 1 <= size <= _MOST_WORKERS:
            raise InvalidParameter(
                f"size must be an int from 1 to {_MOST_WORKERS}, not {size!r}", details={"path": "size"}
            )
        self.check_open()
        surplus = self._surplus(size, self.slots)
        grows = self._set_size(size, surplus, "resize")
        while any(slot in self._retiring for slot in surplus):
            await self._settled.wait()
        if grows:
            # Another resize or the autoscaler may want fewer by now: those that are not meant to be are not waited for.
            await self._until_ready(lambda: min(size, self.size) - self.roster.cordoned)

    def scale(self, size: int, keep: Container[Seats]) -> None:
        """Move towards a size without waiting: new workers start; idle ones stop, but for those that are to be kept.

        The new size is what could be done of it.
        """
        surplus = self._surplus(size, [slot for slot in self.slots if self._is_idle(slot, keep)])
        size = max(size, len(self.slots) - len(surplus))
        if size == self.size:
            return
        self._set_size(size, surplus, "load")

    def _surplus(self, size: int, candidates: list[Slot]) -> list[Slot]:
        """Those of the candidates that go when so many slots are to stay: failed, then idle, then busy; the last first."""
        first_to_stay = sorted(candidates, key=lambda slot: (slot.failed, self._is_idle(slot, ())))
        return first_to_stay[::-1][: max(0, len(self.slots) - size)]

    def _is_idle(self, slot: Slot, keep: Container[Seats]) -> bool:
        seats = None if slot.current is None else self.roster.seats.get(slot.current)
        return slot.failed or (seats is not None and not seats.load and seats not in keep)

    @protected
    def _set_size(self, size: int, surplus: list[Slot], reason: str) -> bool:
        """Write a new size down, send the surplus away, and fill what is missing. Returns whether anything was."""
        assert self._nursery is not None
        self._events.emit("pool.resized", {"before": self.size, "size": size}, pool=self.name, reason=reason)
        self.slots[:] = [slot for slot in self.slots if slot not in surplus]
        self._retiring += surplus
        self.size = size
        for slot in surplus:
            if slot.current in self.roster.seats:
                # At once: a call that came before the slot's task has run would find a worker that is to stop.
                self._ledger.cordon(self.roster.seats[slot.current])
            self._nursery.start_soon(self._retire, slot)
        self._settled.ring()
        grows = self._add_slots(size - len(self.slots))
        if not self.slots:
            # Whoever could not start is gone; the next request gets a worker that has yet to try.
            self._ledger.hope()
        return grows

    def load(self) -> Load:
        """The pool at this moment, for whoever decides how many workers it should have."""
        now = anyio.current_time()
        return Load(
            size=self.size,
            starting=sum(not slot.failed and not self._serves(slot) for slot in self.slots),
            in_flight=self._ledger.in_flight,
            queued=self._ledger.queued,
            oldest_wait=self._ledger.oldest_wait(now),
            service_time=self._ledger.service_time,
        )

    def _serves(self, slot: Slot) -> bool:
        return slot.current is not None and slot.current in self.roster.seats

    async def rolling_restart(self) -> None:
        """Replace every worker by a new one, ``surge`` at a time, each ready before the old one drains.

        A cancellation leaves the worker whose turn it is to be replaced, and those after it as they are.

        Raises:
            WorkerStartupError: A replacement could not start; the workers that were not replaced yet go on.
            PoolClosed: The pool is closing or closed.
        """
        self.check_open()
        for slot, old in [(slot, slot.current) for slot in self.slots]:
            if old is None or slot.current is not old or slot not in self.slots:
                continue
            self._recycles(old, "rolling_restart")
            replaced = await slot.replace("rolling restart")
            self.check_open()
            # One that has ended meanwhile, or that somebody else replaces, is as good as replaced.
            if not replaced and slot in self.slots and slot.current is old and not slot.expecting:
                raise self._startup_error()

    async def recycle(self, worker_id: str) -> bool:
        """Replace one worker: a new one is ready first, then this one drains and stops.

        Returns whether that happened; False when the new one could not start, and this one goes on.

        Raises:
            InvalidParameter: The pool has no such worker.
        """
        for slot in self.slots:
            if slot.current is not None and slot.current.id == worker_id:
                self._recycles(slot.current, "on_demand")
                return await slot.replace("on demand")
        raise no_such_worker(worker_id)

    def kill_worker(self, worker_id: str) -> None:
        """End one worker at once; its slot gets another.

        Raises:
            InvalidParameter: The pool has no such worker that is alive.
        """
        for slot in [*self.slots, *self._retiring, *self._spares]:
            for worker in slot.workers:
                if worker.id == worker_id and not worker.ended.is_set():
                    worker.kill()
                    return
        raise no_such_worker(worker_id)

    # ---- slots -----------------------------------------------------------------------------------

    def check_open(self) -> None:
        if self._ledger.closed is not None:
            raise PoolClosed(self._ledger.closed.message, details={"pool": self.name})

    def _add_slots(self, count: int) -> bool:
        """Add so many, with the lowest numbers that are free. Returns whether that was any."""
        used = {slot.index for slot in [*self.slots, *self._retiring]}
        free = (index for index in itertools.count() if index not in used)
        for index in itertools.islice(free, max(0, count)):
            self._add_slot(self.slots, index)
        return count > 0

    def _add_slot(self, places: list[Slot], index: int) -> None:
        slot = Slot(
            index,
            settings=self.config,
            host=self,
            surge=self._surge,
            starting=self._parts.starting,
            rng=self._rng,
        )
        places.append(slot)
        assert self._nursery is not None
        self._nursery.start_soon(slot.run)

    @protected
    async def _retire(self, slot: Slot) -> None:
        try:
            await slot.retire(0.0 if self._ledger.closed is not None else self.config.stop_grace)
        finally:
            if slot in self._retiring:
                self._retiring.remove(slot)
            self._settled.ring()

    def _tried(self, slot: Slot) -> bool:
        worker = slot.current
        return worker is not None and (worker.ready.is_set() or worker.ended.is_set())

    def _startup_error(self) -> WorkerStartupError:
        for slot in self.slots:
            exit = slot.current.exit if slot.current is not None and slot.current.exit is not None else slot.last_exit
            if exit is not None and not exit.expected:
                return WorkerStartupError(
                    f"pool {self.name!r}: no worker could start: {exit.message}",
                    details={**exit.details(), "pool": self.name, "reason": exit.message, "exit": exit.reason},
                )
        return WorkerStartupError(
            f"pool {self.name!r}: no worker is ready", details={"pool": self.name, "reason": "not ready"}
        )

    # ---- what slots tell: the interface SlotHost -----------------------------------------------------

    def make_worker(self, slot: int, incarnation: int) -> Worker:
        worker = self._hiring.make(slot, incarnation, self.roster)
        self._events.emit("worker.starting", None, **self.roster.who(worker))
        return worker

    def take_spare(self, slot: int, incarnation: int) -> Worker | None:
        if slot < 0:
            return None
        for place in self._spares:
            worker = place.give()
            if worker is not None:
                worker.slot, worker.incarnation = slot, incarnation
                self.roster.admit(worker)
                return worker
        return None

    def slot_restarted(self, slot: Slot) -> None:
        self.restarts += 1
        self._events.emit("slot.restarted", None, pool=self.name, slot=slot.index, reason=slot.reason)

    def slot_settled(self, slot: Slot) -> None:
        self._settled.ring()
        self._parts.waits.check()
        if slot.failed != (slot in self._failed):
            self._note_failure(slot)
        if slot.failed and not self._opening and all(other.failed for other in self.slots):
            self._fail(self._startup_error())

    def _note_failure(self, slot: Slot) -> None:
        if slot.failed:
            self._failed.add(slot)
            wait = (slot.next_attempt or 0.0) - anyio.current_time()
            self._events.emit(
                "slot.failed", {"next_attempt": wait}, pool=self.name, slot=slot.index, reason=slot.reason
            )
        else:
            self._failed.discard(slot)
            self._events.emit("slot.recovered", None, pool=self.name, slot=slot.index)

    def _fail(self, error: WorkerStartupError) -> None:
        """No worker can serve."""
        self._ledger.fail_all(error, anyio.current_time())
        self._events.emit("pool.failed", None, pool=self.name, reason=error.message)

    def _replace_soon(self, worker: Worker, reason: str) -> None:
        for slot in [*self.slots, *self._spares]:
            if slot.current is worker and worker not in self._replacing and self._nursery is not None:
                self._replacing.add(worker)
                self._recycles(worker, reason)
                self._nursery.start_soon(self._replace, slot, worker, reason)

    def _recycles(self, worker: Worker, reason: str) -> None:
        self._events.emit("worker.recycled", None, reason=reason, **self.roster.who(worker))

    @protected
    async def _replace(self, slot: Slot, worker: Worker, reason: str) -> None:
        try:
            await slot.insist(worker, reason)
        finally:
            self._replacing.discard(worker)


def _info(slot: Slot, worker: Worker, seats: Seats | None, *, failed: bool) -> WorkerInfo:
    failed = failed and worker is slot.current
    spare = worker.slot < 0 and worker.state is WorkerState.READY
    return WorkerInfo(
        id=worker.id,
        slot=worker.slot,
        incarnation=worker.incarnation,
        pool=worker.pool,
        pid=worker.pid,
        address=worker.address,
        state="failed" if failed else "spare" if spare else worker.state.value,
        started_at=worker.started_at,
        requests=worker.served,
        # What stands in its line is still queued; a worker that is over holds nothing.
        in_flight=0 if worker.state.over else worker.in_flight if seats is None else seats.load,
        rss=worker.rss,
        last_heartbeat=worker.last_heartbeat,
        tainted=worker.tainted,
        device=worker.spec.device,
        next_attempt=slot.next_attempt if worker.ended.is_set() and worker is slot.current else None,
        reason=slot.reason if failed else (worker.exit.message if worker.exit is not None else ""),
    )
