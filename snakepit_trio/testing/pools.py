"""A pool for a fixture, for any plugin that runs async fixtures."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import sniffio

from snakepit_trio.config import PoolConfig, RuntimeConfig
from snakepit_trio.pool.pool import Pool
from snakepit_trio.runtime import Runtime, open_runtime

__all__ = ["open_test_pool"]


@asynccontextmanager
async def open_test_pool(
    adapter: str | None = None, *, state_dir: str | os.PathLike[str] | None = None, **options: Any
) -> AsyncIterator[Pool]:
    """Open a pool of real workers for a fixture of any scope, with its own state directory; its size is 1 by default.

    On asyncio the block may be left in another task than it was entered in, as pytest-asyncio does with fixtures,
    because the pool is open in a task of its own. Leaving the block, also by a cancellation, closes the pool.

    Args:
        adapter: The adapter's reference.
        state_dir: The state directory; by default a temporary one.
        options: Any field of :class:`~snakepit_trio.PoolConfig`.

    Raises:
        ConfigError, WorkerStartupError: As from :func:`~snakepit_trio.open_pool`.
    """
    async with AsyncExitStack() as stack:
        if state_dir is None:
            state_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="snakepit-test-"))
        if adapter is not None:
            options["adapter"] = adapter
        pool = PoolConfig(**{"size": 1, **options})
        config = RuntimeConfig(pools=[pool], state_dir=str(state_dir), control=False)
        hold = _in_own_task if sniffio.current_async_library() == "asyncio" else open_runtime
        runtime = await stack.enter_async_context(hold(config))
        yield runtime.pool(pool.name)


@asynccontextmanager
async def _in_own_task(config: RuntimeConfig) -> AsyncIterator[Runtime]:
    """Enter and leave a runtime's block in one task, in whichever tasks this block is entered and left."""
    runtime: Runtime | None = None
    ready, leaving = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        nonlocal runtime
        try:
            async with open_runtime(config) as runtime:
                ready.set()
                await leaving.wait()
        finally:
            ready.set()

    task = asyncio.create_task(hold(), name="snakepit_trio.testing.open_test_pool")
    try:
        await ready.wait()
        if runtime is None:
            await task  # The task has failed, and raises its exception.
        assert runtime is not None
        yield runtime
    finally:
        if runtime is None:
            # Cancelling the fixture while its pool opens ends the opening too.
            task.cancel()
        leaving.set()
        await task
