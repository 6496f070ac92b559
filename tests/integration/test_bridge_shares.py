"""What one client may use up of what is for all: a share, so that others, and the host itself, get in."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from tests.clients.raw import Raw
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


async def test_one_client_does_not_open_all_sessions() -> None:
    refused: list[tuple[bool, str, bool]] = []
    async with bridged({}, max_sessions=10) as (runtime, address):

        async def opened(client: Any, most: int) -> int:
            for count in range(most):
                try:
                    async with client.session(ttl=60, detach=True) as session:
                        assert await session.execute("add", {"a": 1, "b": 2}) == 3
                except sp.QuotaExceeded as exc:
                    refused.append((exc.retryable, exc.details["quota"], exc.details["client_used"] == count))
                    return count
            return most

        async with sp.connect(address, token="right") as greedy, sp.connect(address, token="right") as other:
            assert await opened(greedy, 20) == 5
            assert await opened(other, 20) == 2
            # One that is there may be resumed, and one that has ended leaves its place.
            ids = [info.id for info in await runtime.sessions.list()]
            async with greedy.session(ids[0], detach=True) as session:
                assert session.id == ids[0]
            for id in ids:
                await runtime.sessions.close(id)
            assert await opened(greedy, 20) == 5
        assert refused == [(True, "max_sessions", True)] * 3
        # What a client leaves behind counts for all.
        async with sp.connect(address, token="right") as late:
            assert await opened(late, 20) == 2
        for _ in range(3):
            async with runtime.pool().session(detach=True):
                pass
        with pytest.raises(sp.QuotaExceeded, match="max_sessions is 10"):
            async with runtime.pool().session():
                pass


@pytest.mark.parametrize("address", ["unix", "tcp"])
async def test_one_process_or_address_does_not_take_all_connections(tmp_path: Path, address: str) -> None:
    place = f"unix:{tmp_path}/door" if address == "unix" else "tcp:127.0.0.1:0"
    async with (
        bridged({}, bridge={"address": place, "max_connections": 8}) as (runtime, address),
        AsyncExitStack() as stack,
    ):
        assert runtime.bridge is not None
        for _ in range(4):
            await stack.enter_async_context(sp.connect(address, token="right"))
        assert runtime.bridge.connections == 4
        # Over TCP a client that writes meanwhile hears of the end only.
        said = "max_connections is 8" if address.startswith("unix") else "no connection"
        with pytest.raises(sp.ConnectionLost, match=said) as caught:
            async with sp.connect(address, token="right", connect_timeout=0.2):
                pass
        assert caught.value.retryable
        # Another process, or address, comes in; one of this that has not shown the token makes room for one that does.
        if address.startswith("unix"):
            code = "import sys, anyio, snakepit_trio as sp\nasync def main():\n"
            code += "    async with sp.connect(sys.argv[1], token='right') as client:\n"
            code += (
                "        assert await client.execute('add', {'a': 1, 'b': 2}) == 3\nanyio.run(main, backend='trio')\n"
            )
            await anyio.run_process([sys.executable, "-c", code, address])
        await stack.aclose()
        await until(lambda: runtime.bridge is not None and not runtime.bridge.connections)
        strangers = [Raw(address) for _ in range(12)]
        try:
            async with sp.connect(address, token="right") as client:
                assert await client.execute("add", {"a": 1, "b": 2}) == 3
            assert runtime.bridge.connections <= 4
        finally:
            for stranger in strangers:
                stranger.socket.close()
    assert not runtime.bridge.connections
