"""Calls from workers' tools to the host's: values, errors, deadlines, cancels, nesting, deadlocks."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import math
import os
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import numpy as np
import pytest

import snakepit_trio as sp

pytestmark = pytest.mark.anyio

NESTED = "tests.adapters.nested"


def config(**pools: Any) -> sp.RuntimeConfig:
    """A runtime with pools of these sizes, or options."""
    made = [
        sp.PoolConfig(name=name, adapter=NESTED, **(given if isinstance(given, dict) else {"size": given}))
        for name, given in pools.items()
    ]
    return sp.RuntimeConfig(pools=made)


@asynccontextmanager
async def opened(**pools: Any) -> AsyncIterator[sp.Runtime]:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(**pools)) as runtime:
            yield runtime


def nested(runtime: sp.Runtime, pool: str) -> Any:
    """A host tool that calls a tool of a pool."""

    async def call(tool: str, params: dict[str, Any]) -> Any:
        return await runtime.pool(pool).execute(tool, params)

    return call


def waits(began: anyio.Event, over: anyio.Event) -> Callable[[], Awaitable[None]]:
    """A host tool that waits until it is cancelled."""

    async def wait() -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            over.set()

    return wait


async def test_every_kind_of_value_goes_there_and_comes_back() -> None:
    values: list[Any] = [
        None, True, 5, -1, 1 << 80, 2.5, math.inf, "text", "\u20ac", b"bytes", bytearray(b"x"), (1, (2,)), {1, 2},
        frozenset({"a"}), [1, [2, {"k": (3,)}]], {1: "int key", "k": None}, complex(1, 2), decimal.Decimal("1.10"),
        uuid.UUID(int=5), dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC), dt.date(2026, 1, 2), dt.timedelta(1, 2, 3),
    ]  # fmt: skip
    seen: list[Any] = []

    async def echo(value: Any) -> Any:
        seen.append(value)
        return value

    def echo_sync(value: Any) -> Any:
        return value

    async with opened(default=1) as runtime:
        runtime.tools.register_many({"echo": echo, "echo_sync": echo_sync})
        pool = runtime.pool()
        for way in ("ask", "ask_sync"):
            for tool in ("echo", "echo_sync"):
                for value in values:
                    back = await pool.execute(way, {"name": tool, "params": {"value": value}})
                    assert back == value
                    assert type(back) is type(value)
        assert seen[: len(values)] == values
        for size in (10, 1_000_000):
            array = np.arange(size, dtype=np.float32).reshape(2, -1)
            back = await pool.execute("ask", {"name": "echo", "params": {"value": array}})
            assert back.dtype == array.dtype
            np.testing.assert_array_equal(back, array)


async def test_errors_are_typed_on_both_sides() -> None:
    async def refuse(value: int) -> None:
        raise ValueError(f"not {value}")

    def leave() -> None:
        raise SystemExit(3)

    async def give_up() -> None:
        raise asyncio.CancelledError("a task that it waited for was cancelled")

    async def unencodable() -> object:
        return object()

    async with opened(default=1, other=1) as runtime:
        runtime.tools.register_many({"refuse": refuse, "leave": leave, "give_up": give_up, "unencodable": unencodable})
        runtime.expose("other", "fail")
        pool = runtime.pool()

        async def caught(name: str, **params: Any) -> str:
            return str(await pool.execute("caught", {"name": name, "params": params}))

        assert await caught("missing") == "ToolNotFound: missing"
        assert await caught("refuse", value="x") == 'InvalidParameter: params["value"]'
        assert await caught("refuse") == 'InvalidParameter: params["value"]'
        assert await caught("refuse", value=5) == "remote ValueError: not 5"
        assert await caught("other.fail", message="there") == "remote ValueError: there"
        assert await caught("unencodable") == "InvalidPayload: result"
        with pytest.raises(sp.remote(SystemExit)):
            await pool.execute("ask", {"name": "leave", "params": {}})
        with pytest.raises(sp.remote(asyncio.CancelledError)):
            await pool.execute("ask", {"name": "give_up", "params": {}}, timeout=20)
        # It goes through the worker, and is what it was.
        with pytest.raises(sp.remote(ValueError)) as raised:
            await pool.execute("ask_sync", {"name": "refuse", "params": {"value": 7}})
        assert raised.value.remote_type == "ValueError"
        assert raised.value.remote_message == "not 7"
        assert "refuse" in raised.value.remote_traceback
        assert "ask_sync" in raised.value.remote_traceback
        with pytest.raises(sp.ToolNotFound):
            await pool.execute("ask", {"name": "missing", "params": {}})
        assert await pool.execute("bad_calls") == ['params["value"]', "params", "name", "timeout"]
        assert pool.stats().restarts == 0


async def test_only_what_is_exposed_can_be_called() -> None:
    async with opened(default=1, other=1) as runtime:
        pool = runtime.pool()
        with pytest.raises(sp.ToolNotFound):
            await pool.execute("ask", {"name": "other.who", "params": {}})
        runtime.expose("other", "who", prefix="them")
        said = await pool.execute("ask", {"name": "them.who", "params": {}})
        assert said["worker"] == runtime.pool("other").workers()[0].id
        with pytest.raises(sp.ToolNotFound):
            await pool.execute("ask", {"name": "them.die", "params": {}})
        with pytest.raises(sp.ToolExists):
            runtime.expose("other", "kept", "who", prefix="them")
        assert [tool.name for tool in runtime.tools.list()] == ["them.who"]
        with pytest.raises(sp.StreamingUnsupported):
            runtime.expose("other", "numbers")
        with pytest.raises(sp.PoolNotFound):
            runtime.expose("nowhere")


async def test_a_sessions_own_tools_go_before_the_runtimes() -> None:
    async with opened(default=1) as runtime:
        pool = runtime.pool()
        runtime.tools.register("where", lambda: "runtime")
        async with pool.session("a") as a, pool.session("b") as b:
            a.tools.register("where", lambda: "session a")
            a.tools.register("only", lambda: "a")
            ask = {"name": "where", "params": {}}
            assert await a.execute("ask", ask) == "session a"
            assert await b.execute("ask", ask) == "runtime"
            assert await pool.execute("ask", ask) == "runtime"
            with pytest.raises(sp.ToolNotFound):
                await b.execute("ask", {"name": "only", "params": {}})
            await a.close()
            with pytest.raises(sp.SessionNotFound):
                a.tools.register("late", lambda: None)


async def test_a_stream_and_many_calls_at_once() -> None:
    async def double(value: int) -> int:
        await anyio.lowlevel.checkpoint()
        return value * 2

    async with opened(default=1) as runtime:
        runtime.tools.register("double", double)
        assert await runtime.pool().execute("ask_many", {"name": "double", "n": 300}) == [2 * n for n in range(300)]
        async with runtime.pool().stream("asked_stream", {"name": "double", "n": 5}) as chunks:
            assert [chunk async for chunk in chunks] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("way", ["ask", "ask_sync"])
async def test_a_cancelled_request_cancels_the_host_tool_that_it_waits_for(way: str) -> None:
    began, over = anyio.Event(), anyio.Event()

    async with opened(default=1) as runtime:
        runtime.tools.register("wait", waits(began, over))
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(runtime.pool().execute, way, {"name": "wait", "params": {}})
            await began.wait()
            nursery.cancel_scope.cancel()
        await over.wait()
        # The worker is well.
        assert await runtime.pool().execute("kept", {"key": "k"}) is None
        assert runtime.pool().stats().restarts == 0


async def test_the_deadline_is_one() -> None:
    left: list[float] = []
    over = anyio.Event()

    async def wait() -> None:
        left.append(anyio.current_effective_deadline() - anyio.current_time())
        try:
            await anyio.sleep_forever()
        finally:
            over.set()

    async with opened(default=1) as runtime:
        runtime.tools.register("wait", wait)
        with pytest.raises(sp.RequestTimeout):
            await runtime.pool().execute("ask", {"name": "wait", "params": {}}, timeout=0.6)
        await over.wait()
        # The tool's own limit for the call, and the caller's scope.
        with pytest.raises(sp.RequestTimeout) as raised:
            await runtime.pool().execute("ask", {"name": "wait", "params": {}, "timeout": 0.5}, timeout=30)
        assert raised.value.details["phase"] in ("host_call", "running")
        with anyio.move_on_after(0.6) as scope:
            await runtime.pool().execute("ask", {"name": "wait", "params": {}})
        assert scope.cancelled_caught
        assert all(0 < time_left <= 0.6 for time_left in left)
        assert len(left) == 3


async def test_a_cancel_flows_through_all_levels() -> None:
    began, over = anyio.Event(), anyio.Event()

    async with opened(default=1, other=1) as runtime:
        runtime.tools.register("wait", waits(began, over))
        runtime.expose("other", "ask")
        async with anyio.create_task_group() as nursery:
            inner = {"name": "wait", "params": {}}
            nursery.start_soon(runtime.pool().execute, "ask", {"name": "other.ask", "params": inner})
            await began.wait()
            nursery.cancel_scope.cancel()
        await over.wait()
        stats = runtime.pool("other").stats()
        assert stats.in_flight == 0
        assert stats.cancelled == 1


async def test_a_dying_worker_ends_its_host_tools_and_its_request_does_not_wait_for_them() -> None:
    waiting, blocked, over = anyio.Event(), anyio.Event(), anyio.Event()
    release = threading.Event()

    def block() -> None:
        anyio.from_thread.run_sync(blocked.set)
        release.wait(20)

    async with opened(default=1) as runtime:
        runtime.tools.register_many({"wait": waits(waiting, over), "block": block})
        pool = runtime.pool()
        for tool, began in (("wait", waiting), ("block", blocked)):

            async def call(tool: str = tool) -> None:
                with pytest.raises(sp.WorkerCrashed):
                    await pool.execute("ask", {"name": tool, "params": {}})
                if tool == "block":
                    assert not release.is_set()
                    release.set()

            async with anyio.create_task_group() as nursery:
                nursery.start_soon(call)
                await began.wait()
                os.kill(pool.workers()[0].pid, signal.SIGKILL)
            await pool.wait_ready()
        await over.wait()


async def test_a_host_tools_own_nursery_that_fails_while_it_is_cancelled_harms_nobody() -> None:
    began = anyio.Event()

    async def stubborn() -> None:
        async def child() -> None:
            try:
                began.set()
                await anyio.sleep_forever()
            finally:
                raise ValueError("in the way")

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(child)

    async with opened(default=1) as runtime:
        runtime.tools.register("stubborn", stubborn)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(runtime.pool().execute, "ask", {"name": "stubborn", "params": {}})
            await began.wait()
            nursery.cancel_scope.cancel()
        assert await runtime.pool().execute("kept", {"key": "k"}) is None


# ---- nesting ---------------------------------------------------------------------------------------


async def test_a_worker_may_call_its_own_pool_while_there_is_room() -> None:
    async with opened(default=2) as runtime:
        runtime.tools.register("again", nested(runtime, "default"))
        params = {"name": "again", "params": {"tool": "who", "params": {}}}
        assert (await runtime.pool().execute("ask", params))["worker"]


async def test_a_wait_for_its_own_pools_last_worker_would_deadlock() -> None:
    async with opened(default=1) as runtime:
        runtime.tools.register("again", nested(runtime, "default"))
        params = {"name": "again", "params": {"tool": "who", "params": {}}}
        for way in ("ask", "ask_sync"):
            with pytest.raises(sp.WouldDeadlock) as raised:
                await runtime.pool().execute(way, params)
            assert raised.value.details["pool"] == "default"
        # From a sync host tool, which comes back into the event loop.
        runtime.tools.register(
            "from_thread",
            lambda: anyio.from_thread.run(runtime.pool().execute, "who"),
        )
        with pytest.raises(sp.WouldDeadlock):
            await runtime.pool().execute("ask", {"name": "from_thread", "params": {}})
        assert (await runtime.pool().execute("who"))["pid"]


async def test_two_that_wait_for_each_other() -> None:
    """Both workers' tools call the pool again: the second is refused, the first then has room."""
    arrived = 0
    both = anyio.Event()

    async with opened(default=2) as runtime:

        async def meet() -> Any:
            nonlocal arrived
            arrived += 1
            if arrived == 2:
                both.set()
            await both.wait()
            return await runtime.pool().execute("who")

        runtime.tools.register("meet", meet)
        outcomes: list[str] = []

        async def call() -> None:
            try:
                await runtime.pool().execute("ask", {"name": "meet", "params": {}})
                outcomes.append("done")
            except sp.WouldDeadlock:
                outcomes.append("refused")

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(call)
            nursery.start_soon(call)
        assert sorted(outcomes) == ["done", "refused"]


