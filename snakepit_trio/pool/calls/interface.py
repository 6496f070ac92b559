"""The part of a pool's interface that is about its calls."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from snakepit_trio._bulkhead import InternalErrors, operation
from snakepit_trio._call_options import CallKeywords, CallOptions, StreamKeywords, declares, tool_name
from snakepit_trio.errors import SnakepitError

from .proxy import BoundTools, bind, converter_of
from .submission import wrong_kind

if TYPE_CHECKING:
    from snakepit_trio._map_results import MapResults
    from snakepit_trio.wire.handshake_messages import ToolSpec
    from snakepit_trio.worker.adapter import Adapter

    from ..fleet.dispatch import WorkerDispatch
    from .execute import Calls
    from .stream import ChunkStream
    from .submission import Submission

__all__ = ["Calling"]

Declared = TypeVar("Declared")
T = TypeVar("T")


class Calling:
    """The part of a pool's interface that is about its calls."""

    _calls: Calls
    _submission: Submission
    _dispatch: WorkerDispatch
    _errors: InternalErrors

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

        A cancellation leaves at once: a waiting request is dropped, a running one is cancelled in its worker.

        Args:
            tool: The tool's name, or one of the methods that :meth:`bind` gave, whose type then says what comes back.
            params: Its arguments by name.
            timeout: Seconds for the whole of it, waiting included; None for no limit, and 0 is spent at once. The caller's own
                scope counts too.
            priority: Greater goes first.
            metadata: Text that the tool finds in ``ctx.metadata``.
            idempotent: The call may run again when a worker dies under it; None means what the tool says of itself.

        Raises:
            InvalidParameter: An argument can't be sent; nothing was.
            ToolNotFound, StreamingUnsupported: There is no such tool, or it gives a stream.
            ToolError: The tool raised; ``except sp.remote(ValueError)`` catches it by its type.
            RequestTimeout, QueueTimeout, QueueFull: It took, waited, or would have waited too long.
            WorkerCrashed: The worker died under it. Calls of others wait meanwhile for the next worker, within their time.
            WorkerStartupError: No worker serves, and the last starts of all have failed more often than ``restart_limit``
                allows; ``details["retry_after"]`` says in how many seconds the next one is tried.
            PoolClosed: The pool is closing or closed.
        """
        if type(tool) is str:
            return await self._calls.execute(tool, params, options)
        return converter_of(tool)(await self._calls.execute(tool_name(tool), params, options))

    @declares(StreamKeywords)
    @operation
    def stream(
        self,
        tool: str | Callable[..., Any],
        params: Mapping[str, Any] | None = None,
        **options: Unpack[StreamKeywords],
    ) -> AbstractAsyncContextManager[ChunkStream]:
        """Run a streaming tool; the block gets an async iterator of what it yields.

        Leaving the block, at any chunk and in any way, closes the generator in the worker. A block left in good order or
        by an exception waits until the worker confirms that, at most ``cancel_grace`` seconds; a cancelled one leaves at
        once.

        Args:
            tool: The tool's name.
            params: Its arguments by name.
            timeout: Seconds for the whole stream, waiting for a worker included; None for no limit. By default the pool's
                ``stream_timeout``. The caller's own scope counts too.
            priority: Greater goes first.
            metadata: Text that the tool finds in ``ctx.metadata``.

        Raises:
            InvalidParameter: An argument can't be sent; nothing was.
            ToolNotFound, StreamingUnsupported: There is no such tool, or it gives one result.
            QueueFull, WorkerStartupError, PoolClosed: As from :meth:`execute`, on entering the block.
            ToolError, RequestTimeout, QueueTimeout, WorkerCrashed: As from :meth:`execute`, out of the iteration, after the
                chunks that came before; a spent timeout comes at once, on entering the block if it is spent by then. A stream
                is never run again.
        """
        return self._calls.stream(tool_name(tool), params, CallOptions.of(options, StreamKeywords))

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
        """Run a tool over many inputs; the block gets an async iterator of the results.

        Inputs are taken as they are needed, so they may be endless. Leaving the block cancels what is under way. The pool's
        policies hold for each input, as for a call of its own. What the inputs themselves raise comes out of the iteration
        after the results of the inputs before.

        Args:
            tool: The tool's name, or one of the methods that :meth:`bind` gave, whose type then says what the results are.
            inputs: The arguments of each call; an async iterable too.
            limit: How many inputs may be with the pool at once; None means twice as many as it can run at once, and for a tool
                that turns out to take no time as many as it can hold ahead of their time; see ``prefetch``.
            ordered: Results in the order of the inputs. Otherwise as they come; ``results.index`` is then the index, among
                the inputs, of the result that was given last.
            return_errors: Give the error in the place of a result instead of raising it.
            timeout: Seconds for one input, from the moment a worker gets it; when it is tried again, anew.
            priority, metadata, idempotent: As in :meth:`execute`.

        Raises:
            InvalidParameter: ``limit`` is refused.
            SnakepitError: Out of the iteration: what :meth:`execute` raises for that input.
        """
        convert = None if isinstance(tool, str) else converter_of(tool)
        return self._calls.map(
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
        """Run a tool over many inputs and return the list of the results, in the order of the inputs.

        A cancellation cancels all of it.

        Args:
            tool: As in :meth:`map`.
            inputs: The arguments of each call; an async iterable too.
            limit: How many inputs may be with the pool at once; None: what :meth:`map` takes.
            return_errors: Let an error stand in the place of a result. Otherwise the first one ends it, and cancels what is
                under way.
            timeout: Seconds for one input, from the moment a worker gets it; when it is tried again, anew.
            priority, metadata, idempotent: As in :meth:`execute`.

        Raises:
            InvalidParameter: ``limit`` is refused.
            SnakepitError: What :meth:`execute` raises for one of the inputs, unless errors are returned.
        """
        async with self.map(tool, inputs, limit=limit, return_errors=return_errors, **options) as results:
            return [result async for result in results]

    @operation
    def tools(self) -> tuple[ToolSpec, ...]:
        """What the pool's workers offer, by name; empty until one has been ready."""
        return tuple(self._dispatch.repertoire.tools[name] for name in sorted(self._dispatch.repertoire.tools))

    @overload
    def bind(self, declaration: ModuleType | type[Adapter]) -> BoundTools: ...

    @overload
    def bind(self, declaration: Callable[..., Declared]) -> Declared: ...

    def bind(self, declaration: Any) -> Any:
        """The pool's tools as methods of an object.

        ``sums = pool.bind(sums_module)``, then ``await sums.add(1, b=2)`` and ``async with sums.count(3) as chunks: ...``

        A result that is declared as a dataclass, an attrs class or a msgspec Struct becomes an instance of it.

        Args:
            declaration: The adapter's module, or its :class:`~snakepit_trio.Adapter` class: all of its tools are bound. A type
                checker does not see their arguments and results, for they are not declared as they are called here. Or a
                :class:`typing.Protocol` whose methods are declared so (``async def`` for a result; for a stream, a method that
                returns an async context manager of an async iterator): then it does, and the adapter need not be imported.

        Raises:
            ToolNotFound: The pool has no tool of a method's name.
            InvalidParameter: The declaration is something else, or declares no tools; from a method, the arguments do not fit
                its signature.
            InvalidPayload: From a method: the result is not of the declared type.
        """
        return bind(self, declaration)

    @operation
    def caller(self, tool: str) -> Callable[..., Awaitable[Any]]:
        """A function of keyword arguments that runs this tool.

        Raises:
            ToolNotFound, StreamingUnsupported: There is no such tool, or it gives a stream.
        """
        tool = tool_name(tool)
        spec = self._dispatch.repertoire.tools.get(tool)
        if spec is None:
            raise self._submission.tool_not_found(tool)
        if spec.streaming:
            raise wrong_kind(spec)

        async def call(**params: Any) -> Any:
            return await self.execute(tool, params)

        call.__name__, call.__doc__ = tool, spec.description
        return call
