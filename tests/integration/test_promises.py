"""What callers rely on, each as a caller would see it."""

from __future__ import annotations

import os
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
            MORTAL, size=1, heartbeat_interval=0.2, heartbeat_misses=3, restart_limit=100, backoff_base=0.01
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
    "given", [{"idempotent": "yes"}, {"timeout": True}, {"timeout": float("nan")}, {"priority": 1.0}]
)
async def test_what_a_request_is_told_is_checked(given: dict[str, Any]) -> None:
    with anyio.fail_after(30):
        async with sp.open_pool(MORTAL, size=1) as pool:
            with pytest.raises(sp.InvalidParameter) as caught:
                await pool.execute("variable", {"name": "X"}, **given)
            assert caught.value.details["path"] == next(iter(given))
            assert pool.stats().accepted == 0


async def test_a_worker_that_says_why_it_can_not_start_was_not_killed_by_a_signal() -> None:
    with anyio.fail_after(30), pytest.raises(sp.WorkerStartupError) as caught:
        async with sp.open_pool(f"{MORTAL}:Nobody", size=1):
            pass
    details = caught.value.details
    assert details["pool"] == "default"
    assert details["remote_type"] == "AttributeError"
    assert "signal" not in details


@pytest.mark.parametrize("threads", [1, 3])
async def test_numeric_libraries_are_told_how_many_threads_they_may_start(threads: int) -> None:
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    with anyio.fail_after(30):
        async with sp.open_pool(MORTAL, size=1, threads=threads, env={"OMP_NUM_THREADS": "7"}) as pool:
            found = {name: await pool.execute("variable", {"name": name}) for name in THREAD_VARIABLES}
    assert found.pop("OMP_NUM_THREADS") == "7"
    assert found == {name: before[name] or str(threads) for name in found}
    assert before == {name: os.environ.get(name) for name in THREAD_VARIABLES}


@pytest.mark.parametrize("tool", ["ask", "ask_sync"])
async def test_a_timeout_of_a_tools_own_call_is_not_the_requests(tool: str) -> None:
    async def never() -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(30):
        async with sp.open_pool(NESTED, size=1) as pool:
            pool.runtime.tools.register("never", never)
            # The caller's scope ends before the pool's own timeout, and nobody is made to wait for either.
            with anyio.fail_after(20), pytest.raises(sp.RequestTimeout):
                begun = anyio.current_time()
                await pool.execute(tool, {"name": "never", "params": {}, "timeout": 0.05})
            assert anyio.current_time() - begun < 10
            stats = pool.stats()
            assert (stats.failed, stats.timed_out, stats.cancelled) == (1, 0, 0)


async def test_the_end_of_the_callers_scope_is_a_cancellation_whoever_sees_it_first(tmp_path: Path) -> None:
    with anyio.fail_after(30):
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
    with anyio.fail_after(30):
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
    with anyio.fail_after(30):
        async with sp.open_pool(BASIC, size=1) as pool, pool.session("s", affinity="strict_queue") as session:
            with pytest.raises(sp.SessionWorkerUnavailable, match="SIGKILL") as caught:
                await session.execute("die")
            assert caught.value.details["session"] == "s"
            assert caught.value.details["signal"] == "SIGKILL"
