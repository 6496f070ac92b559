"""Nested calls in pools of a few seats: a wait is refused when it would never end, and only then."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container
from copy import deepcopy

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from snakepit_trio.errors import WouldDeadlock
from snakepit_trio.tools.waits import DEEPEST, Waits, check_depth

POOLS = 2


class Call:
    """A request of one pool."""

    def __init__(self, number: int, pool: int, parent: Call | None, permit: bool = False) -> None:
        self.number = number
        #: It holds a permit, which makes it a waiter; nobody waits for that.
        self.permit = permit
        self.pool = pool
        self.parent = parent
        self.running = False
        self.over = False
        self.waits_for: Call | None = None

    @property
    def chain(self) -> tuple[Call, ...]:
        waits = () if self.parent is None else (*self.parent.chain, self.parent)
        return (*waits, ("permit", self.number)) if self.permit else waits  # type: ignore[return-value]


class System:
    """Pools with seats, and queues before them."""

    def __init__(self) -> None:
        self.capacity = [1, 2]
        self.running: list[list[Call]] = [[] for _ in range(POOLS)]
        self.queue: list[list[Call]] = [[] for _ in range(POOLS)]

    def fill(self, pool: int) -> list[Call]:
        begun = []
        while self.queue[pool] and len(self.running[pool]) < self.capacity[pool]:
            call = self.queue[pool].pop(0)
            call.running = True
            self.running[pool].append(call)
            begun.append(call)
        return begun

    def finish(self, call: Call) -> list[Call]:
        self.running[call.pool].remove(call)
        call.running, call.over = False, True
        if call.parent is not None and call.parent.waits_for is call:
            call.parent.waits_for = None
        return self.fill(call.pool)

    def free(self) -> list[Call]:
        return [call for calls in self.running for call in calls if call.waits_for is None]

    def comes_to_an_end(self) -> bool:
        """Whether all calls end when each that waits for nothing does."""
        trial = deepcopy(self)
        while free := trial.free():
            trial.finish(free[0])
        return not any(trial.running)


class WaitsMachine(RuleBasedStateMachine):
    """Invariant: whatever is let in comes to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.system = System()
        self.waits = Waits()
        self.count = 0
        self.refused = 0
        self.calls: list[Call] = []

    def hopeless(self, call: Call, blocked: Container[object]) -> bool:
        running, capacity = self.system.running[call.pool], self.system.capacity[call.pool]
        return len(running) >= capacity and all(other in blocked for other in running)

    def refuse(self, call: Call) -> None:
        assert not self.system.comes_to_an_end(), "it would have ended"
        self.system.queue[call.pool].remove(call)
        call.over = True
        assert call.parent is not None, "nobody waits for what it holds"
        call.parent.waits_for = None
        self.refused += 1

    def add(self, pool: int, parent: Call | None, permit: bool = False) -> None:
        self.count += 1
        call = Call(self.count, pool, parent, permit)
        self.calls.append(call)
        if parent is not None:
            parent.waits_for = call
        self.system.queue[pool].append(call)
        self.system.fill(pool)
        if call.chain and not call.running:
            hopeless, refuse = lambda blocked: self.hopeless(call, blocked), lambda: self.refuse(call)
            self.waits.add(call, call.chain, hopeless, refuse)

    def begun(self, calls: list[Call]) -> None:
        for call in calls:
            self.waits.remove(call)

    @rule(pool=st.integers(0, POOLS - 1), permit=st.booleans())
    def call(self, pool: int, permit: bool) -> None:
        self.add(pool, None, permit)

    @precondition(lambda self: self.system.free())
    @rule(data=st.data(), pool=st.integers(0, POOLS - 1))
    def nest(self, data: st.DataObject, pool: int) -> None:
        self.add(pool, data.draw(st.sampled_from(self.system.free())))

    @precondition(lambda self: self.system.free())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.begun(self.system.finish(data.draw(st.sampled_from(self.system.free()))))

    @rule(pool=st.integers(0, POOLS - 1))
    def grow(self, pool: int) -> None:
        if self.system.capacity[pool] < 3:
            self.system.capacity[pool] += 1
            self.begun(self.system.fill(pool))

    @rule(pool=st.integers(0, POOLS - 1))
    def shrink(self, pool: int) -> None:
        """A free seat goes away, or one whose call ends with it: here the free ones only, as with an idle worker."""
        if 1 < self.system.capacity[pool] > len(self.system.running[pool]):
            self.system.capacity[pool] -= 1
            self.waits.check()

    @rule(pool=st.integers(0, POOLS - 1))
    def lose(self, pool: int) -> None:
        """The worker of a call that waits for nothing is cordoned: its call ends, and its seat is no more."""
        free = [call for call in self.system.free() if call.pool == pool]
        if self.system.capacity[pool] > 1 and free:
            self.system.capacity[pool] -= 1
            self.begun(self.system.finish(free[0]))
            self.waits.check()

    @invariant()
    def it_comes_to_an_end(self) -> None:
        assert self.system.comes_to_an_end()

    @invariant()
    def it_knows_who_waits(self) -> None:
        queued = [call for calls in self.system.queue for call in calls if call.chain]
        assert len(self.waits) == len(queued)
        assert bool(self.waits._links) == bool(queued)


TestWaits = WaitsMachine.TestCase


def test_depth() -> None:
    check_depth((object(),) * (2 * DEEPEST - 2), "tool")
    with pytest.raises(WouldDeadlock) as raised:
        check_depth((object(),) * (2 * DEEPEST), "tool")
    assert raised.value.details == {"tool": "tool", "depth": DEEPEST, "limit": DEEPEST}


def test_who_only_waits_behind_others_is_not_refused() -> None:
    """A worker with one seat is left. Its call waits for another, and one that holds a permit waits behind that one, and is newer."""
    machine = WaitsMachine()
    machine.system.capacity = [2, 1]
    machine.add(0, None)
    machine.add(0, None)
    outer, neighbour = machine.calls
    machine.add(0, outer)
    machine.add(0, None, permit=True)
    nested, behind = machine.calls[2:]
    # The neighbour's worker goes away, and the neighbour with it.
    machine.system.capacity[0] = 1
    machine.begun(machine.system.finish(neighbour))
    machine.waits.check()
    assert (nested.over, behind.over) == (True, False)
    machine.begun(machine.system.finish(outer))
    assert behind.running


def test_the_machine_meets_what_it_is_for() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        rng = random.Random(seed)
        machine = WaitsMachine()
        for _ in range(60):
            free = machine.system.free()
            step = rng.choice(["call", "nest", "nest", "finish", "grow", "shrink", "lose"])
            before, waiting = machine.refused, len(machine.waits)
            if step == "nest" and free:
                machine.add(rng.randrange(POOLS), rng.choice(free))
            elif step == "finish" and free:
                machine.begun(machine.system.finish(rng.choice(free)))
            elif step == "call":
                machine.add(rng.randrange(POOLS), None, rng.random() < 0.5)
            elif step in ("grow", "shrink", "lose"):
                getattr(machine, step)(rng.randrange(POOLS))
            seen[f"{step}: refused"] += machine.refused > before
            seen[f"{step}: waits"] += len(machine.waits) > waiting
            seen[f"{step}: waits no longer"] += len(machine.waits) < waiting and machine.refused == before
            machine.it_comes_to_an_end()
            machine.it_knows_who_waits()
    for met in (
        "nest: refused",
        "nest: waits",
        "call: waits",
        "finish: waits no longer",
        "grow: waits no longer",
        "lose: refused",
    ):
        assert seen[met] >= 3, seen