async def test_a_ring_of_pools() -> None:
    async with opened(x=1, y=1, z=1) as runtime:
        for here, there in (("x", "y"), ("y", "z"), ("z", "x")):
            runtime.tools.register(f"from_{here}", nested(runtime, there))
        params: Any = {"name": "from_z", "params": {"tool": "who", "params": {}}}
        for here in ("y", "x"):
            params = {"name": f"from_{here}", "params": {"tool": "ask", "params": params}}
        with pytest.raises(sp.WouldDeadlock) as raised:
            await runtime.pool("x").execute("ask", params)
        assert raised.value.details["pool"] == "x"
        assert (await runtime.pool("x").execute("who"))["pid"]


async def test_waiting_for_one_who_will_end_is_no_deadlock(tmp_path: Path) -> None:
    """X's worker waits for a busy pool; a call that waits for X is not refused, since X's wait will end."""
    async with opened(w=1, x=1, z=1) as runtime:
        runtime.tools.register("to_x", nested(runtime, "x"))
        runtime.tools.register("to_z", nested(runtime, "z"))
        results: list[str] = []

        async def call(pool: str, tool: str, params: Any) -> None:
            await runtime.pool(pool).execute(tool, params)
            results.append(pool)

        async with anyio.create_task_group() as nursery:
            gate = tmp_path / "gate"
            nursery.start_soon(call, "z", "nap", {"seconds": 0, "until": str(gate)})
            while runtime.pool("z").stats().in_flight < 1:
                await anyio.sleep(0.001)
            nursery.start_soon(call, "x", "ask", {"name": "to_z", "params": {"tool": "nap", "params": {"seconds": 0}}})
            while runtime.pool("z").stats().queued < 1:
                await anyio.sleep(0.001)
            nursery.start_soon(call, "w", "ask", {"name": "to_x", "params": {"tool": "nap", "params": {"seconds": 0}}})
            while runtime.pool("x").stats().queued < 1:
                await anyio.sleep(0.001)
            gate.touch()
        assert sorted(results) == ["w", "x", "z"]


