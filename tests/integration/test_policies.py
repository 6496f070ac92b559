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


async def test_a_wait_for_a_limit_that_can_not_end_is_refused(tmp_path: Path) -> None:
    """By calls that hold what the nested ones wait for: one for itself, two for each other, one by way of a seat."""
    limits = [sp.LimitConfig(tools=["ask"], concurrency=2), sp.LimitConfig(tools=["nap"], concurrency=1)]
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.nested", size=1, threads=4, limits=limits) as pool:
            outcomes: list[str] = []
            arrived = 0
            together = anyio.Event()

            async def again(both: bool) -> str:
                nonlocal arrived
                arrived += 1
                if both and arrived == 2:
                    together.set()
                if both:
                    await together.wait()
                    return str(await pool.execute("ask", {"name": "leaf", "params": {}}))
                # Three deep: two permits are held, and the third is waited for by them.
                return str(await pool.execute("ask", {"name": "again", "params": {"both": False}}))

            async def leaf() -> str:
                return "leaf"

            async def outer() -> None:
                try:
                    outcomes.append(await pool.execute("ask", {"name": "again", "params": {"both": True}}))
                except sp.WouldDeadlock:
                    outcomes.append("refused")

            pool.runtime.tools.register("again", again)
            pool.runtime.tools.register("leaf", leaf)
            with pytest.raises(sp.WouldDeadlock, match="limit of 2"):
                await pool.execute("ask", {"name": "again", "params": {"both": False}})
            arrived = 0
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(outer)
                nursery.start_soon(outer)
            assert sorted(outcomes) == ["leaf", "refused"]
            # Nothing is held any more, and a wait that can end is none of this.
            assert await pool.execute("ask", {"name": "leaf", "params": {}}) == "leaf"
            async with anyio.create_task_group() as nursery:
                for _ in range(3):
                    nursery.start_soon(pool.execute, "nap", {"seconds": 0.01})
            assert len(pool._services.waits) == 0

        async with sp.open_pool("tests.adapters.nested", size=1, limits=limits) as pool:
            found: list[BaseException] = []

            async def inner() -> object:
                # The permit is held by a call that waits for the seat of the tool that waits here.
                while not pool.stats().queued:
                    await anyio.sleep(0.002)
                return await pool.execute("nap", {"seconds": 0})

            async def ask() -> None:
                with pytest.raises(sp.WouldDeadlock) as caught:
                    await pool.execute("ask", {"name": "inner", "params": {}})
                found.append(caught.value)

            pool.runtime.tools.register("inner", inner)
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(ask)
                while not pool.stats().in_flight:
                    await anyio.sleep(0.002)
                nursery.start_soon(pool.execute, "nap", {"seconds": 0})
            assert len(found) == 1


