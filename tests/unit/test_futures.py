"""Futures of other threads, awaited on either event loop."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import anyio
import pytest

from snakepit_trio.launch.futures import settled

pytestmark = pytest.mark.anyio


async def test_a_future_of_another_thread() -> None:
    go = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        slow, failing = threads.submit(go.wait), threads.submit(lambda: 1 / 0)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as nursery:
                # Any number of tasks may wait for one.
                for _ in range(3):
                    nursery.start_soon(settled, slow)
                await settled(failing)
                assert isinstance(failing.exception(), ZeroDivisionError)
                assert not slow.done()
                go.set()
            assert slow.result() is True
            await settled(slow)


async def test_a_cancellation_leaves_it_alone() -> None:
    future: Future[int] = Future()
    for _ in range(2):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await settled(future)
        assert scope.cancelled_caught
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(settled, future)
        await anyio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert not future.cancelled()
    future.set_result(1)
    await settled(future)


def test_a_loop_that_has_ended_is_woken_in_vain(anyio_backend: str) -> None:
    future: Future[int] = Future()

    async def main() -> None:
        with anyio.move_on_after(0.01):
            await settled(future)

    anyio.run(main, backend=anyio_backend)
    future.set_result(1)
    assert future.result() == 1
