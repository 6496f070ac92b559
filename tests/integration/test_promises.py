"""What callers rely on, each as a caller would see it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.launch.environment import THREAD_VARIABLES

pytestmark = pytest.mark.anyio

ASYNC = "tests.adapters.asynchronous"
BASIC = "tests.adapters.basic"
MORTAL = "tests.adapters.mortal"
NESTED = "tests.adapters.nested"
RAISING = "tests.adapters.raising"


async def test_how_a_worker_died_and_its_last_words() -> None:
    ways = {
        "segfault": {"reason": "segfault", "signal": "SIGSEGV"},
        "abort": {"reason": "aborted", "signal": "SIGABRT"},
        "exit": {"reason": "exited", "exit_code": 7},
        "SIGKILL": {"reason": "killed", "signal": "SIGKILL"},
        "SIGUSR2": {"reason": "signal", "signal": "SIGUSR2"},
        "SIGSTOP": {"reason": "heartbeat"},
    }
    with anyio.fail_after(60):
        async with sp.open_pool(
            MORTAL, size=1, heartbeat_interval=0.2, heartbeat_misses=5, restart_limit=100, backoff_base=0.01
        ) as pool:
            for how, expected in ways.items():
                (worker,) = pool.workers()
                with pytest.raises(sp.WorkerCrashed) as caught:
                    await pool.execute("die", {"how": how})
                details = caught.value.details
                assert expected.items() <= details.items(), how
                assert details["worker_id"] == worker.id
                assert "last words" in details["stderr"]
                if how in ("segfault", "abort"):
                    # What faulthandler says first is what matters, and is not pushed out by the stacks of all threads.
                    assert "Fatal Python error" in details["stderr"]
                await pool.wait_ready(timeout=20)
            assert pool.stats().restarts == len(ways)


@pytest.mark.parametrize(
    "given",
    [
        {"idempotent": "yes"},
        {"timeout": True},
        {"timeout": float("nan")},
        {"timeout": -0.1},
        {"timeout": "5"},
        {"priority": 1.0},
    ],
)
async def test_what_a_request_is_told_is_checked(given: dict[str, Any]) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(MORTAL, size=1) as pool:
            with pytest.raises(sp.InvalidParameter) as caught:
                await pool.execute("variable", {"name": "X"}, **given)
            assert caught.value.details["path"] == next(iter(given))
            assert pool.stats().accepted == 0


@pytest.mark.parametrize("config", [{"pools": []}, None, "tests.adapters.basic", sp.PoolConfig(adapter=BASIC)])
async def test_what_is_no_configuration_of_a_runtime_is_refused_as_such(config: Any) -> None:
    with pytest.raises(sp.ConfigError, match="RuntimeConfig"):
        async with sp.open_runtime(config):
            raise AssertionError("unreachable")


async def test_a_time_that_is_spent_already_and_times_that_never_end() -> None:
    with anyio.fail_after(30):
        async with sp.open_pool(BASIC, size=1, timeout=1e308, stream_timeout=10**300, queue_timeout=1e308) as pool:
            with pytest.raises(sp.RequestTimeout) as caught:
                await pool.execute("add", {"a": 1, "b": 2}, timeout=0)
            assert caught.value.details["phase"] == "queued"
            with pytest.raises(sp.RequestTimeout):
                async with pool.stream("count", {"n": 3}, timeout=0):
                    pass
            async with pool.map("add", [{"a": 1, "b": 2}], timeout=0, return_errors=True) as results:
                assert isinstance(await anext(results), sp.RequestTimeout)
            for timeout in (None, 10**400, 1e308, float("inf")):
                assert await pool.execute("add", {"a": 1, "b": 2}, timeout=timeout) == 3
                async with pool.stream("count", {"n": 3}, timeout=timeout) as chunks:
                    assert [chunk async for chunk in chunks] == [0, 1, 2]
                async with pool.session(ttl=timeout) as session:
                    assert session.ttl is None
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            assert pool.stats().restarts == 0


async def test_a_second_reader_is_told_so() -> None:
    with anyio.fail_after(30):
        async with sp.open_pool(ASYNC, size=1) as pool, pool.stream("naps") as chunks:
            assert [await anext(chunks), await anext(chunks)] == [1, 2]
            await _second(chunks)
        async with sp.open_pool(BASIC, size=1) as pool, pool.map("sleep", [{"seconds": 60.0}]) as results:
            await _second(results)


async def _second(iterator: AsyncIterator[Any]) -> None:
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(anext, iterator)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await anext(iterator)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("adapter", "tools", "options"),
    [
        (RAISING, ["plain", "chunks"], {}),
        (RAISING, ["plain", "chunks"], {"threads": 2}),
        (f"{RAISING}:Looping", ["plain", "later", "chunks"], {"worker_backend": "trio"}),
        (f"{RAISING}:Looping", ["plain", "later", "chunks"], {"worker_backend": "asyncio"}),
    ],
)
async def test_whatever_a_tool_raises_is_its_answer(adapter: str, tools: list[str], options: dict[str, Any]) -> None:
    kinds = {
        "Base": "tests.adapters.raising.Base",
        "CancelledError": asyncio.CancelledError,
        "GeneratorExit": GeneratorExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "SystemExit": SystemExit,
    }
    with anyio.fail_after(60):
        async with sp.open_pool(adapter, size=1, timeout=10, **options) as pool:
            for tool in tools:
                for name, kind in kinds.items():
                    with pytest.raises(sp.remote(kind)) as caught:  # type: ignore[arg-type]
                        if tool == "chunks":
                            async with pool.stream(tool, {"kind": name}) as chunks:
                                async for _chunk in chunks:
                                    pass
                        else:
                            await pool.execute(tool, {"kind": name})
                    assert caught.value.remote_message == "as asked"
            assert await pool.execute("fine") == "fine"
            assert pool.stats().restarts == 0


async def test_a_worker_that_says_why_it_can_not_start_was_not_killed_by_a_signal() -> None:
    with anyio.fail_after(60), pytest.raises(sp.WorkerStartupError) as caught:
        async with sp.open_pool(f"{MORTAL}:Nobody", size=1):
            pass
    details = caught.value.details
    assert details["pool"] == "default"
    assert details["remote_type"] == "AttributeError"
    assert "signal" not in details


@pytest.mark.parametrize("threads", [1, 3])
async def test_numeric_libraries_are_told_how_many_threads_they_may_start(threads: int) -> None:
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    with anyio.fail_after(60):
        async with sp.open_pool(MORTAL, size=1, threads=threads, env={"OMP_NUM_THREADS": "7"}) as pool:
            found = {name: await pool.execute("variable", {"name": name}) for name in THREAD_VARIABLES}
    assert found.pop("OMP_NUM_THREADS") == "7"
    assert found == {name: before[name] or str(threads) for name in found}
    assert before == {name: os.environ.get(name) for name in THREAD_VARIABLES}


@pytest.mark.parametrize("tool", ["ask", "ask_sync"])
async def test_a_timeout_of_a_tools_own_call_is_not_the_requests(tool: str) -> None:
    async def never() -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(60):
        async with sp.open_pool(NESTED, size=1) as pool:
            pool.runtime.tools.register("never", never)
            # The caller's scope ends before the pool's own timeout, and nobody is made to wait for either.
            with anyio.fail_after(30), pytest.raises(sp.RequestTimeout):
                begun = anyio.current_time()
                await pool.execute(tool, {"name": "never", "params": {}, "timeout": 0.05})
            assert anyio.current_time() - begun < 10
            stats = pool.stats()
            assert (stats.failed, stats.timed_out, stats.cancelled) == (1, 0, 0)


async def test_the_end_of_the_callers_scope_is_a_cancellation_whoever_sees_it_first(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ASYNC, size=1) as pool, pool.runtime.events.subscribe("request.cancelled") as events:
            for _ in range(5):
                with anyio.move_on_after(0.03) as scope:
                    await pool.execute("early")
                assert scope.cancelled_caught
                with anyio.move_on_after(0.03) as scope:
                    await pool.execute("wait", {"marker": str(tmp_path / "marker")})
                assert scope.cancelled_caught
                with anyio.move_on_after(0.03) as scope:
                    async with pool.stream("naps") as chunks:
                        async for _chunk in chunks:
                            pass
                assert scope.cancelled_caught
            stats = pool.stats()
            assert (stats.cancelled, stats.timed_out, stats.restarts) == (15, 0, 0)
            for _ in range(15):
                assert "error" not in (await anext(events)).metadata


async def test_a_stream_of_urgent_calls_starves_no_other() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool, anyio.create_task_group() as nursery:

            async def urgent() -> None:
                while True:
                    await pool.execute("sleep", {"seconds": 0.005}, priority=2)

            for _ in range(4):
                nursery.start_soon(urgent)
            while pool.stats().queued < 3:
                await anyio.sleep(0.001)
            # Before it would have waited longer than anyone may.
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            nursery.cancel_scope.cancel()


async def test_a_strict_session_tells_how_its_worker_died() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1) as pool, pool.session("s", affinity="strict_queue") as session:
            with pytest.raises(sp.SessionWorkerUnavailable, match="SIGKILL") as caught:
                await session.execute("die")
            assert caught.value.details["session"] == "s"
            assert caught.value.details["signal"] == "SIGKILL"
            # Whoever comes later is told as much.
            with pytest.raises(sp.SessionWorkerUnavailable, match="SIGKILL") as caught:
                await session.execute("add", {"a": 1, "b": 2})
            assert caught.value.details["session"] == "s"
            assert caught.value.details["signal"] == "SIGKILL"
