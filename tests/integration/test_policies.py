"""The policies around real workers; tests/simulation/test_policies.py has what they decide, and when."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

import snakepit_trio as sp
from tests.until import appears

pytestmark = pytest.mark.anyio

SHAKY = "tests.adapters.shaky"
BASIC = "tests.adapters.basic"


async def test_a_call_is_tried_again(tmp_path: Path) -> None:
    retry = sp.RetryConfig(delay=0.001, on=["ConnectionError"])
    with anyio.fail_after(60):
        async with sp.open_pool(SHAKY, size=1, retry=retry) as pool, pool.runtime.events.subscribe() as events:
            assert await pool.execute("refuse_once", {"marker": str(tmp_path / "a")}) == "there"
            async with pool.session() as session:
                assert await session.execute("refuse_once", {"marker": str(tmp_path / "b")}) == "there"
            with pytest.raises(sp.remote(ConnectionRefusedError)):
                await pool.execute("refuse_once", {"marker": str(tmp_path / "c")}, idempotent=False)
            names = [event.name async for event in _so_far(events)]
            assert names.count("policy.retried") == 2
            with pytest.raises(sp.ToolNotFound):
                await pool.execute("nothing")
            with pytest.raises(sp.InvalidParameter):
                await pool.execute("wrong", timeout=-1)


async def test_a_full_queue_is_waited_for() -> None:
    retry = sp.RetryConfig(attempts=100, delay=0.005, max_delay=0.02)
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, max_queue=0, retry=retry) as pool:
            async with anyio.create_task_group() as nursery:
                for _ in range(4):
                    nursery.start_soon(pool.execute, "sleep", {"seconds": 0.02})
            stats = pool.stats()
            assert stats.completed == 4
            assert stats.rejected > 0


async def test_a_circuit_over_calls_and_streams() -> None:
    circuit = sp.CircuitConfig(per="pool", min_calls=2, open_for=60)
    with anyio.fail_after(60):
        async with sp.open_pool(SHAKY, size=1, circuit=circuit) as pool:
            with pytest.raises(sp.remote(ValueError)):
                await pool.execute("wrong")
            with pytest.raises(sp.remote(ValueError)):
                async with pool.stream("wrong_stream") as chunks:
                    assert [chunk async for chunk in chunks] == [1]
            with pytest.raises(sp.CircuitOpen):
                await pool.execute("wrong")
            with pytest.raises(sp.CircuitOpen):
                async with pool.stream("wrong_stream"):
                    pass
            assert pool.stats().accepted == 2
            assert pool.snapshot()["circuits"] == {"*": "open"}


async def test_a_limit_for_one_tool(tmp_path: Path) -> None:
    limits = [sp.LimitConfig(tools=["peak"], concurrency=1)]
    with anyio.fail_after(60):
        async with sp.open_pool(SHAKY, size=2, limits=limits) as pool:
            found = []

            async def one() -> None:
                found.append(await pool.execute("peak", {"directory": str(tmp_path)}))

            async with anyio.create_task_group() as nursery:
                for _ in range(8):
                    nursery.start_soon(one)
            assert found == [1] * 8


async def test_a_hedge_and_its_loser(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(SHAKY, size=2, hedge=sp.HedgeConfig(delay=0.05)) as pool:
            marker = tmp_path / "first"
            assert await pool.execute("slow_once", {"marker": str(marker)}) == "quick"
            await appears(tmp_path / "first.cancelled")
            stats = pool.stats()
            assert (stats.completed, stats.cancelled) == (1, 1)
            assert stats.restarts == 0


async def test_profiles_of_timeouts() -> None:
    config = sp.PoolConfig(adapter=BASIC, size=1)
    assert (config.timeout, config.stream_timeout, config.queue_timeout) == (300.0, 900.0, 10.0)
    with anyio.fail_after(100):
        async with sp.open_pool(config, timeouts="production_strict", queue_timeout=1) as pool:
            found = pool.config
            assert (found.timeout, found.stream_timeout, found.queue_timeout) == (60.0, 300.0, 1)
            left = (await pool.execute("whoami"))["deadline"]
            assert 55 < left <= 60


async def _so_far(events):  # type: ignore[no-untyped-def]
    while (event := events.receive_nowait()) is not None:
        yield event