async def test_a_strict_session_that_calls_itself() -> None:
    async with opened(default=2) as runtime:
        async with runtime.pool().session("s", affinity="strict_queue") as session:
            session.tools.register("again", lambda: anyio.from_thread.run(session.execute, "who"))
            with pytest.raises(sp.WouldDeadlock):
                await session.execute("ask", {"name": "again", "params": {}})


async def test_a_wait_that_becomes_hopeless_later(tmp_path: Path) -> None:
    """Two workers; one call nests and waits for the other worker, which is then taken away."""
    async with opened(default={"size": 2, "stop_grace": 0.1}) as runtime:
        pool = runtime.pool()
        runtime.tools.register("again", nested(runtime, "default"))
        async with anyio.create_task_group() as nursery:

            async def busy() -> None:
                await pool.execute("nap", {"seconds": 0, "until": str(tmp_path / "gate")})

            async def asks() -> None:
                params = {"name": "again", "params": {"tool": "who", "params": {}}}
                with pytest.raises(sp.WouldDeadlock):
                    await pool.execute("ask", params, timeout=20)

            nursery.start_soon(busy)
            while pool.stats().in_flight < 1:
                await anyio.sleep(0.001)
            (other,) = [worker.id for worker in pool.workers() if worker.in_flight]
            nursery.start_soon(asks)
            while pool.stats().queued < 1:
                await anyio.sleep(0.001)
            pool.cordon(other)
            # It takes no more calls, so its seat is of no use to anybody.
            while pool.stats().queued:
                await anyio.sleep(0.001)
            (tmp_path / "gate").touch()
        assert pool.stats().queued == 0


