"""A runtime in another process or on another machine, with the surface of a pool."""

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

#: How long leaving a session may take, in seconds.
_LEAVE = 2.0
#: Inputs of a map that are with the runtime at once, unless said otherwise.
_MAP_LIMIT = 16


class Client:
    """A connected client, for one pool of the runtime. Made by :func:`snakepit_trio.connect`.

    Attributes:
        name: The pool's name; ``""`` is ``"default"``, or the only one.
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
        """The same connection, for another pool.

        Args:
            name: The pool's name. Whether there is one, the first call tells: it raises ``PoolNotFound``.
        """
        return Client(self._link, name, self._limit)

    @property
    def connected(self) -> bool:
        """Whether there is a connection now; without one, the next call makes one."""
        return self._link.connected

    # ---- calls -------------------------------------------------------------------------------------

    @declares(CallKeywords)
    @operation
    async def execute(self, tool: str, params: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]) -> Any:
        """Run a tool in a worker of the runtime and return its result. A cancellation reaches into the worker.

        Args:
            tool: The tool's name.
            params: Its arguments by name.
            timeout: Seconds for the whole of it, waiting included; None for no limit. By default the pool's ``timeout``.
            priority: Greater goes first.
            metadata: Text that the tool finds in ``ctx.metadata``.
            idempotent: The call may run again: when a worker dies under it, and when the connection is lost under it.

        Raises:
            ConnectionLost: The runtime can't be reached, or went away before it answered.
            SnakepitError: What :meth:`snakepit_trio.Pool.execute` raises; ``except sp.remote(ValueError)`` works here too.
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
        """Run a streaming tool; the block gets an async iterator of what it yields.

        Leaving the block closes the generator in the worker, without waiting for it.

        Args:
            tool: The tool's name.
            params: Its arguments by name.
            timeout: Seconds for the whole stream, waiting included; None for no limit. By default the pool's
                ``stream_timeout``.
            priority: Greater goes first.
            metadata: Text that the tool finds in ``ctx.metadata``.

        Raises:
            InvalidParameter: An argument can't be sent; nothing was.
            ConnectionLost: The runtime can't be reached; out of the iteration: it went away.
            SnakepitError: Out of the iteration, after the chunks that came before: what
                :meth:`snakepit_trio.Pool.stream` raises.
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
        """Run a tool over many inputs; the block gets an async iterator of the results.

        Inputs are taken as they are needed, so they may be endless. Leaving the block cancels what is under way. What the
        inputs themselves raise comes out of the iteration after the results of the inputs before.

        Args:
            tool: The tool's name.
            inputs: The arguments of each call; an async iterable too.
            limit: How many inputs may be with the runtime at once; None: 16.
            ordered: Results in the order of the inputs. Otherwise as they come; ``results.index`` is then the index, among
                the inputs, of the result that was given last.
            return_errors: Give the error in the place of a result instead of raising it.
            timeout, priority, metadata, idempotent: Of each call, as in :meth:`execute`.

        Raises:
            InvalidParameter: ``limit`` is refused.
            SnakepitError: Out of the iteration: what :meth:`execute` raises for that input.
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
        """Ask who is there: the runtime's version and id, and its pools with their figures.

        A cancellation leaves everything as it is.

        Args:
            message: Text that comes back in the answer.

        Raises:
            ConnectionLost: The runtime can't be reached.
        """
        return await self._link.unary("Ping", v1.PingRequest(message=message), v1.PingResponse, again=True)

    @operation
    async def tools(self) -> tuple[v1.ToolSpec, ...]:
        """What the pool's workers offer, by name.

        A cancellation leaves everything as it is.
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
        """Open a session, or resume the one of this id; leaving the block closes it, unless ``detach`` is set.

        A session of a client that was killed lives until it has not been used for its TTL.

        A block that is cancelled closes the session all the same, unless ``detach`` is set.

        Args:
            id, affinity, ttl, metadata: As in :meth:`snakepit_trio.Pool.session`; ``ttl`` in seconds.
            detach: Leave it in the runtime's store, until its TTL, to be resumed by its id.

        Raises:
            ConnectionLost: The runtime can't be reached.
            SnakepitError: What :meth:`snakepit_trio.Pool.session` raises.
        """
        # On the wire, none is the runtime's own and 0 is endless.
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
                        pass  # Without a connection its TTL does it.

    @block("registration")
    def serve_tools(
        self, functions: Mapping[str, Callable[..., Any]], *, session: RemoteSession | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Let the runtime's tools call functions here, by ``ctx.call_host(name, params)``, while the block lasts.

        Args:
            functions: By name; async ones run in this event loop, sync ones in a thread.
            session: Only this session's calls can call them; None: all can.

        Raises:
            ToolExists, InvalidParameter: One is refused; none was registered.
        """
        return serve_tools(self._link, functions, session, self._limit)

    # ---- programs ----------------------------------------------------------------------------------

    @operation
    async def put_program(
        self, name: str, data: bytes, *, session: str | None = None, ttl: float | None = None
    ) -> None:
        """Store a named blob, in the place of one of that name.

        A cancellation leaves at once; the runtime may have done it by then.

        Args:
            name: Printable text of up to 256 bytes.
            data: Its bytes.
            session: The id of the session that it belongs to; None: all.
            ttl: Seconds until it is gone; None: the runtime's ``program_ttl``.

        Raises:
            QuotaExceeded: It is too large, or does not fit; nothing was changed.
            SessionNotFound: There is no such session.
            InvalidParameter: An argument is refused.
            ConnectionLost: The runtime can't be reached.
        """
        request = v1.PutProgramRequest(name=name, data=bytes(data), session_id=session or "", ttl=ttl)
        await self._link.unary("PutProgram", request, v1.PutProgramResponse, again=True)

    @operation
    async def get_program(self, name: str, *, session: str | None = None, default: Any = None) -> Any:
        """A program's bytes.

        A cancellation leaves everything as it is.

        Args:
            name: Its name.
            session: The id of the session that it belongs to; None: those that belong to all.
            default: What to return when there is none.

        Raises:
            InvalidParameter: An argument is refused.
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
        """Delete a program. Returns whether there was one.

        A cancellation leaves at once; the runtime may have done it by then.

        Args:
            name: Its name.
            session: The id of the session that it belongs to; None: those that belong to all.

        Raises:
            InvalidParameter: An argument is refused.
            ConnectionLost: The runtime can't be reached, or went away: the program may be deleted by then.
        """
        request = v1.DeleteProgramRequest(name=name, session_id=session or "")
        return (await self._link.unary("DeleteProgram", request, v1.DeleteProgramResponse)).deleted
