"""The direct way to wait for a wake-up, on both event loops."""

from __future__ import annotations

import math

import anyio
import anyio.lowlevel
import pytest

from snakepit_trio._waiting import event_loop

pytestmark = pytest.mark.anyio


async def test_it_wakes_once_before_or_after(anyio_backend: str) -> None:
    loop = event_loop(anyio_backend)
    waiter = loop.waiter()
    waiter.wake()
    with anyio.fail_after(60):
        await waiter.wait()
    waiter = loop.waiter()
    order: list[str] = []

    async def wait() -> None:
        order.append("waits")
        await waiter.wait()
        order.append("woken")

    with anyio.fail_after(60):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert order == ["waits"]
            waiter.wake()
            waiter.wake()
    assert order == ["waits", "woken"]


@pytest.mark.parametrize("first", ["wake", "cancel", "cancel only"])
async def test_a_wake_up_and_a_cancel_at_once(anyio_backend: str, first: str) -> None:
    loop = event_loop(anyio_backend)
    for _ in range(20):
        waiter = loop.waiter()
        ended: list[str] = []

        async def wait(waiter: object = waiter, ended: list[str] = ended) -> None:
            try:
                await waiter.wait()  # type: ignore[attr-defined]
            except BaseException:
                ended.append("cancelled")
                raise
            ended.append("woken")

        with anyio.fail_after(30):
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                if first == "wake":
                    waiter.wake()
                nursery.cancel_scope.cancel()
                if first == "cancel":
                    waiter.wake()
        assert len(ended) == 1
        if first == "cancel only":
            assert ended == ["cancelled"]
        # A wake-up that comes after the end is of no account.
        waiter.wake()
        await anyio.lowlevel.checkpoint()


async def test_the_clock_and_the_deadline_are_the_loops(anyio_backend: str) -> None:
    loop = event_loop(anyio_backend)
    assert abs(loop.now() - anyio.current_time()) < 1
    assert loop.deadline() == math.inf
    with anyio.move_on_after(50) as scope:
        await anyio.lowlevel.checkpoint()
        assert loop.deadline() == scope.deadline
    with anyio.CancelScope() as scope:
        await loop.check()
        scope.cancel()
        await loop.check()
        pytest.fail("a cancelled task went on")
    assert scope.cancelled_caught
