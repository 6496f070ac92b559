"""Serve host calls of workers' tools: each runs in a task of its pool's nursery, under its own scope."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import anyio
import anyio.abc

from snakepit_trio import _forks
from snakepit_trio._bulkhead import InternalErrors, internal_error
from snakepit_trio._exceptions import holds_interrupt
from snakepit_trio._fair_budget import Share
from snakepit_trio._interrupts import protected
from snakepit_trio._user_code import Raised, run_in_thread
from snakepit_trio.errors import (
    InvalidParameter,
    InvalidPayload,
    QueueFull,
    QuotaExceeded,
    RequestCancelled,
    RequestTimeout,
    SnakepitError,
    ToolNotFound,
    WouldDeadlock,
)
from snakepit_trio.observe.correlation import CURRENT, Correlation
from snakepit_trio.wire import codec, failures
from snakepit_trio.wire.frames import NO_PAYLOAD, HostCall, HostReply

from .registry import HostTool, ToolRegistry
from .waits import CHAIN, Waits

__all__ = ["Caller", "HostRun", "HostThreads", "HostToolServer"]

#: The largest number of simultaneous host calls of one worker.
MOST_CALLS = 1000
#: The largest number of characters of a host tool's name, with room for names that no tool has.
_LONGEST_NAME = 256


class Caller(Protocol):
    """The calling worker."""

    @property
    def unread(self) -> int:
        """Return the number of bytes sent to the worker that it has not read."""

    def host_reply(self, reply: HostReply) -> None:
        """Send the answer."""

    def kill(self, reason: str, message: str) -> None:
        """End the worker now."""

    def fail(self, exc: BaseException) -> None:
        """End the worker, because even an error can't be sent to it."""


class HostRun:
    """A running host call, for a request whose tool waits for it.

    Attributes:
        size: The counted bytes of its arguments.
        over: Whether it has been answered.
        refused: The error with which the library refuses it; any other exception is the tool's.
    """

    __slots__ = ("answered", "call", "over", "refused", "request", "scope", "size", "task")

    def __init__(self, call: HostCall, request: Any, size: int) -> None:
        self.call: HostCall = call
        self.request: Any = request
        self.size: int = size
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.over: bool = False
        #: The id of the tool's task.
        self.task: int = 0
        self.answered: bool = False
        self.refused: SnakepitError | None = None

    def __repr__(self) -> str:
        return f"<HostRun {self.call.name!r} for {self.request!r}>"

    @contextmanager
    def refusing(self, errors: InternalErrors) -> Iterator[None]:
        """Turn exceptions of the block, about the call's name, arguments or result, into refusals."""
        try:
            yield
        except (InvalidParameter, InvalidPayload, QuotaExceeded, ToolNotFound) as exc:
            self.refused = exc
            raise
        except Exception as exc:
            # The exception is the library's, because the tool does not run in this block.
            self.refused = errors.caller(exc, "host call")
            raise self.refused from exc


class HostThreads:
    """The threads of sync host tools: a fixed number for a whole runtime, used by nothing else.

    Args:
        limit: The number of threads.
        waits: Finds waits for a thread that would never end.
    """

    def __init__(self, limit: int, waits: Waits) -> None:
        self._limit = limit
        self._waits = waits
        self._holders: set[HostRun] = set()
        self._waiting: dict[HostRun, anyio.Event] = {}
        # The threads are counted here, so they must not count against the application's own limit.
        self._uncounted = anyio.CapacityLimiter(math.inf)

    def __repr__(self) -> str:
        return f"<HostThreads {len(self._holders)} of {self._limit}, {len(self._waiting)} wait>"

    async def run(self, run: HostRun, function: Callable[[], Any]) -> Any:
        """Call a function in a thread as soon as one is free. A cancellation waits for a function that has begun.

        Raises:
            WouldDeadlock: Every thread waits, through a worker, for a call like this one.
        """
        if len(self._holders) < self._limit:
            self._holders.add(run)
        else:
            await self._wait(run)
        try:
            return await run_in_thread(functools.partial(_contained, function), limiter=self._uncounted)
        finally:
            self._pass_on(run)

    async def _wait(self, run: HostRun) -> None:
        ready = self._waiting[run] = anyio.Event()

        def refuse() -> None:
            self._waiting.pop(run, None)
            run.refused = WouldDeadlock(
                f"the host tool {run.call.name!r} would wait for a thread, and each of them waits for a call like it",
                details={"tool": run.call.name, "threads": self._limit},
            )
            ready.set()

        self._waits.add(run, (*run.request.chain, *run.request.permits, run.request), self._hopeless, refuse)
        try:
            await ready.wait()
        except BaseException:
            if self._waiting.pop(run, None) is None and run.refused is None:
                self._pass_on(run)
            raise
        finally:
            self._waits.remove(run)
        if run.refused is not None:
            raise run.refused

    def _hopeless(self, blocked: Container[object]) -> bool:
        return all(holder in blocked for holder in self._holders)

    def _pass_on(self, run: HostRun) -> None:
        """Give the call's thread to the next waiting call."""
        self._holders.discard(run)
        if self._waiting:
            following = next(iter(self._waiting))
            self._holders.add(following)
            self._waiting.pop(following).set()


