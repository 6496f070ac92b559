"""The slots of one pool: filled with spares or new workers, and emptied.

:mod:`.supervisor` decides their number. This module handles the reports of the slots.
"""

from __future__ import annotations

import functools
import itertools
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from snakepit_trio._bell import Bell
from snakepit_trio._interrupts import protected
from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.supervision.slot import Slot
from snakepit_trio.supervision.states import WorkerState

from ..scheduling.failures import no_worker
from ..scheduling.request import Seats
from ..stats import WorkerInfo
from .dispatch import WorkerDispatch
from .factory import WorkerFactory

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.supervision.worker import Worker

    from ..scheduling.scheduler import Scheduler
    from ..services import PoolServices

__all__ = ["Slots", "tried"]


class Slots:
    """The slots of one pool. Iteration yields all: the kept ones, the retiring ones, the spares.

    Attributes:
        kept: The slots that are kept filled.
        retiring: The slots that end when their workers have ended.
        spares: The slots of workers that are kept warm and accept no calls until they are moved.
        roster: The live workers.
        restarts: The number of workers restarted after an unexpected exit.
        settled: Rung when a slot has a ready worker, could not get one, has failed or has ended, and when a cordoned
            worker accepts calls again.
    """

    def __init__(self, config: PoolConfig, services: PoolServices, scheduler: Scheduler) -> None:
        self.kept: list[Slot] = []
        self.retiring: list[Slot] = []
        self.spares: list[Slot] = []
        self.settled: Bell = Bell()
        self.dispatch: WorkerDispatch = WorkerDispatch(
            config, services, scheduler, on_due=self._replace_soon, on_more=self.settled.ring
        )
        self.restarts: int = 0
        self._config = config
        self._name: str = config.name
        self._services = services
        self._events = services.events
        self._scheduler = scheduler
        self._factory = WorkerFactory(config, services)
        self._rng = random.Random(secrets.randbits(64))
        self._surge = anyio.Semaphore(max(1, config.surge))
        self._nursery: anyio.abc.TaskGroup | None = None
        # By worker, because the next worker of a slot may be due while the last one still drains.
        self._replacing: set[Worker] = set()
        self._failed: set[Slot] = set()
        self._opening = True

    def __repr__(self) -> str:
        return f"<Slots of {self._name!r}: {len(self.kept)}, {len(self.retiring)} that go, {len(self.spares)} spare>"

    def __iter__(self) -> Iterator[Slot]:
        return iter([*self.kept, *self.retiring, *self.spares])

    @property
    def filled(self) -> list[Slot]:
        """The slots that are kept filled, spares included."""
        return [*self.kept, *self.spares]

    async def open(self, nursery: anyio.abc.TaskGroup, size: int) -> None:
        """Start this number of slots and the spares, and wait until each slot has made its first attempt.

        Raises:
            WorkerStartupError: No slot has a worker.
        """
        self._nursery = self.dispatch.nursery = nursery
        await self._factory.open()
        self.add(size)
        for _ in range(self._config.spares):
            self._add_slot(self.spares, -1)
        while any(not tried(slot) for slot in self.kept):
            await self.settled.wait()
        self._opening = False
        if not self.dispatch.ready:
            self._fail()
            raise self._why()

    async def stop(self) -> None:
        """Stop every worker, each step bounded."""
        async with anyio.create_task_group() as nursery:
            for slot in self:
                nursery.start_soon(self._retire, slot)

    def add(self, count: int) -> bool:
        """Add this number of slots, with the lowest free numbers. Returns whether any was added."""
        used = {slot.index for slot in [*self.kept, *self.retiring]}
        free = (index for index in itertools.count() if index not in used)
        for index in itertools.islice(free, max(0, count)):
            self._add_slot(self.kept, index)
        return count > 0

    def dismiss(self, surplus: list[Slot]) -> None:
        """Retire slots: their workers accept no more calls, and stop after their running calls."""
        self.kept[:] = [slot for slot in self.kept if slot not in surplus]
        self.retiring += surplus
        for slot in surplus:
            give_up = functools.partial(self._give_up, slot)
            with self._services.errors.bulkhead("operation", give_up, pool=self._name):
                if slot.current in self.dispatch.seats:
                    # At once, because a call before the slot's task has run would find a worker that must stop.
                    self._scheduler.incarnations.cordon(self.dispatch.seats[slot.current], anyio.current_time())
                self._start(self._retire, slot, on_error=give_up)
        self.settled.ring()

    def infos(self) -> tuple[WorkerInfo, ...]:
        """Return a record of each worker, by slot."""
        # While no worker can serve, every slot has failed, even if it makes another attempt soon.
        broken = self._scheduler.ledger.broken is not None
        return tuple(
            _info(
                slot,
                worker,
                self.dispatch.seats.get(worker),
                failed=broken or slot.failed,
                closed=self._closed(slot, worker),
            )
            for slot in self
            for worker in slot.workers
        )

    def _closed(self, slot: Slot, worker: Worker) -> str:
        """Return the state of a live worker that accepts no calls; "" for any other."""
        if not self.dispatch.is_cordoned(worker):
            return ""
        return "draining" if slot in self.retiring or worker in self.dispatch.draining else "cordoned"

    def startup_error(self) -> WorkerStartupError:
        """Return the error that no worker is ready, with the time of the next start."""
        return no_worker(self._why(), self._next_attempt(), anyio.current_time())

    def tell_recycled(self, worker: Worker, reason: str) -> None:
        """Report that a worker is about to be replaced."""
        self._events.emit("worker.recycled", None, reason=reason, **self.dispatch.who(worker))

    # ---- what slots tell: the interface SlotHost -----------------------------------------------------

    def make_worker(self, slot: int, incarnation: int) -> Worker:
        worker = self._factory.make(slot, incarnation, self.dispatch)
        self._events.emit("worker.starting", None, **self.dispatch.who(worker))
        return worker

    def take_spare(self, slot: int, incarnation: int) -> Worker | None:
        if slot < 0:
            return None
        for place in self.spares:
            if place.current is None or not self.dispatch.repertoire.is_up_to_date(place.current):
                continue
            worker = place.give()
            if worker is not None:
                worker.slot, worker.incarnation = slot, incarnation
                try:
                    self.dispatch.admit(worker)
                except Exception as exc:
                    # Its old slot has given it away, and the new one does not have it yet.
                    worker.fail(exc)
                    raise
                return worker
        return None

    def slot_restarted(self, slot: Slot) -> None:
        self.restarts += 1
        self._events.emit("slot.restarted", None, pool=self._name, slot=slot.index, reason=slot.reason)

    def slot_settled(self, slot: Slot) -> None:
        worker = slot.current
        if worker is not None and worker.due is not None and not worker.state.over:
            # It became due while it moved here.
            self._replace_soon(worker, worker.due)
        self.settled.ring()
        self._services.waits.check()
        if slot.failed != (slot in self._failed):
            self._note_failure(slot)
        if slot in self.kept and not self._opening and all(other.failed for other in self.kept):
            self._fail()

    def _note_failure(self, slot: Slot) -> None:
        if slot.failed:
            self._failed.add(slot)
            wait = (slot.next_attempt or 0.0) - anyio.current_time()
            self._events.emit(
                "slot.failed", {"next_attempt": wait}, pool=self._name, slot=slot.index, reason=slot.reason
            )
        else:
            self._failed.discard(slot)
            self._events.emit("slot.recovered", None, pool=self._name, slot=slot.index)

    def _fail(self) -> None:
        """Handle that no worker can serve."""
        why = self._why()
        self._scheduler.incarnations.fail_all(why, self._next_attempt(), anyio.current_time())
        self._events.emit("pool.failed", None, pool=self._name, reason=why.message)

    # ---- inside ----------------------------------------------------------------------------------

    def _why(self) -> WorkerStartupError:
        """Return the error that no worker is ready."""
        details: dict[str, object] = {"pool": self._name, "reason": "not ready"}
        message = f"pool {self._name!r}: no worker is ready"
        hopeless = False
        for slot in self.kept:
            exit = slot.current.exit if slot.current is not None and slot.current.exit is not None else slot.last_exit
            if exit is not None and not exit.expected:
                message = f"pool {self._name!r}: no worker could start: {exit.message}"
                details = {**exit.details(), "pool": self._name, "reason": exit.message, "exit": exit.reason}
                hopeless = exit.hopeless
                break
        exhausted = bool(self.kept) and all(slot.failed for slot in self.kept)
        details["option"] = "adapter" if hopeless else "restart_limit" if exhausted else "backoff_base"
        if exhausted and not hopeless:
            message += f"; restart_limit={self._config.restart_limit} is used up"
        return WorkerStartupError(message, details=details)

    def _next_attempt(self) -> float:
        """Return the time of the next start, or of the last one, on the event loop's clock."""
        return min((slot.next_attempt for slot in self.kept if slot.next_attempt is not None), default=0.0)

    def _add_slot(self, places: list[Slot], index: int) -> None:
        slot = Slot(
            index,
            settings=self._config,
            host=self,
            surge=self._surge,
            starting=self._services.starting,
            rng=self._rng,
            errors=self._services.errors,
        )
        assert self._nursery is not None
        # It ends when the slot is retired; without it the slot would stay empty.
        self._services.errors.keep(self._nursery, slot.run, pool=self._name)
        places.append(slot)

    def _start(
        self,
        function: Callable[..., Awaitable[object]],
        *args: object,
        on_error: Callable[[Exception], object] | None = None,
    ) -> None:
        """Start a task of the pool; an unexpected exception ends its subject, and not the pool."""
        assert self._nursery is not None
        self._services.errors.start(self._nursery, function, *args, on_error=on_error, pool=self._name)

    @protected
    async def _retire(self, slot: Slot) -> None:
        try:
            await slot.retire(0.0 if self._scheduler.ledger.closed is not None else self._config.stop_grace)
        finally:
            self._gone(slot)

    def _gone(self, slot: Slot) -> None:
        if slot in self.retiring:
            self.retiring.remove(slot)
        self.settled.ring()

    def _give_up(self, slot: Slot, exc: BaseException) -> None:
        """End a slot that can't be retired in order."""
        slot.abandon(exc)
        self._gone(slot)

    def _replace_soon(self, worker: Worker, reason: str) -> None:
        for slot in [*self.kept, *self.spares]:
            if slot.holds(worker) and worker not in self._replacing and self._nursery is not None:
                self._replacing.add(worker)
                self.tell_recycled(worker, reason)
                self._start(self._replace, slot, worker, reason)

    @protected
    async def _replace(self, slot: Slot, worker: Worker, reason: str) -> None:
        try:
            await slot.insist(worker, reason)
        finally:
            self._replacing.discard(worker)


