"""The operations on all workers of one pool: their number, readiness, replacement and end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from snakepit_trio._interrupts import protected
from snakepit_trio._timeouts import check_timeout
from snakepit_trio.errors import InvalidParameter, PoolClosed, SnakepitError, WorkerStartupError
from snakepit_trio.supervision.slot import Slot

from ..scheduling.request import Seats
from ..scheduling.scheduler import Scheduler
from ..stats import WorkerInfo
from .dispatch import no_such_worker
from .scaling import Autoscaler, Load
from .slots import Slots, tried

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.supervision.worker import Worker

    from ..services import PoolServices
    from .dispatch import WorkerDispatch

__all__ = ["ScaledFleet", "Supervisor"]

#: The largest number of workers, as in the configuration.
_MOST_WORKERS = 10_000


class _NotReadyInTime(WorkerStartupError, TimeoutError):
    """A wait for workers exceeded its timeout."""


class Supervisor:
    """The workers of one pool. Only the methods that are documented to wait do.

    Attributes:
        size: The wanted number of workers.
        roster: The live workers.
    """

    def __init__(self, config: PoolConfig, services: PoolServices, scheduler: Scheduler) -> None:
        self.config = config
        self.name: str = config.name
        self.size: int = config.size
        self._events = services.events
        self._scheduler = scheduler
        self._slots = Slots(config, services, scheduler)
        self.dispatch: WorkerDispatch = self._slots.dispatch

    def __repr__(self) -> str:
        return f"<Supervisor of {self.name!r}: {self.dispatch.ready} of {self.size} ready>"

    @property
    def slots(self) -> list[Slot]:
        """The slots that are kept filled."""
        return self._slots.kept

    @property
    def restarts(self) -> int:
        """The number of workers restarted after an unexpected exit."""
        return self._slots.restarts

    @property
    def expecting(self) -> bool:
        """Whether a worker will come that accepts calls."""
        return any(slot.expecting for slot in self.slots)

    def expects(self, blocked: Container[object]) -> bool:
        """Return whether a worker will come that accepts calls, although none of these ends before."""
        seats = self.dispatch.seats
        return any(
            slot.expecting
            and not (slot.lingers and slot.current in seats and seats[slot.current].empties_after(blocked))
            for slot in self.slots
        )

    def infos(self) -> tuple[WorkerInfo, ...]:
        """Return a record of each worker, by slot."""
        return self._slots.infos()

    async def open(self, nursery: anyio.abc.TaskGroup) -> None:
        """Start the slots, and wait until each has made its first attempt.

        Raises:
            WorkerStartupError: No slot has a worker.
        """
        await self._slots.open(nursery, self.size)
        self._events.emit("pool.opened", {"size": self.size, "ready": self.dispatch.ready}, pool=self.name)

    async def stop(self) -> None:
        """Stop every worker, each step bounded."""
        await self._slots.stop()

    def kill(self) -> None:
        """Kill every worker at once."""
        for slot in self._slots:
            for worker in slot.workers:
                worker.kill()

    async def wait_ready(self, n: int | None = None, timeout: float | None = None) -> None:
        """Wait until ``n`` workers are ready; None: all of them. A cancellation only ends the wait.

        Raises:
            WorkerStartupError: Not enough workers can become ready, because slots have failed or their workers can't
                start; or the timeout passed, and then the error is a TimeoutError too.
            InvalidParameter: An argument is invalid.
            PoolClosed: The pool is closing or closed.
        """
        if n is not None and (type(n) is not int or n < 0):
            raise InvalidParameter(f"n must be a number of workers or None, not {n!r}", details={"path": "n"})
        timeout = check_timeout(timeout)
        with anyio.move_on_after(math.inf if timeout is None else timeout):
            await self._until_ready(lambda: self.size if n is None else n)
            return
        raise _NotReadyInTime(
            f"pool {self.name!r}: {self.dispatch.ready} of {self.size if n is None else n} workers were ready "
            f"within {timeout:g} s",
            details={"pool": self.name, "reason": "timeout"},
        )

    async def _until_ready(self, needed: Callable[[], int]) -> None:
        """Wait until the needed number of workers is ready; the number is computed again each time, because sizes change."""
        while True:
            if self._scheduler.ledger.closed is not None:
                raise PoolClosed(self._scheduler.ledger.closed.message, details={"pool": self.name})
            if self.dispatch.ready >= needed():
                return
            hopeless = sum(slot.hopeless for slot in self.slots)
            if hopeless and needed() > len(self.slots) - hopeless:
                raise self._slots.startup_error()
            await self._slots.settled.wait()

    async def resize(self, size: int) -> None:
        """Change the number of workers. Returns when new workers are ready and surplus ones have ended.

        Surplus workers finish their calls, within ``stop_grace``. A cancellation ends the wait; the new size stays.

        Raises:
            InvalidParameter: The size is not a positive int.
            WorkerStartupError: A slot that it would wait for has failed, or its workers can't start.
        """
        if type(size) is not int or not 1 <= size <= _MOST_WORKERS:
            raise InvalidParameter(
                f"size must be an int from 1 to {_MOST_WORKERS}, not {size!r}", details={"path": "size"}
            )
        self.check_open()
        surplus = self._surplus(size, self.slots)
        grows = self._set_size(size, surplus, "resize")
        while any(slot in self._slots.retiring for slot in surplus):
            await self._slots.settled.wait()
        if grows:
            # Another resize or the autoscaler may have reduced the size, and unwanted workers are not waited for.
            await self._until_ready(lambda: min(size, self.size) - self.dispatch.cordoned)

    def scale(self, size: int, keep: Container[Seats]) -> None:
        """Move towards a size without waiting: start new workers, and stop idle ones except those to be kept.

        The new size is as close as possible.
        """
        surplus = self._surplus(size, [slot for slot in self.slots if self._is_idle(slot, keep)])
        size = max(size, len(self.slots) - len(surplus))
        if size == self.size:
            return
        self._set_size(size, surplus, "load")

    def _surplus(self, size: int, candidates: list[Slot]) -> list[Slot]:
        """Return the candidates to retire so that this number of slots remains: failed, then idle, then busy; the last
        first.
        """
        first_to_stay = sorted(candidates, key=lambda slot: (slot.failed, self._is_idle(slot, ())))
        return first_to_stay[::-1][: max(0, len(self.slots) - size)]

    def _is_idle(self, slot: Slot, keep: Container[Seats]) -> bool:
        seats = None if slot.current is None else self.dispatch.seats.get(slot.current)
        return slot.failed or (seats is not None and not seats.load and seats not in keep)

    @protected
    def _set_size(self, size: int, surplus: list[Slot], reason: str) -> bool:
        """Set a new size, retire the surplus, and fill missing slots. Returns whether anything changed."""
        self._events.emit("pool.resized", {"before": self.size, "size": size}, pool=self.name, reason=reason)
        try:
            self._slots.dismiss(surplus)
            grows = self._slots.add(size - len(self.slots))
        finally:
            self.size = len(self.slots)
        if not self.slots:
            # The slots that could not start are gone; the next request gets a worker that has not tried yet.
            self._scheduler.incarnations.clear_failure()
        return grows

    def load(self) -> Load:
        """Return the pool's current load, for the autoscaler."""
        now = anyio.current_time()
        return Load(
            size=self.size,
            starting=sum(self._starts(slot) for slot in self.slots),
            in_flight=self._scheduler.ledger.in_flight,
            queued=self._scheduler.ledger.waiting_for_any,
            tied=self._scheduler.ledger.queued - self._scheduler.ledger.waiting_for_any,
            oldest_wait=self._scheduler.ledger.oldest_wait(now),
            service_time=self._scheduler.ledger.placement.service_time,
        )

    def _starts(self, slot: Slot) -> bool:
        """Return whether a worker of this slot is starting, and not waiting for the next attempt."""
        worker = slot.current
        return not slot.failed and (worker is None or not (worker in self.dispatch.seats or worker.ended.is_set()))

    async def rolling_restart(self) -> None:
        """Replace every worker, ``surge`` at a time, each replacement ready before the old worker drains; then the spares.

        The replacements may have another version of the adapter; then the pool offers that version's tools from now on.

        After a cancellation the replacements in progress are completed, and the remaining workers stay.

        Raises:
            WorkerStartupError: A replacement could not start; the workers that were not replaced continue.
            PoolClosed: The pool is closing or closed.
        """
        self.check_open()
        slots = sorted(self.slots, key=lambda slot: slot.failed)
        turns = iter([(slot, slot.current) for slot in [*slots, *self._slots.spares]])
        failures: list[SnakepitError] = []

        async def replace() -> None:
            try:
                await self._replace_each(itertools.takewhile(lambda _: not failures, turns))
            except SnakepitError as exc:
                failures.append(exc)

        async with anyio.create_task_group() as nursery:
            for _ in range(self.config.surge):
                nursery.start_soon(replace)
        if failures:
            raise failures[0]

    async def _replace_each(self, turns: Iterable[tuple[Slot, Worker | None]]) -> None:
        for slot, old in turns:
            if slot in self._slots.filled and slot.current is not None and slot.current.ended.is_set():
                await self._renew(slot)
            if old is None or slot.current is not old or slot not in self._slots.filled:
                continue
            self._slots.tell_recycled(old, "rolling_restart")
            replaced = await slot.replace("rolling restart", renew=True)
            self.check_open()
            # A worker that has ended meanwhile, or that another operation replaces, counts as replaced.
            if not replaced and slot in self._slots.filled and slot.current is old and not slot.expecting:
                raise self._slots.startup_error()

    async def _renew(self, slot: Slot) -> None:
        """Start a worker in an empty slot before its own next attempt."""
        last = slot.current
        slot.renew()
        while slot in self._slots.filled and (slot.current is last or not tried(slot)):
            await self._slots.settled.wait()
            self.check_open()
        if slot in self._slots.filled and slot.current is not None and not slot.current.ready.is_set():
            raise self._slots.startup_error()

    async def recycle(self, worker_id: str) -> bool:
        """Replace one worker: a new one becomes ready first, then the old one drains and stops.

        Returns whether the worker was replaced; False if the new one could not start and the old one continues. A
        replacement already in progress is awaited. A cancellation ends the wait; the worker is still replaced.

        Raises:
            InvalidParameter: The pool has no such worker.
        """
        for slot in self.slots:
            under_way = slot.replaces(worker_id)
            if under_way is not None:
                return await slot.replace("on demand", under_way)
            if slot.current is not None and slot.current.id == worker_id:
                self._slots.tell_recycled(slot.current, "on_demand")
                return await slot.replace("on demand")
        raise no_such_worker(worker_id)

    def kill_worker(self, worker_id: str) -> None:
        """Kill one worker at once; its slot gets another.

        Raises:
            InvalidParameter: The pool has no such living worker.
        """
        for slot in self._slots:
            for worker in slot.workers:
                if worker.id == worker_id and not worker.ended.is_set():
                    worker.kill()
                    return
        raise no_such_worker(worker_id)

    def drop_connection(self, worker_id: str) -> None:
        """Cut the connection to one worker, for a test; its process lives until the loss is noticed."""
        for slot in self._slots:
            for worker in slot.workers:
                if worker.id == worker_id:
                    worker.drop_connection()

    def check_open(self) -> None:
        if self._scheduler.ledger.closed is not None:
            raise PoolClosed(self._scheduler.ledger.closed.message, details={"pool": self.name})


class ScaledFleet:
    """Keeps a pool's number of workers at the autoscaler's decision. Its task is woken when a request begins to wait.

    Args:
        supervisor: The pool's workers.
        autoscaler: The autoscaler.
        keep: Returns the workers that must be kept, because sessions are bound to them.
    """

    def __init__(self, supervisor: Supervisor, autoscaler: Autoscaler, keep: Callable[[], Container[Seats]]) -> None:
        self._supervisor = supervisor
        self._autoscaler = autoscaler
        self._keep = keep
        self._poked = anyio.Event()

    def poke(self) -> None:
        """Record that a request has begun to wait."""
        self._poked.set()

    @protected
    async def run(self) -> None:
        """Decide, and wait for the next reason to decide, until cancelled."""
        while True:
            self._poked = anyio.Event()
            load, now = self._supervisor.load(), anyio.current_time()
            size = self._autoscaler.decide(load, now)
            if size != load.size:
                self._supervisor.scale(size, self._keep())
                load = self._supervisor.load()
            with anyio.move_on_after(self._autoscaler.next_look(load, now) - now):
                await self._poked.wait()