async def test_too_deep() -> None:
    async with opened(default=20) as runtime:
        depth = 0

        async def deeper() -> Any:
            nonlocal depth
            depth += 1
            return await runtime.pool().execute("ask", {"name": "deeper", "params": {}})

        runtime.tools.register("deeper", deeper)
        with pytest.raises(sp.WouldDeadlock) as raised:
            await runtime.pool().execute("ask", {"name": "deeper", "params": {}})
        assert raised.value.details["limit"] == depth == 16


async def test_threads_of_host_tools_are_bounded_and_nobody_elses() -> None:
    running = most = 0
    lock = threading.Lock()

    def busy(value: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return value

    pools = [sp.PoolConfig(adapter=NESTED, size=1)]
    with anyio.fail_after(60):
        async with sp.open_runtime(sp.RuntimeConfig(pools=pools, host_threads=3)) as runtime:
            runtime.tools.register("busy", busy)
            assert await runtime.pool().execute("ask_many", {"name": "busy", "n": 30}) == list(range(30))
            assert most == 3
            assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0


async def test_a_wait_for_a_thread_that_would_not_end() -> None:
    """The only thread runs a tool that waits for a tool that wants a thread."""
    pools = [sp.PoolConfig(adapter=NESTED, size=3)]
    with anyio.fail_after(60):
        async with sp.open_runtime(sp.RuntimeConfig(pools=pools, host_threads=1)) as runtime:

            def again(levels: int) -> Any:
                params = {"name": "again", "params": {"levels": levels - 1}}
                return anyio.from_thread.run(runtime.pool().execute, "ask", params) if levels else "end"

            runtime.tools.register("again", again)
            assert await runtime.pool().execute("ask", {"name": "again", "params": {"levels": 0}}) == "end"
            with pytest.raises(sp.WouldDeadlock) as raised:
                await runtime.pool().execute("ask", {"name": "again", "params": {"levels": 1}})
            assert raised.value.details["threads"] == 1
            assert await runtime.pool().execute("ask", {"name": "again", "params": {"levels": 0}}) == "end"
