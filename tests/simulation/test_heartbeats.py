"""Which silent workers are dead: those whose processes use no CPU time while a call runs, and idle ones."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
import trio

import snakepit_trio as sp
from snakepit_trio.testing.scripted import ScriptedWorker
from tests.simulation.scripted import World
from tests.simulation.test_scaling import simulate

INTERVAL = 2.0
LIMITS = [(1, 1.5 * INTERVAL), (2, 2 * INTERVAL), (3, 3 * INTERVAL)]


def uses(worker: ScriptedWorker, used: Callable[[float], float | None]) -> None:
    """Make its process use so much CPU time until so many seconds from now."""
    began = trio.current_time()

    async def cpu_time() -> float | None:
        return used(trio.current_time() - began)

    worker.cpu_time = cpu_time  # type: ignore[method-assign]


async def silent_call(pool: sp.Pool, used: Callable[[float], float | None]) -> tuple[float, str]:
    """A call in a worker that answers nothing from now on: after how long it is found dead, and what is said of it."""
    world = pool._services.launcher
    assert isinstance(world, World)
    worker = world.worker(pool.workers()[0].id)
    found: list[tuple[float, str]] = []

    async def call() -> None:
        with pytest.raises(sp.WorkerCrashed) as caught:
            await pool.execute("work", {"seconds": 1000})
        assert caught.value.details["reason"] == "heartbeat"
        found.append((trio.current_time() - began, str(caught.value)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        # It has answered a heartbeat at some moment within this interval.
        await trio.sleep(INTERVAL * 1.3)
        began = trio.current_time()
        worker.freeze()
        uses(worker, used)
    return found[0]


@pytest.mark.parametrize(("misses", "limit"), LIMITS)
def test_a_process_that_is_stopped_or_deadlocked_is_found_within_the_limit(misses: int, limit: float) -> None:
    async def body(pool: sp.Pool) -> None:
        # What threads use that wait for the GIL.
        for share in (0.0, 0.026):
            after, words = await silent_call(pool, lambda passed, share=share: share * passed)  # type: ignore[misc]
            assert limit - INTERVAL <= after <= limit
            assert "heartbeat_while_busy" in words
            await pool.wait_ready()

    simulate(body, size=1, heartbeat_interval=INTERVAL, heartbeat_misses=misses, timeout=None)


@pytest.mark.parametrize(("misses", "limit"), LIMITS)
@pytest.mark.parametrize("stops_at", [0.5, 6.7, 100.0, 101.9])
def test_one_that_is_at_work_is_alive_until_it_stops(misses: int, limit: float, stops_at: float) -> None:
    async def body(pool: sp.Pool) -> None:
        after, _ = await silent_call(pool, lambda passed: 0.3 * min(passed, stops_at))
        assert limit - INTERVAL <= after <= max(limit, stops_at + limit)
        if stops_at > limit:
            assert after > stops_at

    simulate(body, size=1, heartbeat_interval=INTERVAL, heartbeat_misses=misses, timeout=None)


def test_one_that_nobody_can_look_at_is_found_by_its_silence() -> None:
    async def body(pool: sp.Pool) -> None:
        after, _ = await silent_call(pool, lambda passed: None)
        assert after <= 6.0
        await pool.wait_ready()
        world = pool._services.launcher
        assert isinstance(world, World)

        async def never() -> float | None:
            await anyio.sleep_forever()

        world.worker(pool.workers()[0].id).cpu_time = never  # type: ignore[method-assign]
        world.worker(pool.workers()[0].id).freeze()
        began = trio.current_time()
        with pytest.raises(sp.WorkerCrashed):
            await pool.execute("work", {"seconds": 1000})
        assert trio.current_time() - began <= 6.0 + INTERVAL / 2

    simulate(body, size=1, heartbeat_interval=INTERVAL, heartbeat_misses=3, timeout=None)


@pytest.mark.parametrize("misses", [1, 3])
def test_one_that_answers_is_alive(misses: int) -> None:
    async def body(pool: sp.Pool) -> None:
        await trio.sleep(300)
        assert pool.stats().restarts == 0

    simulate(body, size=3, heartbeat_interval=INTERVAL, heartbeat_misses=misses)


def test_an_idle_one_is_not_excused_by_its_work() -> None:
    async def body(pool: sp.Pool) -> None:
        world = pool._services.launcher
        assert isinstance(world, World)
        (before,) = pool.workers()
        worker = world.worker(before.id)
        await trio.sleep(INTERVAL * 1.3)
        worker.freeze()
        uses(worker, lambda passed: passed)
        await trio.sleep(6.0 + 0.2)
        assert pool.workers()[0].id != before.id

    simulate(body, size=1, heartbeat_interval=INTERVAL, heartbeat_misses=3)


def test_without_heartbeats_while_busy_nobody_looks() -> None:
    async def body(pool: sp.Pool) -> None:
        world = pool._services.launcher
        assert isinstance(world, World)
        worker = world.worker(pool.workers()[0].id)

        async def asked() -> float | None:
            raise AssertionError("nobody has to know")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.execute, "work", {"seconds": 60})
            await trio.sleep(1)
            deliver, worker.on_message, worker.cpu_time = worker.on_message, None, asked  # type: ignore[method-assign]
            await trio.sleep(50)
            worker.on_message = deliver
        assert pool.stats().restarts == 0

    simulate(body, size=1, heartbeat_interval=INTERVAL, heartbeat_misses=3, heartbeat_while_busy=False)
