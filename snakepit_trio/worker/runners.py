"""Where user code runs: in the main thread, in threads of our own, on an event loop. Never in the I/O thread.

:class:`SyncRunner` is for adapters without anything async: with one call at a time the main thread itself runs the
tools, so there is no needless hop, and libraries that insist on the main thread work. :class:`LoopRunner` gives the main
thread an event loop, Trio or asyncio, in which each async call is a task under a cancel scope of its own; sync tools of the
same adapter run in threads. Threads are joined at the end; a tool that can't be stopped is the host's to kill.
"""

from __future__ import annotations

import inspect
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from snakepit_trio.errors import RequestCancelled, RequestTimeout

from .toolbox import Kind

if TYPE_CHECKING:
    from .calls import Call

__all__ = ["LoopRunner", "Runner", "SyncRunner", "run_sync"]

#: How long a generator's or a teardown's own clean-up may take after a cancel, in seconds.
CLEANUP_TIME = 5.0


class Answer(Protocol):
    """Takes a result, or the error in its place."""

    def __call__(self, value: object, error: BaseException | None) -> None: ...


class Runner(Protocol):
    """Runs calls. ``submit`` and ``stop`` may be called from any thread.

    Attributes:
        in_order: Runs one call at a time, in the order in which they came.
    """

    in_order: bool

    def submit(self, call: Call) -> None:
        """Run this call."""

    def stop(self) -> None:
        """Take no more calls; return from ``main`` when those that run have ended."""

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
        positional, keywords = call.arguments()
        if call.tool.kind is Kind.GENERATOR:
            _run_generator(call, iter(call.tool.function(*positional, **keywords)))
        else:
            call.finish(call.tool.function(*positional, **keywords))
    except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit) as exc:
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


class _Threads:
    """Long-lived threads that take calls from one queue."""

    def __init__(self, count: int) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._count = count
        self._threads = [threading.Thread(target=self.work, name=f"snakepit-tool-{n}") for n in range(count)]
        self.put = self._calls.put

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def work(self) -> None:
        """Run calls until told to stop."""
        while (call := self._calls.get()) is not None:
            run_sync(call)

    def stop(self) -> None:
        for _ in range(self._count):
            self._calls.put(None)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


class SyncRunner:
    """Runs an adapter that has nothing async, several calls at once."""

    in_order = False

    def __init__(self, threads: int) -> None:
        self._threads = _Threads(threads)
        self.submit = self._threads.put
        self.stop = self._threads.stop

    def main(self, before: Callable[[], Any], ready: Callable[[], None], after: Callable[[], Any]) -> None:
        before()
        try:
            ready()
            self._threads.start()
            self._threads.join()
        finally:
            after()

    def portal(self) -> Callable[[Callable[[], object]], object]:
        raise RuntimeError("call_host is for async tools; use call_host_sync")

    def ask(self, function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        raise RuntimeError("an adapter with an async hook has an event loop")

    def lag(self) -> float:
        return 0.0


class LoopRunner:
    """Runs an adapter that has something async.

    Args:
        backend: ``"trio"`` or ``"asyncio"``.
        threads: How many sync tools run at once.
    """

    in_order = False

    def __init__(self, backend: str, threads: int) -> None:
        self._backend = backend
        self._threads = _Threads(threads)
        self._run_soon: Callable[[Callable[[], object]], object] | None = None
        self._early: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._inbox: deque[Call] = deque()
        self._questions: deque[tuple[Callable[[], Awaitable[Any]], Answer]] = deque()
        self._stopping = False
        self._probe_at: float | None = None
        self._last_lag = 0.0

    def submit(self, call: Call) -> None:
        if call.tool.kind.needs_loop:
            self._inbox.append(call)
            self._soon(self._arrive)
        else:
            self._threads.put(call)

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

        self._arrived = anyio.Event()
        await _maybe(before())
        try:
            self._threads.start()
            try:
                async with anyio.create_task_group() as nursery:
                    self._open_portal()
                    ready()
                    # Tasks are started here and not in the callbacks, which belong to no task.
                    while not self._stopping or self._inbox:
                        while self._inbox:
                            nursery.start_soon(self._run, self._inbox.popleft())
                        while self._questions:
                            nursery.start_soon(self._answer, *self._questions.popleft())
                        if not self._stopping:
                            self._arrived = anyio.Event()
                            await self._arrived.wait()
            finally:
                self._threads.stop()
                # The threads end with the calls that they run; no other work is left for the loop meanwhile.
                self._threads.join()
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
            run_soon(callback)

    def _soon(self, callback: Callable[[], object]) -> None:
        with self._lock:
            if self._run_soon is None:
                self._early.append(callback)
                return
        self._run_soon(callback)

    @staticmethod
    async def _answer(function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        try:
            value = await function()
        except Exception as exc:
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
            scope.deadline = anyio.current_time() + max(0.0, call.deadline - time.monotonic())
        news = anyio.Event()

        def look() -> None:
            nonlocal news
            if call.cancelled:
                scope.cancel()
            news.set()
            news = anyio.Event()

        call.wake = lambda: self._soon(look)
        if call.cancelled:
            scope.cancel()
        try:
            with scope:
                positional, keywords = call.arguments()
                if call.tool.kind is Kind.ASYNC:
                    result = await call.tool.function(*positional, **keywords)
                else:
                    await self._run_generator(call, call.tool.function(*positional, **keywords), lambda: news)
        except (Exception, SystemExit, KeyboardInterrupt) as exc:
            call.fail(exc)
            return
        if scope.cancelled_caught:
            call.fail(RequestCancelled("cancelled") if call.cancelled else RequestTimeout("the deadline has passed"))
        elif call.tool.kind is Kind.ASYNC:
            call.finish(result)
        else:
            call.end_stream()

    async def _run_generator(self, call: Call, generator: Any, news: Callable[[], Any]) -> None:
        import anyio

        try:
            while True:
                waiting = news()
                room = call.take_credit()
                if room is None:
                    return
                if not room:
                    await waiting.wait()
                    continue
                try:
                    value = await anext(generator)
                except StopAsyncIteration:
                    return
                call.chunk(value)
        finally:
            close = getattr(generator, "aclose", None)
            if close is not None:
                with anyio.CancelScope(shield=True), anyio.move_on_after(CLEANUP_TIME):
                    await close()


async def _maybe(value: Any) -> Any:
    if inspect.isawaitable(value):
        awaitable: Awaitable[Any] = value
        return await awaitable
    return value
