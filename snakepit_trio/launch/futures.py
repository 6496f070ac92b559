"""Waiting for futures of other threads in a task of either event loop, without an extra thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import anyio
import sniffio

__all__ = ["settled"]


async def settled(future: Future[Any]) -> None:
    """Wait until a future has a result or an exception, without taking it. A cancellation does not affect the future."""
    if future.done():
        await anyio.lowlevel.checkpoint()
        return
    done = anyio.Event()
    call_soon = _call_soon()

    def wake(_: Future[Any]) -> None:
        # A loop that has ended meanwhile has no task to wake.
        with suppress(RuntimeError):
            call_soon(done.set)

    future.add_done_callback(wake)
    await done.wait()


def _call_soon() -> Callable[[Callable[[], None]], object]:
    """Return a function that runs a callback in this task's event loop, from any thread."""
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
    return asyncio.get_running_loop().call_soon_threadsafe
