"""Real workers that come and go with the load."""

from __future__ import annotations

import anyio
import pytest

import snakepit_trio as sp

pytestmark = pytest.mark.anyio

OPTIONS = {"target_wait": 0.05, "scale_down_after": 0.3, "queue_timeout": None}


async def resized(pool: sp.Pool, size: int) -> None:
    async with pool.runtime.events.subscribe("pool.resized") as events:
        with anyio.fail_after(30):
            while pool.stats().size != size:
                await anext(events)


async def test_more_workers_under_load_none_when_idle_and_back() -> None:
    async with sp.open_pool("tests.adapters.basic", size=1, min_size=0, max_size=3, **OPTIONS) as pool:
        async with anyio.create_task_group() as nursery:
            for _ in range(12):
                nursery.start_soon(pool.execute, "sleep", {"seconds": 0.2})
            await resized(pool, 3)
        await resized(pool, 0)
        assert pool.stats().failed == 0
        assert await pool.execute("add", {"a": 1, "b": 2}, timeout=30) == 3
        async with pool.session() as session:
            assert await session.execute("echo", {"value": 1}) == 1


async def test_a_worker_that_a_strict_session_is_tied_to_stays() -> None:
    async with sp.open_pool("tests.adapters.basic", size=2, min_size=0, max_size=2, **OPTIONS) as pool:
        async with pool.session(affinity="strict_queue") as session:
            mine = (await session.execute("whoami"))["worker_id"]
            await resized(pool, 1)
            assert [worker.id for worker in pool.workers() if worker.state == "ready"] == [mine]
            assert (await session.execute("whoami"))["worker_id"] == mine
        await resized(pool, 0)
