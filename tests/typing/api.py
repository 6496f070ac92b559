"""The public interface as a type checker sees it. Never run: ``mypy tests/typing`` checks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, assert_type

import msgspec

import snakepit_trio as sp
from tests.adapters import basic


class Found(msgspec.Struct):
    label: str
    score: float


class Vision(Protocol):
    async def classify(self, image: bytes, top: int = 1) -> list[Found]: ...
    def frames(self, n: int) -> AbstractAsyncContextManager[AsyncIterator[Found]]: ...


class Math(sp.Adapter):
    def setup(self) -> None: ...

    @sp.tool
    def add(self, a: int, b: int) -> int:
        return a + b

    @sp.tool(description="numbers", idempotent=True, critical=True)
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    @sp.tool
    async def fetch(self, ctx: sp.ToolContext, url: str) -> dict[str, Any]:
        assert_type(ctx.request_id, str)
        assert_type(ctx.deadline, float | None)
        ctx.raise_if_cancelled()
        return {"found": await ctx.call_host("look", {"url": url}), "again": ctx.call_host_sync("look", {"url": url})}


# A mark does not change what is marked.
assert_type(Math().add(1, 2), int)
assert_type(Math().count(3), Iterator[int])


async def calls(pool: sp.Pool) -> None:
    assert_type(await pool.execute("add", {"a": 1, "b": 2}, timeout=None, priority=1, metadata={"k": "v"}), Any)
    async with pool.stream("count", {"n": 3}, timeout=60) as chunks:
        async for chunk in chunks:
            assert_type(chunk, Any)
    async with pool.map("add", [{"a": 1, "b": 2}], limit=3, ordered=False, return_errors=True) as results:
        async for result in results:
            assert_type(result, Any)
    async with pool.session("me", affinity="strict_queue", ttl=None) as session:
        assert_type(session, sp.Session)
        assert_type(session.id, str)
        await session.put("k", 1)
    assert_type(pool.stats(), sp.PoolStats)
    assert_type(pool.stats().in_flight, int)
    assert_type(pool.workers(), tuple[sp.WorkerInfo, ...])
    assert_type(pool.runtime, sp.Runtime)
    await pool.execute(3)  # type: ignore[call-overload]
    await pool.execute("add", [1, 2])  # type: ignore[call-overload]
    await pool.execute("add", {}, 5)  # type: ignore[call-overload]


async def bound(pool: sp.Pool) -> None:
    vision = pool.bind(Vision)
    assert_type(await vision.classify(b"", top=3), list[Found])
    async with vision.frames(3) as found:
        async for one in found:
            assert_type(one, Found)
    await vision.classify("text")  # type: ignore[arg-type]
    await vision.classify()  # type: ignore[call-arg]
    await vision.classfy(b"")  # type: ignore[attr-defined]


async def bound_without_a_protocol(pool: sp.Pool) -> None:
    math, module = pool.bind(Math), pool.bind(basic)
    assert_type(await math.add(1, b=2), Any)
    assert_type(await module.add(1, b=2), Any)
    async with math.count(3) as chunks:
        async for chunk in chunks:
            assert_type(chunk, Any)


async def bound_methods_say_what_comes_back(pool: sp.Pool) -> list[Found]:
    vision, inputs = pool.bind(Vision), [{"image": b""}]
    assert_type(await pool.execute(vision.classify, {"image": b""}, timeout=1), list[Found])
    async with pool.map(vision.classify, inputs, ordered=False) as results:
        assert_type([result async for result in results], list[list[Found]])
    async with pool.map(vision.classify, inputs, return_errors=True) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, list[Found] | sp.SnakepitError)
    assert_type(await pool.execute_many(vision.classify, inputs), list[list[Found]])
    assert_type(await pool.execute(basic.add, {"a": 1, "b": 2}), Any)
    assert_type(await pool.execute_many("classify", inputs), list[Any])
    pool.stream(vision.frames, {"n": 3}, timeout=1)
    async with pool.session() as session:
        assert_type(await session.execute(vision.classify, {"image": b""}), list[Found])
        assert_type(await session.execute("classify", {"image": b""}), Any)
    await pool.execute(vision.classify, {}, timeot=1.0)  # type: ignore[call-overload]
    return await pool.execute(vision.classify, inputs[0])


async def runtimes(config: sp.RuntimeConfig) -> None:
    async with sp.open_runtime(config) as runtime, sp.open_pool("my_module:Math", size=4) as pool:
        assert_type(runtime.pool("default"), sp.Pool)
        assert_type(pool, sp.Pool)
        async with runtime.events.subscribe("worker.", "request.") as events:
            async for event in events:
                assert_type(event, sp.Event)

        @runtime.tools.host_tool
        async def validate(record: dict[str, Any]) -> bool:
            return bool(record)

        assert_type(await validate({}), bool)
    try:
        await pool.execute("add")
    except sp.remote(ValueError) as exc:
        assert_type(exc, sp.ToolError)
    except sp.QuotaExceeded as exc:
        assert_type(exc.details, dict[str, Any])


async def options() -> None:
    sp.open_pool("m", sise=2)  # type: ignore[call-arg]
    sp.open_pool("m", size="2")  # type: ignore[arg-type]
    sp.open_pool("m", size=2, timeouts="batch", env={"A": "b"}, retry=sp.RetryConfig(attempts=2), limits=[])
    sp.open_pool(command=["./worker"], cwd=Path("/tmp"))
    sp.PoolConfig(adapter="m", sise=2)  # type: ignore[call-arg]
    sp.RetryConfig(attempt=2)  # type: ignore[call-arg]
    assert_type(sp.PoolConfig(adapter="m", size=2), sp.PoolConfig)


async def main(runtime: sp.Runtime) -> int:
    return len(runtime.pools)


assert_type(sp.run(main, "my_module:Math"), int)
assert_type(sp.run(main, sp.PoolConfig(adapter="my_module:Math", size=2)), int)


async def through_any(caller: sp.ToolCaller) -> None:
    assert_type(await caller.execute("add", {"a": 1}, timeout=1.0, priority=1, idempotent=True), Any)
    async with caller.stream("count", {"n": 3}, timeout=60, metadata={"k": "v"}) as chunks:
        async for chunk in chunks:
            assert_type(chunk, Any)
    await caller.execute("add", {}, timeot=1.0)  # type: ignore[call-arg]
    caller.stream("count", {}, idempotent=True)  # type: ignore[call-arg]


async def every_caller(pool: sp.Pool, client: sp.Client) -> None:
    await through_any(pool)
    await through_any(client)
    async with pool.session() as session, client.session() as remote:
        await through_any(session)
        await through_any(remote)
