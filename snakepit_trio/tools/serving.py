"""Calls from workers' tools to the host's: each runs in a task of its pool's nursery, under its own scope."""

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

#: How many host calls of one worker may be under way.
MOST_CALLS = 1000
#: Characters of the name of a host tool, with room for names that no tool has.
_LONGEST_NAME = 256


class Caller(Protocol):
    """The worker that calls."""

    @property
    def unread(self) -> int:
        """Bytes that were sent to it and that it has not read."""

    def host_reply(self, reply: HostReply) -> None:
        """Send the answer."""

    def kill(self, reason: str, message: str) -> None:
        """End it now."""

    def fail(self, exc: BaseException) -> None:
        """Even an error can't be told to it: it ends."""


class HostRun:
    """A host call that is under way, for a request whose tool waits for it.


    Attributes:
        size: Bytes of its arguments, as they are counted.
        over: It has been answered.
        refused: Why the library refuses it, if so; anything else that it raises is the tool's.
    """

    __slots__ = ("answered", "call", "over", "refused", "request", "scope", "size", "task")

    def __init__(self, call: HostCall, request: Any, size: int) -> None:
        self.call: HostCall = call
        self.request: Any = request
        self.size: int = size
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.over: bool = False
        #: The id of the task in which its tool runs.
        self.task: int = 0
        self.answered: bool = False
        self.refused: SnakepitError | None = None

    def __repr__(self) -> str:
        return f"<HostRun {self.call.name!r} for {self.request!r}>"

    @contextmanager
    def refusing(self, errors: InternalErrors) -> Iterator[None]:
        """What the block raises for the call's name, arguments or result is a refusal."""
        try:
            yield
        except (InvalidParameter, InvalidPayload, QuotaExceeded, ToolNotFound) as exc:
            self.refused = exc
            raise
        except Exception as exc:
            # Not the tool's, of which nothing runs in there.
            self.refused = errors.caller(exc, "host call")
            raise self.refused from exc


class HostThreads:
    """The threads in which sync host tools run: so many of a whole runtime, and none of anybody else's.

    Args:
        limit: How many.
        waits: Where it is seen that a wait for a thread would never end.
    """

    def __init__(self, limit: int, waits: Waits) -> None:
        self._limit = limit
        self._waits = waits
        self._holders: set[HostRun] = set()
        self._waiting: dict[HostRun, anyio.Event] = {}
        # The threads are counted here, and not against what the application allows itself.
        self._uncounted = anyio.CapacityLimiter(math.inf)

    def __repr__(self) -> str:
        return f"<HostThreads {len(self._holders)} of {self._limit}, {len(self._waiting)} wait>"

    async def run(self, run: HostRun, function: Callable[[], Any]) -> Any:
        """Call a function in a thread, when there is one. A cancellation waits for a function that has begun.

        Raises:
            WouldDeadlock: Each thread waits, by way of a worker, for one like it.
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
        """Its thread goes to the next."""
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
        registries: Where a request's tools are looked for, the nearest first.
        threads: Where sync tools run.
        nursery: Of the tasks in which they run; it outlives the worker.
        errors: Where unexpected exceptions are told; one ends the host call, or the worker when even that can't be told.
        share: The worker's part of the bytes that the arguments of host calls may have.
        limit: Largest result, in bytes.
        redact: Takes secrets out of what the tools raise.
        prefix: What a request's number is put behind, to make its id.
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
        """A tool calls. ``request`` is what it runs for, None when the caller of that is gone already.

        Raises:
            ValueError: There is such a call, or no tool can have its name.
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
        """The tool no longer waits for this call."""
        run = self._runs.get(id)
        if run is not None:
            run.scope.cancel()

    def cancel_for(self, request: Any) -> None:
        """The request has ended, and with it whatever its tool has called."""
        for run in self._by_request.get(request, ()):
            run.scope.cancel()

    def close(self) -> None:
        """The worker is gone: nobody waits for anything."""
        self._closed = True
        for run in self._runs.values():
            run.scope.cancel()

    # ---- inside ----------------------------------------------------------------------------------

    def _give_up(self, run: HostRun, exc: Exception) -> None:
        """Serving a call has failed. The tool is told, unless what failed was to tell it."""
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
        """The failure of a call for whose bytes there is no room beside those that are under way."""
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
                # Outside of the scope: what a tool's own nursery raises while it is cancelled is an error as well.
                raised.exc = exc
            if raised.exc is not None:
                if holds_interrupt(raised.exc) or anyio.current_effective_deadline() == -math.inf:
                    raised.again()  # Ours, not the tool's: a Ctrl-C, or the end of the pool.
                if raised.exc is run.refused:
                    reply.error = failures.to_info(run.refused, redact=self._redact)
                else:
                    reply.error = failures.describe_exception(raised.exc, redact=self._redact)
            elif run.scope.cancelled_caught:
                if anyio.current_time() < deadline:
                    return  # Nobody waits for it.
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
            # Its value is enough to keep.
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
