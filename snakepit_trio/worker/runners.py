"""The runners of user code: in the main thread, in threads, on an event loop. Never in the I/O thread.

:class:`SyncRunner` and :class:`.main_thread.MainThreadRunner` are for adapters without async parts;
:class:`.loop_runner.LoopRunner` gives the main thread an event loop. Each call has its own copy of the context that
setup left, so no call sees what another has set. Threads are joined at the end; the host kills a worker whose tool
can't be stopped.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from .lines import Threads
from .toolbox import Kind

if TYPE_CHECKING:
    from .call import Call

__all__ = ["Answer", "Runner", "SyncCalls", "SyncRunner", "WithoutLoop"]


class Answer(Protocol):
    """Receives a result, or an error in its place."""

    def __call__(self, value: object, error: BaseException | None) -> None: ...


class Runner(Protocol):
    """Runs calls in the order of their arrival, as many at once as the worker has threads."""

    def submit(self, call: Call) -> None:
        """Run this call when its turn has come. Called in the I/O thread."""

    def run_sync(self, call: Call) -> None:
        """Run a sync tool, or advance a sync generator, in this thread. Never raises the tool's exceptions."""

    def stop(self) -> None:
        """Make ``main`` return, because the last call has ended. Called in the I/O thread."""

    def main(self, before: Callable[[], Any], ready: Callable[[], None], after: Callable[[], Any]) -> None:
        """Run in the main thread: ``before`` (setup), ``ready``, calls until :meth:`stop`, ``after`` (teardown).

        ``before`` and ``after`` may return awaitables.
        """

    def portal(self) -> Callable[[Callable[[], object]], object]:
        """Return a function that runs a callback in the runner's event loop."""

    def ask(self, function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        """Await this function in the runner's event loop, and pass on its result or exception. May be called from any
        thread.
        """

    def lag(self) -> float:
        """Return the delay of the event loop, in seconds; 0 without one. May be called from any thread."""


class SyncCalls:
    """Runs sync tools, each call in its own context."""

    def __init__(self) -> None:
        self._context = contextvars.Context()

    def set_up(self) -> None:
        """Use this thread's current context as the initial context of calls."""
        self._context = contextvars.copy_context()

    def run_sync(self, call: Call) -> None:
        """See :meth:`Runner.run_sync`."""
        self._context.copy().run(_run, call)


def _run(call: Call) -> None:
    if not call.claim():
        return  # It was given back before it began.
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
        # Any exception is the tool's, because the worker handles its signals itself, and the caller waits for an answer.
        call.fail(exc)


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


class WithoutLoop(SyncCalls):
    """The common part of runners for adapters without async parts."""

    def portal(self) -> Callable[[Callable[[], object]], object]:
        raise RuntimeError("call_host is for async tools; use call_host_sync")

    def ask(self, function: Callable[[], Awaitable[Any]], answer: Answer) -> None:
        raise RuntimeError("an adapter with an async hook has an event loop")

    def lag(self) -> float:
        return 0.0


class SyncRunner(WithoutLoop):
    """Runs an adapter without async parts, several calls at once."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = Threads(threads, self.run_sync)
        self.submit: Callable[[Call], None] = self._threads.put
        self.stop: Callable[[], None] = self._threads.stop

    def main(self, before: Callable[[], Any], ready: Callable[[], None], after: Callable[[], Any]) -> None:
        before()
        self.set_up()
        try:
            with self._threads:
                ready()
                self._threads.join()
        finally:
            after()
