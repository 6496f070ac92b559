"""A pool used from somewhere else: another event loop, another thread, another task than the one whose block it is."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

import snakepit_trio as sp

pytestmark = pytest.mark.anyio
BASIC = "tests.adapters.basic"


async def _entered(block: Any) -> None:
    async with block:
        pass


#: What a caller may await, of a pool and of a client.
CALLS: dict[str, Callable[[Any], Awaitable[object]]] = {
    "execute": lambda pool: pool.execute("add", {"a": 1, "b": 2}),
    "execute_many": lambda pool: pool.execute_many("add", [{"a": 1, "b": 2}]),
    "map": lambda pool: _entered(pool.map("add", [{"a": 1, "b": 2}])),
    "stream": lambda pool: _entered(pool.stream("count", {"n": 2})),
    "session": lambda pool: _entered(pool.session()),
    "resize": lambda pool: pool.resize(2),
    "wait_ready": lambda pool: pool.wait_ready(),
    "rolling_restart": lambda pool: pool.rolling_restart(),
}
REMOTE = ["execute", "map", "stream", "session"]
SESSION: dict[str, Callable[[Any], Awaitable[object]]] = {
    "execute": CALLS["execute"],
    "stream": CALLS["stream"],
    "get": lambda session: session.get("key"),
    "put": lambda session: session.put("key", 1),
    "update": lambda session: session.update("key", str),
}


async def refusals(used: Any, calls: dict[str, Callable[[Any], Awaitable[object]]]) -> list[str]:
    """The calls that are not refused, or that hang."""
    wrong = []
    for name, call in calls.items():
        with anyio.move_on_after(20) as limit:
            try:
                await call(used)
            except sp.WrongContext as exc:
                if "only in the event loop in which" in exc.message:
                    continue
            except sp.SnakepitError as exc:
                wrong.append(f"{name}: {exc!r}")
                continue
        wrong.append(f"{name}: {'hangs' if limit.cancelled_caught else 'is made'}")
    return wrong


async def test_another_event_loop_is_refused_in_a_sentence() -> None:
    bridge = sp.BridgeConfig()
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=BASIC, size=1)], bridge=bridge)
    async with sp.open_runtime(config) as runtime:
        pool = runtime.pool()
        assert runtime.bridge is not None
        async with sp.connect(runtime.bridge.address, token=runtime.bridge.token) as client, pool.session() as session:
            for other in ("trio", "asyncio"):
                for used, calls in (
                    (pool, CALLS),
                    (client, {name: CALLS[name] for name in REMOTE}),
                    (session, SESSION),
                ):
                    elsewhere = functools.partial(anyio.run, refusals, used, calls, backend=other)
                    assert await anyio.to_thread.run_sync(elsewhere) == []
            # It is as good as before, and reading what stands in it is allowed everywhere.
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            assert await client.execute("add", {"a": 1, "b": 2}) == 3
            assert (await anyio.to_thread.run_sync(pool.stats)).failed == 0


async def test_a_thread_of_the_loop_reaches_its_pool() -> None:
    async with sp.open_pool(BASIC, size=1) as pool:

        def ask() -> Any:
            with pytest.raises(sp.WrongContext, match="outside of any event loop"):
                pool.map("add", [])
            return anyio.from_thread.run(pool.execute, "add", {"a": 1, "b": 2})

        assert await anyio.to_thread.run_sync(ask) == 3


async def test_a_block_left_in_another_task_closes_its_pool_and_says_so() -> None:
    block = sp.open_pool(BASIC, size=1)
    entered, left = anyio.Event(), anyio.Event()
    pools: list[sp.Pool] = []

    async def enter() -> None:
        pools.append(await block.__aenter__())
        entered.set()
        await left.wait()

    async def leave() -> None:
        await entered.wait()
        try:
            with pytest.raises(
                sp.WrongContext, match="was left in another task than it was entered in: enter and leave"
            ):
                await block.__aexit__(None, None, None)
            assert pools[0].closed
            with pytest.raises(sp.PoolClosed):
                await pools[0].execute("add", {"a": 1, "b": 2})
        finally:
            left.set()

    # Trio tells the task that ends with a nursery open what it has done.
    with contextlib.suppress(BaseExceptionGroup), anyio.fail_after(60):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(enter)
            await entered.wait()
            await leave()
    assert left.is_set() and pools[0].closed


def test_a_block_left_when_its_task_is_over() -> None:
    """As a fixture is that is set up and torn down by calls of their own, with asyncio."""

    async def main() -> None:
        block = sp.open_pool(BASIC, size=1)
        pool = await asyncio.create_task(block.__aenter__())  # type: ignore[arg-type]
        assert await pool.execute("add", {"a": 1, "b": 2}) == 3
        with pytest.raises(sp.WrongContext, match="in one task"):
            await asyncio.create_task(block.__aexit__(None, None, None))  # type: ignore[arg-type]
        assert pool.closed

    asyncio.run(main())


def test_a_pool_outlives_no_run_of_its_loop() -> None:
    """A pool that is kept in a global, and used by the next ``asyncio.run``."""
    kept: list[Any] = []

    async def first() -> None:
        block = sp.open_pool(BASIC, size=1)
        kept.extend([block, await block.__aenter__()])
        assert await kept[1].execute("add", {"a": 1, "b": 2}) == 3

    async def second() -> None:
        with pytest.raises(sp.WrongContext, match="another event loop"), anyio.fail_after(20):
            await kept[1].execute("add", {"a": 1, "b": 2})

    asyncio.run(first())
    assert kept[1].closed
    asyncio.run(second())
    kept.clear()
    gc.collect()
