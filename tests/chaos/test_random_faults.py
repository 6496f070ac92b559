"""A pool under load whose workers are killed, stopped and spoilt at random: every request ends once, and the pool mends.

A seed of one's own: ``SNAKEPIT_CHAOS_SEEDS=7,8 pytest tests/chaos``. It fixes what is done, not the machine's timing.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.errors import SnakepitError
from tests.chaos.endings import each_request_ends_once

pytestmark = pytest.mark.anyio

SEEDS = [int(text) for text in os.environ.get("SNAKEPIT_CHAOS_SEEDS", "1,2").split(",")]
CALLERS = 12
CALLS = 40
#: Seconds after which no caller makes another call, on a machine that has no time for all of them.
ENOUGH = 25.0


class Load:
    """Callers with every kind of request, and what has become of each."""

    def __init__(self, pool: sp.Pool, seed: int) -> None:
        self.pool = pool
        self.rng = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.begun = 0
        self.callers = CALLERS
        self.until = anyio.current_time() + ENOUGH

    async def caller(self) -> None:
        for _ in range(CALLS):
            if anyio.current_time() < self.until:
                self.begun += 1
                await self.call()
        self.callers -= 1

    async def call(self) -> None:
        rng, pool = self.rng, self.pool
        kind = rng.choices(["echo", "nap", "spin", "count", "ignore", "crash", "exit"], [40, 20, 10, 15, 3, 2, 2])[0]
        patience = rng.choice([float("inf"), float("inf"), 0.001, 0.02, 0.1])
        if kind == "ignore":
            patience = 0.05
        outcome = "cancelled"
        with anyio.move_on_after(patience):
            try:
                if kind == "count":
                    leave_at = rng.choice([None, 1])
                    async with pool.stream("count", {"n": 20}, timeout=5) as chunks:
                        seen = 0
                        async for chunk in chunks:
                            assert chunk == seen
                            seen += 1
                            if seen == leave_at:
                                break
                elif kind == "echo":
                    token = rng.random()
                    assert await pool.execute("echo", {"value": token}, timeout=5) == token
                elif kind in ("nap", "spin"):
                    await pool.execute(kind, {"seconds": rng.choice([0, 0.005, 0.03])}, timeout=5)
                else:
                    await pool.execute(kind, timeout=rng.choice([0.05, 5]))
                outcome = "completed"
            except SnakepitError as exc:
                outcome = type(exc).__name__
        self.outcomes[outcome] += 1

    async def saboteur(self) -> None:
        rng = self.rng
        while self.callers:
            await anyio.sleep(rng.uniform(0.02, 0.15))
            pids = [worker.pid for worker in self.pool.workers() if worker.pid and worker.state in ("ready", "busy")]
            if not pids:
                continue
            number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGTERM])
            try:
                os.kill(rng.choice(pids), number)
            except ProcessLookupError:
                pass


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_request_ends_once_and_the_pool_is_whole_afterwards(seed: int) -> None:
    with anyio.fail_after(100):
        async with sp.open_pool(
            "tests.adapters.chaotic", size=3, max_queue=None, queue_timeout=30, cancel_grace=0.1, stop_grace=0.5,
            heartbeat_interval=0.1, heartbeat_misses=4, restart_limit=10_000, backoff_max=0.05, max_requests=random.Random(seed).choice([None, 30]),
        ) as pool:  # fmt: skip
            load = Load(pool, seed)
            async with each_request_ends_once(pool):
                async with anyio.create_task_group() as callers:
                    callers.start_soon(load.saboteur)
                    for _ in range(CALLERS):
                        callers.start_soon(load.caller)
                await pool.wait_ready(timeout=30)
                for _ in range(5):
                    assert await pool.execute("echo", {"value": 1}) == 1
            assert load.outcomes.total() == load.begun
            # How many of each is the machine's business: on a busy one, impatient callers get less.
            assert load.outcomes["completed"]
            assert load.outcomes["WorkerCrashed"] or load.begun < CALLERS * CALLS
            assert pool.stats().restarts > 3


@pytest.mark.parametrize("method", ["fork_server", "spawn"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_worker_that_dies_or_hangs_while_it_starts_is_replaced(method: str, number: signal.Signals) -> None:
    """Each start is hit at another moment."""
    with anyio.fail_after(100):
        begun = anyio.current_time()
        async with sp.open_pool("tests.adapters.chaotic", size=1, start_method=method):
            # As long as a start takes here and now, several times.
            enough = max(1.5, 6 * (anyio.current_time() - begun))
        async with sp.open_pool(
            "tests.adapters.chaotic", size=1, start_method=method, startup_timeout=enough, restart_limit=1000, backoff_base=0.001, queue_timeout=None,
        ) as pool:  # fmt: skip
            async with each_request_ends_once(pool):
                for delay in (0.0, 0.002, 0.01, 0.03, 0.1) if number == signal.SIGKILL else (0.005,):
                    (worker,) = pool.workers()
                    os.kill(worker.pid, signal.SIGKILL)
                    while True:
                        (starting,) = pool.workers()
                        if starting.pid not in (None, worker.pid):
                            break
                        await anyio.sleep(0.0005)
                    async with anyio.create_task_group() as nursery:
                        # One waits for it already.
                        nursery.start_soon(pool.execute, "echo", {"value": "early"})
                        await anyio.sleep(delay)
                        try:
                            os.kill(starting.pid, number)
                        except ProcessLookupError:
                            pass
                    await pool.wait_ready()
                    assert await pool.execute("echo", {"value": delay}) == delay
