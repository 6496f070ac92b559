"""The part of a pool's interface for its calls."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Unpack, overload

from snakepit_trio._bulkhead import InternalErrors, operation
from snakepit_trio._call_options import CallKeywords, CallOptions, StreamKeywords, declares, tool_name
from snakepit_trio.errors import SnakepitError

from .proxy import BoundTools, bind, converter_of
from .submission import tool_not_found, wrong_kind

if TYPE_CHECKING:
    from snakepit_trio._map_results import MapResults
    from snakepit_trio.wire.handshake_messages import ToolSpec
    from snakepit_trio.worker.adapter import Adapter

    from ..fleet.dispatch import WorkerDispatch
    from .execute import Calls
    from .stream import ChunkStream

__all__ = ["Calling"]

Declared = TypeVar("Declared")
T = TypeVar("T")


#: What other pools' methods are called, and what is written here.
_ELSEWHERE = {
    **dict.fromkeys(("submit", "run", "call", "apply", "apply_async", "run_sync"), "await pool.execute(tool, {...})"),
    **dict.fromkeys(
        ("imap", "imap_unordered", "starmap", "as_completed"), "async with pool.map(tool, inputs) as results:"
    ),
    **dict.fromkeys(("shutdown", "close", "terminate", "join"), "leave the block of open_pool"),
}


class Calling:
    """The part of a pool's interface for its calls."""

    calls: Calls
    name: str
    _dispatch: WorkerDispatch
    _errors: InternalErrors

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            hint = f"; here it is: {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)

    @overload
    async def execute(
        self,
        tool: Callable[..., Awaitable[T]],
        params: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> T: ...

    @overload
    async def execute(
        self,
        tool: str | Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> Any: ...

    @declares(CallKeywords)
    async def execute(
        self,
        tool: str | Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> Any:
        """Run a tool in a worker and return its result.

        A cancellation leaves at once: a waiting request is dropped, and a running one is cancelled in its worker.

        Args:
            tool: The tool's name, or a method from :meth:`bind`, whose type then determines the result's type.
            params: The arguments by name.
            timeout: Seconds for the whole call, including its wait; None for no limit, and 0 has already passed. The
                caller's own scope applies too. By default the pool's ``timeout``.
            priority: Requests of greater priority go first.
            metadata: Strings that the tool finds in ``ctx.metadata``.
            idempotent: The call may run again if its worker dies. None: the tool's own declaration decides.

        Raises:
            InvalidParameter: An argument can't be sent; the call has not begun.
            ToolNotFound, StreamingUnsupported: There is no such tool, or it is a streaming tool.
            ToolError: The tool raised; ``except sp.remote(ValueError)`` catches the error by its type.
            RequestTimeout, QueueTimeout, QueueFull: The call took too long, waited too long, or found a full queue.
            WorkerCrashed: The worker died during the call. Other calls wait for the next worker, within their time
                limits.
            WorkerStartupError: No worker serves, and every slot has failed to start more often than ``restart_limit``
                allows; ``details["retry_after"]`` is the time in seconds until the next attempt.
            PoolClosed: The pool is closing or closed.
        """
        if type(tool) is str:
            return await self.calls.execute(tool, params, options)
        return converter_of(tool)(await self.calls.execute(tool_name(tool), params, options))

    @declares(StreamKeywords)
    @operation
    def stream(
        self,
        tool: str | Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        **options: Unpack[StreamKeywords],
    ) -> AbstractAsyncContextManager[ChunkStream]:
        """Run a streaming tool; the block receives an async iterator over its chunks.

        Leaving the block, at any chunk and in any way, closes the generator in the worker. A block that ends normally
        or by an exception waits until the worker confirms that, at most ``cancel_grace`` seconds. A cancelled block
        ends at once.

        Args:
            tool: The tool's name, or a method from :meth:`bind`.
            params: The arguments by name.
            timeout: Seconds for the whole stream, including the wait for a worker; None for no limit. By default the
                pool's ``stream_timeout``. The caller's own scope applies too.
            priority: Requests of greater priority go first.
            metadata: Strings that the tool finds in ``ctx.metadata``.

        Raises:
            InvalidParameter: An argument can't be sent; the call has not begun.
            ToolNotFound, StreamingUnsupported: There is no such tool, or it returns one result.
            QueueFull, WorkerStartupError, PoolClosed: As from :meth:`execute`, on entering the block.
            ToolError, RequestTimeout, QueueTimeout, WorkerCrashed: As from :meth:`execute`, raised by the iteration
                after the chunks that arrived before. A timeout is raised at once, or on entering the block if it has
                passed by then. A stream never runs again.
        """
        return self.calls.stream(tool_name(tool), params, CallOptions.of(options, StreamKeywords))

    @overload
    def map(
        self,
        tool: Callable[..., Awaitable[T]],
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        ordered: bool = True,
        return_errors: Literal[False] = False,
        **options: Unpack[CallKeywords],
    ) -> AbstractAsyncContextManager[MapResults[T]]: ...

    @overload
    def map(
        self,
        tool: Callable[..., Awaitable[T]],
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        ordered: bool = True,
        return_errors: bool,
        **options: Unpack[CallKeywords],
    ) -> AbstractAsyncContextManager[MapResults[T | SnakepitError]]: ...

    @overload
    def map(
        self,
        tool: str | Callable[..., Any],
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        ordered: bool = True,
        return_errors: bool = False,
        **options: Unpack[CallKeywords],
    ) -> AbstractAsyncContextManager[MapResults[Any]]: ...

    @declares(CallKeywords)
    def map(
        self,
        tool: str | Callable[..., Any],
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        ordered: bool = True,
        return_errors: bool = False,
        **options: Unpack[CallKeywords],
    ) -> AbstractAsyncContextManager[MapResults[Any]]:
        """Run a tool over many inputs; the block receives an async iterator over the results.

        Inputs are taken as they are needed, so the iterable may be infinite. Leaving the block, also by a cancellation,
        cancels the calls in progress. The pool's policies apply to each input as to a call. An exception of the inputs
        is raised by the iteration after the results of the earlier inputs.

        Args:
            tool: The tool's name, or a method from :meth:`bind`, whose type then determines the results' type.
            inputs: The arguments of each call; also an async iterable.
            limit: The number of inputs that may be with the pool at once. None: twice the number of calls that it can
                run at once, and for a very short tool as many as it can prefetch; see ``prefetch``.
            ordered: Yield results in the order of the inputs. Otherwise they are yielded as they arrive, and
                ``results.index`` is the index of the input whose result came last.
            return_errors: Yield an error in place of a result instead of raising it.
            timeout: Seconds for one input, from the moment at which a worker gets it; a retry has the full limit again.
            priority, metadata, idempotent: As in :meth:`execute`.

        Raises:
            InvalidParameter: ``limit`` is invalid.
            SnakepitError: Raised by the iteration: the error of :meth:`execute` for that input.
        """
        convert = None if isinstance(tool, str) else converter_of(tool)
        return self.calls.map(
            tool_name(tool), inputs, options, limit=limit, ordered=ordered, return_errors=return_errors, convert=convert
        )

    @overload
    async def execute_many(
        self,
        tool: Callable[..., Awaitable[T]],
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        return_errors: Literal[False] = False,
        **options: Unpack[CallKeywords],
    ) -> list[T]: ...

    @overload
    async def execute_many(
        self,
        tool: Callable[..., Awaitable[T]],
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        return_errors: bool,
        **options: Unpack[CallKeywords],
    ) -> list[T | SnakepitError]: ...

    @overload
    async def execute_many(
        self,
        tool: str | Callable[..., Any],
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        return_errors: bool = False,
        **options: Unpack[CallKeywords],
    ) -> list[Any]: ...

    @declares(CallKeywords)
    async def execute_many(
        self,
        tool: str | Callable[..., Any],
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        return_errors: bool = False,
        **options: Unpack[CallKeywords],
    ) -> list[Any]:
        """Run a tool over many inputs and return the list of results, in the order of the inputs.

        A cancellation cancels all calls in progress.

        Args:
            tool: As in :meth:`map`.
            inputs: The arguments of each call; also an async iterable.
            limit: The number of inputs that may be with the pool at once; None: as in :meth:`map`.
            return_errors: Return an error in place of a result. Otherwise the first error is raised, and the calls in
                progress are cancelled.
            timeout: Seconds for one input, from the moment at which a worker gets it; a retry has the full limit again.
            priority, metadata, idempotent: As in :meth:`execute`.

        Raises:
            InvalidParameter: ``limit`` is invalid.
            SnakepitError: The error of :meth:`execute` for one of the inputs, unless errors are returned.
        """
        async with self.map(tool, inputs, limit=limit, return_errors=return_errors, **options) as results:
            return [result async for result in results]

    @operation
    def tools(self) -> tuple[ToolSpec, ...]:
        """Return the tools that the pool's workers offer, sorted by name; empty until a worker has been ready."""
        return tuple(self._dispatch.repertoire.tools[name] for name in sorted(self._dispatch.repertoire.tools))

    @overload
    def bind(self, declaration: ModuleType | type[Adapter]) -> BoundTools: ...

    @overload
    def bind(self, declaration: Callable[..., Declared]) -> Declared: ...

    def bind(self, declaration: Any) -> Any:
        """Return an object whose methods are the pool's tools.

        ``sums = pool.bind(sums_module)``, then ``await sums.add(1, b=2)`` and ``async with sums.count(3) as chunks:
        ...``

        A result declared as a dataclass, an attrs class or a msgspec Struct becomes an instance of that class.

        Args:
            declaration: The adapter's module, or its :class:`~snakepit_trio.Adapter` class: all of its tools are bound,
                but a type checker does not see their types, because they are not declared as they are called here. Or a
                :class:`typing.Protocol` that declares the methods as they are called (``async def`` for a result; for a
                stream, a method that returns an async context manager of an async iterator): a type checker then sees
                their types, and the adapter need not be imported.

        Raises:
            ToolNotFound: The pool has no tool with a method's name.
            InvalidParameter: The declaration is of another kind, or declares no tools; raised by a method: the
                arguments do not match its signature.
            InvalidPayload: Raised by a method: the result is not of the declared type.
        """
        return bind(self, declaration)

    @operation
    def caller(self, tool: str) -> Callable[..., Awaitable[Any]]:
        """Return a function of keyword arguments that runs this tool.

        Raises:
            ToolNotFound, StreamingUnsupported: There is no such tool, or it is a streaming tool.
        """
        tool = tool_name(tool)
        spec = self._dispatch.repertoire.tools.get(tool)
        if spec is None:
            raise tool_not_found(tool, self._dispatch.repertoire.tools, self.name)
        if spec.streaming:
            raise wrong_kind(spec)

        async def call(**params: Any) -> Any:
            return await self.execute(tool, params)

        call.__name__, call.__doc__ = tool, spec.description
        return call
