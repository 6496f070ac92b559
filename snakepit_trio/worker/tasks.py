"""The tasks of one event loop in which async tools run: one for each call, with its own context and scope.

They are the loop's own tasks rather than those of an anyio task group, which cost several times as much, and which are
all cancelled when one ends by its own cancellation. Anything that a tool leaves in its task (a pending cancellation, an
open scope, a timer that cancels it) ends with the task.

A scope is cancelled in its loop's way. In Trio every unshielded wait in a cancelled scope raises. In asyncio the
current wait raises, once: a tool's waits during its clean-up are not disturbed. On both, a wait shielded by an anyio
scope is not interrupted.
"""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from snakepit_trio import _private_names

from . import failure

if TYPE_CHECKING:
    import trio

__all__ = ["Scope", "Tasks", "open_tasks"]


class Scope(AbstractContextManager["Scope", bool], Protocol):
    """The cancel scope of a call."""

    @property
    def cancel_called(self) -> bool:
        """Whether :meth:`cancel` was called, or the deadline has passed."""

    def cancel(self) -> object:
        """Cancel the code in the scope."""


class Tasks(Protocol):
    """The tasks that live during the block; the block ends when all of them have ended."""

    @property
    def ending(self) -> bool:
        """Whether they are cancelled because the loop is ending."""

    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Start a task in the loop's thread. An exception that leaves the function ends this worker."""

    def scope(self, timeout: float | None) -> Scope:
        """Return a scope with this time limit in seconds, for one of the tasks to enter."""


def open_tasks(backend: str, context: contextvars.Context) -> AbstractAsyncContextManager[Tasks]:
    """Return the tasks of this loop.

    Args:
        backend: ``"trio"`` or ``"asyncio"``.
        context: The context of which each task has a copy.
    """
    return _open_trio(context) if backend == "trio" else _open_asyncio(context)


class _TrioTasks:
    def __init__(self, nursery: trio.Nursery, context: contextvars.Context) -> None:
        import trio

        self._nursery = nursery
        self._run = context.run
        self._current = trio.lowlevel.current_task
        self._scope = trio.CancelScope
        self._time = trio.current_time

    @property
    def ending(self) -> bool:
        return self._nursery.cancel_scope.cancel_called

    def start(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        # Trio copies the current context.
        self._run(self._nursery.start_soon, self._task, function, *args)

    async def _task(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        await failure.task(function, *args)
        while left := self._current().child_nurseries:
            await _close_nursery(left[-1])

    def scope(self, timeout: float | None) -> Scope:
        return self._scope() if timeout is None else self._scope(deadline=self._time() + timeout)


async def _close_nursery(nursery: trio.Nursery) -> None:
    """Cancel and await the tasks of a nursery that a tool has opened and not closed.

    A Trio task that ends with an open nursery fails, and would cancel all other tasks of this loop. The call has failed
    by then; exceptions of the nursery's tasks are printed.
    """
    import trio

    nursery.cancel_scope.cancel()
    # Does what leaving the nursery's block does, because the tool has left the block without it.
    raised = await nursery._nested_child_finished(None)
    if isinstance(raised, BaseExceptionGroup):
        raised = raised.split(trio.Cancelled)[1]
    if raised is not None and not isinstance(raised, trio.Cancelled):
        traceback.print_exception(raised)


@asynccontextmanager
async def _open_trio(context: contextvars.Context) -> AsyncIterator[Tasks]:
    import trio

    _private_names.require("trio")
    async with trio.open_nursery() as nursery:
        yield _TrioTasks(nursery, context)


class _Task(asyncio.Task[None]):
    """A task that informs its scope when it is cancelled."""

    scope: _OnceScope | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        if self.scope is not None:
            self.scope.reached()
        return super().cancel(msg)


class _OnceScope:
    """A scope whose cancellation reaches its task once.

    anyio cancels every wait in a cancelled scope. So the task is in a second, inner scope, which is shielded as soon as
    the cancellation has reached the task.
    """

    __slots__ = ("_inner", "_outer", "_task")

    def __init__(self, deadline: float) -> None:
        self._outer = anyio.CancelScope(deadline=deadline)
        self._inner = anyio.CancelScope()

    @property
    def cancel_called(self) -> bool:
        return self._outer.cancel_called

    def cancel(self) -> None:
        self._outer.cancel()

    def reached(self) -> None:
        """Record that the task is being cancelled, by this or another cause."""
        if self._outer.cancel_called:
            self._inner.shield = True

    def __enter__(self) -> _OnceScope:
        task = asyncio.current_task()
        assert isinstance(task, _Task)
        self._task = task
        task.scope = self
        self._outer.__enter__()
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._task.scope = None
        # Breaks a cycle: the call refers to this scope, and the task to the call's context.
        del self._task
        # The inner scope is never cancelled, so it suppresses nothing.
        self._inner.__exit__(kind, exc, traceback)
        return self._outer.__exit__(kind, exc, traceback)


class _AsyncioTasks:
    def __init__(self, context: contextvars.Context) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._live: set[_Task] = set()
        self._ended: asyncio.Future[None] | None = None
        self.ending = False

    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        task = _Task(failure.task(function, *args), loop=self._loop, context=self._context.copy())
        self._live.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: _Task) -> None:
        self._live.discard(task)
        exc = None if task.cancelled() else task.exception()
        if isinstance(exc, Exception):
            # Its own boundary has not caught it.
            failure.fatal(exc)
        if not self._live and self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def scope(self, timeout: float | None) -> Scope:
        return _OnceScope(float("inf") if timeout is None else self._loop.time() + timeout)

    async def ended(self) -> None:
        """Wait until all tasks have ended. A cancellation cancels them all, and leaves none behind."""
        cancelled: asyncio.CancelledError | None = None
        while self._live:
            self._ended = self._loop.create_future()
            try:
                await self._ended
            except asyncio.CancelledError as exc:
                cancelled = exc
                self.cancel()
        if cancelled is not None:
            # The same exception object, because a scope identifies its own cancellation by its message.
            raise cancelled

    def cancel(self) -> None:
        self.ending = True
        for task in self._live:
            task.cancel()


@asynccontextmanager
async def _open_asyncio(context: contextvars.Context) -> AsyncIterator[Tasks]:
    tasks = _AsyncioTasks(context)
    try:
        yield tasks
    except BaseException:
        tasks.cancel()
        raise
    finally:
        await tasks.ended()
