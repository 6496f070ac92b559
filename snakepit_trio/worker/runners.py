"""Where user code runs: in the main thread, in threads of our own, on an event loop. Never in the I/O thread.

:class:`SyncRunner` is for adapters without anything async: with one call at a time the main thread itself runs the
tools, so there is no needless hop, and libraries that insist on the main thread work. :class:`LoopRunner` gives the main
thread an event loop, Trio or asyncio, in which each async call is a task under a cancel scope of its own; sync tools of the
same adapter run in threads. Threads are joined at the end; a tool that can't be stopped is the host's to kill.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from snakepit_trio import _forks
from snakepit_trio.errors import RequestTimeout

from .failure import run, task
from .lines import Line, Threads
from .toolbox import Kind

if TYPE_CHECKING:
    import anyio.abc

    from .calls import Call

__all__ = ["LoopRunner", "Runner", "SyncRunner", "WithoutLoop", "run_sync"]

#: How long a generator's or a teardown's own clean-up may take after a cancel, in seconds.
CLEANUP_TIME = 5.0
#: How long calls may follow each other in a task before the event loop has a turn, in seconds.
_TURN = 0.005


class Answer(Protocol):
    """Takes a result, or the error in its place."""

    def __call__(self, value: object, error: BaseException | None) -> None: ...


class Runner(Protocol):
    """Runs calls, in the order in which they came, as many at once as the worker has threads."""

    def submit(self, call: Call) -> None:
        """Run this call when its turn has come. Called in the I/O thread."""

    def stop(self) -> None:
        """Return from ``main``: the last call has ended. Called in the I/O thread."""

    def main(self, before: Callable[[], Any], ready: Callable[[], None], after: Callable[[], Any]) -> None:
        """Run in the main thread: ``before`` (setup), ``ready``, calls until :meth:`stop`, ``after`` (teardown).

        ``before`` and ``after`` may return awaitables.
        """

    def portal(self) -> Callable[[Callable[[], object]], object]:
        """A function that runs a callback in the runner's event loop."""

    def ask(self, function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        """Await this function in the runner's event loop, and tell what came of it. May be called from any thread."""

    def lag(self) -> float:
        """How late the event loop is, in seconds; 0 without one. May be asked from any thread."""


def run_sync(call: Call) -> None:
    """Run a sync tool, or advance a sync generator, in this thread. Never raises what the tool does."""
    if not call.claim():
        return  # It was taken back before it began.
    call.enter()
    try:
        bound = call.arguments()
        if bound is None:
            return
        positional, keywords = bound
        if call.tool.kind is Kind.GENERATOR:
            _run_generator(call, iter(call.tool.function(*positional, **keywords)))
        else:
            call.finish(call.tool.function(*positional, **keywords))
    except BaseException as exc:
        # Whatever it is, it is the tool's: the worker handles its signals itself, and its caller waits for an answer.
        call.fail(exc)
    finally:
        call.leave()


def _run_generator(call: Call, generator: Any) -> None:
    try:
        while call.wait_credit():
            try:
                value = next(generator)
            except StopIteration:
                break
            call.chunk(value)
    finally:
        close = getattr(generator, "close", None)
        if close is not None:
            close()
    call.end_stream()


class WithoutLoop:
    """What runners for adapters without anything async have in common."""

    def portal(self) -> Callable[[Callable[[], object]], object]:
        raise RuntimeError("call_host is for async tools; use call_host_sync")

    def ask(self, function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        raise RuntimeError("an adapter with an async hook has an event loop")

    def lag(self) -> float:
        return 0.0


class SyncRunner(WithoutLoop):
    """Runs an adapter that has nothing async, several calls at once."""

    def __init__(self, threads: int) -> None:
        self._threads = Threads(threads, run_sync)
        self.submit = self._threads.put
        self.stop = self._threads.stop

    def main(self, before: Callable[[], Any], ready: Callable[[], None], after: Callable[[], Any]) -> None:
        before()
        try:
            with self._threads:
                ready()
                self._threads.join()
        finally:
            after()


class LoopRunner:
    """Runs an adapter that has something async.

    Args:
        backend: ``"trio"`` or ``"asyncio"``.
        threads: How many sync tools run at once.
    """

    def __init__(self, backend: str, threads: int) -> None:
        self._backend = backend
        self._threads = Threads(threads, self._run_in_thread)
        self._line = Line(threads)
        self._run_soon: Callable[[Callable[[], object]], object] | None = None
        self._early: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._inbox: deque[Call] = deque()
        self._questions: deque[tuple[Callable[[], Awaitable[Any]], Answer]] = deque()
        self._stopping = False
        self._probe_at: float | None = None
        self._last_lag = 0.0

    def submit(self, call: Call) -> None:
        if self._line.enter(call):
            self._place(call)

    def _place(self, call: Call) -> None:
        """Have it run where its kind is run. From any thread."""
        if call.tool.kind.needs_loop:
            self._inbox.append(call)
            self._soon(self._arrive)
        else:
            self._threads.put(call)

    def _run_in_thread(self, call: Call) -> None:
        following: Call | None = call
        while following is not None and not following.tool.kind.needs_loop:
            run_sync(following)
            following = self._line.leave()
        if following is not None:
            self._place(following)

    async def _run_in_task(self, call: Call) -> None:
        import anyio

        following: Call | None = call
        begun = time.monotonic()
        while following is not None and following.tool.kind.needs_loop:
            await self._run(following)
            following = self._line.leave()
            if time.monotonic() - begun > _TURN:
                # Tools that never wait are no reason for the loop's other tasks to wait.
                await anyio.lowlevel.cancel_shielded_checkpoint()
                begun = time.monotonic()
        if following is not None:
            self._place(following)

    def stop(self) -> None:
        self._stopping = True
        self._soon(self._arrive)

    def ask(self, function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        self._questions.append((function, answer))
        self._soon(self._arrive)

    def _arrive(self) -> None:
        self._arrived.set()

    def portal(self) -> Callable[[Callable[[], object]], object]:
        assert self._run_soon is not None
        return self._run_soon

    def lag(self) -> float:
        # One probe is under way at a time: how late it is now, or how late the last one was.
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
        import anyio

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
        import anyio

        from snakepit_trio._user_code import Raised

        self._raised = Raised
        self._arrived = anyio.Event()
        failure: Exception | None = None
        await _maybe(before())
        try:
            # The threads end with the calls that they run; no other work is left for the loop meanwhile.
            with self._threads:
                async with anyio.create_task_group() as nursery:
                    self._open_portal()
                    try:
                        ready()
                    except Exception as exc:
                        # Not from in here, where it would be wrapped in a group.
                        failure = exc
                        self._stopping = True
                    await self._begin_what_arrives(nursery)
            if failure is not None:
                raise failure
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(CLEANUP_TIME):
                await _maybe(after())
            with self._lock:
                self._run_soon = lambda callback: None

    async def _begin_what_arrives(self, nursery: anyio.abc.TaskGroup) -> None:
        """Until the end. Tasks are started here and not in the callbacks, which belong to no task."""
        import anyio

        while not self._stopping or self._inbox:
            while self._inbox:
                nursery.start_soon(task, self._run_in_task, self._inbox.popleft())
            while self._questions:
                nursery.start_soon(task, self._answer, *self._questions.popleft())
            if not self._stopping:
                self._arrived = anyio.Event()
                await self._arrived.wait()

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

    @staticmethod
    async def _answer(function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        import anyio

        try:
            value = await function()
        except BaseException as exc:
            if anyio.current_effective_deadline() == -math.inf:
                raise  # The loop itself is being torn down.
            answer(None, exc)
        else:
            answer(value, None)

    async def _run(self, call: Call) -> None:
        if not call.claim():
            return
        call.enter()
        try:
            await self._run_entered(call)
        finally:
            call.leave()

    async def _run_entered(self, call: Call) -> None:
        import anyio

        scope = anyio.CancelScope()
        if call.deadline is not None:
            scope.deadline = anyio.current_time() + call.deadline - time.monotonic()
        room = _Room() if call.tool.kind is Kind.ASYNC_GENERATOR else None

        def look() -> None:
            if call.cancelled:
                scope.cancel()
            if room is not None:
                room.open()

        call.wake = lambda: self._soon(look)
        if call.cancelled:
            scope.cancel()
        raised = self._raised()
        try:
            # Contained within the scope: a fork of this process has no event loop, which scopes ask at their end.
            with scope, raised, _forks.contained():
                bound = call.arguments()
                if bound is None:
                    return
                positional, keywords = bound
                if room is None:
                    result = await call.tool.function(*positional, **keywords)
                else:
                    await self._run_generator(call, call.tool.function(*positional, **keywords), room)
        except BaseException as exc:
            if anyio.current_effective_deadline() == -math.inf:
                raise  # The loop itself is being torn down.
            # Anything else is the tool's, even what looks like a cancellation: a task that it has awaited was cancelled.
            raised.exc = exc
        if raised.exc is not None:
            call.fail(raised.exc)
            return
        if scope.cancelled_caught and call.cancelled:
            call.end_cancelled()
        elif scope.cancelled_caught:
            call.refuse(RequestTimeout("the deadline has passed"))
        elif room is None:
            call.finish(result)
        else:
            call.end_stream()

    async def _run_generator(self, call: Call, generator: Any, room: _Room) -> None:
        import anyio

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
    """Whether a generator may have got room for another chunk since it last looked. In one event loop's thread."""

    def __init__(self) -> None:
        self._opened: Any = None
        self._open = False

    def close(self) -> None:
        """About to look."""
        self._open = False

    def open(self) -> None:
        """There is room, or nobody wants chunks any more."""
        self._open = True
        if self._opened is not None:
            self._opened.set()

    async def wait(self) -> None:
        """Wait until :meth:`open` has been called since :meth:`close`."""
        import anyio

        if not self._open:
            self._opened = anyio.Event()
            await self._opened.wait()
            self._opened = None


async def _maybe(value: Any) -> Any:
    if inspect.isawaitable(value):
        awaitable: Awaitable[Any] = value
        return await awaitable
    return value
