"""What callers rely on, each as a caller would see it."""

from __future__ import annotations

import os
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.launch.environment import THREAD_VARIABLES

pytestmark = pytest.mark.anyio

MORTAL = "tests.adapters.mortal"


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
