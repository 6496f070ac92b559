"""Whatever a tool raises, wherever it runs: its caller is told, it has run once, and nothing else ends by it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from tests.adapters import hostile

pytestmark = pytest.mark.anyio

SYNC, ASYNC = "tests.adapters.hostile", "tests.adapters.hostile_async"
#: What of them are errors that a policy, a map or a client would send again if the library itself had raised them.
AGAIN = [
    "QueueFull",
    "QueueTimeout",
    "WorkerBusy",
    "WorkerCrashed",
    "ConnectionLost",
    "CircuitOpen",
    "PoolClosed",
    "recalled",
]
#: Those that the nurseries of event loops survive.
ORDINARY = [
    "own text has no UTF-8 form",
    "details' keys are no text",
    "code is a number",
    "a group",
    "its text is huge",
]
RETRY = sp.RetryConfig(attempts=3, delay=0.001, jitter=0.0, on=("Exception", "snakepit_trio.errors.SnakepitError"))


async def told(call: Callable[[], Awaitable[Any]]) -> sp.ToolError:
    """How a call fails whose tool raises."""
    with pytest.raises(sp.SnakepitError) as raised:
        await call()
    assert isinstance(raised.value, sp.ToolError), ascii(raised.value)
    return raised.value


@asynccontextmanager
async def opened(adapter: str = SYNC, **options: Any) -> AsyncIterator[sp.Runtime]:
    """A runtime of one worker, with a bridge; at its end the worker must be the one that it began with."""
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=adapter, size=1, **options)], bridge=sp.BridgeConfig())
    async with sp.open_runtime(config) as runtime:
        pid = await runtime.pool().execute("ok")
        yield runtime
        assert await runtime.pool().execute("ok") == pid
        assert runtime.pool().stats().restarts == 0


@asynccontextmanager
async def client_of(runtime: sp.Runtime) -> AsyncIterator[sp.Client]:
    assert runtime.bridge is not None
    async with sp.connect(runtime.bridge.address, token=runtime.bridge.token) as client:
        yield client


@pytest.mark.parametrize(
    ("adapter", "options", "tools"),
    [
        (SYNC, {}, ["plain", "inline", "chunks"]),
        (SYNC, {"threads": 2}, ["plain", "inline", "chunks"]),
        (ASYNC, {"worker_backend": "trio"}, ["plain", "chunks", "in_a_nursery"]),
        (ASYNC, {"worker_backend": "asyncio"}, ["plain", "chunks", "in_a_nursery"]),
    ],
    ids=["lead", "threads", "trio", "asyncio"],
)
async def test_in_a_worker(adapter: str, options: dict[str, Any], tools: list[str]) -> None:
    async with opened(adapter, retry=RETRY, **options) as runtime:
        pool = runtime.pool()
        calls = 0
        for tool in tools:
            kinds = [*hostile.SIGNALS, *(ORDINARY if tool == "in_a_nursery" else hostile.KINDS)]
            calls += len(kinds)
            for kind in kinds:

                async def call(tool: str = tool, kind: str = kind) -> None:
                    if tool != "chunks":
                        await pool.execute(tool, {"kind": kind})
                        return
                    async with pool.stream(tool, {"kind": kind}) as chunks:
                        assert await anext(chunks) == 1
                        await anext(chunks)

                with anyio.fail_after(20):
                    await told(call)
            assert await pool.execute("runs") == dict.fromkeys(kinds, 1)
        stats = pool.stats()
        assert (stats.failed, stats.cancelled, stats.timed_out) == (calls, 0, 0)


async def test_in_the_host_and_through_a_worker() -> None:
    async def fail(kind: str) -> None:
        raise hostile.make(kind)

    def fail_in_a_thread(kind: str) -> None:
        raise hostile.make(kind)

    # What ends the application is the application's: a Ctrl-C is not a tool's answer.
    kinds = [*hostile.KINDS, *hostile.SIGNALS]
    async with opened(retry=RETRY) as runtime:
        pool = runtime.pool()
        for function in (fail, fail_in_a_thread):
            runtime.tools.register("fail", function, replace=True)
            for kind in kinds:
                with anyio.fail_after(20):
                    assert await pool.execute("host", {"kind": kind}) != "nothing"
                    error = await told(lambda kind=kind: pool.execute("passes_on", {"kind": kind}))  # type: ignore[misc]
                    assert "direct cause" in error.remote_traceback
            assert await pool.execute("runs") == dict.fromkeys(kinds, 1)


async def test_over_the_bridge_and_in_a_client() -> None:
    kinds = [*hostile.KINDS, *hostile.SIGNALS]

    async def fail(kind: str) -> None:
        raise hostile.make(kind)

    async with opened(retry=RETRY) as runtime, client_of(runtime) as client:
        with anyio.fail_after(60):
            async with client.session("s") as session:
                for kind in kinds:
                    params = {"kind": kind}
                    direct = await told(lambda: runtime.pool().execute("plain", params))  # noqa: B023
                    for call in (client.execute, session.execute):
                        error = await told(lambda call=call: call("plain", params))  # type: ignore[misc] # noqa: B023
                        assert (error.code, error.remote_type) == (direct.code, direct.remote_type)
            assert await client.execute("runs") == dict.fromkeys(kinds, 3)
            async with client.serve_tools({"fail": fail}):
                for kind in kinds:
                    await told(lambda: client.execute("passes_on", {"kind": kind}))  # noqa: B023
            assert await client.execute("runs") == dict.fromkeys(kinds, 1)


async def test_a_map_sends_nothing_again() -> None:
    """A map waits when a queue is full, a client sends again what was lost: neither does on a tool's word."""
    inputs = [{"kind": kind} for kind in AGAIN for _ in range(3)]
    async with opened(retry=RETRY) as runtime, client_of(runtime) as client:
        for source in (runtime.pool(), client):
            async with source.map("plain", inputs, limit=4, return_errors=True) as results:
                found = [error async for error in results]
            assert all(isinstance(error, sp.ToolError) for error in found)
            assert await source.execute("runs") == dict.fromkeys(AGAIN, 3)
        found = await runtime.pool().execute_many("plain", inputs, return_errors=True)
        assert all(isinstance(error, sp.ToolError) for error in found)
        assert await runtime.pool().execute("runs") == dict.fromkeys(AGAIN, 3)


