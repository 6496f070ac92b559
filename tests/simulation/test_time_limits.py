"""How long calls wait for a worker, and what they are told when that was too long, on a mock clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio.testing import ScriptedWorkers


async def nap(seconds: float = 1.0) -> str:
    await anyio.sleep(seconds)
    return "ok"


def simulate(body: Callable[[sp.Pool], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with ScriptedWorkers({"nap": nap}).open_pool(heartbeat_interval=60.0, **options) as pool:
            await body(pool)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=True)


@pytest.mark.parametrize("options", [{}, {"timeouts": "batch"}, {"timeouts": "development"}])
def test_calls_that_are_gathered_wait_for_their_turn(options: dict[str, Any]) -> None:
    async def body(pool: sp.Pool) -> None:
        found: list[str] = []

        async def call() -> None:
            found.append(await pool.execute("nap"))

        async with trio.open_nursery() as nursery:
            for _ in range(250):
                nursery.start_soon(call)
        assert found == ["ok"] * 250 and trio.current_time() > 100
        assert pool.stats().timed_out == 0

    simulate(body, size=2, **options)


def test_a_session_and_a_policy_keep_the_limit_that_was_given() -> None:
    """Whatever part of it has been spent before the call reaches a worker."""

    async def body(pool: sp.Pool) -> None:
        async with pool.session() as session:
            with pytest.raises(sp.RequestTimeout, match=r"'nap' was running when timeout=0\.25 was spent"):
                await session.execute("nap", {"seconds": 60.0}, timeout=0.25)
        with pytest.raises(sp.RequestTimeout, match=r"'nap' was running when the pool's timeout=2 was spent"):
            await pool.execute("nap", {"seconds": 60.0})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.execute, "nap", {"seconds": 1.0})
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(sp.RequestTimeout, match=r"'nap' was waiting for its limit when timeout=0\.5 was spent"):
                await pool.execute("nap", timeout=0.5)

    limit = sp.LimitConfig(concurrency=1)
    simulate(body, size=2, timeout=2, cancel_grace=0.0, limits=[limit], retry=sp.RetryConfig(attempts=2))
