"""What holds in a pool at every pass of the scheduler, and what holds when everybody has left."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import snakepit_trio as sp
from snakepit_trio.pool.calls.stream import STREAM_WINDOW
from snakepit_trio.pool.scheduling.request import Outcome, Phase, Request, Seats
from snakepit_trio.supervision.slot import Slot
from snakepit_trio.supervision.states import WorkerState
from snakepit_trio.supervision.worker import Worker

__all__ = ["Invariants"]

_UP = frozenset({WorkerState.READY, WorkerState.BUSY})
_FINAL = frozenset(outcome.value for outcome in Outcome)
#: Seconds. Deadlines are kept in ticks of a millisecond, and never pass early.
_TICK = 0.001 + 1e-6


def _is_needed(request: Request, seats: Seats) -> bool:
    return any(running in request.chain for running in seats.running.values())


class Invariants:
    """Watches one pool from outside: its scheduler's observer is wrapped, its tables are read.

    Attributes:
        requests: The id of every request that the scheduler has heard of.
        ended: How often each has ended.
        versions_may_meet: A rolling restart may bring in workers that offer something else.
        cordoned: Ids of the workers that somebody wants to get no calls.
    """

    def __init__(self, pool: sp.Pool, note: Any) -> None:
        self.pool = pool
        self.requests: set[int] = set()
        self.open: dict[int, Request] = {}
        self.ended: Counter[int] = Counter()
        self.cordoned: set[str] = set()
        self.versions_may_meet = False
        self._vacant: dict[Slot, float] = {}
        self._overdue: dict[Worker, float] = {}
        self._stranded = math.inf
        self._note = note
        self._told = pool._scheduler.ledger.observer
        pool._scheduler.ledger.observer = self._hear

    def _hear(self, event: str, request: Request, now: float) -> None:
        self._note(f"request {request.id} {request.tool}: {event}")
        self.requests.add(request.id)
        self.open[request.id] = request
        if event in _FINAL:
            self.ended[request.id] += 1
            del self.open[request.id]
        self._told(event, request, now)

    def check(self, now: float) -> None:
        """Raise AssertionError when anything does not hold now."""
        pool, scheduler, supervisor = self.pool, self.pool._scheduler, self.pool.supervisor
        t = scheduler.ledger.totals()
        assert t.accepted == t.completed + t.failed + t.cancelled + t.timed_out + t.in_flight + t.queued, f"lost: {t}"
        assert len(self.open) == t.in_flight + t.queued, "a request is in no table, or in two"
        assert t.cancel_set_size <= pool.config.cancel_set_size, "the set of cancelled ids is too large"
        running = 0
        free = []
        overdue: dict[Worker, float] = {}
        for seats in scheduler.ledger.seats:
            load = len(seats.running) + len(seats.leaving)
            running += len(seats.running)
            assert load <= seats.capacity, f"{seats!r} runs more than it may"
            assert len(seats.ahead) <= seats.depth, f"the line of {seats!r} is too long"
            assert not seats.ahead or load == seats.capacity, f"somebody stands in line behind a free seat of {seats!r}"
            assert seats.open or seats.place is None, f"{seats!r} takes no calls and has a place for them"
            worker = seats.port.worker  # type: ignore[attr-defined]
            assert not (seats.open and worker.tainted), f"{worker!r} has shown a fault and gets calls"
            if not worker.state.over:
                table = {*seats.running, *seats.leaving, *seats.ahead}
                assert table == worker._held.keys(), f"ledger and worker disagree: {table ^ worker._held.keys()}"
                unwanted = {*seats.leaving, *(id for id, r in seats.ahead.items() if r.phase is Phase.DONE)}
                told = worker._resources.process.told_to_cancel
                assert unwanted <= told.keys(), (
                    f"{worker!r} has not been told that nobody waits for {unwanted - told.keys()}"
                )
                assert told.keys().isdisjoint(seats.running), f"{worker!r} is to cancel a call that somebody waits for"
                credits = max(worker._resources.process.credits.values(), default=0)
                assert credits <= STREAM_WINDOW, f"{worker!r} may send {credits} chunks, which nobody has room for"
                if pool.config.on_cancel == "kill":
                    assert seats.leaving.keys() <= worker._grace.due.keys(), f"{worker!r} has no end for what it leaves"
                    if seats.leaving and not seats.running:
                        due = max(told[id] for id in seats.leaving) + pool.config.cancel_grace
                        overdue[worker] = max(due, self._overdue.get(worker, now))
            if seats.open and load < seats.capacity:
                free.append(seats)
        self._overdue = overdue
        for worker, since in overdue.items():
            assert now < since + _TICK, f"{worker!r} runs only what should have stopped by {since:.6f}"
        assert running == t.in_flight, "running calls and in_flight differ"
        if free and len(scheduler.ledger.queue):
            for request in scheduler.ledger.queue:
                # One that may have ended workers runs where nothing else does but what it waits for itself; the same is for a
                # worker that is to become empty for one.
                may_take = [
                    seats for seats in free
                    if not (request.suspect and (seats.load or seats.alone)) and not request.avoids(seats)
                    if not seats.alone or (request.session is None and _is_needed(request, seats))
                ]  # fmt: skip
                assert request.pin is not None or not may_take, f"{request!r} waits while a seat is free"
                assert request.pin not in may_take, f"{request!r} waits while a seat of its own worker is free"
        for request in self.open.values():
            assert request.phase in (Phase.QUEUED, Phase.RUNNING), f"{request!r} has no place"
            due = request.deadline
            if request.phase is Phase.QUEUED:
                due = min(due, request.queue_deadline)
            assert due > now - _TICK, f"{request!r} is overdue by {now - due:.6f} s"
        assert len(scheduler.ledger.deadlines) <= len(self.open), "a deadline is kept of what has ended"
        assert scheduler.ledger.placement.waiting == sum(
            request.phase is Phase.QUEUED for seats in scheduler.ledger.seats for request in seats.ahead.values()
        ), "the lines are miscounted"
        workers = [worker for slot in supervisor._slots for worker in slot._alive]
        assert len(set(map(id, workers))) == len(workers), "a worker is in two slots"
        assert all(worker in workers for worker in pool._dispatch.seats), "a worker takes calls and is in no slot"
        if not self.versions_may_meet:
            up = [worker for worker in pool._dispatch.seats if not worker.state.over]
            offers = {frozenset(tool.name for tool in worker.tools) for worker in up}
            assert len(offers) <= 1, f"workers that differ take calls: {offers}"
        self._no_limit_is_passed()
        if not scheduler.ledger.closed:
            self._every_place_is_kept(now)
            self._nobody_is_stranded(now)

    def _no_limit_is_passed(self) -> None:
        guard = self.pool._guard
        for limit in guard._limits if guard is not None else ():
            most = limit._config.concurrency
            for gate in limit._gates.values():
                assert most is None or len(gate.holders) <= most, f"{len(gate.holders)} permits of {limit._config}"
                assert not gate.queue or len(gate.holders) == most, "somebody waits for a permit that is free"

    def _every_place_is_kept(self, now: float) -> None:
        """Idle + busy + starting + stopping = size: each slot has a worker, or knows when it will have one."""
        supervisor, seats_of = self.pool.supervisor, self.pool._dispatch.seats
        assert len(supervisor.slots) == supervisor.size, "slots and size differ"
        assert len(supervisor._slots.spares) == supervisor.config.spares, "a spare is missing"
        vacant = {slot for slot in [*supervisor.slots, *supervisor._slots.spares] if not slot._alive}
        self._vacant = {slot: self._vacant.get(slot, now) for slot in vacant}
        for slot, since in self._vacant.items():
            # In the very moment in which its worker has ended, its task has yet to run.
            next_attempt = since if slot.next_attempt is None else max(since, slot.next_attempt)
            assert next_attempt > now - _TICK, f"{slot!r} has been empty since {since:.6f}, and nothing comes"
        alive = sum(not worker.ended.is_set() for slot in supervisor.slots for worker in slot._alive)
        assert alive <= supervisor.size + supervisor.config.surge, f"{alive} workers, which is more than surge allows"
        for slot in [*supervisor.slots, *supervisor._slots.retiring]:
            for worker in slot._alive:
                if worker.state in _UP and not worker.tainted:
                    assert worker in seats_of, f"{worker!r} is up and gets no calls"
                    held_back = worker.id in self.cordoned or slot in supervisor._slots.retiring
                    assert seats_of[worker].open or held_back, f"{worker!r} is up and cordoned by nobody"

    def _nobody_is_stranded(self, now: float) -> None:
        """Whoever waits, waits for a worker that is there or to come."""
        scheduler, supervisor, dispatch = self.pool._scheduler, self.pool.supervisor, self.pool._dispatch
        hope = supervisor.expecting or dispatch.ready or dispatch.cordoned
        assert not (scheduler.ledger.broken and dispatch.ready), "calls are refused, and a worker serves"
        assert supervisor.slots or not scheduler.ledger.broken, "calls are refused for good: no slot will try again"
        stranded = False
        for request in scheduler.ledger.queue:
            if request.pin is not None:
                assert request.pin in scheduler.ledger.seats, f"{request!r} waits for a worker that is gone"
                assert not request.pin.over, f"{request!r} waits for a worker that takes no more calls"
            else:
                stranded = stranded or not hope
        # An idle pool without workers wakes up in the moment in which somebody comes.
        self._stranded = min(self._stranded, now) if stranded else math.inf
        assert self._stranded >= now, "requests wait, and no worker is there or to come"

    def at_rest(self) -> None:
        """Raise AssertionError unless every request has ended once and every table is empty."""
        scheduler = self.pool._scheduler
        assert not self.open, f"never ended: {list(self.open.values())}"
        assert set(self.ended.values()) <= {1}, "a request has ended twice"
        assert self.ended.keys() == self.requests
        assert (
            len(scheduler.ledger.queue),
            len(scheduler.ledger.deadlines),
            scheduler.ledger.placement.waiting,
            scheduler.ledger.in_flight,
        ) == (
            0,
            0,
            0,
            0,
        )
        assert not any(seats.load or seats.ahead for seats in scheduler.ledger.seats), "a seat never came back"
        assert not scheduler.ledger.placement._priorities, "priorities are kept of nobody"
        services = self.pool._services
        # The whole runtime's, of which every pool has a part.
        assert len(services.waits) == 0, "a wait is kept of nobody"
        threads, budget = services.host_threads, services.host_call_bytes
        assert not threads._holders and not threads._waiting, f"{threads!r} at rest"
        assert budget.used == 0, f"{budget.used} bytes of host calls are counted that are over"
        guard = self.pool._guard
        for limit in guard._limits if guard is not None else ():
            for gate in limit._gates.values():
                left = (gate.inside, gate.waiting, len(gate.holders), len(gate.queue), len(gate.line))
                assert not any(left), f"left at a limit: {left}"
                assert gate.bucket is None or not gate.bucket.reserved, "a token is reserved for nobody"
        for circuit in guard._circuits.values() if guard is not None else ():
            assert not circuit._probing, "a probe was lost"

    def after_the_end(self) -> None:
        """Raise AssertionError unless a closed pool is empty."""
        self.at_rest()
        pool = self.pool
        assert not list(pool._scheduler.ledger.seats), "seats are left"
        assert not pool._dispatch.seats, "workers are left"
        assert not pool._dispatch._servers, "host tools are left"
        supervisor = pool.supervisor
        assert not any(slot._alive for slot in supervisor._slots)
