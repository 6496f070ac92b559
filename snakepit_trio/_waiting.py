"""How the task of a request waits and is woken, on either event loop, in the most direct way.

anyio gives the same on both loops; each of its calls first finds out which one is running. A request needs the clock, its
scope's deadline and one wake-up, so a pool asks once, and uses the loop's own means from then on.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    import socket

    import trio

__all__ = ["EventLoop", "Waiter", "event_loop"]


class Waiter(Protocol):
    """Lets one task wait for one thing, once."""

    def wake(self) -> None:
        """It has happened. The task goes on in this pass of the event loop or in the next; a second call does nothing."""

    async def wait(self) -> None:
        """Wait for it; returns at once when it has happened already. A cancellation leaves nothing behind."""


class EventLoop:
    """What a pool uses of its event loop.

    Attributes:
        now: The loop's time, in seconds.
        deadline: When the calling task's scopes end, infinity when they don't.
        check: Raises the cancellation of a task that is cancelled already, without a pass of the loop.
        waiter: Makes a :class:`Waiter`.
        readable: Waits until a socket has something to read.
    """

    __slots__ = ("check", "deadline", "now", "readable", "waiter")

    def __init__(
        self,
        now: Callable[[], float],
        deadline: Callable[[], float],
        check: Callable[[], Awaitable[Any]],
        waiter: Callable[[], Waiter],
        readable: Callable[[socket.socket], Awaitable[Any]],
    ) -> None:
        self.now: Callable[[], float] = now
        self.deadline: Callable[[], float] = deadline
        self.check: Callable[[], Awaitable[Any]] = check
        self.waiter: Callable[[], Waiter] = waiter
        self.readable: Callable[[socket.socket], Awaitable[Any]] = readable


def event_loop(backend: str) -> EventLoop:
    """The event loop that is running: ``"trio"`` or ``"asyncio"``."""
    if backend == "trio":
        return _trio_loop()
    loop = asyncio.get_running_loop()
    return EventLoop(
        loop.time,
        anyio.current_effective_deadline,
        anyio.lowlevel.checkpoint_if_cancelled,
        lambda: _AsyncioWaiter(loop),
        anyio.wait_readable,
    )


@functools.cache
def _trio_loop() -> EventLoop:
    import trio

    return EventLoop(
        trio.current_time,
        trio.current_effective_deadline,
        trio.lowlevel.checkpoint_if_cancelled,
        _trio_waiter(),
        trio.lowlevel.wait_readable,
    )


def _trio_waiter() -> Callable[[], Waiter]:
    """The class, made where Trio is imported already."""
    from trio.lowlevel import Abort, current_task, enable_ki_protection, reschedule, wait_task_rescheduled

    class TrioWaiter:
        """Invariant: ``_task`` is the task exactly while it sleeps here, so it is rescheduled once or aborted, never both.

        Protected, for an interrupt in between would leave the task there, to be woken from another sleep.
        """

        __slots__ = ("_happened", "_task")

        def __init__(self) -> None:
            self._task: trio.lowlevel.Task | None = None
            self._happened = False

        def wake(self) -> None:
            self._happened = True
            task = self._task
            if task is not None:
                self._task = None
                reschedule(task)

        @enable_ki_protection
        async def wait(self) -> None:
            if not self._happened:
                self._task = current_task()
                await wait_task_rescheduled(self._abort)

        def _abort(self, raise_cancel: object) -> Abort:
            self._task = None
            return Abort.SUCCEEDED

    return TrioWaiter


class _AsyncioWaiter:
    __slots__ = ("_future", "_happened", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] | None = None
        self._happened = False

    def wake(self) -> None:
        self._happened = True
        future = self._future
        # A cancelled task's future is done before the task itself has gone on.
        if future is not None and not future.done():
            future.set_result(None)

    async def wait(self) -> None:
        if not self._happened:
            self._future = self._loop.create_future()
            await self._future
