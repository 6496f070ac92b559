"""The policies of a pool around calls that are a script, on a mock clock."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio._timeouts import TimeLimit
from snakepit_trio.errors import tool_error
from snakepit_trio.observe.catalogue import check
from snakepit_trio.policies.guard import Guard
from snakepit_trio.pool.calls.paused import PausedCalls
from snakepit_trio.tools.waits import CHAIN, Permit, Waits

CRASH = sp.WorkerCrashed("crashed")
REFUSED = tool_error(("builtins.ConnectionRefusedError", "builtins.ConnectionError"), "no", "")
WRONG = tool_error(("builtins.ValueError",), "no", "")


class Bus:
    """Takes events down."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def emit(self, name: str, measurements: dict[str, float] | None = None, /, **metadata: Any) -> None:
        check(name, measurements or {}, metadata)
        self.names.append(name)

    def emit_frequent(self, name: str, measurements: dict[str, float], metadata: dict[str, Any]) -> None:
        self.emit(name, measurements, **metadata)


def guard(**options: Any) -> tuple[Guard, Bus]:
    bus = Bus()
    made = Guard.of(sp.PoolConfig(adapter="m", **options), bus, Waits())  # type: ignore[arg-type]
    assert made is not None
    return made, bus


class Script:
    """Calls that take so long and end so, one after the other; the last goes on for ever."""

    def __init__(self, *steps: tuple[float, Any]) -> None:
        self.steps = list(steps)
        self.begun: list[float] = []
        self.cancelled = 0
        self.running = self.most = 0

    async def __call__(self, left: float | None, permits: tuple[Permit, ...], beside: list[Any] | None) -> Any:
        seconds, end = self.steps[min(len(self.begun), len(self.steps) - 1)]
        self.begun.append(trio.current_time())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            with anyio.move_on_after(None if left is None else left) as scope:
                await anyio.sleep(seconds)
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if scope.cancelled_caught:
            raise sp.RequestTimeout("late", details={"phase": "running"})
        if isinstance(end, Exception):
            raise end
        return end


def simulate(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=True)


def call(guard: Guard, script: Script, **options: Any) -> Awaitable[Any]:
    tool = options.get("tool", "t")
    timeout = options.get("timeout", 60.0)
    limit = TimeLimit(timeout)
    pausing = functools.partial(PausedCalls().wait, tool, None, limit)
    defaults = {
        "tool": tool, "timeout": timeout, "limit": limit, "idempotent": True, "session": None, "pausing": pausing,
    }  # fmt: skip
    return guard.execute(script, **{**defaults, **options})


def test_no_policy_no_guard() -> None:
    assert Guard.of(sp.PoolConfig(adapter="m"), Bus(), Waits()) is None  # type: ignore[arg-type]


# ---- retry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "idempotent", "tries"),
    [
        (CRASH, True, 3),
        (CRASH, False, 1),
        (sp.WorkerCrashed("poison", retryable=False), True, 1),
        (sp.QueueFull("full"), False, 3),
        (sp.QueueTimeout("long"), False, 3),
        (sp.WorkerBusy("busy"), False, 3),
        (sp.RequestTimeout("late"), True, 1),
        (sp.PoolClosed("closed"), True, 1),
        (sp.InvalidParameter("no"), True, 1),
        (REFUSED, True, 3),
        (REFUSED, False, 1),
        (WRONG, True, 1),
    ],
)
def test_what_is_tried_again(error: sp.SnakepitError, idempotent: bool, tries: int) -> None:
    async def main() -> None:
        made, bus = guard(retry=sp.RetryConfig(on=["ConnectionError"]))
        script = Script((1, error))
        with pytest.raises(type(error)) as caught:
            await call(made, script, idempotent=idempotent)
        assert caught.value is error
        assert len(script.begun) == tries
        assert bus.names == ["policy.retried"] * (tries - 1)
        assert caught.value.details.pop("attempts", 1) == tries

    simulate(main)


def test_a_second_try_that_succeeds_and_the_growing_pauses() -> None:
    async def main() -> None:
        made, _ = guard(retry=sp.RetryConfig(attempts=4, delay=1, jitter=0, max_delay=2))
        script = Script((0, CRASH), (0, CRASH), (0, CRASH), (0, "fine"))
        assert await call(made, script) == "fine"
        start = script.begun[0]
        assert [at - start for at in script.begun] == pytest.approx([0, 1, 3, 5])

    simulate(main)


def test_a_retry_never_passes_the_deadline() -> None:
    async def main() -> None:
        made, _ = guard(retry=sp.RetryConfig(attempts=100, delay=2, jitter=0, max_delay=2))
        script = Script((0.5, CRASH))
        start = trio.current_time()
        with pytest.raises(sp.WorkerCrashed):
            await call(made, script, timeout=5)
        assert trio.current_time() - start <= 5
        assert len(script.begun) == 2
        slow = Script((10, "never"))
        with pytest.raises(sp.RequestTimeout):
            await call(made, slow, timeout=5)
        assert len(slow.begun) == 1

    simulate(main)


