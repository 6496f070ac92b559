"""Streams under a pool's policies: what each says of its tool to the circuit, and what it waits for."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import anyio
import pytest
import trio

import snakepit_trio as sp
from snakepit_trio._timeouts import TimeLimit
from snakepit_trio.errors import tool_error
from snakepit_trio.policies.circuit import Circuit, State, Verdict
from snakepit_trio.policies.guard import Guard
from snakepit_trio.policies.options import CircuitConfig
from snakepit_trio.pool.calls.paused import PausedCalls
from tests.simulation.test_policies import guard, simulate

WRONG = tool_error(("builtins.ValueError",), "no", "")
CIRCUIT = sp.CircuitConfig(min_calls=2, failure_rate=1.0, open_for=5.0)


class Chunks:
    """What a stream's call says of its tool; None when its reader is gone."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def verdict(self, *, gone: bool) -> Any:
        return None if gone else self.said


class Streams:
    """Opens streams, and keeps what they were opened with."""

    def __init__(self, said: Any = True, refusal: Exception | None = None) -> None:
        self.said = said
        self.refusal = refusal
        self.opened: list[tuple[float | None, int]] = []

    @asynccontextmanager
    async def __call__(self, *, timeout: float | None, permits: tuple[Any, ...]) -> AsyncIterator[Chunks]:
        self.opened.append((timeout, len(permits)))
        if self.refusal is not None:
            raise self.refusal
        yield Chunks(self.said)


def stream(made: Guard, streams: Streams, timeout: float | None = 60.0) -> Any:
    limit = TimeLimit(timeout)
    pausing = functools.partial(PausedCalls().wait, "t", None, limit)
    return made.stream(streams, tool="t", timeout=timeout, limit=limit, session=None, pausing=pausing)


def state(made: Guard) -> str:
    return dict(made.circuits()).get("t", "none")


@pytest.mark.parametrize(
    ("said", "refusal", "raised", "opens"),
    [
        (True, None, None, False), (None, None, None, False), (WRONG, None, None, True),
        # The block's own failure is nothing to the tool, whose call says how it did.
        (True, None, LookupError, False), (WRONG, None, LookupError, True),
        (True, WRONG, None, True), (True, sp.QueueFull("full"), None, False),
    ],
)  # fmt: skip
def test_what_a_stream_says_of_its_tool(said: Any, refusal: Any, raised: Any, opens: bool) -> None:
    async def main() -> None:
        made, _ = guard(circuit=CIRCUIT)
        error = raised or type(refusal)
        for _ in range(2):
            with nullcontext() if error is type(None) else pytest.raises(error):
                async with stream(made, Streams(said, refusal)):
                    if raised is not None:
                        raise raised
        assert (state(made) == "open") is opens
        if opens:
            with pytest.raises(sp.CircuitOpen) as refused:
                async with stream(made, Streams()):
                    pytest.fail("opened")
            assert refused.value.details["retry_after"] == 5.0
            await trio.sleep(5)
            async with stream(made, Streams()):
                assert state(made) == "half_open"
            assert state(made) == "closed"

    simulate(main)


def test_a_cancelled_reader_says_nothing() -> None:
    async def main() -> None:
        made, _ = guard(circuit=CIRCUIT)
        for _ in range(3):
            with anyio.move_on_after(1):
                async with stream(made, Streams(WRONG)):
                    await trio.sleep_forever()
        assert state(made) == "closed"

    simulate(main)


def test_its_time_begins_with_the_wait_for_its_limits() -> None:
    async def main() -> None:
        made, _ = guard(limits=[sp.LimitConfig(concurrency=1)])
        first, second, late = Streams(), Streams(), Streams()

        async def hold() -> None:
            async with stream(made, first):
                await trio.sleep(10)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(sp.RequestTimeout):
                async with stream(made, late, 5.0):
                    pytest.fail("opened")
            async with stream(made, second, 60.0):
                pass
            async with stream(made, late, None):
                pass
        assert first.opened == [(60.0, 1)]
        assert late.opened == [(None, 1)]
        assert second.opened == [(55.0, 1)]

    simulate(main)


def test_without_a_circuit_nothing_is_judged() -> None:
    async def main() -> None:
        made, _ = guard(retry=sp.RetryConfig())
        for _ in range(20):
            async with stream(made, Streams(WRONG)):
                pass
        assert not dict(made.circuits())

    simulate(main)


def test_the_window_moves_in_steps_and_forgets_what_is_behind_it() -> None:
    """With calls in each step, whatever their number is."""
    for each in (1, 2, 3):
        circuit = Circuit(CircuitConfig(min_calls=1000, failure_rate=1.0, window=10.0))
        for step in range(300):
            now = 1000.0 + step * 0.1 + 0.05
            for _ in range(each):
                circuit.acquire(now).settle(Verdict.FAILURE if step % 3 else Verdict.SUCCESS, now)
            seen = min(step + 1, 100)
            assert len(circuit._steps) == seen
            assert circuit._calls == each * seen
            assert circuit._failures == each * sum(n % 3 > 0 for n in range(step + 1 - seen, step + 1))
        circuit.acquire(2000.0).settle(Verdict.SUCCESS, 2000.0)
        assert (len(circuit._steps), circuit._calls, circuit._failures) == (1, 1, 0)


def test_probes_and_those_that_say_nothing() -> None:
    told: list[Any] = []
    config = CircuitConfig(min_calls=2, failure_rate=0.5, window=10.0, open_for=5.0, probes=2)
    circuit = Circuit(config, "it", lambda *change: told.append(change))
    for verdict in (Verdict.NONE, Verdict.NONE, Verdict.SUCCESS, Verdict.FAILURE):
        circuit.acquire(100.0).settle(verdict, 100.0)
    assert told == [(State.OPEN, 1, 2)]
    with pytest.raises(sp.CircuitOpen, match="is not called for another"):
        circuit.check(104.9)
    circuit.check(105.0)
    assert circuit.state is State.OPEN
    one, two = circuit.acquire(105.0), circuit.acquire(105.0)
    with pytest.raises(sp.CircuitOpen, match="while it is being probed") as refused:
        circuit.acquire(105.0)
    assert refused.value.details == {"circuit": "it", "state": "half_open", "retry_after": 0.0}
    assert repr(circuit) == "<Circuit 'it' half_open probing=2>"
    one.settle(Verdict.NONE, 106.0)
    one.settle(Verdict.FAILURE, 106.0)
    third = circuit.acquire(106.0)
    two.settle(Verdict.SUCCESS, 107.0)
    third.settle(Verdict.SUCCESS, 107.0)
    assert [change[0] for change in told] == [State.OPEN, State.HALF_OPEN, State.CLOSED]
    # What began before the change is nothing to the new state.
    old = circuit.acquire(108.0)
    for _ in range(2):
        circuit.acquire(108.0).settle(Verdict.FAILURE, 108.0)
    old.settle(Verdict.SUCCESS, 108.0)
    assert circuit.state is State.OPEN and circuit._calls == 0
