"""Hosts on ``asyncio.run``, as web servers are: nothing but a task tells anyio there whose event loop it is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import sniffio

import snakepit_trio as sp


async def _host(tmp_path: Path) -> sp.PoolStats:
    assert sniffio.current_async_library_cvar.get() is None
    config = sp.RuntimeConfig(
        pools=[sp.PoolConfig(adapter="tests.adapters.basic", size=2)],
        bridge=sp.BridgeConfig(address=f"unix:{tmp_path}/b"),
        state_dir=str(tmp_path / "state"),
    )
    async with sp.open_runtime(config) as runtime:
        pool = runtime.pool()
        assert await pool.execute("add", {"a": 1, "b": 2}) == 3
        async with pool.stream("count", {"n": 3}) as chunks:
            assert [chunk async for chunk in chunks] == [0, 1, 2]
        async with pool.runtime.events.subscribe("worker.gone", "worker.ready") as events:
            killed = pool.workers()[0]
            pool.kill_worker(killed.id)
            assert (await anext(events)).metadata["worker_id"] == killed.id
            assert (await anext(events)).name == "worker.ready"
        assert runtime.bridge is not None
        async with sp.connect(runtime.bridge.address, token=runtime.bridge.token) as client:
            calls = [asyncio.create_task(client.execute("add", {"a": n, "b": 1})) for n in range(20)]
            assert await asyncio.gather(*calls) == list(range(1, 21))
        calls = [asyncio.create_task(pool.execute("add", {"a": n, "b": 1})) for n in range(20)]
        assert await asyncio.gather(*calls) == list(range(1, 21))
        await pool.resize(1)
        return pool.stats()


def test_a_runtime_opens_serves_and_closes(tmp_path: Path) -> None:
    stats = asyncio.run(asyncio.wait_for(_host(tmp_path), 90))
    assert (stats.size, stats.completed, stats.failed) == (1, 42, 0)