def _contained(function: Callable[[], Any]) -> Any:
    with _forks.contained():
        return function()


class HostToolServer:
    """Runs host tools for one worker.

    Args:
        caller: The worker.
        registries: Returns the registries for a request, nearest first.
        threads: The threads of sync tools.
        nursery: The nursery of the tools' tasks; it outlives the worker.
        errors: Reports unexpected exceptions. One ends the host call, or the worker if even the error can't be sent.
        share: The worker's share of the bytes of host calls' arguments.
        limit: The largest size of a result, in bytes.
        redact: Removes secrets from exceptions of tools.
        prefix: The prefix that makes a request's number its id.
    """

    def __init__(
        self,
        caller: Caller,
        *,
        registries: Callable[[Any], tuple[ToolRegistry, ...]],
        threads: HostThreads,
        nursery: anyio.abc.TaskGroup,
        errors: InternalErrors,
        share: Share,
        limit: int,
        redact: Callable[[str], str],
        prefix: str,
    ) -> None:
        self._caller = caller
        self._registries = registries
        self._threads = threads
        self._nursery = nursery
        self._errors = errors
        self._share = share
        self._limit = limit
        self._redact = redact
        self._prefix = prefix
        self._runs: dict[int, HostRun] = {}
        self._by_request: dict[Any, set[HostRun]] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<HostToolServer {len(self._runs)} under way>"

    def begin(self, call: HostCall, request: Any) -> None:
        """Begin a host call. ``request`` is the request whose tool calls, or None if its caller has already left.

        Raises:
            ValueError: There is already a call of this id, or no tool can have this name.
        """
        if len(call.name) > _LONGEST_NAME:
            raise ValueError(f"a host call with a name of {len(call.name)} characters")
        if call.id in self._runs:
            raise ValueError(f"host call {call.id} is under way already")
        if self._closed:
            return
        if request is None:
            self._refuse(call, RequestCancelled("the request's caller is gone"))
        elif len(self._runs) >= MOST_CALLS:
            self._refuse(
                call,
                QueueFull(
                    f"{MOST_CALLS} host calls of this worker are under way, which is the limit",
                    details={"limit": MOST_CALLS, "tool": call.name},
                ),
            )
        elif not self._share.take(size := call.payload.size):
            self._refuse(call, self._too_much(call, "arguments", size))
        else:
            run = self._runs[call.id] = HostRun(call, request, size)
            self._by_request.setdefault(request, set()).add(run)
            on_error = functools.partial(self._give_up, run)
            self._errors.start(self._nursery, self._serve, run, ended="host_call", on_error=on_error)

    def cancel(self, id: int) -> None:
        """Cancel a call for which the tool no longer waits."""
        run = self._runs.get(id)
        if run is not None:
            run.scope.cancel()

    def cancel_for(self, request: Any) -> None:
        """Cancel all calls of a request that has ended."""
        for run in self._by_request.get(request, ()):
            run.scope.cancel()

    def close(self) -> None:
        """Cancel all calls, because the worker has ended."""
        self._closed = True
        for run in self._runs.values():
            run.scope.cancel()

    # ---- inside ----------------------------------------------------------------------------------

    def _give_up(self, run: HostRun, exc: Exception) -> None:
        """End a call whose serving has failed. The tool gets the error, unless sending it was what failed."""
        if self._closed:
            return
        if run.answered:
            self._caller.fail(exc)
        else:
            self._forget(run)
            self._refuse(run.call, internal_error(exc, "host call"))

    def _forget(self, run: HostRun) -> None:
        run.over = True
        if self._runs.pop(run.call.id, None) is not None:
            self._share.change(-run.size)
        runs = self._by_request.get(run.request)
        if runs is not None:
            runs.discard(run)
            if not runs:
                del self._by_request[run.request]

    def _too_much(self, call: HostCall, what: str, size: int) -> QuotaExceeded:
        """Return the error of a call whose bytes have no room beside those of other calls."""
        budget = self._share.budget
        return QuotaExceeded(
            f"the {what} of host tool {call.name!r} have {size} bytes, and there is no room for them beside those of other "
            f"host calls; max_host_call_bytes is {budget.limit}",
            details={
                "quota": "max_host_call_bytes", "limit": budget.limit, "used": budget.used, "asked": size,
                "tool": call.name,
            },
            retryable=True,
        )  # fmt: skip

    def _refuse(self, call: HostCall, error: SnakepitError) -> None:
        self._answer(HostReply(call.id, None, failures.to_info(error)))

    def _answer(self, reply: HostReply) -> None:
        self._caller.host_reply(reply)
        if self._caller.unread > self._share.budget.limit:
            self._caller.kill("protocol", "did not read the answers to its calls")

    @protected
    async def _serve(self, run: HostRun) -> None:
        call = run.call
        deadline = anyio.current_time() + call.timeout_us / 1e6 if call.timeout_us else math.inf
        reply = HostReply(call.id)
        raised = Raised()
        try:
            try:
                with run.scope, raised:
                    run.scope.deadline = deadline
                    reply.payload = await self._run(run)
            except BaseException as exc:
                # Outside the scope, because an exception of the tool's own nursery during a cancellation is an error too.
                raised.exc = exc
            if raised.exc is not None:
                if holds_interrupt(raised.exc) or anyio.current_effective_deadline() == -math.inf:
                    raised.again()  # Not the tool's exception: a Ctrl-C, or the end of the pool.
                if raised.exc is run.refused:
                    reply.error = failures.to_info(run.refused, redact=self._redact)
                else:
                    reply.error = failures.describe_exception(raised.exc, redact=self._redact)
            elif run.scope.cancelled_caught:
                if anyio.current_time() < deadline:
                    return  # The tool no longer waits.
                late = RequestTimeout(
                    f"the host tool {call.name!r} did not answer in time",
                    details={"phase": "host_call", "tool": call.name},
                )
                reply.error = failures.to_info(late)
        finally:
            self._forget(run)
        if not self._closed:
            run.answered = True
            self._answer(reply)

    async def _run(self, run: HostRun) -> Any:
        call, request = run.call, run.request
        with run.refusing(self._errors):
            found = self._find(call.name, request)
            params = codec.decode(call.payload, what="params", limit=self._limit)
            # The decoded value replaces the payload.
            call.payload = NO_PAYLOAD
            if not isinstance(params, Mapping):
                raise InvalidParameter("params must be a mapping", details={"path": "params", "tool": call.name})
            positional, keywords = found.tool.bind(params, None)
        function = functools.partial(found.tool.function, *positional, **keywords)
        run.task = anyio.get_current_task().id
        token = CHAIN.set((*request.chain, *request.permits, request, run))
        current = CURRENT.set(Correlation(f"{self._prefix}{request.id}", request.worker_id or "", request.session))
        try:
            with nullcontext() if request.trace is None else request.trace.current(), _forks.contained():
                result = function() if found.tool.kind.needs_loop else await self._threads.run(run, function)
                if inspect.isawaitable(result):
                    result = await result
        finally:
            CURRENT.reset(current)
            CHAIN.reset(token)
        with run.refusing(self._errors):
            payload = codec.encode_result(result, limit=self._limit)
            unread, size = self._caller.unread, payload.size
            if unread and unread + size > self._share.budget.limit // 2:
                raise self._too_much(call, "results", size)
            return payload

    def _find(self, name: str, request: Any) -> HostTool:
        for registry in self._registries(request):
            if name in registry:
                return registry.get(name)
        raise ToolNotFound(f"the host has no tool {name!r}", details={"tool": name})
