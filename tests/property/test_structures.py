"""The pool's queue, deadlines and cancel set against simple models."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snakepit_trio.errors import QueueFull
from snakepit_trio.pool.scheduling.expiry import GRAIN, CancelSet, DeadlineWheel
from snakepit_trio.pool.scheduling.queue import RequestQueue


class Entry:
    """What waits."""

    def __init__(
        self,
        number: int,
        priority: int = 0,
        session: str | None = None,
        pin: str | None = None,
        client: str | None = None,
    ) -> None:
        self.number = number
        self.priority = priority
        self.session = session
        self.fairness_key = session
        self.pin = pin
        self.client = client
        self.binding: Any = None
        self.queue_node: Any = None
        self.deadline_node: Any = None
        self.arrival = 0.0

    def __repr__(self) -> str:
        return f"<{self.number} p{self.priority} {self.session} {self.pin}>"


class QueueMachine(RuleBasedStateMachine):
    """The model is a list in the order of arrival; the next is found by looking at all of it."""

    @initialize(limit=st.none() | st.integers(0, 6), aging=st.none() | st.sampled_from([1.0, 10.0]))
    def begin(self, limit: int | None, aging: float | None) -> None:
        self.limit, self.aging = limit, aging
        self.queue: RequestQueue[Entry] = RequestQueue(max_queue=limit, aging=aging)
        self.model: list[Entry] = []
        self.now = 0.0
        self.count = 0
        self.popped: list[Entry] = []

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        priority=st.integers(-2, 2),
        session=st.none() | st.sampled_from(["s", "t"]),
        pin=st.none() | st.sampled_from(["a", "b"]),
        client=st.none() | st.sampled_from(["c", "d"]),
    )
    def push(self, priority: int, session: str | None, pin: str | None, client: str | None) -> None:
        entry = Entry(self.count, priority, session, pin, client)
        if self.limit is not None:
            left = self.limit - len(self.model)
            its = sum(e.client == client for e in self.model)
            # With itself, a client has no more than it leaves.
            if left <= 0 or (client is not None and self.limit > 1 and its + 1 > left - 1):
                with pytest.raises(QueueFull):
                    self.queue.push(entry, self.now)
                return
        self.count += 1
        entry.arrival = self.now
        self.queue.push(entry, self.now)
        self.model.append(entry)

    def expected(self, worker: str) -> Entry | None:
        may = [e for e in self.model if e.pin in (None, worker)]
        if not may:
            return None
        age = (lambda e: e.arrival / self.aging) if self.aging else (lambda e: 0.0)
        best = min(may, key=lambda e: (age(e) - e.priority, e.number))
        if best.session is not None:
            eldest = next(e for e in self.model if e.session == best.session)
            if eldest.pin in (None, worker):
                return eldest
        return best

    @rule(worker=st.sampled_from(["a", "b", "c"]))
    def pop(self, worker: str) -> None:
        wanted = self.expected(worker)
        found = self.queue.pop(self.now, worker)
        assert found is wanted
        if found is not None:
            self.model.remove(found)
            self.popped.append(found)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.model))
        assert self.queue.discard(entry)
        assert not self.queue.discard(entry)
        self.model.remove(entry)

    @precondition(lambda self: self.popped)
    @rule()
    def discard_what_is_gone(self) -> None:
        assert not self.queue.discard(self.popped[-1])

    @rule(pin=st.sampled_from(["a", "b"]))
    def drop_pin(self, pin: str) -> None:
        wanted = [e for e in self.model if e.pin == pin]
        assert self.queue.drop_pin(pin) == wanted
        self.model = [e for e in self.model if e.pin != pin]

    @invariant()
    def the_same_entries_wait(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.model)
            assert sorted(e.number for e in self.queue) == sorted(e.number for e in self.model)


class WheelMachine(RuleBasedStateMachine):
    """The model is a dictionary of deadlines."""

    def __init__(self) -> None:
        super().__init__()
        self.wheel: DeadlineWheel[Entry] = DeadlineWheel()
        self.model: dict[Entry, float] = {}
        self.now = 0.0
        self.count = 0

    @rule(delay=st.floats(0, 5) | st.just(math.inf) | st.sampled_from([0.001, 0.0015, 300.0]))
    def add(self, delay: float) -> None:
        entry = Entry(self.count)
        self.count += 1
        self.wheel.add(entry, self.now + delay)
        if delay != math.inf:
            self.model[entry] = self.now + delay

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(list(self.model)))
        self.wheel.remove(entry)
        self.wheel.remove(entry)
        del self.model[entry]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), delay=st.floats(0, 5))
    def move(self, data: st.DataObject, delay: float) -> None:
        entry = data.draw(st.sampled_from(list(self.model)))
        self.wheel.move(entry, self.now + delay)
        self.model[entry] = self.now + delay

    @rule(seconds=st.floats(0, 3))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        expired = self.wheel.expire(self.now)
        deadlines = [self.model.pop(entry) for entry in expired]
        assert deadlines == sorted(deadlines)
        assert all(deadline <= self.now for deadline in deadlines)
        assert all(deadline > self.now - 2 * GRAIN for deadline in self.model.values())

    @invariant()
    def the_next_deadline_is_right_within_the_grain(self) -> None:
        assert len(self.wheel) == len(self.model)
        earliest = min(self.model.values(), default=math.inf)
        found = self.wheel.next_deadline()
        if earliest == math.inf:
            assert found == math.inf
        else:
            assert earliest - 1e-9 <= found <= earliest + GRAIN + 1e-9
        assert len(self.wheel._keys) <= 2 * len(self.wheel._buckets) + 65


class CancelSetMachine(RuleBasedStateMachine):
    """The model is a list of pairs, oldest first."""

    @initialize(capacity=st.integers(0, 4), ttl=st.sampled_from([0.0, 1.0, 5.0]))
    def begin(self, capacity: int, ttl: float) -> None:
        self.capacity, self.ttl = capacity, ttl
        self.set = CancelSet(capacity, ttl)
        self.model: list[tuple[int, float]] = []
        self.now = 0.0

    @rule(id=st.integers(0, 6))
    def add(self, id: int) -> None:
        self.set.add(id, self.now)
        self.model = [pair for pair in self.model if pair[0] != id]
        self.model.append((id, self.now + self.ttl))
        self.model = self.model[max(0, len(self.model) - self.capacity) :]

    @rule(id=st.integers(0, 6))
    def look(self, id: int) -> None:
        assert self.set.seen(id, self.now) == any(i == id and e > self.now for i, e in self.model)

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        old = [pair for pair in self.model if pair[1] <= self.now]
        assert self.set.expire(self.now) == len(old)
        self.model = [pair for pair in self.model if pair[1] > self.now]

    @rule(id=st.integers(0, 6))
    def discard(self, id: int) -> None:
        assert self.set.discard(id) == any(i == id for i, _ in self.model)
        self.model = [pair for pair in self.model if pair[0] != id]

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "set"):
            assert len(self.set) == len(self.model) <= self.capacity
            assert self.set.next_expiry() == (self.model[0][1] if self.model else math.inf)


for machine in (QueueMachine, WheelMachine, CancelSetMachine):
    machine.TestCase.settings = settings(stateful_step_count=40)
TestQueue = QueueMachine.TestCase
TestWheel = WheelMachine.TestCase
TestCancelSet = CancelSetMachine.TestCase


def test_shares_take_turns() -> None:
    queue: RequestQueue[Entry] = RequestQueue(fair=True)
    for number in range(6):
        queue.push(Entry(number, session="greedy"), 0.0)
    queue.push(Entry(6, session="modest"), 0.0)
    order = [queue.pop(0.0).number for _ in range(7)]  # type: ignore[union-attr]
    assert order == [0, 6, 1, 2, 3, 4, 5]


def test_what_is_put_back_keeps_its_place() -> None:
    queue: RequestQueue[Entry] = RequestQueue(max_queue=2)
    first, second, third = Entry(0), Entry(1), Entry(2)
    queue.push(first, 0.0)
    queue.push(second, 1.0)
    assert queue.pop(2.0) is first
    queue.push(third, 3.0)
    queue.push_front(first, 4.0)
    assert [queue.pop(5.0) for _ in range(3)] == [first, second, third]


def test_dead_places_are_dropped() -> None:
    queue: RequestQueue[Entry] = RequestQueue()
    keeper = Entry(-1, session="s")
    queue.push(keeper, 0.0)
    for number in range(10_000):
        entry = Entry(number, session="s")
        queue.push(entry, 0.0)
        queue.discard(entry)
    places = sum(len(places) for level in queue._any.levels.values() for places in level.shares.values())
    assert places < 200
    assert len(queue._sessions["s"]) < 200


class _Walk:
    """A seeded walk over a queue that is neither empty nor full for long: whatever is asked of it finds something."""

    def __init__(self, seed: int, *, fair: bool) -> None:
        self.rng = random.Random(seed)
        self.fair = fair
        self.aging = None if fair else self.rng.choice([None, 1.0])
        self.queue: RequestQueue[Entry] = RequestQueue(aging=self.aging, fair=fair)
        self.model: list[Entry] = []
        self.taken: list[Entry] = []
        self.bindings = {session: object() for session in "stuv"}
        self.pins: dict[str, str] = {}
        self.now = 0.0
        self.count = 0
        self.seen: Counter[str] = Counter()
        #: By share and priority: who has been served since, of those that waited when it was served last.
        self.waits_for: dict[tuple[str | None, int], set[str | None]] = {}

    def step(self) -> None:
        self.now += self.rng.choice([0.0, 0.1, 2.0])
        wanted = "push" if len(self.model) < 5 else "pop" if len(self.model) > 40 else None
        kind = wanted or self.rng.choices(["push", "pop", "discard", "pin", "drop_pin", "back"], [10, 8, 2, 1, 1, 2])[0]
        getattr(self, kind)()
        assert len(self.queue) == len(self.model)
        for (_, priority), shares in self.waits_for.items():
            # Who has left and comes again has his turn after those who stayed.
            shares &= {entry.fairness_key for entry in self.model if entry.priority == priority}
        free = [entry for entry in self.model if entry.pin is None]
        assert self.queue.oldest_arrival() == min((entry.arrival for entry in free), default=math.inf)

    def push(self) -> None:
        session = self.rng.choice([None, *self.bindings])
        entry = Entry(self.count, self.rng.choice([0, 0, 1]), session, self.pins.get(session or ""))
        entry.binding = self.bindings.get(session or "")
        entry.arrival = self.now
        self.count += 1
        self.queue.push(entry, self.now)
        self.model.append(entry)
        self.seen["pinned push" if entry.pin else "push"] += 1

    def pop(self) -> None:
        worker = self.rng.choice(["a", "b"])
        may = [entry for entry in self.model if entry.pin in (None, worker)]
        found = self.queue.pop(self.now, worker)
        if found is None:
            assert not may
            return
        assert found in may
        sisters = [entry for entry in may if entry.session is not None and entry.session == found.session]
        eldest = next((e for e in self.model if e.session == found.session), found) if found.session else found
        if sisters and eldest.pin in (None, worker):
            assert found is eldest, "overtaken in its session"
        same = [entry for entry in may if entry.priority == found.priority and entry.fairness_key == found.fairness_key]
        if not found.session:
            assert found is same[0], "overtaken in its priority"
        if self.fair:
            self.check_turn(found, may)
        else:
            best = min(may, key=lambda e: ((e.arrival / self.aging if self.aging else 0.0) - e.priority, e.number))
            assert found is best or (best.session is not None and found.session == best.session)
        self.model.remove(found)
        self.taken.append(found)
        self.seen["pinned pop" if found.pin else "pop"] += 1

    def check_turn(self, found: Entry, may: list[Entry]) -> None:
        """Whoever waited already when a share was served is served before it is again, if this worker may run it."""
        most = max(entry.priority for entry in may)
        if found.priority != most or any(e.priority != most for e in may if e.session == found.session):
            # An older sister of another priority may have taken its turn.
            self.waits_for.pop((found.fairness_key, most), None)
            for shares in self.waits_for.values():
                shares.discard(found.fairness_key)
            return
        waiting = {entry.fairness_key for entry in may if entry.priority == most}
        owed = self.waits_for.pop((found.fairness_key, most), set()) & waiting
        assert not owed, f"{found.fairness_key} again before {owed}"
        for shares in self.waits_for.values():
            shares.discard(found.fairness_key)
        self.waits_for[found.fairness_key, most] = waiting - {found.fairness_key}
        self.seen["turn" if len(waiting) > 1 else "alone"] += 1

    def discard(self) -> None:
        entry = self.rng.choice(self.model)
        assert self.queue.discard(entry)
        self.model.remove(entry)

    def pin(self) -> None:
        session, worker = self.rng.choice(list(self.bindings)), self.rng.choice(["a", "b"])
        wanted = [entry for entry in self.model if entry.session == session]
        assert self.queue.pin(session, self.bindings[session], worker) == wanted
        for entry in wanted:
            assert entry.pin == worker
        self.pins[session] = worker
        self.seen["pin"] += bool(wanted)

    def drop_pin(self) -> None:
        worker = self.rng.choice(["a", "b"])
        wanted = [entry for entry in self.model if entry.pin == worker]
        assert self.queue.drop_pin(worker) == wanted
        self.model = [entry for entry in self.model if entry.pin != worker]
        self.pins = {session: pin for session, pin in self.pins.items() if pin != worker}
        self.seen["drop"] += bool(wanted)

    def back(self) -> None:
        if self.taken:
            entry = self.taken.pop(self.rng.randrange(len(self.taken)))
            entry.pin = None if entry.session is None else self.pins.get(entry.session)
            self.queue.push_front(entry, self.now)
            self.model.append(entry)
            self.model.sort(key=lambda e: e.number)
            # It is served again: what was owed before does not count.
            self.waits_for.clear()
            self.seen["back"] += 1


@pytest.mark.parametrize("fair", [False, True])
def test_the_queue_against_a_list(fair: bool) -> None:
    seen: Counter[str] = Counter()
    for seed in range(40):
        walk = _Walk(seed, fair=fair)
        for _ in range(250):
            walk.step()
        while walk.model:
            walk.pop()
        seen += walk.seen
    # It never came to what it did not meet.
    for kind in ("push", "pinned push", "pop", "pinned pop", "pin", "drop", "back", *(["turn"] if fair else [])):
        assert seen[kind] > 50, (kind, seen)


def test_sessions_take_turns_whatever_ties_them_to_a_worker() -> None:
    queue: RequestQueue[Entry] = RequestQueue(fair=True)
    for number in range(6):
        queue.push(Entry(number, session="greedy"), 0.0)
    queue.push(Entry(6, session="tied", pin="a"), 0.0)
    order = [queue.pop(0.0, "a").number for _ in range(7)]  # type: ignore[union-attr]
    assert order == [0, 6, 1, 2, 3, 4, 5]


def test_the_wheel_against_a_dictionary_in_the_middle() -> None:
    """Walks from seeds over a wheel that is never empty for long, so that whatever is asked of it finds something."""
    met: Counter[str] = Counter()
    for seed in range(20):
        rng, machine = random.Random(seed), WheelMachine()
        for _ in range(150):
            before = len(machine.model)
            step = "add" if before < 3 else rng.choice(["add", "add", "remove", "move", "move", "expire"])
            data: Any = Drawn(rng)
            if step == "add":
                machine.add(rng.choice([0.0, 0.001, 0.0015, 0.5, 5.0, 300.0, math.inf]))
            elif step == "expire":
                machine.expire(rng.choice([0.0, 0.0005, 0.001, 0.3, 2.0]))
                met["expired" if len(machine.model) < before else "none is due"] += 1
            elif step == "move":
                machine.move(data, rng.choice([0.0, 0.001, 1.0, 300.0]))
            else:
                machine.remove(data)
            met[step] += 1
            met["never"] += step == "add" and len(machine.wheel) == before
            machine.the_next_deadline_is_right_within_the_grain()
    for what in ("add", "remove", "move", "expire", "expired", "none is due", "never"):
        assert met[what] >= 10, met


def test_the_cancel_set_against_a_list_in_the_middle() -> None:
    met: Counter[str] = Counter()
    for seed in range(30):
        rng, machine = random.Random(seed), CancelSetMachine()
        machine.begin(rng.choice([0, 1, 4, 4]), rng.choice([0.0, 1.0, 5.0]))
        for _ in range(80):
            known = [id for id, _ in machine.model]
            id = rng.choice(known) if known and rng.random() < 0.6 else rng.randrange(7)
            step, before = rng.choice(["add", "add", "look", "expire", "discard"]), len(known)
            if step == "expire":
                machine.expire(rng.choice([0.0, 0.5, 2.0]))
            else:
                getattr(machine, step)(id)
            met[f"{step}: {'known' if id in known else 'unknown'}" if step != "expire" else "expire"] += 1
            met["expired"] += step == "expire" and len(machine.model) < before
            met["the oldest goes"] += step == "add" and id not in known and before == machine.capacity > 0
            machine.bounded()
    for what in (
        "add: known", "add: unknown", "look: known", "look: unknown", "discard: known", "discard: unknown", "expired",
        "the oldest goes",
    ):  # fmt: skip
        assert met[what] >= 10, met


class Drawn:
    """Stands where hypothesis gives its data."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def draw(self, strategy: Any) -> Any:
        return self.rng.choice(list(strategy.elements))


def test_a_queue_that_is_filled_again_keeps_the_places_and_the_ages() -> None:
    queue: RequestQueue[Entry] = RequestQueue(aging=10.0)
    old, young, urgent = Entry(0), Entry(1), Entry(2, priority=1)
    for entry, now in ((old, 5.0), (young, 12.0), (urgent, 14.0)):
        queue.push(entry, now)
    gone = Entry(3)
    queue.push(gone, 14.0)
    queue.refill([urgent, young, old])
    assert queue.live == 3 and queue.oldest_arrival() == 5.0
    # Of a priority more, but younger by less than a class of age than the oldest is old: nine seconds are not ten.
    assert [queue.pop(20.0) for _ in range(4)] == [urgent, old, young, None]
    stranger = Entry(4)
    queue.refill([stranger])
    assert queue.oldest_arrival() == -math.inf