def test_a_cancel_in_a_pause_leaves_at_once() -> None:
    async def main() -> None:
        made, _ = guard(retry=sp.RetryConfig(delay=3, max_delay=3, jitter=0))
        script = Script((0, CRASH))
        start = trio.current_time()
        with trio.move_on_after(1) as scope:
            await call(made, script)
        assert scope.cancelled_caught
        assert trio.current_time() - start == pytest.approx(1)
        assert len(script.begun) == 1

    simulate(main)


def test_a_call_that_is_refused_for_want_of_workers_is_tried_again_when_there_may_be_one() -> None:
    async def main() -> None:
        made, _ = guard(retry=sp.RetryConfig(attempts=3, delay=0.01, jitter=0))
        refused = sp.WorkerStartupError("none", details={"retry_after": 7.0}, retryable=True)
        script = Script((0, refused), (0, 1))
        assert await call(made, script, idempotent=False) == 1
        assert script.begun == [0, 7]
        with pytest.raises(sp.WorkerStartupError):
            await call(made, Script((0, refused)), timeout=6.0)
        assert trio.current_time() == 7
        with pytest.raises(sp.WorkerStartupError):
            await call(made, Script((0, sp.WorkerStartupError("never")), (0, 1)))

    simulate(main)


# ---- circuit ---------------------------------------------------------------------------------------


def test_a_circuit_opens_is_probed_and_closes() -> None:
    async def main() -> None:
        made, bus = guard(circuit=sp.CircuitConfig(min_calls=3, open_for=10, ignore=["ValueError"]))
        bad, good, wrong = Script((0, CRASH)), Script((1, 1)), Script((0, WRONG))
        for _ in range(3):
            with pytest.raises(sp.ToolError):
                await call(made, wrong)
        assert made.circuits() == {"t": "closed"}
        for _ in range(3):
            with pytest.raises(sp.WorkerCrashed):
                await call(made, bad)
        with pytest.raises(sp.CircuitOpen) as caught:
            await call(made, good)
        assert caught.value.details["retry_after"] == pytest.approx(10)
        assert caught.value.details["state"] == "open"
        assert await call(made, good, tool="other") == 1
        await trio.sleep(10)
        with trio.move_on_after(0.5):
            await call(made, good)
        assert made.circuits()["t"] == "half_open", "a probe that left says nothing"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, made, good)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(sp.CircuitOpen, match="probed"):
                await call(made, good)
        assert made.circuits()["t"] == "closed"
        assert bus.names == ["circuit.opened", "circuit.half_open", "circuit.closed"]

    simulate(main)


def test_one_circuit_for_a_pool_and_time_outs_count() -> None:
    async def main() -> None:
        made, _ = guard(circuit=sp.CircuitConfig(per="pool", min_calls=2))
        slow = Script((10, 1))
        for tool in ("a", "b"):
            with pytest.raises(sp.RequestTimeout):
                await call(made, slow, tool=tool, timeout=1)
        with pytest.raises(sp.CircuitOpen):
            await call(made, slow, tool="c")
        assert made.circuits() == {"*": "open"}

    simulate(main)


# ---- limits ----------------------------------------------------------------------------------------


def test_concurrency_in_the_order_of_arrival() -> None:
    async def main() -> None:
        made, bus = guard(limits=[sp.LimitConfig(tools=["t"], concurrency=2)])
        script = Script((1, 1))
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(call, made, script)
        assert script.most == 2
        assert len({round(at, 3) for at in script.begun}) == 3
        assert bus.names == ["policy.limited"] * 4
        free = Script((1, 1))
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(lambda: call(made, free, tool="free"))
        assert free.most == 6

    simulate(main)


def test_a_rate_and_its_burst() -> None:
    async def main() -> None:
        made, _ = guard(limits=[sp.LimitConfig(per="pool", rate=2, burst=2)])
        script = Script((0, 1))
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(lambda n=n: call(made, script, tool=f"t{n}"))
        assert [at - start for at in script.begun] == pytest.approx([0, 0, 0.5, 1, 1.5])

    simulate(main)


def test_limits_of_sessions_are_forgotten_when_they_rest() -> None:
    async def main() -> None:
        made, _ = guard(limits=[sp.LimitConfig(per="session", concurrency=1), sp.LimitConfig(per="session", rate=1000)])
        script = Script((0, 1))
        for n in range(3000):
            await call(made, script, session=f"s{n}")
            await trio.sleep(0.01)
        assert len(made._limits[0]._gates) == 0
        assert len(made._limits[1]._gates) <= 1000
        both = Script((1, 1))
        async with trio.open_nursery() as nursery:
            for session in ("a", "a", "b", None, None):
                nursery.start_soon(lambda session=session: call(made, both, session=session))
        assert both.most == 4

    simulate(main)


