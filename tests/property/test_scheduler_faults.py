"""A scheduler in which one function after the other raises what nobody expected: the books agree after each, and nobody is forgotten.

Seeded walks over everything that may be asked of a scheduler. Before each step one fault may be armed: the next call of a function
inside the scheduler (of its own, of the queue, the placement, the deadlines), of a worker's port, of the observer, or of whoever
waits for a request raises on entry, once.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.errors import PoolClosed, SnakepitError, ToolError, WorkerCrashed, WorkerStartupError, WouldDeadlock
from snakepit_trio.pool.scheduling.expiry import CancelSet
from snakepit_trio.pool.scheduling.incarnations import Incarnations
from snakepit_trio.pool.scheduling.ledger import Ledger, UnexpectedReply
from snakepit_trio.pool.scheduling.queue import RequestQueue
from snakepit_trio.pool.scheduling.request import Binding, Outcome, Phase, Request, Seats
from snakepit_trio.pool.scheduling.scheduler import Scheduler
from tests.requests import NOTHING, make_request

#: What is asked of a scheduler from outside, which must not raise by itself, and what puts it in order.
_OUTSIDE = {"submit", "cancel", "end", "expire", "replied", "returned", "open", "cordon", "retire", "uncordon", "gone"}
_OUTSIDE |= {
    "stopped",
    "untie",
    "refuse",
    "fail_all",
    "clear_failure",
    "close",
    "abort",
    "hopeless",
    "_is_taken",
    "stuck",
}
#: What others read.
_READ = {"next_deadline", "arm", "totals", "requests"}
_BOUNDARIES = {
    "_put_out",
    "put_out",
    "_take_back",
    "tell",
    "_not_started",
    "fail",
    "run",
    "_reconcile",
    "look_again",
    "_wake_again",
    "reject",
    "_end_hopeless",
    "end_waiting",
    "refill",
    "rebuild",
    "clear",
}


class Injected(RuntimeError):
    """What nobody expected."""


class Faults:
    """Raises on entry to one function after another, which is armed before."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.armed: str | None = None
        self.after = 0
        self.met: Counter[str] = Counter()
        self.names: list[str] = []

    def arm(self, name: str) -> None:
        self.armed, self.after = name, self.rng.choice((0, 0, 0, 1, 2))

    def trip(self, name: str) -> None:
        if name == self.armed:
            if self.after:
                self.after -= 1
                return
            self.armed = None
            self.met[name] += 1
            raise Injected(name)

    def watch(self, thing: Any) -> None:
        """Every function of an object may be armed."""
        kind = type(thing)
        for name in dir(kind):
            function = getattr(kind, name)
            if name.startswith("__") or not callable(function) or isinstance(getattr(kind, name, None), property):
                continue
            if name in _BOUNDARIES or (kind in (Scheduler, Incarnations) and name in _OUTSIDE):
                continue
            if kind is Ledger and name in _READ:
                continue
            label = f"{kind.__name__}.{name}"
            self.names.append(label)
            setattr(thing, name, self.wrapped(label, getattr(thing, name)))

    def wrapped(self, label: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.trip(label)
            return method(*args, **options)

        return call


class Worker:
    """Holds the calls that it was given; its port may raise."""

    def __init__(self, faults: Faults, capacity: int, depth: int) -> None:
        self.faults = faults
        self.holds: dict[int, Request] = {}
        self.begun: set[int] = set()
        self.dropped: set[int] = set()
        self.recalled: set[int] = set()
        self.seats = Seats(self, capacity, depth if capacity == 1 else 0)

    def start(self, request: Request) -> None:
        self.faults.trip("port.start")
        assert request.phase is not Phase.DONE, "a request that has ended is sent"
        assert request.id not in self.holds
        self.holds[request.id] = request

    def cancel(self, request: Request) -> None:
        self.faults.trip("port.cancel")
        self.dropped.add(request.id)

    def withdraw(self, request: Request) -> None:
        self.faults.trip("port.withdraw")
        self.dropped.add(request.id)

    def recall(self, request: Request) -> None:
        self.faults.trip("port.recall")
        self.recalled.add(request.id)


class Walk:
    """One seeded walk."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.faults = faults = Faults(rng)
        self.now = 0.0
        self.count = 0
        self.woken: Counter[int] = Counter()
        self.final: Counter[int] = Counter()
        self.requests: list[Request] = []
        self.workers: list[Worker] = []
        self.answered: list[tuple[Worker, int]] = []
        self.ended_by_observer = 0
        self.bindings = {name: Binding(name, strict=name != "h") for name in "hqf"}
        self.errors = InternalErrors()
        self.scheduler = Scheduler(
            queue=RequestQueue(
                max_queue=rng.choice([None, 20]), aging=rng.choice([None, 1.0]), fair=rng.random() < 0.3
            ),
            cancel_set=CancelSet(50, 5.0),
            poison_limit=rng.choice([None, 2]),
            reject_hopeless=rng.random() < 0.3,
            observer=self.observe,
            on_idle=lambda: faults.trip("on_idle"),
            on_due=lambda when: faults.trip("on_due"),
            errors=self.errors,
            pool="p",
        )
        ledger = self.scheduler.ledger
        for part in (ledger.placement, ledger.queue, ledger.deadlines, ledger.recall, ledger.cancel_set):
            faults.watch(part)
        for part in (ledger, self.scheduler._assignment, self.scheduler.incarnations, self.scheduler):
            faults.watch(part)
        faults.names += [
            "port.start",
            "port.cancel",
            "port.withdraw",
            "port.recall",
            "observer",
            "wake",
            "on_idle",
            "on_due",
        ]

    def observe(self, event: str, request: Request, now: float) -> None:
        if event in {outcome.value for outcome in Outcome}:
            self.final[request.id] += 1
        elif self.rng.random() < 0.03:
            # As who finds that the request would wait for itself.
            self.scheduler.end(request, WouldDeadlock("for itself"), self.now)
            assert request.phase is Phase.DONE
            self.ended_by_observer += 1
        self.faults.trip("observer")

    # ---- steps -------------------------------------------------------------------------------------

    def step(self) -> None:
        rng = self.rng
        kind = rng.choices(
            [
                "worker",
                "submit",
                "cancel",
                "time",
                "reply",
                "give_back",
                "die",
                "cordon",
                "retire",
                "uncordon",
                "refuse",
                "reply_twice",
                "fail",
                "untie",
            ],
            [8, 40, 10, 10, 40, 25, 3, 2, 1, 3, 12, 3, 1, 2],
        )[0]
        getattr(self, kind)()

    def worker(self) -> None:
        for worker in [worker for worker in self.workers if worker.seats.over and not worker.holds]:
            self.end(worker)
        if len(self.workers) < 3:
            made = Worker(self.faults, self.rng.choice([1, 1, 2]), 3)
            self.workers.append(made)
            self.scheduler.incarnations.open(made.seats, self.now)

    def submit(self) -> None:
        rng, scheduler = self.rng, self.scheduler
        self.count += 1
        number = self.count
        session = rng.choice([None, None, None, "h", "q", "f"])

        def wake() -> None:
            self.faults.trip("wake")
            self.woken[number] += 1

        request = make_request(
            number, f"tool{number // 20}", on_end=wake, binding=self.bindings.get(session or ""),
            deadline=self.now + rng.choice([0.5, 3.0, math.inf]),
            queue_deadline=self.now + rng.choice([1.0, math.inf]),
            priority=rng.choice([0, 0, 1]), idempotent=rng.random() < 0.5,
        )  # fmt: skip
        request.fail_fast = session == "f" and number % 3 > 0
        try:
            scheduler.submit(request, self.now)
        except SnakepitError:
            assert request.outcome is Outcome.REJECTED
        else:
            self.requests.append(request)

    def cancel(self) -> None:
        living = [request for request in self.requests if request.phase is not Phase.DONE]
        if living:
            request = self.rng.choice(living)
            self.scheduler.cancel(request, self.now)
            assert request.phase is Phase.DONE

    def time(self) -> None:
        self.now += self.rng.choice([0.0, 0.0, 0.0005, 0.001, 0.02, 0.4, 2.0])
        self.scheduler.expire(self.now)

    def held(self) -> Worker | None:
        found = [worker for worker in self.workers if worker.holds]
        return self.rng.choice(found) if found else None

    def reply(self) -> None:
        worker = self.held()
        if worker is None:
            return
        number = self.rng.choice(list(worker.holds)[: worker.seats.capacity])
        del worker.holds[number]
        self.answered.append((worker, number))
        error = ToolError("x") if self.rng.random() < 0.2 else None
        self.answer(worker, lambda: self.scheduler.replied(
            worker.seats, number, self.now, result=None if error else NOTHING, error=error
        ))  # fmt: skip

    def refuse(self) -> None:
        """A worker answers a call at once whose turn has not come."""
        for worker in self.workers:
            for number in list(worker.seats.ahead):
                del worker.holds[number]
                self.answer(worker, lambda n=number, w=worker: self.scheduler.replied(
                    w.seats, n, self.now, result=None, error=ToolError("x")
                ))  # fmt: skip
                return

    def reply_twice(self) -> None:
        """A worker answers a call again; if its caller had gone, nobody minds."""
        for worker, number in reversed(self.answered):
            if worker in self.workers:
                self.answer(worker, lambda n=number, w=worker: self.scheduler.replied(
                    w.seats, n, self.now, result=NOTHING, error=None
                ))  # fmt: skip
                return

    def untie(self) -> None:
        for name in "qf":
            self.scheduler.untie(name, self.bindings[name], self.now)
            self.bindings[name] = Binding(name, strict=True)

    def fail(self) -> None:
        """For a moment no worker can serve."""
        self.scheduler.incarnations.fail_all(WorkerStartupError("none"), self.now, self.now)
        assert not self.scheduler.ledger.queued
        self.scheduler.incarnations.clear_failure()

    def give_back(self) -> None:
        for worker in self.workers:
            for number in list(worker.holds)[worker.seats.capacity :]:
                if number in worker.recalled | worker.dropped:
                    del worker.holds[number]
                    self.answer(
                        worker, lambda n=number, w=worker: self.scheduler.incarnations.returned(w.seats, n, self.now)
                    )
                    return

    def answer(self, worker: Worker, tell: Callable[[], object]) -> None:
        try:
            tell()
        except UnexpectedReply:
            # It was sent a call that is not known to have been sent: such a worker is ended.
            self.end(worker)

    def die(self) -> None:
        if self.workers:
            self.end(self.rng.choice(self.workers))

    def end(self, worker: Worker) -> None:
        self.workers.remove(worker)
        unbegun = set(list(worker.holds)[worker.seats.capacity :])
        self.scheduler.incarnations.gone(
            worker.seats, WorkerCrashed("died"), self.now, unbegun=unbegun, blamed=self.rng.random() < 0.3
        )
        assert worker.seats not in self.scheduler.ledger.seats

    def cordon(self) -> None:
        if self.workers:
            self.scheduler.incarnations.cordon(self.rng.choice(self.workers).seats, self.now)

    def uncordon(self) -> None:
        for worker in self.workers:
            self.scheduler.incarnations.uncordon(worker.seats, self.now)

    def retire(self) -> None:
        if self.workers:
            self.scheduler.incarnations.retire(self.rng.choice(self.workers).seats, self.now)

    # ---- what holds after each ---------------------------------------------------------------------

    def check(self) -> None:
        armed, self.faults.armed = self.faults.armed, None
        try:
            self._check()
        finally:
            self.faults.armed = armed

    def _check(self) -> None:
        scheduler = self.scheduler
        totals = scheduler.ledger.totals()
        ended = totals.completed + totals.failed + totals.cancelled + totals.timed_out
        assert totals.accepted == ended + totals.in_flight + totals.queued
        assert totals.accepted == len(self.requests)
        for request in self.requests:
            done = request.phase is Phase.DONE
            assert (request.outcome is not None) == done
            assert self.woken[request.id] == done, request
            assert self.final[request.id] == done, request
        waiting = [request for request in self.requests if request.phase is Phase.QUEUED]
        assert len(waiting) == totals.queued
        assert sum(len(worker.seats.running) for worker in self.workers) == totals.in_flight
        for worker in self.workers:
            seats = worker.seats
            known = {**seats.running, **seats.leaving, **seats.ahead}
            assert known.items() <= worker.holds.items()
            assert seats.load <= seats.capacity
            assert set(seats.leaving) <= worker.dropped
            assert not seats.ahead or seats.load == seats.capacity
        free = [
            worker.seats
            for worker in self.workers
            if worker.seats.open and worker.seats.load < worker.seats.capacity and not worker.seats.alone
        ]
        for request in waiting:
            if request.seats is None and free and not request.suspect:
                behind = any(other.suspect and other.session == request.session for other in waiting)
                assert behind or (request.pin is not None and request.pin not in free)

    def finish(self) -> None:
        """All that is under way comes to an end, and nothing is left."""
        self.faults.armed = None
        self.scheduler.close(PoolClosed("closed"), self.now)
        self.check()
        while (worker := self.held()) is not None:
            number = next(iter(worker.holds))
            del worker.holds[number]
            self.answer(worker, lambda w=worker, n=number: self.scheduler.replied(
                w.seats, n, self.now, result=NOTHING, error=None
            ))  # fmt: skip
        self.check()
        assert all(request.phase is Phase.DONE for request in self.requests)
        assert not any(worker.seats.load or worker.seats.ahead for worker in self.workers)


def walk(seed: int, steps: int, met: Counter[str] | None = None) -> Walk:
    """Walk; with ``met``, one fault after the other is armed, those first that were met least."""
    made = Walk(seed)
    names = [name for name in made.faults.names if name not in _HARDLY]
    for _ in range(3):
        made.worker()
    for number in range(steps):
        if met is not None and (made.faults.armed is None or number % 8 == 0):
            seen = met + made.faults.met
            rarest = sorted(names, key=lambda name: seen[name])[:10]
            made.faults.arm(made.rng.choice(rarest if made.rng.random() < 0.5 else names))
        made.step()
        made.check()
    made.finish()
    return made


def test_the_books_agree_after_every_fault(internal_errors: list[BaseException]) -> None:
    met: Counter[str] = Counter()
    for seed in range(400):
        try:
            made = walk(seed, 200, met)
        except AssertionError as exc:
            exc.add_note(f"seed {seed}")
            raise
        met += made.faults.met
        assert sum(made.errors.counts.values()) >= sum(made.faults.met.values())
    assert all(isinstance(error, Injected) for error in internal_errors), [
        error for error in internal_errors if not isinstance(error, Injected)
    ][:3]
    # A walk that never meets what it arms shows nothing.
    never = {name for name in Walk(0).faults.names if not met[name]}
    assert never <= _HARDLY, never
    assert len(met) > 65 and sum(met.values()) > 800, met


#: What these walks do not come to: what a scheduler itself doesn't call, or only for a great many entries; and what happens beside
#: a call that runs alone, which has a test of its own.
_HARDLY = {
    "Assignment._fill_needed",
    "Assignment._where_needed",
    "CancelSet.discard",
    "DeadlineWheel._rebuild",
    "Ledger.oldest_wait",
    "Placement.oldest_arrival",
    "RequestQueue.oldest_arrival",
    "RequestQueue.has_room",
}


def test_without_faults_nothing_is_reported() -> None:
    ended = 0
    for seed in range(30):
        made = walk(seed, 200)
        ended += made.ended_by_observer
        assert not made.errors.counts
    assert ended > 20


@pytest.mark.parametrize("name", ["port.start", "wake", "observer", "Ledger.begin", "Ledger.finish"])
def test_a_fault_ends_one_request_and_gives_its_seat_back(name: str, internal_errors: list[BaseException]) -> None:
    made = Walk(1)
    worker = Worker(made.faults, 1, 0)
    made.workers.append(worker)
    made.scheduler.incarnations.open(worker.seats, 0.0)
    results = []
    for number in range(1, 4):
        woken: list[int] = []

        def wake(woken: list[int] = woken) -> None:
            made.faults.trip("wake")
            woken.append(1)

        request = make_request(number, "tool", on_end=wake)
        if number == 2:
            made.faults.armed = name
        made.scheduler.submit(request, 0.0)
        if request.phase is not Phase.DONE:
            del worker.holds[number]
            made.scheduler.replied(worker.seats, number, 0.1, result=NOTHING, error=None)
        assert woken == [1]
        results.append(request)
    assert worker.seats.load == 0
    assert [r.outcome for r in results[::2]] == [Outcome.COMPLETED] * 2
    if name in ("wake", "observer"):
        assert results[1].outcome is Outcome.COMPLETED
    else:
        assert results[1].error is not None and results[1].error.code == "internal"
    assert len(internal_errors) == 1


@pytest.mark.parametrize("name", ["Assignment._fill_needed", "Assignment._where_needed"])
def test_a_fault_beside_a_call_that_runs_alone(name: str, internal_errors: list[BaseException]) -> None:
    made = Walk(1)
    worker = Worker(made.faults, 3, 0)
    made.workers.append(worker)
    made.scheduler.incarnations.open(worker.seats, 0.0)
    made.faults.armed = name
    for number in range(1, 6):
        request = make_request(number, "tool", on_end=lambda number=number: made.woken.update([number]))
        if number == 1:
            request.suspect = True
        else:
            request.chain = (made.requests[0],)
        with contextlib.suppress(SnakepitError):
            made.scheduler.submit(request, 0.0)
            made.requests.append(request)
    # Three run; what the last two wait for is that one of these ends.
    while worker.holds:
        number = next(reversed(worker.holds))
        del worker.holds[number]
        made.scheduler.replied(worker.seats, number, 0.1, result=NOTHING, error=None)
        made.check()
    assert made.faults.met[name] == 1
    made.finish()
