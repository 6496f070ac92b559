"""Scripted workers, as the tests of an application use them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio.testing import ScriptedWorkers


def add(a: int, b: int) -> int:
    return a + b


async def slow(seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def count_slowly(n: int) -> AsyncIterator[int]:
    for number in range(n):
        await anyio.sleep(1)
        yield number


def refuse() -> None:
    raise LookupError("nothing here")


@sp.tool(idempotent=True)
async def safe(seconds: float) -> float:
    return await slow(seconds)


TOOLS = {"add": add, "slow": slow, "count": count, "count_slowly": count_slowly, "refuse": refuse, "safe": safe}


@pytest.mark.anyio
async def test_a_pool_without_processes() -> None:
    async with ScriptedWorkers(TOOLS).open_pool(size=2) as pool:
        assert await pool.execute("add", {"a": 1, "b": 2}) == 3
        async with pool.stream("count", {"n": 200}) as chunks:
            assert [chunk async for chunk in chunks] == list(range(200))
        with pytest.raises(sp.remote(LookupError)) as caught:
            await pool.execute("refuse")
        assert "nothing here" in str(caught.value)
        async with pool.session("user") as session:
            await session.put("k", 1)
            assert await session.execute("add", {"a": 1, "b": 1}) == 2
        with pytest.raises(sp.RequestTimeout):
            await pool.execute("slow", {"seconds": 60}, timeout=0.05)


@pytest.mark.anyio
async def test_what_is_done_to_a_worker() -> None:
    workers = ScriptedWorkers(TOOLS)
    async with workers.open_pool(size=1) as pool:

        async def running(calls: int) -> str:
            # A call that its worker has not begun would be run elsewhere.
            while sum(workers.starts.values()) < calls:
                await anyio.sleep(0.001)
            (busy,) = [worker for worker in pool.workers() if worker.state == "busy"]
            return busy.id

        async with anyio.create_task_group() as nursery:

            async def call() -> None:
                with pytest.raises(sp.WorkerCrashed):
                    await pool.execute("slow", {"seconds": 60})

            nursery.start_soon(call)
            workers.worker(await running(1)).crash()
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(pool.execute, "safe", {"seconds": 0.3})
            workers.worker(await running(2)).close()
        assert pool.stats().restarts == 2
        with pytest.raises(LookupError, match="no worker 'nobody'"):
            workers.worker("nobody")


def test_hours_pass_in_no_time() -> None:
    async def main() -> None:
        workers = ScriptedWorkers(TOOLS)
        async with workers.open_pool(size=1, queue_timeout=None, heartbeat_interval=60.0) as pool:
            begun = trio.current_time()
            assert await pool.execute("slow", {"seconds": 7200}, timeout=None) == 7200
            assert 7200 <= trio.current_time() - begun < 7201
            async with pool.stream("count_slowly", {"n": 5}) as chunks:
                assert [chunk async for chunk in chunks] == [0, 1, 2, 3, 4]
            # A frozen worker misses its heartbeats, is killed and replaced.
            frozen = pool.workers()[0].id
            workers.worker(frozen).freeze()
            async with pool.runtime.events.subscribe("worker.gone") as events:
                event = await events.__anext__()
            assert (event.metadata["worker_id"], event.metadata["reason"]) == (frozen, "heartbeat")

    begun = time.monotonic()
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert time.monotonic() - begun < 60


def test_chances_come_from_the_seed() -> None:
    async def main(seed: int) -> tuple[int, int]:
        async with ScriptedWorkers(TOOLS, seed=seed, crash=0.2, start_failure=0.1).open_pool(
            size=2, restart_limit=1000
        ) as pool:
            for _ in range(50):
                with anyio.move_on_after(10):
                    try:
                        await pool.execute("add", {"a": 1, "b": 2})
                    except sp.WorkerCrashed:
                        pass
            stats = pool.stats()
            assert stats.completed + stats.failed == 50
            return stats.completed, stats.failed

    completed, failed = trio.run(main, 3, clock=trio.testing.MockClock(autojump_threshold=0))
    assert completed
    assert failed
    with pytest.raises(TypeError, match="no such chances: crsh"):
        ScriptedWorkers(TOOLS, crsh=0.1)
