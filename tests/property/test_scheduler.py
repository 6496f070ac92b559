"""The pool's scheduler with scripted workers: any order of arrivals, cancels, deadlines, replies, deaths and resizes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snakepit_trio.errors import (
    PoolClosed,
    QueueTimeout,
    RequestCancelled,
    RequestTimeout,
    SnakepitError,
    ToolError,
    WorkerCrashed,
    WorkerStartupError,
)
from snakepit_trio.pool.scheduling.expiry import CancelSet
from snakepit_trio.pool.scheduling.ledger import UnexpectedReply
from snakepit_trio.pool.scheduling.placement import PATIENCE
from snakepit_trio.pool.scheduling.queue import RequestQueue
from snakepit_trio.pool.scheduling.request import Binding, Outcome, Phase, Request, Seats
from snakepit_trio.pool.scheduling.scheduler import Scheduler
from tests.requests import NOTHING, make_request

FINAL = frozenset(outcome.value for outcome in Outcome)


class ScriptedWorker:
    """Holds the calls that it was given until the test lets it answer; begins them in their order."""

    def __init__(
        self, number: int, capacity: int, on_cancel: Callable[[int], None] = lambda number: None, depth: int = 0
    ) -> None:
        self.number = number
        self.on_cancel = on_cancel
        self.capacity = capacity
        self.depth = depth if capacity == 1 else 0
        self.holds: dict[int, Request] = {}
        self.begun: set[int] = set()
        self.told_to_cancel: set[int] = set()
        self.withdrawn: set[int] = set()
        self.recalled: set[int] = set()
        self.answered: list[int] = []
        self.seats = Seats(self, capacity, self.depth)

    def start(self, request: Request) -> None:
        assert request.id not in self.holds
        assert len(self.holds) < self.capacity + self.depth, "two calls in one seat"
        assert request.attempt > 0
        self.holds[request.id] = request

    def cancel(self, request: Request) -> None:
        assert request.id in self.holds
        assert request.id not in self.told_to_cancel, "cancelled twice"
        self.told_to_cancel.add(request.id)
        if request.id not in self.withdrawn:
            self.on_cancel(request.id)

    def withdraw(self, request: Request) -> None:
        assert request.id in self.holds
        assert request.id not in self.withdrawn, "withdrawn twice"
        self.withdrawn.add(request.id)
        self.on_cancel(request.id)

    def recall(self, request: Request) -> None:
        assert request.id in self.holds
        assert request.id not in self.recalled, "asked for twice"
        self.recalled.add(request.id)

    def turns(self) -> list[int]:
        """The calls that may be running."""
        return list(self.holds)[: self.capacity]

    def droppable(self) -> list[int]:
        """The calls that it can answer without having begun them."""
        return [n for n in self.holds if n not in self.begun and n in self.withdrawn | self.told_to_cancel]

    def returnable(self) -> list[int]:
        """The calls that it can give back."""
        return [n for n in self.holds if n not in self.begun and n in self.recalled]

    def release(self, number: int) -> Request:
        for kept in (self.begun, self.told_to_cancel, self.withdrawn, self.recalled):
            kept.discard(number)
        return self.holds.pop(number)


class LedgerMachine(RuleBasedStateMachine):
    """Invariants: conservation, one end each, no seat lost or shared, nobody waits while a seat is free."""

    @initialize(limit=st.sampled_from([0, 2, 5, None]), poison=st.sampled_from([1, 2, None]))
    def begin(self, limit: int | None, poison: int | None) -> None:
        self.now = 0.0
        #: What has come about, so that a test sees that something has.
        self.met: Counter[str] = Counter()
        self.woken: Counter[int] = Counter()
        self.events: list[tuple[str, int]] = []
        self.alarm = math.inf
        self.scheduler = Scheduler(
            queue=RequestQueue(max_queue=limit, aging=10.0),
            cancel_set=CancelSet(3, 5.0),
            poison_limit=poison,
            observer=lambda event, request, now: self.events.append((event, request.id)),
            on_due=self.told_of_due,
        )
        self.limit = limit
        # What a late reply is told by; the set itself has a model of its own.
        self.remembered = CancelSet(3, 5.0)
        self.workers: list[ScriptedWorker] = []
        self.requests: list[Request] = []
        self.rejected = 0
        self.count = 0
        self.closed = False
        self.bindings = {name: Binding(name, strict=name != "h") for name in "hqf"}

    def told_of_due(self, when: float) -> None:
        self.alarm = min(self.alarm, when)

    @rule(capacity=st.sampled_from([1, 1, 2, 3]), depth=st.sampled_from([0, 1, 3]))
    def worker_comes(self, capacity: int, depth: int) -> None:
        if len(self.workers) < 4:
            self.count += 1
            worker = ScriptedWorker(self.count, capacity, lambda number: self.remembered.add(number, self.now), depth)
            self.workers.append(worker)
            self.scheduler.incarnations.open(worker.seats, self.now)

    @rule(
        timeout=st.sampled_from([1.0, 3.0, math.inf]),
        queue_timeout=st.sampled_from([0.5, 2.0, math.inf]),
        priority=st.integers(-1, 1),
        session=st.none() | st.sampled_from(["h", "q", "f"]),
        idempotent=st.booleans(),
        time_limit=st.none() | st.just(2.0),
        stream=st.booleans(),
    )
    def submit(
        self,
        timeout: float,
        queue_timeout: float,
        priority: int,
        session: Any,
        idempotent: bool,
        time_limit: Any,
        stream: bool,
    ) -> None:
        self.count += 1
        number = self.count
        request = make_request(
            number,
            "tool",
            on_end=lambda: self.woken.update([number]),
            deadline=self.now + timeout,
            queue_deadline=self.now + queue_timeout,
            priority=priority,
            binding=self.bindings.get(session),
            idempotent=idempotent,
            time_limit=time_limit,
            stream=stream,
        )
        # Calls that wait, and calls that do not, by one tie.
        request.fail_fast = session == "f" and number % 3 > 0
        before = self.scheduler.ledger.queued
        try:
            self.scheduler.submit(request, self.now)
        except SnakepitError as exc:
            self.rejected += 1
            self.met[f"refused: {exc.code}"] += 1
            assert request.outcome is Outcome.REJECTED
        else:
            self.requests.append(request)
            where = "line" if request.seats is not None else "queue" if request.pin is None else "lane of a worker"
            self.met["runs at once" if request.phase is Phase.RUNNING else f"waits in a {where}"] += 1
            if request.phase is Phase.QUEUED and self.limit is not None:
                assert before < self.limit
            if request.phase is Phase.QUEUED and request.seats is None and request.pin is None:
                # It waits for any worker, and nobody less urgent goes before it in a line.
                for worker in self.workers:
                    urged = {
                        n for n, r in worker.seats.ahead.items() if r.phase is Phase.QUEUED and r.priority < priority
                    }
                    assert urged <= worker.recalled

    def alive(self) -> list[Request]:
        return [r for r in self.requests if r.phase is not Phase.DONE]

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        # One that has ended only now and then.
        request = data.draw(st.sampled_from(self.alive() if self.count % 4 and self.alive() else self.requests))
        ended = request.phase is Phase.DONE
        before = request.outcome
        self.met[f"cancelled: {request.phase.name}"] += 1
        self.scheduler.cancel(request, self.now)
        assert request.phase is Phase.DONE
        assert request.outcome is (before if ended else Outcome.CANCELLED)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.005, PATIENCE, 0.3, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.scheduler.expire(self.now)
        self.alarm = self.scheduler.ledger.arm()
        assert self.alarm > self.now
        if any(w.seats.open and w.seats.load < w.capacity for w in self.workers):
            # Whoever stands in line behind a call that has turned out long has been asked back.
            for worker in self.workers:
                if self.now >= worker.seats.since + PATIENCE:
                    wanted = {n for n, r in worker.seats.ahead.items() if r.phase is Phase.QUEUED}
                    assert wanted <= worker.recalled
        for request in self.alive():
            assert request.deadline > self.now - 0.002
            if request.phase is Phase.QUEUED:
                assert request.queue_deadline > self.now - 0.002

    @precondition(lambda self: any(w.holds for w in self.workers))
    @rule(data=st.data())
    def begin_call(self, data: st.DataObject) -> None:
        may = [w for w in self.workers if w.holds]
        worker = data.draw(st.sampled_from([w for w in may if not w.begun.issuperset(w.turns())] or may))
        number = data.draw(st.sampled_from(worker.turns()))
        if number not in worker.withdrawn:
            worker.begun.add(number)

    @precondition(lambda self: any(w.holds for w in self.workers))
    @rule(data=st.data(), how=st.sampled_from(["result", "error", "timeout"]))
    def reply(self, data: st.DataObject, how: str) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers if w.holds]))
        number = data.draw(st.sampled_from(worker.turns()))
        self.answer(worker, number, how)

    @precondition(lambda self: any(w.seats.ahead for w in self.workers))
    @rule(data=st.data())
    def refuse_ahead(self, data: st.DataObject) -> None:
        """A worker answers with an error at once: it has no such tool, or the call's time is spent."""
        worker = data.draw(st.sampled_from([w for w in self.workers if w.seats.ahead]))
        number = data.draw(st.sampled_from(list(worker.seats.ahead)))
        self.answer(worker, number, "error")

    @precondition(lambda self: any(w.droppable() for w in self.workers))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers if w.droppable()]))
        self.answer(worker, data.draw(st.sampled_from(worker.droppable())), "error")

    @precondition(lambda self: any(w.returnable() for w in self.workers))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers if w.returnable()]))
        number = data.draw(st.sampled_from(worker.returnable()))
        request = worker.release(number)
        ended, outcome, attempt = request.phase is Phase.DONE, request.outcome, request.attempt
        self.scheduler.incarnations.returned(worker.seats, number, self.now)
        self.met["given back, nobody waits" if ended else "given back"] += 1
        if ended:
            assert request.outcome is outcome
        else:
            again = request.seats is not None
            assert request.phase is not Phase.DONE or request.outcome is Outcome.EXPIRED
            assert request.phase is Phase.DONE or min(request.deadline, request.queue_deadline) > self.now
            assert request.attempt == attempt - (not again)

    def answer(self, worker: ScriptedWorker, number: int, how: str) -> None:
        cancelled = number in worker.told_to_cancel or number in worker.withdrawn
        request = worker.release(number)
        worker.answered.append(number)
        before = request.outcome
        late = self.scheduler.ledger.totals().late_replies
        error: SnakepitError | None = None
        if how == "error":
            error = RequestCancelled("x") if cancelled else ToolError("x")
        found = self.scheduler.replied(
            worker.seats, number, self.now, result=NOTHING if error is None else None, error=error
        )
        if cancelled:
            assert found is None
            assert request.outcome is before
            assert self.scheduler.ledger.totals().late_replies == late + (error is None)
            self.met["late reply" if error is None else "confirmed"] += 1
        else:
            assert found is request
            assert request.outcome is (Outcome.FAILED if error else Outcome.COMPLETED)

    @precondition(lambda self: any(w.answered for w in self.workers))
    @rule(data=st.data())
    def reply_twice(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for w in self.workers if w.answered]))
        number = worker.answered[-1]
        before = self.scheduler.ledger.totals()
        if self.remembered.seen(number, self.now):
            assert self.scheduler.replied(worker.seats, number, self.now, result=NOTHING, error=None) is None
            assert self.scheduler.ledger.totals().late_replies == before.late_replies + 1
            self.met["a reply more, remembered"] += 1
        else:
            self.met["a reply more"] += 1
            with pytest.raises(UnexpectedReply):
                self.scheduler.replied(worker.seats, number, self.now, result=NOTHING, error=None)
            assert self.scheduler.ledger.totals() == before

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), marks=st.booleans())
    def worker_dies(self, data: st.DataObject, marks: bool) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        self.workers.remove(worker)
        unbegun = {n for n in worker.holds if n not in worker.begun} if marks else set()
        deaths = {n: r.deaths for n, r in worker.holds.items()}
        queued = {n for n, r in worker.seats.ahead.items() if r.phase is Phase.QUEUED}
        self.scheduler.incarnations.gone(worker.seats, WorkerCrashed("died"), self.now, unbegun=unbegun)
        self.scheduler.incarnations.gone(worker.seats, WorkerCrashed("died"), self.now, unbegun=unbegun)
        assert worker.seats not in self.scheduler.ledger.seats
        for number, request in worker.holds.items():
            assert request.phase is Phase.DONE or request.seats is not worker.seats
            if number not in unbegun and (request.stream or not request.idempotent):
                # It had begun, as far as is known, and may not run twice.
                assert request.phase is Phase.DONE
                self.met["ended with its worker" if not request.stream else "stream ended with its worker"] += 1
            elif request.error is not None and request.error.details.get("poison"):
                self.met["poison"] += 1
            elif request.phase is not Phase.DONE:
                self.met["runs again" if number not in unbegun else "runs elsewhere"] += 1
                if number not in queued:
                    # Its wait had ended in time once.
                    assert request.queue_deadline == math.inf
            if number in queued & unbegun and not self.closed:
                # It was never run, so it is none of its business.
                assert request.outcome in (None, Outcome.EXPIRED)
                assert request.deaths == deaths[number]

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def cordon(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        self.scheduler.incarnations.cordon(worker.seats, self.now)
        # What it has not begun is asked back.
        assert {n for n, r in worker.seats.ahead.items() if r.phase is Phase.QUEUED} <= worker.recalled

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        self.scheduler.incarnations.retire(data.draw(st.sampled_from(self.workers)).seats, self.now)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def uncordon(self, data: st.DataObject) -> None:
        self.scheduler.incarnations.uncordon(data.draw(st.sampled_from(self.workers)).seats, self.now)

    @rule()
    def sessions_end(self) -> None:
        self.bindings = {name: Binding(name, strict=name != "h") for name in "hqf"}

    @rule()
    def sessions_are_untied(self) -> None:
        """The last strict blocks leave, and others come."""
        for name in "qf":
            binding = self.bindings[name]
            pinned = [
                request for request in self.requests if request.binding is binding and request.phase is Phase.QUEUED
            ]
            self.scheduler.untie(name, binding, self.now)
            assert all(request.pin is None for request in pinned)
            self.met["untied while it waits"] += sum(request.phase is Phase.QUEUED for request in pinned)
            self.met["untied and runs"] += sum(request.phase is Phase.RUNNING for request in pinned)
            self.bindings[name] = Binding(name, strict=True)

    @precondition(lambda self: not self.closed)
    @rule()
    def close(self) -> None:
        if self.count % 7 == 0:
            self.closed = True
            self.scheduler.close(PoolClosed("closed"), self.now)
            assert self.scheduler.ledger.queued == 0

    @invariant()
    def conserved(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        t = self.scheduler.ledger.totals()
        assert t.accepted == t.completed + t.failed + t.cancelled + t.timed_out + t.in_flight + t.queued
        assert t.accepted == len(self.requests)
        assert t.rejected == self.rejected
        assert t.cancel_set_size <= 3
        assert not (self.closed and t.queued), "it waits in a closed pool"
        assert len(self.scheduler.ledger.deadlines) <= t.in_flight + t.queued

    @invariant()
    def each_has_one_end(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        final = Counter(number for event, number in self.events if event in FINAL)
        for request in self.requests:
            ended = request.phase is Phase.DONE
            assert self.woken[request.id] == ended
            assert final[request.id] == ended
            assert (request.outcome is not None) == ended

    @invariant()
    def seats_are_neither_lost_nor_shared(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for worker in self.workers:
            seats = worker.seats
            assert {**seats.running, **seats.leaving, **seats.ahead} == worker.holds
            assert len(seats.running) + len(seats.leaving) + len(seats.ahead) == len(worker.holds)
            assert set(seats.leaving) == worker.told_to_cancel
            assert seats.load <= seats.capacity
            assert len(seats.ahead) <= seats.depth
            # Nobody stands in line behind a free seat, and the line is the one that the worker knows.
            assert not seats.ahead or seats.load == seats.capacity
            assert list(seats.ahead) == list(worker.holds)[len(worker.holds) - len(seats.ahead) :]
            for number, request in seats.ahead.items():
                assert request.phase in (Phase.QUEUED, Phase.DONE)
                assert (request.phase is Phase.DONE) == (number in worker.withdrawn)
                assert not request.session
            assert all(r.phase is Phase.RUNNING for r in seats.running.values())
            # What may have ended workers runs alone, so that it is seen whether it does.
            if any(r.suspect for r in seats.running.values()):
                assert seats.alone and seats.load == 1
        waiting = [r for r in self.alive() if r.phase is Phase.QUEUED]
        assert len(waiting) == self.scheduler.ledger.queued
        running = sum(len(w.seats.running) for w in self.workers)
        assert running == self.scheduler.ledger.in_flight

    @invariant()
    def nobody_waits_while_a_seat_is_free(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for request in self.alive():
            if request.phase is Phase.QUEUED and request.seats is None:
                for worker in self.workers:
                    seats = worker.seats
                    if seats.open and seats.load < seats.capacity and not seats.alone:
                        behind = any(r.suspect and r.session == request.session for r in self.alive())
                        assert request.pin is not None or (behind and seats.load)
                        assert request.pin is not worker.seats

    @invariant()
    def nobody_waits_for_a_worker_that_takes_nothing_more(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        known = {id(worker.seats) for worker in self.workers}
        for request in self.alive():
            if request.phase is Phase.QUEUED and request.pin is not None:
                assert id(request.pin) in known
                assert not request.pin.over

    @invariant()
    def somebody_will_look_in_time(self) -> None:
        if hasattr(self, "scheduler"):
            assert self.scheduler.ledger.next_deadline() >= self.alarm - 1e-9


LedgerMachine.TestCase.settings = settings(stateful_step_count=50)
TestLedger = LedgerMachine.TestCase


def test_a_reply_to_nothing_is_a_fault_of_the_workers() -> None:
    scheduler = Scheduler(queue=RequestQueue(), cancel_set=CancelSet(10, 10.0))
    worker = ScriptedWorker(1, 1)
    scheduler.incarnations.open(worker.seats, 0.0)
    with pytest.raises(UnexpectedReply):
        scheduler.replied(worker.seats, 99, 0.0, result=NOTHING, error=None)


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_call_that_is_stopped_because_its_worker_ends_runs_again_only_if_it_may(idempotent: bool) -> None:
    scheduler = poison_ledger()
    first, second = several(scheduler, 1, 3), ScriptedWorker(2, 1)
    begun, unbegun, left = (make_request(n, "t", idempotent=idempotent) for n in (1, 2, 3))
    for request in (begun, unbegun, left):
        scheduler.submit(request, 0.0)
    scheduler.cancel(left, 0.0)
    scheduler.incarnations.retire(first.seats, 0.0)
    scheduler.incarnations.returned(first.seats, first.release(2).id, 0.0)
    error = WorkerCrashed("was asked to end")
    for number in (1, 3):
        scheduler.incarnations.stopped(first.seats, first.release(number).id, error, 0.0)
        with pytest.raises(UnexpectedReply):
            scheduler.incarnations.stopped(first.seats, number, error, 0.0)
    # What had not begun runs elsewhere in any case, as if it had never been sent.
    assert (unbegun.phase, unbegun.attempt) == (Phase.QUEUED, 0)
    assert left.outcome is Outcome.CANCELLED
    assert begun.phase is (Phase.QUEUED if idempotent else Phase.DONE)
    assert begun.outcome is (None if idempotent else Outcome.FAILED)
    assert begun.deaths == 0 and not begun.suspect
    scheduler.incarnations.gone(first.seats, error, 0.0)
    scheduler.incarnations.open(second.seats, 0.0)
    assert len(second.holds) == 1 and second.holds.keys() <= {1, 2}
    totals = scheduler.ledger.totals()
    assert totals.accepted == totals.failed + totals.cancelled + totals.in_flight + totals.queued


def several(scheduler: Scheduler, number: int, capacity: int) -> ScriptedWorker:
    worker = ScriptedWorker(number, capacity)
    scheduler.incarnations.open(worker.seats, 0.0)
    return worker


def poison_ledger() -> Scheduler:
    return Scheduler(queue=RequestQueue(), cancel_set=CancelSet(10, 10.0), poison_limit=2)


def test_a_call_is_not_blamed_for_what_its_neighbours_do() -> None:
    scheduler = poison_ledger()
    innocent = make_request(1, "t", idempotent=True)
    for turn in range(2):
        worker = several(scheduler, turn, 4)
        if not turn:
            scheduler.submit(innocent, 0.0)
        neighbour = make_request(10 + turn, "die")
        scheduler.submit(neighbour, 0.0)
        assert worker.holds.keys() == {1, 10 + turn}
        scheduler.incarnations.gone(worker.seats, WorkerCrashed("died"), 0.0)
        assert neighbour.outcome is Outcome.FAILED
    assert innocent.phase is Phase.QUEUED and innocent.deaths == 0


def test_a_call_is_not_blamed_for_what_an_operator_does() -> None:
    scheduler = poison_ledger()
    request = make_request(1, "t", idempotent=True)
    scheduler.submit(request, 0.0)
    for turn in range(5):
        scheduler.incarnations.gone(several(scheduler, turn, 1).seats, WorkerCrashed("killed"), 0.0, blamed=False)
    assert request.phase is Phase.QUEUED and request.deaths == 0


def test_a_poisonous_call_beside_others_is_found_and_they_are_not_blamed() -> None:
    """It kills whatever runs it; eight others, which may run again, run beside it in workers of four seats."""
    scheduler = poison_ledger()
    requests = [make_request(n, "t", idempotent=True) for n in range(9)]
    poison = requests[4]
    workers = [several(scheduler, n, 4) for n in range(2)]
    for request in requests:
        scheduler.submit(request, 0.0)
    deaths = 0
    while poison.phase is not Phase.DONE:
        worker = next((w for w in workers if poison.id in w.holds), None)
        if worker is None:
            # It waits for a worker of its own: another call ends.
            worker = next(w for w in workers if w.seats.alone)
            number = next(iter(worker.holds))
            worker.release(number)
            scheduler.replied(worker.seats, number, 0.0, result=NOTHING, error=None)
            continue
        workers.remove(worker)
        scheduler.incarnations.gone(worker.seats, WorkerCrashed("died"), 0.0)
        deaths += 1
        assert deaths < 20
        workers.append(several(scheduler, 10 + deaths, 4))
    assert poison.error is not None and poison.error.details["poison"]
    while (worker := next((w for w in workers if w.holds), None)) is not None:
        number = next(iter(worker.holds))
        worker.release(number)
        scheduler.replied(worker.seats, number, 0.0, result=NOTHING, error=None)
    assert all(request.outcome is Outcome.COMPLETED for request in requests if request is not poison)


def test_the_first_calls_of_a_session_go_to_one_worker() -> None:
    scheduler = Scheduler(queue=RequestQueue(), cancel_set=CancelSet(10, 10.0))
    workers = [ScriptedWorker(n, 2) for n in range(2)]
    for worker in workers:
        scheduler.incarnations.open(worker.seats, 0.0)
    binding = Binding("s", strict=True)
    for number in range(2):
        scheduler.submit(make_request(number, "t", binding=binding), 0.0)
    assert sorted(len(worker.holds) for worker in workers) == [0, 2]


class Draws:
    """Stands where hypothesis gives its data, for walks from a seed."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def draw(self, strategy: Any) -> Any:
        return self.rng.choice(list(strategy.elements))


STEPS = [
    "come",
    "submit",
    "submit",
    "submit",
    "submit",
    "cancel",
    "time",
    "time",
    "begin",
    "begin",
    "begin",
    "reply",
    "reply",
    "reply",
    "again",
    "die",
    "cordon",
    "drop",
    "give_back",
    "give_back",
    "refuse",
]


def walk(seed: int, steps: int) -> LedgerMachine:
    """A random history from a seed. Hypothesis looks for short ones in odd corners, this for long ones in the middle."""
    rng = random.Random(seed)
    machine = LedgerMachine()
    machine.begin(limit=rng.choice([0, 2, 5, 5, None, None]), poison=rng.choice([1, 2, None]))
    data: Any = Draws(rng)
    # In every other history calls are quick and workers have lines.
    quick = rng.random() < 0.5
    spans = [0.0, 0.0, 0.001, 0.001, 0.005, PATIENCE] if quick else [0.0, 0.001, 0.005, PATIENCE, 0.3, 1.0, 6.0]
    for _ in range(steps):
        step = rng.choice(STEPS)
        for worker in [worker for worker in machine.workers if worker.seats.over and not worker.holds]:
            # It has drained, and makes room for another.
            machine.workers.remove(worker)
            machine.scheduler.incarnations.gone(worker.seats, WorkerCrashed("stopped"), machine.now)
        if sum(worker.seats.open for worker in machine.workers) < 2 and len(machine.workers) < 4 and rng.random() < 0.5:
            step = "come"
        if step == "come":
            machine.worker_comes(1 if quick else rng.choice([1, 1, 2, 3]), 3 if quick else rng.choice([0, 1, 3]))
        elif step == "submit":
            session = rng.choice([None, None, None, None, "h", "q"] if quick else [None, None, "h", "q", "f"])
            machine.submit(
                rng.choice([1.0, 3.0, math.inf]), rng.choice([0.5, 2.0, math.inf]), rng.randint(-1, 1), session,
                rng.random() < 0.5, rng.choice([None, None, 2.0]), rng.random() < (0.1 if quick else 0.3),
            )  # fmt: skip
        elif step == "cancel" and machine.requests:
            asked_back = [r for w in machine.workers for r in w.seats.ahead.values() if r.id in w.recalled]
            if asked_back and rng.random() < 0.5:
                machine.scheduler.cancel(rng.choice(asked_back), machine.now)
            else:
                machine.cancel(data)
        elif step == "time":
            machine.time_passes(rng.choice(spans))
        elif step == "begin" and any(w.holds for w in machine.workers):
            machine.begin_call(data)
        elif step == "drop" and any(w.droppable() for w in machine.workers):
            machine.drop(data)
        elif step == "give_back" and any(w.returnable() for w in machine.workers):
            machine.give_back(data)
        elif step == "refuse" and any(w.seats.ahead for w in machine.workers) and rng.random() < 0.2:
            machine.refuse_ahead(data)
        elif step == "reply" and any(w.holds for w in machine.workers):
            machine.reply(data, rng.choice(["result", "error", "timeout"]))
        elif step == "again" and any(w.answered for w in machine.workers):
            machine.reply_twice(data)
        elif step == "die" and machine.workers and rng.random() < 0.5:
            machine.worker_dies(data, rng.random() < 0.7)
        elif step == "cordon" and machine.workers:
            rng.choice([machine.cordon, machine.cordon, machine.uncordon, machine.uncordon, machine.retire])(data)
            if rng.random() < 0.2:
                machine.sessions_end()
            elif rng.random() < 0.3:
                machine.sessions_are_untied()
        machine.conserved()
        machine.each_has_one_end()
        machine.seats_are_neither_lost_nor_shared()
        machine.nobody_waits_while_a_seat_is_free()
        machine.nobody_waits_for_a_worker_that_takes_nothing_more()
        machine.somebody_will_look_in_time()
    return machine


#: What each block of walks comes to.
MET = (
    "runs at once", "waits in a queue", "waits in a line", "waits in a lane of a worker", "refused: queue_full",
    "refused: worker_busy", "cancelled: QUEUED", "cancelled: RUNNING", "cancelled: DONE", "given back",
    "given back, nobody waits", "late reply", "confirmed", "a reply more", "a reply more, remembered", "runs again",
    "runs elsewhere", "ended with its worker", "stream ended with its worker", "poison",
    "untied while it waits", "untied and runs",
)  # fmt: skip


@pytest.mark.parametrize("block", range(2))
def test_walks(block: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(block * 200, block * 200 + 200):
        machine = walk(seed, 80)
        seen.update(event for event, _ in machine.events)
        machine.scheduler.close(PoolClosed("closed"), machine.now)
        machine.scheduler.abort(PoolClosed("closed"), machine.now)
        machine.conserved()
        assert machine.scheduler.ledger.in_flight == machine.scheduler.ledger.queued == 0
        seen.update(machine.met)
    assert {"queued", "dispatched", *(outcome.value for outcome in Outcome)} <= set(seen)
    assert not [outcome for outcome in MET if not seen[outcome]], seen


def line_of_two(told: list[float]) -> tuple[Scheduler, ScriptedWorker, Callable[..., Request]]:
    """A worker with a call that runs and one that may wait behind it, and a function that submits."""
    scheduler = Scheduler(queue=RequestQueue(), cancel_set=CancelSet(10, 5.0), on_due=told.append)
    worker = ScriptedWorker(1, 1, depth=1)
    scheduler.incarnations.open(worker.seats, 0.0)

    def submit(number: int, now: float, **options: Any) -> Request:
        request = make_request(number, "t", **options)
        scheduler.submit(request, now)
        return request

    submit(1, 0.0)
    scheduler.replied(worker.seats, worker.release(1).id, 0.0, result=NOTHING, error=None)
    return scheduler, worker, submit


def test_the_clock_is_told_of_an_id_that_is_to_be_forgotten() -> None:
    told: list[float] = []
    scheduler, worker, submit = line_of_two(told)
    runs, waits = submit(2, 0.0), submit(3, 0.0)
    assert worker.seats.ahead == {3: waits}
    scheduler.cancel(waits, 1.0)
    assert min(told) == scheduler.ledger.next_deadline() == 6.0
    told.clear()
    scheduler.expire(7.0)
    scheduler.cancel(runs, 8.0)
    assert min(told) == scheduler.ledger.next_deadline() == 13.0


def test_the_clock_is_told_of_a_call_that_is_given_back_and_waits_again() -> None:
    told: list[float] = []
    scheduler, worker, submit = line_of_two(told)
    back = submit(2, 0.0, queue_deadline=0.5)
    scheduler.incarnations.cordon(worker.seats, 0.0)
    assert back.phase is Phase.RUNNING and scheduler.ledger.next_deadline() == math.inf
    told.clear()
    scheduler.incarnations.returned(worker.seats, worker.release(2).id, 0.4)
    assert back.phase is Phase.QUEUED and min(told) == 0.5
    scheduler.expire(0.502)
    assert isinstance(back.error, QueueTimeout)


@pytest.mark.parametrize("limits", [{"queue_deadline": 0.5}, {"deadline": 0.6995}])
def test_a_call_that_is_given_back_when_its_time_is_spent_ends_at_once(limits: dict[str, float]) -> None:
    """It was given to a free worker, which has not begun it: it has waited all the time."""
    scheduler, worker, submit = line_of_two([])
    back = submit(2, 0.0, **limits)
    scheduler.incarnations.cordon(worker.seats, 0.0)
    scheduler.expire(0.6)
    assert back.phase is Phase.RUNNING
    scheduler.incarnations.returned(worker.seats, worker.release(2).id, 0.7)
    assert back.outcome is Outcome.EXPIRED and back.attempt == 0
    assert isinstance(back.error, QueueTimeout if "queue_deadline" in limits else RequestTimeout)
    assert back.error.retryable == ("queue_deadline" in limits)
    assert scheduler.ledger.queued == scheduler.ledger.in_flight == len(scheduler.ledger.deadlines) == 0


def test_a_call_that_is_given_back_after_it_should_have_begun_ends_at_once() -> None:
    scheduler, worker, submit = line_of_two([])
    submit(2, 0.0)
    back = submit(3, 0.0, queue_deadline=0.5)
    scheduler.incarnations.cordon(worker.seats, 0.0)
    assert worker.recalled == {3}
    # As far as is known here it has begun in time.
    scheduler.replied(worker.seats, worker.release(2).id, 0.4, result=NOTHING, error=None)
    assert back.phase is Phase.RUNNING
    scheduler.expire(0.6)
    assert scheduler.ledger.next_deadline() == math.inf
    scheduler.incarnations.returned(worker.seats, worker.release(3).id, 0.7)
    assert back.outcome is Outcome.EXPIRED


def test_the_clock_is_told_when_a_line_is_to_be_looked_at() -> None:
    told: list[float] = []
    scheduler, worker, submit = line_of_two(told)
    submit(2, 1.0)
    submit(3, 1.0)
    assert worker.seats.ahead
    scheduler.incarnations.open(ScriptedWorker(2, 1).seats, 1.001)
    assert min(told) == scheduler.ledger.next_deadline() == 1.0 + PATIENCE


def test_calls_of_a_session_that_does_not_wait_are_refused_when_its_worker_is_found_busy() -> None:
    scheduler = Scheduler(queue=RequestQueue(), cancel_set=CancelSet(10, 10.0))
    binding = Binding("s", strict=True)
    made = [make_request(n, "t", binding=binding) for n in range(3)]
    for request in made:
        request.fail_fast = True
        scheduler.submit(request, 0.0)
    # A block of the session that waits has made this one.
    patient = make_request(9, "t", binding=binding)
    scheduler.submit(patient, 0.0)
    # They were made when no worker was chosen yet.
    scheduler.incarnations.open(ScriptedWorker(1, 2).seats, 1.0)
    assert [request.phase for request in made] == [Phase.RUNNING, Phase.RUNNING, Phase.DONE]
    assert made[2].error is not None and made[2].error.code == "worker_busy"
    assert patient.phase is Phase.QUEUED


def test_what_a_request_would_wait_for_is_what_goes_before_it() -> None:
    """Those of lower priority do not, nor do streams tell how long a call takes."""
    scheduler = Scheduler(queue=RequestQueue(), cancel_set=CancelSet(10, 10.0), reject_hopeless=True)
    worker = several(scheduler, 1, 1)

    def call(number: int, **options: Any) -> Request:
        request = make_request(number, "t", **options)
        scheduler.submit(request, 0.0)
        return request

    call(1, stream=True)
    worker.release(1)
    scheduler.replied(worker.seats, 1, 50.0, result=NOTHING, error=None)
    assert scheduler.ledger.placement.service_time == 0.0
    call(2)
    worker.release(2)
    scheduler.replied(worker.seats, 2, 1.0, result=NOTHING, error=None)
    assert scheduler.ledger.placement.service_time == 1.0
    for number in range(3, 9):
        call(number)
    with pytest.raises(QueueTimeout) as caught:
        call(20, deadline=4.0)
    assert caught.value.details["expected_wait"] == 6.0
    assert call(21, deadline=4.0, priority=1).phase is Phase.QUEUED


def test_calls_of_a_tool_that_has_ended_a_worker_stand_in_no_line_for_a_while() -> None:
    scheduler = Scheduler(queue=RequestQueue(), cancel_set=CancelSet(10, 10.0))
    worker = ScriptedWorker(1, 1, depth=4)
    scheduler.incarnations.open(worker.seats, 0.0)
    numbers = iter(range(1, 10_000))

    def call() -> int:
        number = next(numbers)
        scheduler.submit(make_request(number, "t"), 0.0)
        return number

    def run() -> None:
        number = call()
        worker.release(number)
        scheduler.replied(worker.seats, number, 0.0, result=NOTHING, error=None)

    run()
    assert scheduler.ledger.placement.is_short("t")
    call(), call()
    assert len(worker.holds) == 2
    scheduler.incarnations.gone(worker.seats, WorkerCrashed("died"), 0.0, unbegun={3})
    worker = ScriptedWorker(2, 1, depth=4)
    scheduler.incarnations.open(worker.seats, 0.0)
    # The one that had not begun runs there, and nobody stands behind it.
    waits = call()
    assert list(worker.holds) == [3] and not scheduler.ledger.placement.is_short("t")
    for number in (3, waits):
        worker.release(number)
        scheduler.replied(worker.seats, number, 0.0, result=NOTHING, error=None)
    for _ in range(998):
        run()
    assert scheduler.ledger.placement.is_short("t")


def test_a_wait_in_a_line_that_was_too_long_is_not_to_be_tried_again() -> None:
    """The worker may have begun the call a moment before it hears that nobody waits for it."""
    scheduler = Scheduler(queue=RequestQueue(), cancel_set=CancelSet(10, 10.0))
    worker = ScriptedWorker(1, 1, depth=1)
    scheduler.incarnations.open(worker.seats, 0.0)
    first = make_request(1, "t")
    scheduler.submit(first, 0.0)
    worker.release(1)
    scheduler.replied(worker.seats, 1, 0.0, result=NOTHING, error=None)
    requests = [make_request(n, "t", queue_deadline=1.0) for n in (2, 3, 4)]
    for request in requests:
        scheduler.submit(request, 0.0)
    assert [request.seats is None for request in requests] == [False, False, True]
    scheduler.expire(2.0)
    line, queue = requests[1].error, requests[2].error
    assert isinstance(line, QueueTimeout) and not line.retryable
    assert isinstance(queue, QueueTimeout) and queue.retryable


def test_a_call_that_is_given_back_to_a_closed_pool_ends() -> None:
    """It was taken to run when the pool closed, and its worker, which was asked to end, had not begun it."""
    scheduler = poison_ledger()
    worker, request = several(scheduler, 1, 1), make_request(1, "t")
    scheduler.submit(request, 0.0)
    scheduler.close(PoolClosed("closed"), 1.0)
    assert request.phase is Phase.RUNNING
    scheduler.incarnations.returned(worker.seats, worker.release(1).id, 2.0)
    assert isinstance(request.error, PoolClosed) and scheduler.ledger.queued == scheduler.ledger.in_flight == 0


def test_a_call_that_is_given_back_while_no_worker_can_start_is_told_so() -> None:
    scheduler = poison_ledger()
    worker, request = several(scheduler, 1, 1), make_request(1, "t")
    scheduler.submit(request, 0.0)
    scheduler.incarnations.retire(worker.seats, 1.0)
    scheduler.incarnations.fail_all(WorkerStartupError("no worker starts"), 9.0, 1.0)
    scheduler.incarnations.returned(worker.seats, worker.release(1).id, 2.0)
    assert isinstance(request.error, WorkerStartupError) and request.error.details["retry_after"] == 7.0
    assert scheduler.ledger.queued == scheduler.ledger.in_flight == 0
