"""The tools of ``isolated``, and async ones, for both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import sniffio

import snakepit_trio as sp

from . import isolated
from .isolated import _swap

_kept: list[Any] = []


class Mixed(isolated.Plain):
    """Some async."""

    async def setup(self) -> None:  # type: ignore[override]
        isolated.where.set("set up")

    @sp.tool
    async def bind_async(self, name: str) -> list[str]:
        found = _swap(name)
        await anyio.lowlevel.checkpoint()
        return found

    @sp.tool
    async def bind_and_count_async(self, name: str) -> AsyncIterator[list[str]]:
        yield _swap(name)
        yield _swap(name)

    @sp.tool
    async def probe(self, seconds: float) -> list[str]:
        """Do what a well-behaved tool does; gives what it finds that is not its own."""
        found = []
        if sniffio.current_async_library() == "asyncio":
            task = asyncio.current_task()
            assert task is not None
            if task.cancelling():
                found.append("a task that is being cancelled")
        else:
            import trio

            task = trio.lowlevel.current_task()  # type: ignore[assignment]
        if any(task is other for other in _kept):
            found.append("another call's task")
        _kept.append(task)
        if anyio.current_effective_deadline() < anyio.current_time() + 30:
            found.append("a deadline")
        await anyio.sleep(seconds)
        return found

    @sp.tool
    async def leaves_a_scope(self, cancelled: bool) -> str:
        scope = anyio.CancelScope(deadline=anyio.current_time() + (0 if cancelled else 0.01))
        _kept.append(scope)
        scope.__enter__()
        return "left"

    @sp.tool
    async def leaves_a_nursery(self, tasks: int, fails: bool) -> str:
        nursery = anyio.create_task_group()
        _kept.append(nursery)
        await nursery.__aenter__()
        for _ in range(tasks):
            nursery.start_soon(self._sleep, fails)
        await anyio.sleep(0.001)
        return "left"

    async def _sleep(self, fails: bool) -> None:
        await anyio.lowlevel.checkpoint()
        if fails:
            raise LookupError("left behind")
        await anyio.sleep(60)

    @sp.tool
    async def leaves_a_timer(self, seconds: float) -> str:
        """For asyncio: a timer that cancels the task which it was made in."""
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(seconds, task.cancel)
        await asyncio.sleep(0)
        return "left"

    @sp.tool
    async def cancels_itself(self) -> str:
        """For asyncio: returns before its own cancellation has reached it."""
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "left"

    @sp.tool
    async def swallows(self) -> str:
        """For asyncio: its own cancellation is caught and never taken back."""
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            return "left"
        return "never"
