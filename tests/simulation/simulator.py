"""A whole runtime over workers in memory, run from one scenario on a clock that jumps; and the smallest part that fails."""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import attrs
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio.runtime import assemble
from snakepit_trio.supervision.run import Run

from .callers import call, same
from .faulty import FaultyWorkers
from .injection import Injection
from .invariants import Invariants
from .scenario import Caller, Scenario
from .segments import Segments

__all__ = ["Result", "Simulation", "command", "explain", "leaf", "run", "shrink"]

#: How much of a history is kept, in lines.
_HISTORY = 400
#: How many parts of a scenario are tried to make a failure smaller.
_ATTEMPTS = 200


@attrs.frozen(kw_only=True)
class Result:
    """How a simulation went: what happened with its times, how callers and requests ended, at which kinds of frames there were
    faults, what was done with shared memory, and what did not hold."""

    history: tuple[str, ...]
    outcomes: Counter[str]
    faults: Counter[str]
    at: Counter[str]
    memory: Counter[str]
    checks: int
    failure: BaseException | None


class Simulation(trio.abc.Instrument):
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, injection: Injection | None = None) -> None:
        self.scenario = scenario
        self.injection = injection
        self.history: deque[str] = deque(maxlen=_HISTORY)
        self.outcomes: Counter[str] = Counter()
        self.checks = 0
        self.closing = False
        self.failure: BaseException | None = None
        self.world = FaultyWorkers(scenario, self.note)
        self.runtime: Any = None
        self.pools: list[Any] = []
        self.configs = [
            sp.PoolConfig(adapter="scripted", **options) for options in (scenario.options, *scenario.others)
        ]
        #: Of each pool, once the runtime is open.
        self.invariants: list[Invariants] = []
        #: The numbers of the pools that callers have closed.
        self.closed: set[int] = set()
        self.segments = Segments()
        #: Answers that are looked at until after the pool's end, each with what it should be.
        self.kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._scope = trio.CancelScope()
        # Workers may go although nothing was injected: callers of these kinds, and calls that hear no cancel, cost some.
        config, callers = self.configs[0], scenario.callers
        self.can_lose_workers = any(
            any(c.params.get(habit) for habit in ("deaf", "stuck", "lethal", "grind"))
            or (c.kind == "operate" and c.tool == "kill")
            for c in callers
        )
        self.can_lose_workers |= config.max_size is not None or config.max_requests is not None

    def note(self, line: str) -> None:
        self.history.append(f"{trio.current_time():9.4f} {line}")

    def ended(self, caller: Caller, outcome: str) -> None:
        self.outcomes[f"{caller.kind}:{outcome}"] += 1
        self.note(f"caller {caller.number} ({caller.kind} {caller.tool}): {outcome}")

    def _forget_frames(self) -> None:
        # The test keeps what was injected, and that would keep the frames that it has come through, with their payloads.
        if self.injection is not None and self.injection.injector.raised is not None:
            self.injection.injector.raised.__traceback__ = None

    def after_io_wait(self, timeout: float) -> None:
        # An exception from an instrument would only be logged.
        if self.invariants and self.failure is None:
            self.checks += 1
            try:
                with contextlib.nullcontext() if self.injection is None else self.injection.aside():
                    for invariants in self.invariants:
                        invariants.check(trio.current_time())
                    self.segments.check()
                assert not self.world.wrong, self.world.wrong[0]
            except Exception as exc:
                if self.injection is not None and self.injection.mending(trio.current_time()):
                    return
                self.failure = exc
                self._scope.cancel()

    async def main(self) -> None:
        with self._scope:
            with trio.move_on_after(200) as scope:
                await self._run()
            assert not scope.cancelled_caught, "some caller waits for ever"
        if self.failure is not None:
            raise self.failure

    async def _run(self) -> None:
        config = sp.RuntimeConfig(pools=self.configs, control=False, telemetry="off", recorder_size=0)
        made = Run("scripted", Path(os.devnull))
        async with trio.open_nursery() as callers:
            try:
                async with assemble(config, made, self.world, lambda *_: self.world) as self.runtime:
                    self.pools = [self.runtime.pool(config.name) for config in self.configs]
                    self.invariants = [Invariants(pool, self.note) for pool in self.pools]
                    for invariants in self.invariants:
                        invariants.versions_may_meet = any(c.tool == "rolling_restart" for c in self.scenario.callers)

                    @self.runtime.tools.host_tool
                    async def ask(tool: str, params: dict[str, Any], pool: int) -> Any:
                        return await self.pools[pool].execute(tool, params)

                    if self.injection is not None:
                        self.injection.begin()

                    async with trio.open_nursery() as mine:
                        nursery = mine if self.scenario.close_at is None else callers
                        for caller in self.scenario.callers:
                            nursery.start_soon(functools.partial(call, self, caller))
                    if self.scenario.close_at is None:
                        with contextlib.nullcontext() if self.injection is None else self.injection.aside():
                            await self._rest()
                    else:
                        await trio.sleep(self.scenario.close_at)
                    self.closing = True
                    self.note("closing")
                    if self.injection is not None:
                        self.injection.end()
            except sp.WorkerStartupError:
                if self.invariants or not self.world.happened:
                    raise
                self.outcomes["open:WorkerStartupError"] += 1
                return
        for invariants in self.invariants:
            invariants.after_the_end()
        while self.kept:
            assert same(*self.kept.pop()), "an answer has changed with the pool's end"
        self._forget_frames()
        self.segments.after_the_end()
        assert not self.world.alive, "workers are left"

    async def _rest(self) -> None:
        """Wait until every call has come to its end in the workers too."""
        schedulers = [pool._scheduler for pool in self.pools]
        # Cancelled ids are remembered for their time.
        with trio.move_on_after(60 + self.configs[0].cancel_set_ttl) as scope:
            while any(seats.load or seats.ahead for scheduler in schedulers for seats in scheduler.ledger.seats) or any(
                len(scheduler.ledger.cancel_set) for scheduler in schedulers
            ):
                await trio.sleep(0.1)
        assert not scope.cancelled_caught, "a call stays in its worker"
        for invariants in self.invariants:
            invariants.at_rest()
        self._forget_frames()
        self.segments.at_rest([worker.memory for worker in self.world.alive])


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Whatever is drawn anywhere in the host is drawn from this seed, Trio's order of tasks too."""
    rng = random.Random(seed)
    secrets = SimpleNamespace(randbits=rng.getrandbits, token_hex=lambda n: rng.randbytes(n).hex())
    with (
        mock.patch.object(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        mock.patch.object(trio._core._run, "_r", random.Random(seed)),
        mock.patch("snakepit_trio.pool.fleet.slots.secrets", secrets),
        mock.patch("snakepit_trio.supervision.worker.random", random.Random(seed)),
        mock.patch("tenacity.wait.random", random.Random(seed)),
    ):
        yield


def run(scenario: Scenario, injection: Injection | None = None) -> Result:
    """Run a scenario, with an exception raised in the host if that is given; a failure is in the result, not raised."""
    fds = len(os.listdir("/proc/self/fd"))
    failure: BaseException | None = None
    simulation = Simulation(scenario, injection)
    making = mock.patch("snakepit_trio.supervision.exchange_link.SharedMemory", simulation.segments.make)
    with _seeded(scenario.seed), making:
        try:
            clock = trio.testing.MockClock(autojump_threshold=0)
            trio.run(simulation.main, clock=clock, instruments=[simulation])
            assert len(os.listdir("/proc/self/fd")) <= fds, "descriptors are left"
        except Exception as exc:
            failure = exc
        finally:
            if injection is not None:
                injection.end()
    return Result(
        history=tuple(simulation.history),
        outcomes=simulation.outcomes,
        faults=Counter(simulation.world.happened),
        at=simulation.world.happened_at,
        memory=simulation.segments.seen,
        checks=simulation.checks,
        failure=failure,
    )


def shrink(scenario: Scenario) -> tuple[Scenario, Result]:
    """The smallest part of a failing scenario that was found to fail, and how it does: callers, faults, options go in turn."""
    best, result, left = scenario, run(scenario), _ATTEMPTS
    assert result.failure is not None, "it does not fail"
    while True:
        before = best
        # Halves first, then one by one; whatever goes makes the next attempts cheaper.
        size = max(1, len(best.callers) // 2)
        while size:
            for start in range(0, len(best.callers), size):
                gone = {c.number for c in best.callers[start : start + size]}
                kept = {c.number for c in best.callers} - gone
                best, result, left = _attempt(best, best.only(callers=kept), result, left)
            size //= 2
        for fault in best.faults:
            kept = {f.number for f in best.faults if f is not fault}
            best, result, left = _attempt(best, best.only(faults=kept), result, left)
        for option in [*best.options, "close_at"]:
            if option == "close_at" and best.close_at is None:
                continue
            best, result, left = _attempt(best, best.only(dropped={option}), result, left)
        if best == before or left <= 0:
            return best, result


def _attempt(best: Scenario, part: Scenario, result: Result, left: int) -> tuple[Scenario, Result, int]:
    if left <= 0 or part == best:
        return best, result, left
    try:
        found = run(part)
    except sp.ConfigError:
        return best, result, left - 1  # It needed that option.
    same = _signature(found.failure) == _signature(result.failure)
    return (part, found, left - 1) if same else (best, result, left - 1)


def leaf(failure: BaseException | None) -> BaseException | None:
    """What a failure comes down to."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


def _signature(failure: BaseException | None) -> tuple[str, str]:
    """What makes two failures one: their type, and the words before anything that names a part of the scenario."""
    found = leaf(failure)
    return type(found).__name__, "".join(c for c in str(found) if not c.isdigit())[:24]


def command(scenario: Scenario, whole: Scenario) -> str:
    """The command that runs a part of a scenario again."""
    words = [f"python -m tests.simulation {scenario.seed}"]
    if scenario.callers != whole.callers:
        words.append("--callers " + (",".join(str(c.number) for c in scenario.callers) or "none"))
    if scenario.faults != whole.faults:
        words.append("--faults " + (",".join(str(f.number) for f in scenario.faults) or "none"))
    dropped = [name for name in whole.options if name not in scenario.options]
    dropped += ["close_at"] if scenario.close_at != whole.close_at else []
    return " ".join([*words, *(["--without " + ",".join(dropped)] if dropped else [])])


def explain(scenario: Scenario, result: Result, whole: Scenario) -> str:
    """A failure to be read: the scenario, its history, and how to run it again."""
    failure = leaf(result.failure)
    return "\n".join(
        [
            f"seed {scenario.seed}: {type(failure).__name__}: {failure}",
            f"options {scenario.options}, delay {scenario.delay}, close_at {scenario.close_at}",
            *map(str, scenario.callers),
            *map(str, scenario.faults),
            "history:",
            *result.history[-60:],
            "again: " + command(scenario, whole),
        ]
    )
