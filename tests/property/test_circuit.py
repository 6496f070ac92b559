"""Circuit, token bucket and allowance: any order of calls, ends and time."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from snakepit_trio.errors import CircuitOpen
from snakepit_trio.policies.circuit import Circuit, Permit, State, Verdict
from snakepit_trio.policies.hedge import Allowance
from snakepit_trio.policies.options import CircuitConfig
from snakepit_trio.policies.token_bucket import TokenBucket

CONFIG = CircuitConfig(failure_rate=0.5, min_calls=4, window=10.0, open_for=5.0, probes=2)


class Breaker(RuleBasedStateMachine):
    """The log of all ends is the model: what may be seen of the circuit follows from it."""

    permits = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.changes: list[tuple[State, int, int]] = []
        self.circuit = Circuit(CONFIG, "it", lambda *change: self.changes.append(change))
        self.log: list[tuple[float, Verdict]] = []
        self.since = self.now
        self.era = 0
        self.out: dict[Permit, int] = {}
        self.passed = 0
        #: What has come about.
        self.met: Counter[str] = Counter()

    def note_change(self) -> None:
        if len(self.changes) > self.era:
            before = self.changes[-2][0] if len(self.changes) > 1 else State.CLOSED
            self.met[f"{before.value} to {self.changes[-1][0].value}"] += 1
            self.era = len(self.changes)
            self.since = self.now
            self.log.clear()
            self.passed = 0

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=permits)
    def ask(self) -> Permit:
        before, left = self.circuit.state, self.since + CONFIG.open_for - self.now
        probing = sum(era == self.era for era in self.out.values())
        permit: Permit | None = None
        refusal: CircuitOpen | None = None
        try:
            permit = self.circuit.acquire(self.now)
        except CircuitOpen as exc:
            refusal = exc
        if permit is None:
            assert refusal is not None
            assert before is not State.CLOSED
            self.met[f"refused, {before.value}"] += 1
            if before is State.OPEN:
                assert refusal.details["retry_after"] == pytest.approx(left)
                assert left > 0
            else:
                assert probing + self.passed == CONFIG.probes
            return Permit(self.circuit, -1)
        if before is State.OPEN:
            assert left <= 0
            assert self.circuit.state is State.HALF_OPEN
        elif before is State.HALF_OPEN:
            assert probing + self.passed < CONFIG.probes
        self.note_change()
        self.out[permit] = self.era
        return permit

    @rule(permit=consumes(permits), verdict=st.sampled_from(Verdict), twice=st.booleans())
    def end(self, permit: Permit, verdict: Verdict, twice: bool) -> None:
        before, era = self.circuit.state, self.out.pop(permit, -1)
        permit.settle(verdict, self.now)
        if twice:
            permit.settle(Verdict.FAILURE, self.now)
        if era != self.era or verdict is Verdict.NONE:
            assert len(self.changes) == self.era, "what comes late, or says nothing, changes nothing"
            self.met["late" if era != self.era else f"nothing said, {before.value}"] += 1
            return
        if before is State.CLOSED:
            self.log.append((self.now, verdict))
        else:
            assert before is State.HALF_OPEN
            self.passed += verdict is Verdict.SUCCESS
            wanted = State.OPEN if verdict is Verdict.FAILURE else State.HALF_OPEN
            assert self.circuit.state is (State.CLOSED if self.passed == CONFIG.probes else wanted)
        if before is State.CLOSED:
            ends = [v for at, v in self.log if at >= self.now - CONFIG.window]
            self.met["forgotten"] += len(ends) < len(self.log)
            bad = ends.count(Verdict.FAILURE)
            enough = len(ends) >= CONFIG.min_calls and bad >= CONFIG.failure_rate * len(ends)
            # The window moves in steps: what is at its very edge may be out of it.
            if not any(CONFIG.window * 0.99 <= self.now - at <= CONFIG.window for at, _ in self.log):
                assert (self.circuit.state is State.OPEN) == enough
        self.note_change()

    @invariant()
    def the_states_follow_each_other(self) -> None:
        allowed = {
            State.CLOSED: {State.OPEN},
            State.OPEN: {State.HALF_OPEN},
            State.HALF_OPEN: {State.OPEN, State.CLOSED},
        }
        states = [State.CLOSED, *(change[0] for change in self.changes)]
        assert all(after in allowed[before] for before, after in itertools.pairwise(states))

    def teardown(self) -> None:
        # Never stuck: once all calls have ended and its time is over, it can be called.
        for permit in self.out:
            permit.settle(Verdict.NONE, self.now)
        self.circuit.acquire(self.now + CONFIG.open_for)


TestBreaker = Breaker.TestCase


def test_the_circuit_goes_all_its_ways() -> None:
    """Walks from seeds, in which calls do well for a while and then badly, as they do."""
    met: Counter[str] = Counter()
    for seed in range(60):
        rng, breaker = random.Random(seed), Breaker()
        out: list[Permit] = []
        well = 0.9
        for _ in range(80):
            if rng.random() < 0.1:
                well = rng.choice([0.1, 0.6, 0.95])
            step = rng.random()
            if step < 0.2:
                breaker.wait(rng.choice([0.0, 0.1, 1.0, 4.9, 5.0, 12.0]))
            elif step < 0.6:
                out.append(breaker.ask())
            elif out:
                good = rng.choices([Verdict.SUCCESS, Verdict.FAILURE], [well, 1 - well])[0]
                verdict = Verdict.NONE if rng.random() < 0.1 else good
                breaker.end(out.pop(rng.randrange(len(out))), verdict, rng.random() < 0.2)
            breaker.the_states_follow_each_other()
        breaker.teardown()
        met += breaker.met
    for what in (
        "closed to open", "open to half_open", "half_open to closed", "half_open to open", "refused, open", "refused, half_open",
        "late", "nothing said, closed", "nothing said, half_open", "forgotten",
    ):  # fmt: skip
        assert met[what] >= 10, met


@given(rate=st.floats(0.1, 100), burst=st.integers(1, 10), gaps=st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_no_stretch_of_time_gets_more_than_its_share(rate: float, burst: int, gaps: list[float]) -> None:
    bucket = TokenBucket(rate, burst)
    now, begun = 0.0, []
    for gap in gaps:
        now += gap
        now += bucket.delay(now)
        assert not bucket.delay(now)
        bucket.take(now)
        begun.append(now)
    for first, start in enumerate(begun):
        for last in range(first, len(begun)):
            assert last - first + 1 <= burst + rate * (begun[last] - start) + 1e-3


def test_what_is_reserved_is_nobody_elses_and_costs_nothing() -> None:
    bucket = TokenBucket(1.0, 2)
    bucket.reserved = 1
    assert bucket.spare_delay(0.0) == 0.0
    bucket.take(0.0)
    assert bucket.spare_delay(0.0) == 1.0
    assert bucket.delay(0.0) == 0.0
    bucket.reserved = 2
    assert bucket.spare_delay(0.0) == math.inf
    bucket.reserved = 0
    assert bucket.spare_delay(0.0) == 0.0
    assert not bucket.rests(0.5)
    assert bucket.rests(1.0)


@given(st.lists(st.booleans(), max_size=200))
def test_hedges_keep_to_their_share(wants: list[bool]) -> None:
    allowance = Allowance(0.1)
    hedges = 0
    for want in wants:
        allowance.earn()
        if want and allowance.there:
            allowance.spend()
            hedges += 1
    assert hedges <= 1 + 0.1 * len(wants) + 1e-6


@pytest.mark.parametrize("late", [Verdict.SUCCESS, Verdict.FAILURE, Verdict.NONE])
def test_what_ends_late_is_not_held_against_the_new_state(late: Verdict) -> None:
    circuit = Circuit(CONFIG)
    old = [circuit.acquire(0.0) for _ in range(3)]
    for _ in range(4):
        circuit.acquire(0.0).settle(Verdict.FAILURE, 0.0)
    assert circuit.state is State.OPEN
    old[0].settle(late, 1.0)
    probes = [circuit.acquire(5.0), circuit.acquire(5.0)]
    old[1].settle(late, 5.0)
    assert circuit.state is State.HALF_OPEN
    with pytest.raises(CircuitOpen):
        circuit.acquire(5.0)
    for probe in probes:
        probe.settle(Verdict.SUCCESS, 6.0)
    assert circuit.state is State.CLOSED
    old[2].settle(late, 6.0)
    assert (circuit._calls, circuit._failures) == (0, 0)


def test_a_success_may_be_the_call_that_makes_them_enough() -> None:
    circuit = Circuit(CONFIG)
    for verdict in (Verdict.FAILURE, Verdict.FAILURE, Verdict.SUCCESS):
        circuit.acquire(0.0).settle(verdict, 0.0)
    assert circuit.state is State.CLOSED
    circuit.acquire(0.0).settle(Verdict.SUCCESS, 0.0)
    assert circuit.state is State.OPEN


def test_an_end_counts_for_the_whole_window() -> None:
    circuit = Circuit(CONFIG)
    for now in (0.95, 0.95, 10.8, 10.8):
        assert circuit.state is State.CLOSED
        circuit.acquire(now).settle(Verdict.FAILURE, now)
    assert circuit.state is State.OPEN