async def test_who_starts_a_task_elsewhere_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody's wait depends on it, so it may wait for the seat of the tool that has brought it about."""
    with anyio.fail_after(60):
        async with (
            anyio.create_task_group() as application,
            sp.open_pool(
                "tests.adapters.nested", size=1, limits=[sp.LimitConfig(tools=["ask"], concurrency=1)]
            ) as pool,
        ):
            found: list[object] = []
            done = anyio.Event()

            async def later(tool: str, params: dict[str, object]) -> None:
                found.append(type(await pool.execute(tool, params)))
                if len(found) == 2:
                    done.set()

            async def start() -> str:
                # One waits for the seat, and one for the permit.
                application.start_soon(later, "nap", {"seconds": 0})
                application.start_soon(later, "ask", {"name": "leaf", "params": {}})
                while not (pool.stats().queued and len(pool.calls.paused)):
                    await anyio.sleep(0.002)
                return "started"

            async def own() -> str:
                async with anyio.create_task_group() as nursery, anyio.create_task_group() as inner:
                    nursery.start_soon(anyio.sleep, 0)
                    inner.start_soon(pool.execute, "nap", {"seconds": 0})
                return "never"

            async def deep() -> str:
                async def group() -> None:
                    async with anyio.create_task_group() as nursery:
                        nursery.start_soon(pool.execute, "nap", {"seconds": 0})

                async with anyio.create_task_group() as nursery:
                    nursery.start_soon(group)
                return "never"

            pool.runtime.tools.register("start", start)
            pool.runtime.tools.register("leaf", lambda: "leaf")
            pool.runtime.tools.register("own", own)
            pool.runtime.tools.register("deep", deep)
            assert await pool.execute("ask", {"name": "start", "params": {}}) == "started"
            await done.wait()
            assert found
            for name in ("own", "deep"):
                with pytest.raises(sp.SnakepitError) as caught:
                    await pool.execute("ask", {"name": name, "params": {}}, timeout=20)
                assert "would wait for a worker" in str(caught.value) or "WouldDeadlock" in repr(caught.value)
                assert not isinstance(caught.value, sp.RequestTimeout)
            assert len(pool._services.waits) == 0


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_map_is_under_the_policies(ordered: bool, tmp_path: Path) -> None:
    policies = {
        "retry": sp.RetryConfig(delay=0.001, on=["ConnectionError"]),
        "limits": [sp.LimitConfig(tools=["peak"], concurrency=1)],
        "circuit": sp.CircuitConfig(min_calls=4, open_for=60, ignore=["ConnectionError"]),
    }
    with anyio.fail_after(60):
        async with sp.open_pool(SHAKY, size=2, max_queue=1, prefetch=0, **policies) as pool:
            async with pool.map("peak", ({"directory": str(tmp_path)} for _ in range(6)), limit=4) as results:
                assert [result async for result in results] == [1] * 6
            markers = [{"marker": str(tmp_path / str(number))} for number in range(8)]
            # More than the queue holds, each tried twice.
            async with pool.map("refuse_once", markers, limit=8, ordered=ordered) as results:
                assert [result async for result in results] == ["there"] * 8
                places = results.index
            assert 0 <= places < 8

            # Async inputs, and a block that raises or is left early.
            async def inputs():  # type: ignore[no-untyped-def]
                for number in range(3):
                    yield {"marker": str(tmp_path / f"async-{number}")}

            assert await pool.execute_many("refuse_once", inputs()) == ["there"] * 3
            with pytest.raises(ZeroDivisionError):
                async with pool.map("refuse_once", markers, limit=2, ordered=ordered) as results:
                    async for _ in results:
                        raise ZeroDivisionError
            # The circuit opens under a map; what it refuses is an error in the place of a result.
            found = await pool.execute_many("wrong", ({} for _ in range(8)), limit=1, return_errors=True)
            assert [type(error) for error in found[:4]] == [type(found[0])] * 4
            assert isinstance(found[0], sp.ToolError)
            assert all(isinstance(error, sp.CircuitOpen) for error in found[4:])
            with pytest.raises(sp.CircuitOpen):
                await pool.execute_many("wrong", [{}])
            with pytest.raises(sp.InvalidParameter):
                await pool.execute_many("peak", [{"directory": object()}])
            with pytest.raises(sp.ToolNotFound):
                await pool.execute_many("nothing", [{}])
            stats = pool.stats()
            assert stats.in_flight == stats.queued == 0
            assert stats.accepted == stats.completed + stats.failed + stats.cancelled + stats.timed_out


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
    assert (config.timeout, config.stream_timeout, config.queue_timeout) == (300.0, 900.0, None)
    with anyio.fail_after(100):
        async with sp.open_pool(config, timeouts="production_strict", queue_timeout=1) as pool:
            found = pool.config
            assert (found.timeout, found.stream_timeout, found.queue_timeout) == (60.0, 300.0, 1)
            left = (await pool.execute("whoami"))["deadline"]
            assert 55 < left <= 60


async def _so_far(events):  # type: ignore[no-untyped-def]
    while (event := events.receive_nowait()) is not None:
        yield event
