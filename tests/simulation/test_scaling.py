"""Pools that go by their load, on a clock that jumps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
import trio
import trio.testing

import snakepit_trio as sp
from snakepit_trio.pool.scheduling.request import Binding
from tests.simulation.scripted import World


def simulate(body: Callable[[sp.Pool], Awaitable[None]], **options: object) -> list[tuple[int, str]]:
    """Run a body with a pool; returns the sizes that it has had, each with the reason."""
    sizes: list[tuple[int, str]] = []

    async def main() -> None:
        world = World(1, crash=0, deaf=0, late=0, start_failure=0)
        pool = world.pool(
            **{"cancel_grace": 0.2, "target_wait": 0.1, "scale_down_after": 10.0, "queue_timeout": None, **options}
        )
        async with world, world.events.subscribe("pool.resized") as events, anyio.create_task_group() as nursery:
            await pool.open(nursery)
            with trio.fail_after(1000):
                await body(pool)
            while (event := events.receive_nowait()) is not None:
                sizes.append((int(event.measurements["size"]), event.metadata["reason"]))
            await pool.aclose(drain=True)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return sizes


def world_of(pool: sp.Pool) -> World:
    assert isinstance(pool._services.launcher, World)
    return pool._services.launcher


async def burst(pool: sp.Pool, count: int, seconds: float) -> float:
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(pool.execute, "work", {"seconds": seconds})
    return trio.current_time() - begun


def test_a_burst_gets_workers_and_the_silence_after_it_takes_them() -> None:
    async def body(pool: sp.Pool) -> None:
        assert await burst(pool, 40, 1.0) < 15
        assert pool.stats().size > 4
        await trio.sleep(30)
        assert pool.stats().size == 1
        assert len(pool.workers()) == 1
        assert pool.stats().failed == 0

    sizes = simulate(body, size=1, max_size=8)
    assert {reason for _, reason in sizes} == {"load"}
    assert max(size for size, _ in sizes) == 8


def test_an_idle_pool_has_no_workers_and_its_next_request_wakes_it() -> None:
    async def body(pool: sp.Pool) -> None:
        for _ in range(3):
            await trio.sleep(30)
            assert (pool.stats().size, pool.workers()) == (0, ())
            assert await burst(pool, 1, 0.01) < 1

    simulate(body, size=1, min_size=0, max_size=2)


def test_a_spare_that_fails_while_there_are_no_workers_costs_no_request() -> None:
    async def body(pool: sp.Pool) -> None:
        world = pool._services.launcher
        assert isinstance(world, World)
        await trio.sleep(30)
        (spare,) = pool.workers()
        assert (pool.stats().size, spare.state) == (0, "spare")
        world.behaviour.start_failure = 1.0
        async with world.events.subscribe("slot.failed") as failures:
            pool.supervisor.kill_worker(spare.id)
            await anext(failures)
        world.behaviour.start_failure = 0.0
        assert await burst(pool, 1, 0.01) < 1

    simulate(body, size=1, min_size=0, max_size=2, spares=1, restart_limit=1, backoff_base=0.01)


def test_few_requests_do_not_make_a_pool_grow() -> None:
    async def body(pool: sp.Pool) -> None:
        for _ in range(50):
            await burst(pool, 2, 0.05)
            await trio.sleep(0.1)

    assert simulate(body, size=2, max_size=8) == []


def test_workers_that_cannot_start_do_not_stop_the_others() -> None:
    async def body(pool: sp.Pool) -> None:
        world = pool._services.launcher
        assert isinstance(world, World)
        world.behaviour.start_failure = 1.0
        assert await burst(pool, 10, 0.5) < 6
        world.behaviour.start_failure = 0.0
        await trio.sleep(60)
        assert pool.stats().size == 1

    simulate(body, size=1, max_size=4, restart_limit=1, backoff_base=0.01)


@pytest.mark.parametrize("asked", [False, True])
def test_a_pool_that_shrinks_gives_up_idle_workers_before_busy_ones(asked: bool) -> None:
    async def body(pool: sp.Pool) -> None:
        await pool.resize(3)
        # The slot that would go first, were it idle.
        others = [info.id for info in pool.workers() if info.slot != 2]
        for worker_id in others:
            pool.cordon(worker_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.execute, "work", {"seconds": 60})
            await trio.testing.wait_all_tasks_blocked()
            for worker_id in others:
                pool.cordon(worker_id, cordoned=False)
            if asked:
                await pool.resize(1)
            else:
                await trio.sleep(30)
            assert [(info.slot, info.state) for info in pool.workers()] == [(2, "busy")]
        assert pool.stats().completed == 1

    simulate(body, size=1, **({} if asked else {"max_size": 4}))


def test_a_size_that_is_asked_for_stays_between_the_two() -> None:
    async def body(pool: sp.Pool) -> None:
        await pool.resize(4)
        assert pool.stats().size == 4
        await trio.sleep(30)
        assert pool.stats().size == 2

    assert simulate(body, size=2, max_size=6) == [(4, "resize"), (2, "load")]


def test_a_resize_does_not_wait_for_workers_that_are_no_longer_wanted() -> None:
    """The second resize, and then the autoscaler, takes away what the first one waits for."""

    async def body(pool: sp.Pool) -> None:
        world = pool._services.launcher
        assert isinstance(world, World)
        world.behaviour.start_failure = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.resize, 4)
            await trio.sleep(0.2)
            world.behaviour.start_failure = 0.0
            await pool.resize(1)
        assert pool.stats().size == 1

    simulate(body, size=1, restart_limit=1000, backoff_base=1.0, backoff_max=10.0)


def test_one_spare_is_given_to_one_slot() -> None:
    async def body(pool: sp.Pool) -> None:
        await pool.resize(4)
        assert len({slot.current for slot in pool.supervisor.slots}) == 4
        assert pool.stats().ready == 4

    simulate(body, size=1, spares=1)


def test_everybody_who_waits_for_workers_is_told() -> None:
    async def body(pool: sp.Pool) -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(pool.wait_ready, 3)
                nursery.start_soon(pool.resize, 3)

    simulate(body, size=1)


def test_a_scaled_pool_takes_no_worker_from_a_call() -> None:
    """Two calls are as many as one worker could run, but they are with two."""

    async def body(pool: sp.Pool) -> None:
        await pool.resize(2)
        assert await burst(pool, 2, 60) < 61
        assert pool.stats().completed == 2
        await trio.sleep(30)
        assert pool.stats().size == 1

    simulate(body, size=1, max_size=4, threads=2, stop_grace=1.0)


def test_calls_in_the_line_of_a_busy_worker_get_the_pool_another() -> None:
    async def body(pool: sp.Pool) -> None:
        # It has been short so far, so calls stand in the line of the worker that runs a long one.
        for _ in range(50):
            await pool.execute("work", {"seconds": 0.0})
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.execute, "work", {"seconds": 4.0})
            await trio.sleep(0.001)
            async with trio.open_nursery() as short:
                for _ in range(10):
                    short.start_soon(pool.execute, "work", {"seconds": 0.0})
            assert trio.current_time() - begun < 1.0

    simulate(body, size=1, max_size=4, prefetch=16)


def test_calls_that_are_tied_to_a_worker_get_the_pool_no_other() -> None:
    async def body(pool: sp.Pool) -> None:
        binding = Binding("s", strict=True)
        await pool.calls.execute("work", {"seconds": 0.0}, {}, binding=binding)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(lambda: pool.calls.execute("work", {"seconds": 0.5}, {}, binding=binding))
            await trio.sleep(1)
            assert pool.stats().size == 1

    simulate(body, size=1, max_size=4)


def test_a_place_that_waits_for_its_next_attempt_does_not_stop_the_pool_from_growing() -> None:
    async def body(pool: sp.Pool) -> None:
        world = world_of(pool)
        world.behaviour.start_failure = 1.0
        world.worker(pool.workers()[0].id).crash()
        await trio.sleep(3)
        world.behaviour.start_failure = 0.0
        # The second place stands still for minutes; the first one serves.
        begun = trio.current_time()
        assert await burst(pool, 12, 1.0) < 10, trio.current_time() - begun

    simulate(body, size=2, max_size=6, restart_limit=None, backoff_base=200.0, backoff_max=300.0, queue_timeout=None)