def tried(slot: Slot) -> bool:
    """Return whether the last attempt of a slot to start a worker has ended."""
    worker = slot.current
    if slot.failed:
        return True
    return worker is not None and (worker.ready.is_set() or worker.ended.is_set())


def _info(slot: Slot, worker: Worker, seats: Seats | None, *, failed: bool, closed: str) -> WorkerInfo:
    failed = failed and worker is slot.current
    spare = worker.slot < 0 and worker.state is WorkerState.READY
    return WorkerInfo(
        id=worker.id,
        slot=worker.slot,
        incarnation=worker.incarnation,
        pool=worker.pool,
        pid=worker.pid,
        address=worker.address,
        state="failed" if failed else "spare" if spare else closed or worker.state.value,
        started_at=worker.started_at,
        requests=worker.served,
        # Prefetched calls are still queued; an ended worker holds nothing.
        in_flight=0 if worker.state.over else worker.in_flight if seats is None else seats.load,
        rss=worker.rss,
        last_heartbeat=worker.last_heartbeat,
        tainted=worker.tainted,
        device=worker.spec.device,
        next_attempt=slot.next_attempt if worker.ended.is_set() and worker is slot.current else None,
        reason=slot.reason if failed else (worker.exit.message if worker.exit is not None else ""),
    )
