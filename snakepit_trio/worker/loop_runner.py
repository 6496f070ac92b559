"""Runs an adapter with async parts: the main thread has an event loop, Trio or asyncio.

Each async call is a task of that loop (:mod:`.tasks`); sync tools of the same adapter run in threads.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio

from snakepit_trio import _forks
from snakepit_trio._exceptions import is_a
from snakepit_trio._user_code import Raised
from snakepit_trio.errors import RequestTimeout

from .failure import run
from .lines import Line, Threads
from .runners import Answer, SyncCalls
from .tasks import Scope, Tasks, open_tasks
from .toolbox import Kind

if TYPE_CHECKING:
    from .call import Call

__all__ = ["LoopRunner"]

#: Seconds. The time for the clean-up of a generator or a teardown after a cancellation.
CLEANUP_TIME = 5.0


class LoopRunner(SyncCalls):
    """Runs an adapter with async parts.

    Args:
        backend: ``"trio"`` or ``"asyncio"``.
        threads: The number of sync tools that run at once.
    """

    def __init__(self, backend: str, threads: int) -> None:
        super().__init__()
        self._backend = backend
        self._threads = Threads(threads, self._run_in_thread)
        self._line = Line(threads)
        self._run_soon: Callable[[Callable[[], object]], object] | None = None
        self._early: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._tasks: Tasks
        self._stopped: anyio.Event
        self._stopping = False
        #: The scopes of running questions.
        self._asking: set[Scope] = set()
        self._probe_at: float | None = None
        self._last_lag = 0.0

    def submit(self, call: Call) -> None:
        if self._line.enter(call):
            self._place(call)

    def _place(self, call: Call) -> None:
        """Run a call where its kind runs. From any thread."""
        if call.tool.kind.needs_loop:
            self._soon(functools.partial(self._begin, call))
        else:
            self._threads.put(call)

    def _begin(self, call: Call) -> None:
        self._tasks.start(self._run_in_task, call)

    def _run_in_thread(self, call: Call) -> None:
        following: Call | None = call
        while following is not None and not following.tool.kind.needs_loop:
            self.run_sync(following)
            following = self._line.leave()
        if following is not None:
            self._place(following)

    async def _run_in_task(self, call: Call) -> None:
        await self._run(call)
        following = self._line.leave()
        if following is None:
            return
        if following.tool.kind.needs_loop:
            self._begin(following)
        else:
            self._threads.put(following)

    def stop(self) -> None:
        self._soon(self._stop)

    def _stop(self) -> None:
        self._stopping = True
        self._stopped.set()
        # The answers are not needed any more, and the end does not wait for them.
        for scope in self._asking:
            scope.cancel()

    def ask(self, function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        self._soon(functools.partial(self._begin_answer, function, answer))

    def _begin_answer(self, function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        if not self._stopping:
            self._tasks.start(self._answer, function, answer)

    def portal(self) -> Callable[[Callable[[], object]], object]:
        assert self._run_soon is not None
        return self._run_soon

    def lag(self) -> float:
        # One probe runs at a time: its delay so far, or the delay of the last one.
        now = time.monotonic()
        if self._probe_at is None:
            self._probe_at = now
            self._soon(self._probed)
            return self._last_lag
        return max(self._last_lag, now - self._probe_at)

    def _probed(self) -> None:
        if self._probe_at is not None:
            self._last_lag = time.monotonic() - self._probe_at
            self._probe_at = None

    def main(self, before: Callable[[], Any], ready: Callable[[], None], after: Callable[[], Any]) -> None:
        options: dict[str, Any] = {}
        if self._backend == "asyncio":
            try:
                import uvloop  # noqa: F401
            except ImportError:
                pass
            else:
                options["use_uvloop"] = True
        anyio.run(self._main, before, ready, after, backend=self._backend, backend_options=options)

    async def _main(self, before: Callable[[], Any], ready: Callable[[], None], after: Callable[[], Any]) -> None:
        self._stopped = anyio.Event()
        failure: Exception | None = None
        await _maybe(before())
        self.set_up()
        try:
            # The threads end with their calls; the loop has no other work meanwhile.
            with self._threads:
                async with open_tasks(self._backend, self._context) as self._tasks:
                    self._open_portal()
                    try:
                        ready()
                    except Exception as exc:
                        # Raised outside, because it would be wrapped in a group here.
                        failure = exc
                    else:
                        await self._stopped.wait()
            if failure is not None:
                raise failure
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLEANUP_TIME):
                await _maybe(after())
            with self._lock:
                self._run_soon = lambda callback: None

    def _open_portal(self) -> None:
        if self._backend == "trio":
            import trio

            run_soon: Callable[[Callable[[], object]], object] = trio.lowlevel.current_trio_token().run_sync_soon
        else:
            import asyncio

            run_soon = asyncio.get_running_loop().call_soon_threadsafe
        with self._lock:
            self._run_soon = run_soon
            early, self._early = self._early, []
        for callback in early:
            run_soon(functools.partial(run, callback))

    def _soon(self, callback: Callable[[], object]) -> None:
        with self._lock:
            if self._run_soon is None:
                self._early.append(callback)
                return
        self._run_soon(functools.partial(run, callback))

    async def _answer(self, function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        scope = self._tasks.scope(None)
        raised = Raised()
        value = None
        self._asking.add(scope)
        try:
            with scope, raised:
                value = await function()
        except BaseException as exc:
            if self._tasks.ending:
                raise
            raised.exc = exc
        finally:
            self._asking.discard(scope)
        answer(value, raised.exc)

    async def _run(self, call: Call) -> None:
        if not call.claim():
            return
        call.enter()
        scope = self._tasks.scope(None if call.deadline is None else call.deadline - time.monotonic())
        room = _Room() if call.tool.kind is Kind.ASYNC_GENERATOR else None

        def look() -> None:
            if call.cancelled:
                scope.cancel()
            if room is not None:
                room.open()

        call.wake = lambda: self._soon(look)
        if call.cancelled:
            scope.cancel()
        raised = Raised()
        finished = False
        try:
            # Contained within the scope, because a fork of this process has no event loop, which scopes need at their
            # end.
            with scope, raised, _forks.contained():
                bound = call.arguments()
                if bound is None:
                    return
                positional, keywords = bound
                if room is None:
                    result = await call.tool.function(*positional, **keywords)
                else:
                    await self._run_generator(call, call.tool.function(*positional, **keywords), room)
                finished = True
        except BaseException as exc:
            if self._tasks.ending:
                raise
            # Anything else is the tool's, even an exception that looks like a cancellation, of a task that it has
            # awaited.
            raised.exc = exc
        if raised.exc is not None and not (scope.cancel_called and is_a(raised.exc, anyio.get_cancelled_exc_class())):
            call.fail(raised.exc)
        elif not finished:
            if call.cancelled:
                call.end_cancelled()
            else:
                call.refuse(RequestTimeout("the deadline has passed"))
        elif room is None:
            call.finish(result)
        else:
            call.end_stream()

    async def _run_generator(self, call: Call, generator: Any, room: _Room) -> None:
        try:
            while True:
                room.close()
                credit = call.take_credit()
                if credit is None:
                    return
                if not credit:
                    await room.wait()
                    continue
                try:
                    with _forks.contained():
                        value = await anext(generator)
                except StopAsyncIteration:
                    return
                call.chunk(value)
        finally:
            close = getattr(generator, "aclose", None)
            if close is not None:
                with anyio.CancelScope(shield=True), anyio.move_on_after(CLEANUP_TIME):
                    await close()


class _Room:
    """Whether a generator may have got room for another chunk since it last checked. For one event loop's thread."""

    def __init__(self) -> None:
        self._opened: anyio.Event | None = None
        self._open = False

    def close(self) -> None:
        """Reset it before a check."""
        self._open = False

    def open(self) -> None:
        """Record that there is room, or that no chunks are wanted any more."""
        self._open = True
        if self._opened is not None:
            self._opened.set()

    async def wait(self) -> None:
        """Wait until :meth:`open` has been called since :meth:`close`."""
        if not self._open:
            self._opened = anyio.Event()
            await self._opened.wait()
            self._opened = None


async def _maybe(value: Any) -> Any:
    if inspect.isawaitable(value):
        awaitable: Awaitable[Any] = value
        return await awaitable
    return value
