"""What one client may use up of what is for all: a share, so that others, and the host itself, get in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from tests.until import until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def bridged(pool: dict[str, Any], **options: Any) -> AsyncIterator[tuple[sp.Runtime, str]]:
    pools = [sp.PoolConfig(adapter="tests.adapters.basic", size=1, **pool)]
    bridge = sp.BridgeConfig(token="right", **options.pop("bridge", {}))
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=bridge, **options)) as runtime:
        assert runtime.bridge is not None
        yield runtime, runtime.bridge.address


@pytest.mark.parametrize("policies", [{}, {"circuit": sp.CircuitConfig()}], ids=["plain", "policies"])
async def test_one_client_does_not_fill_the_queue(policies: dict[str, Any]) -> None:
    async with bridged({"max_queue": 20, **policies}) as (runtime, address):
        pool = runtime.pool()
        (worker,) = pool.workers()
        pool.cordon(worker.id)
        refused: dict[str, list[sp.QueueFull]] = {"greedy": [], "other": [], "host": []}
        answered: list[int] = []

        async def ask(who: str, where: Any) -> None:
            try:
                answered.append(await where.execute("add", {"a": 1, "b": 2}, timeout=60))
            except sp.QueueFull as exc:
                refused[who].append(exc)

        async with sp.connect(address, token="right") as greedy, sp.connect(address, token="right") as other:
            async with anyio.create_task_group() as nursery:
                for _ in range(40):
                    nursery.start_soon(ask, "greedy", greedy)
                await until(lambda: len(refused["greedy"]) == 30)
                assert pool.stats().queued == 10
                for _ in range(10):
                    nursery.start_soon(ask, "other", other)
                await until(lambda: len(refused["other"]) == 5)
                assert pool.stats().queued == 15
                for _ in range(5):
                    nursery.start_soon(ask, "host", pool)
                await until(lambda: pool.stats().queued == 20)
                pool.cordon(worker.id, cordoned=False)
        assert answered == [3] * 20
        assert not refused["host"]
        for exc in refused["greedy"] + refused["other"]:
            assert exc.retryable
            assert exc.details["option"] == "max_queue"
            assert "of this client" in exc.message
        stats = pool.stats()
        assert stats.accepted == stats.completed == 20
        assert stats.rejected == 35