async def test_an_idempotent_call_is_tried_again_for_what_is_in_a_group() -> None:
    retry = sp.RetryConfig(attempts=2, delay=0.001, jitter=0.0, on=("KeyError",))
    async with opened(retry=retry) as runtime:
        pool = runtime.pool()
        with pytest.raises(sp.remote(KeyError)) as raised:
            await pool.execute("plain", {"kind": "a group"}, idempotent=True)
        assert raised.value.details["attempts"] == 2
        assert "ValueError: one; KeyError: 'two'" in str(raised.value)
        assert [leaf.remote_type for leaf in raised.value.leaves] == ["ValueError", "KeyError"]
        assert await pool.execute("runs") == {"a group": 2}


async def test_an_error_of_ours_that_a_tool_raises_is_both() -> None:
    async with opened() as runtime, client_of(runtime) as client:
        for source in (runtime.pool(), client):
            with pytest.raises(sp.QueueFull) as raised:
                await source.execute("plain", {"kind": "QueueFull"})
            error = raised.value
            assert isinstance(error, sp.ToolError) and isinstance(error, sp.remote(sp.QueueFull))
            assert error.details == {"phase": "queued", "poison": True} and error.retryable
            assert "hostile.py" in error.remote_traceback
            # What the library itself says of the call is no tool's.
            with pytest.raises(sp.InvalidParameter) as refused:
                await source.execute("plain", {"kind": 5})
            assert not isinstance(refused.value, sp.ToolError)