def test_a_call_that_others_wait_for_passes_by_those_that_wait_for_a_wider_limit() -> None:
    """Or nobody would ever go on; and the rate is kept all the same."""

    async def main() -> None:
        limits = [sp.LimitConfig(per="session", rate=1, burst=1), sp.LimitConfig(per="pool", concurrency=1)]
        made, _ = guard(limits=limits)
        begun: list[float] = []

        async def quick(left: float | None, permits: tuple[Permit, ...], beside: list[Any] | None) -> int:
            begun.append(trio.current_time())
            return 1

        async def outer(left: float | None, permits: tuple[Permit, ...], beside: list[Any] | None) -> Any:
            begun.append(trio.current_time())
            await trio.sleep(5)
            # The second call has the token by now, and waits for the permit that this one holds.
            run = SimpleNamespace(over=False, task=id(trio.lowlevel.current_task()))
            token = CHAIN.set((*permits, object(), run))
            try:
                made._limits[1]._config = sp.LimitConfig(per="pool", concurrency=2)
                return await call(made, quick, session="s")
            finally:
                CHAIN.reset(token)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: call(made, outer, session="s"))
            await trio.sleep(0.5)
            nursery.start_soon(lambda: call(made, quick, session="s"))
        assert begun == pytest.approx([0, 5, 6], abs=0.01)

    simulate(main)


def test_who_comes_too_early_waits_within_its_deadline_or_is_refused() -> None:
    async def main() -> None:
        made, _ = guard(limits=[sp.LimitConfig(concurrency=1, max_waiting=1)])
        script = Script((10, 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, made, script)
            await trio.testing.wait_all_tasks_blocked()
            start = trio.current_time()
            with pytest.raises(sp.RequestTimeout) as caught:
                await call(made, script, timeout=2)
            assert caught.value.details["phase"] == "queued"
            assert trio.current_time() - start == pytest.approx(2)
            with trio.move_on_after(1):
                await call(made, script)
            nursery.start_soon(call, made, script)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(sp.QueueFull):
                await call(made, script)
        assert len(script.begun) == 2, "neither the late nor the cancelled one began"

        refusing, _ = guard(limits=[sp.LimitConfig(rate=1, wait=False)])
        quick = Script((0, 1))
        await call(refusing, quick)
        with pytest.raises(sp.QuotaExceeded) as refused:
            await call(refusing, quick)
        assert refused.value.details.keys() >= {"quota", "limit", "used", "asked"}
        with pytest.raises(sp.RequestTimeout):
            rated, _ = guard(limits=[sp.LimitConfig(rate=0.1)])
            await call(rated, quick)
            await call(rated, quick, timeout=1)

    simulate(main)


# ---- hedge -----------------------------------------------------------------------------------------


def test_the_second_answer_wins_and_the_first_call_is_cancelled() -> None:
    async def main() -> None:
        made, bus = guard(hedge=sp.HedgeConfig(delay=1))
        script = Script((100, "slow"), (1, "quick"))
        start = trio.current_time()
        assert await call(made, script) == "quick"
        assert trio.current_time() - start == pytest.approx(2)
        assert script.cancelled == 1
        assert bus.names == ["policy.hedged"]

    simulate(main)


def test_when_one_fails_the_other_is_waited_for() -> None:
    async def main() -> None:
        made, _ = guard(hedge=sp.HedgeConfig(delay=1, max_share=1.0))
        assert await call(made, Script((3, CRASH), (5, "late"))) == "late"
        assert await call(made, Script((3, "first"), (1, CRASH))) == "first"
        with pytest.raises(sp.WorkerCrashed):
            await call(made, Script((3, CRASH), (5, WRONG)))
        quick = Script((0.5, CRASH))
        with pytest.raises(sp.WorkerCrashed):
            await call(made, quick)
        assert len(quick.begun) == 1, "what fails at once is not hedged"

    simulate(main)


@pytest.mark.parametrize("options", [{"idempotent": False}, {"session": "s"}, {"tool": "other"}])
def test_what_is_never_hedged(options: dict[str, Any]) -> None:
    async def main() -> None:
        made, _ = guard(hedge=sp.HedgeConfig(delay=1, tools=["t"]))
        script = Script((10, 1))
        assert await call(made, script, **options) == 1
        assert len(script.begun) == 1

    simulate(main)


def test_a_slow_pool_is_not_made_slower() -> None:
    async def main() -> None:
        made, _ = guard(hedge=sp.HedgeConfig(delay=1, max_share=0.1))
        script = Script((10, 1))
        for _ in range(100):
            await call(made, script)
        assert 100 < len(script.begun) <= 112

    simulate(main)


def test_a_cancel_takes_both_along() -> None:
    async def main() -> None:
        made, _ = guard(hedge=sp.HedgeConfig(delay=1))
        script = Script((10, 1))
        with trio.move_on_after(2) as scope:
            await call(made, script)
        assert scope.cancelled_caught
        assert script.cancelled == 2

    simulate(main)
