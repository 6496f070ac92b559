"""Direct waits and wake-ups of a request's task, on either event loop.

anyio offers the same on both loops, but each call first determines the running loop. A request needs the clock, its
scope's deadline and one wake-up, so a pool determines the loop once and uses its functions directly.
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
    """Lets one task wait for one event, once."""

    def wake(self) -> None:
        """Wake the task. It continues in this pass of the event loop or in the next; a second call does nothing."""

    async def wait(self) -> None:
        """Wait for the wake-up; returns at once if it has already happened. A cancellation leaves nothing behind."""


class EventLoop:
    """The functions of the event loop that a pool uses.

    Attributes:
        now: Returns the loop's time in seconds.
        deadline: Returns the deadline of the calling task's scopes, infinity if there is none.
        check: Raises the cancellation if the task is already cancelled, without a pass of the loop.
        waiter: Creates a :class:`Waiter`.
        readable: Waits until a socket is readable.
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
    """Return the functions of the running event loop, ``"trio"`` or ``"asyncio"``."""
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
    """Return the waiter's class; defined in a function because Trio may not be imported."""
    from trio.lowlevel import Abort, current_task, enable_ki_protection, reschedule, wait_task_rescheduled

    class TrioWaiter:
        """Invariant: ``_task`` is set exactly while the task sleeps here, so it is rescheduled once or aborted, never both.

        The methods are protected: an interrupt in between would leave ``_task`` set, and a later wake-up would reach
        another sleep.
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
        # A cancelled task's future is done before the task itself has continued.
        if future is not None and not future.done():
            future.set_result(None)

    async def wait(self) -> None:
        if not self._happened:
            self._future = self._loop.create_future()
            await self._future
