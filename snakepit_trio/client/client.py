"""A client of a runtime in another process or on another machine, with the methods of a pool."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Unpack

import anyio

from snakepit_trio._bulkhead import block, operation
from snakepit_trio._call_options import (
    UNSET,
    CallKeywords,
    CallOptions,
    StreamKeywords,
    Unset,
    check_params,
    check_tool,
    declares,
)
from snakepit_trio._map_results import MapCalls, MapResults, MapTasks, open_map
from snakepit_trio.errors import SnakepitError
from snakepit_trio.sessions.records import check_ttl
from snakepit_trio.wire import codec
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.tool_messages import ExecuteToolRequest, PayloadAnswer

from .channel import Link
from .host_tools import serve_tools
from .session import RemoteSession
from .streams import RemoteChunks
from .values import decode

__all__ = ["Client"]

#: Seconds. The longest time for leaving a session.
_LEAVE = 2.0
#: The default number of a map's inputs that may be with the runtime at once.
_MAP_LIMIT = 16


class Client:
    """A connected client for one pool of the runtime. Created by :func:`snakepit_trio.connect`.

    Attributes:
        name: The pool's name; ``""`` is ``"default"``, or the only pool.
    """

    def __init__(self, link: Link, name: str, limit: int) -> None:
        self.name = name
        self._link = link
        self._limit = limit
        self._errors = link.errors

    def __repr__(self) -> str:
        return f"<Client pool={self.name!r} {self._link!r}>"

    @operation
    def pool(self, name: str) -> Client:
        """Return a client for another pool over the same connection.

        Args:
            name: The pool's name. If there is no such pool, the first call raises ``PoolNotFound``.
        """
        return Client(self._link, name, self._limit)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now; without one, the next call opens one."""
        return self._link.connected

    # ---- calls -------------------------------------------------------------------------------------

    @declares(CallKeywords)
    @operation
    async def execute(self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]) -> Any:
        """Run a tool in a worker of the runtime and return its result. A cancellation also cancels the call in the worker.

        Args:
            tool: The tool's name.
            params: The arguments by name.
            timeout: Seconds for the whole call, including its wait; None for no limit. By default the pool's
                ``timeout``.
            priority: Requests of greater priority go first.
            metadata: Strings that the tool finds in ``ctx.metadata``.
            idempotent: The call may run again if its worker dies or the connection is lost.

        Raises:
            ConnectionLost: The runtime can't be reached, or the connection was lost before the answer.
            SnakepitError: The errors of :meth:`snakepit_trio.Pool.execute`; ``except sp.remote(ValueError)`` works here
                too.
        """
        return await self._execute(tool, params, CallOptions.of(options))

    @operation
    async def _execute(
        self,
        tool: str,
        params: Mapping[str, Any] | None,
        options: CallOptions,
        session: RemoteSession | None = None,
    ) -> Any:
        answer = await self._link.unary(
            "ExecuteTool",
            self._request(tool, params, options, session),
            PayloadAnswer,
            timeout=options.limit(None),
            again=options.idempotent is True,
        )
        return decode(answer.payload, what="result", limit=self._limit)

    def _request(
        self,
        tool: str,
        params: Mapping[str, Any] | None,
        options: CallOptions,
        session: RemoteSession | None,
    ) -> ExecuteToolRequest:
        check_tool(tool)
        return ExecuteToolRequest(
            tool=tool,
            payload=codec.encode(check_params(params), what="params", limit=self._limit),
            pool=self.name,
            session_id="" if session is None else session.id,
            generation="" if session is None else session.generation,
            metadata=dict(options.metadata),
            priority=options.priority,
            idempotent=options.idempotent,
            unlimited=options.timeout is None,
        )

    @declares(StreamKeywords)
    @block("stream")
    def stream(
        self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[StreamKeywords]
    ) -> AbstractAsyncContextManager[RemoteChunks]:
        """Run a streaming tool; the block receives an async iterator over its chunks.

        Leaving the block, also by a cancellation, closes the generator in the worker, without waiting for that.

        Args:
            tool: The tool's name.
            params: The arguments by name.
            timeout: Seconds for the whole stream, including its wait; None for no limit. By default the pool's
                ``stream_timeout``.
            priority: Requests of greater priority go first.
            metadata: Strings that the tool finds in ``ctx.metadata``.

        Raises:
            InvalidParameter: An argument can't be sent; the call has not begun.
            ConnectionLost: The runtime can't be reached; raised by the iteration: the connection was lost.
            SnakepitError: Raised by the iteration, after the chunks that arrived before: the errors of
                :meth:`snakepit_trio.Pool.stream`.
        """
        return self._stream(tool, params, CallOptions.of(options, StreamKeywords))

    @asynccontextmanager
    async def _stream(
        self,
        tool: str,
        params: Mapping[str, Any] | None,
        options: CallOptions,
        session: RemoteSession | None = None,
    ) -> AsyncIterator[RemoteChunks]:
        request = self._request(tool, params, options, session)
        limit = options.limit(None)
        chunks = RemoteChunks(limit, self._limit, self._errors)
        async with self._link.streaming(
            "ExecuteStreamingTool", request, on_message=chunks.on_message, on_end=chunks.on_end, timeout=limit
        ) as opened:
            chunks.opened = opened
            try:
                yield chunks
            finally:
                chunks.leave()

    @declares(CallKeywords)
    def map(
        self,
        tool: str,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        limit: int | None = None,
        ordered: bool = True,
        return_errors: bool = False,
        **options: Unpack[CallKeywords],
    ) -> AbstractAsyncContextManager[MapResults[Any]]:
        """Run a tool over many inputs; the block receives an async iterator over the results.

        Inputs are taken as they are needed, so the iterable may be infinite. Leaving the block, also by a cancellation,
        cancels the calls in progress. An exception of the inputs is raised by the iteration after the results of the
        earlier inputs.

        Args:
            tool: The tool's name.
            inputs: The arguments of each call; also an async iterable.
            limit: The number of inputs that may be with the runtime at once; None: 16.
            ordered: Yield results in the order of the inputs. Otherwise they are yielded as they arrive, and
                ``results.index`` is the index of the input whose result came last.
            return_errors: Yield an error in place of a result instead of raising it.
            timeout, priority, metadata, idempotent: The options of each call, as in :meth:`execute`.

        Raises:
            InvalidParameter: ``limit`` is invalid.
            SnakepitError: Raised by the iteration: the error of :meth:`execute` for that input.
        """

        def begin() -> MapCalls:
            own = CallOptions.of(options)
            return MapTasks(lambda params: self._execute(tool, params, own)).calls(lambda: limit or _MAP_LIMIT)

        return open_map(
            inputs, begin, limit=limit, ordered=ordered, return_errors=return_errors, errors=self._errors
        )  # fmt: skip

    # ---- the runtime -------------------------------------------------------------------------------

    @operation
    async def ping(self, message: str = "") -> v1.PingResponse:
        """Return the runtime's version and id, and its pools with their statistics.

        A cancellation changes nothing.

        Args:
            message: A string that the answer repeats.

        Raises:
            ConnectionLost: The runtime can't be reached.
        """
        return await self._link.unary("Ping", v1.PingRequest(message=message), v1.PingResponse, again=True)

    @operation
    async def tools(self) -> tuple[v1.ToolSpec, ...]:
        """Return the tools that the pool's workers offer, sorted by name.

        A cancellation changes nothing.
        """
        answer = await self._link.unary(
            "ListTools", v1.ListToolsRequest(pool=self.name), v1.ListToolsResponse, again=True
        )
        return tuple(answer.tools)

    @block("session")
    @asynccontextmanager
    async def session(
        self,
        id: str | None = None,
        *,
        affinity: str | None = None,
        ttl: float | Unset | None = UNSET,
        metadata: Mapping[str, str] | None = None,
        detach: bool = False,
    ) -> AsyncIterator[RemoteSession]:
        """Open a session, or resume the session of this id; leaving the block closes it, unless ``detach`` is set.

        The session of a client that was killed lives until its TTL passes without use. A cancelled block closes its
        session too, unless ``detach`` is set.

        Args:
            id, affinity, ttl, metadata: As in :meth:`snakepit_trio.Pool.session`; ``ttl`` in seconds.
            detach: Keep the session in the runtime's store when the block is left.

        Raises:
            ConnectionLost: The runtime can't be reached.
            SnakepitError: The errors of :meth:`snakepit_trio.Pool.session`.
        """
        # On the wire, a missing TTL is the runtime's default, and 0 is no expiry.
        life = None if isinstance(ttl, Unset) else check_ttl(ttl) or 0.0
        request = v1.OpenSessionRequest(
            session_id=id or "",
            pool=self.name,
            affinity=affinity or "",
            ttl=life,
            metadata=dict(metadata or {}),
        )
        answer = await self._link.unary("OpenSession", request, v1.OpenSessionResponse, again=id is not None)
        assert answer.session is not None
        session = RemoteSession(self, self._link, answer.session, self._limit)
        try:
            yield session
        finally:
            if not detach:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVE):
                    try:
                        await session.close()
                    except SnakepitError:
                        pass  # Without a connection the session expires by its TTL.

    @block("registration")
    def serve_tools(
        self, functions: Mapping[str, Callable[..., Any]], *, session: RemoteSession | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Let the runtime's tools call functions of this client, with ``ctx.call_host(name, params)``, during the block.

        Args:
            functions: The functions by name; async ones run in this event loop, sync ones in a thread.
            session: Only this session's calls may call them; None: all calls may.

        Raises:
            ToolExists, InvalidParameter: A function is refused; none was registered.
        """
        return serve_tools(self._link, functions, session, self._limit)

    # ---- programs ----------------------------------------------------------------------------------

    @operation
    async def put_program(
        self, name: str, data: bytes, *, session: str | None = None, ttl: float | None = None
    ) -> None:
        """Store a program, replacing one of the same name.

        A cancellation leaves at once; the runtime may already have stored the program.

        Args:
            name: Printable text of up to 256 bytes.
            data: The program's bytes.
            session: The id of the session to which the program belongs; None: a program for all.
            ttl: Seconds until the program expires; None: the runtime's ``program_ttl``.

        Raises:
            QuotaExceeded: The program is too large, or does not fit; nothing was changed.
            SessionNotFound: There is no such session.
            InvalidParameter: An argument is invalid.
            ConnectionLost: The runtime can't be reached.
        """
        request = v1.PutProgramRequest(name=name, data=bytes(data), session_id=session or "", ttl=ttl)
        await self._link.unary("PutProgram", request, v1.PutProgramResponse, again=True)

    @operation
    async def get_program(self, name: str, *, session: str | None = None, default: Any = None) -> Any:
        """Return a program's bytes.

        A cancellation changes nothing.

        Args:
            name: The program's name.
            session: The id of the session to which the program belongs; None: a program for all.
            default: The result if there is no such program.

        Raises:
            InvalidParameter: An argument is invalid.
            ConnectionLost: The runtime can't be reached.
        """
        request = v1.GetProgramRequest(name=name, session_id=session or "")
        try:
            return (await self._link.unary("GetProgram", request, v1.GetProgramResponse, again=True)).data
        except SnakepitError as exc:
            if exc.code != "program_not_found":
                raise
            return default

    @operation
    async def delete_program(self, name: str, *, session: str | None = None) -> bool:
        """Delete a program, and return whether there was one.

        A cancellation leaves at once; the runtime may already have deleted the program.

        Args:
            name: The program's name.
            session: The id of the session to which the program belongs; None: a program for all.

        Raises:
            InvalidParameter: An argument is invalid.
            ConnectionLost: The runtime can't be reached, or the connection was lost, and the program may have been
                deleted.
        """
        request = v1.DeleteProgramRequest(name=name, session_id=session or "")
        return (await self._link.unary("DeleteProgram", request, v1.DeleteProgramResponse)).deleted
