"""BridgeService: each RPC calls the runtime's public methods."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from snakepit_trio import __version__
from snakepit_trio._call_options import UNSET, CallOptions
from snakepit_trio.errors import InvalidParameter, SnakepitError, StreamingUnsupported, ToolError, ToolNotFound
from snakepit_trio.pool.calls.affinity import AFFINITIES
from snakepit_trio.pool.calls.session import resume_session
from snakepit_trio.pool.calls.submission import Arguments, Encoded
from snakepit_trio.sessions.records import check_name
from snakepit_trio.wire.frames import MSGPACK, Payload
from snakepit_trio.wire.generated.snakepit import v1
from snakepit_trio.wire.handshake_messages import ToolSpec
from snakepit_trio.wire.payload_messages import message_of
from snakepit_trio.wire.rpc_paths import BRIDGE
from snakepit_trio.wire.tool_messages import ExecuteToolRequest, payload_answer
from snakepit_trio.wire.version import PROTOCOL_VERSION

from .client_tools import ClientTools, spec_of
from .methods import Method
from .payloads import check_encoding, encode, in_encoding, may_stay_unread, packed, params_of, read
from .server_call import ServerCall
from .session_shares import SessionShares

if TYPE_CHECKING:
    from snakepit_trio.pool.calls.session import Session
    from snakepit_trio.pool.calls.stream import ChunkStream
    from snakepit_trio.pool.pool import Pool
    from snakepit_trio.runtime import Runtime
    from snakepit_trio.sessions.records import SessionInfo

__all__ = ["BridgeService"]

#: The largest request without a payload, and the largest request of schemas, in bytes.
_SMALL, _SCHEMAS = 64 * 1024, 1024 * 1024
#: The bytes of chunks that wait here for a client, which has its own windows.
_STREAM_BYTES = 1024 * 1024


class OfSession(Protocol):
    """A request about a session."""

    session_id: str
    generation: str


class BridgeService:
    """The service of one runtime.

    Args:
        runtime: The runtime.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._client_tools = ClientTools(runtime)
        self._session_shares = SessionShares(runtime)
        self.keep: Callable[[], Awaitable[None]] = self._client_tools.keep
        small = functools.partial(Method, longest=_SMALL)
        methods: dict[str, Method] = {
            "Ping": small(self._ping, v1.PingRequest),
            "ExecuteTool": Method(self._execute, ExecuteToolRequest, begin=self._begin_execute),
            "ExecuteStreamingTool": Method(self._stream, ExecuteToolRequest, streams_out=True),
            "ListTools": small(self._list_tools, v1.ListToolsRequest),
            "GetTool": small(self._get_tool, v1.GetToolRequest),
            "RegisterTools": Method(self._client_tools.register, v1.RegisterToolsRequest, longest=_SCHEMAS),
            "ServeTools": Method(self._client_tools.serve, v1.ClientToolFrame, streams_in=True, streams_out=True),
            "OpenSession": small(self._open_session, v1.OpenSessionRequest),
            "GetSession": small(self._get_session, v1.GetSessionRequest),
            "Heartbeat": small(self._heartbeat, v1.HeartbeatRequest),
            "CloseSession": small(self._close_session, v1.CloseSessionRequest),
            "PutValue": Method(self._put_value, v1.PutValueRequest),
            "GetValue": small(self._get_value, v1.GetValueRequest),
            "DeleteValue": small(self._delete_value, v1.DeleteValueRequest),
            "ListValues": small(self._list_values, v1.ListValuesRequest),
            "PutProgram": Method(self._put_program, v1.PutProgramRequest),
            "GetProgram": small(self._get_program, v1.GetProgramRequest),
            "DeleteProgram": small(self._delete_program, v1.DeleteProgramRequest),
            "ListPrograms": small(self._list_programs, v1.ListProgramsRequest),
        }
        self.methods: Mapping[bytes, Method] = {f"{BRIDGE}{name}".encode(): method for name, method in methods.items()}

    def _pool(self, name: str) -> Pool:
        return self._runtime.pool(name)

    # ---- calls -------------------------------------------------------------------------------------

    async def _ping(self, call: ServerCall, request: v1.PingRequest) -> v1.PingResponse:
        pools = []
        for name, pool in self._runtime.pools.items():
            stats = pool.stats()
            pools.append(
                v1.PoolStatus(
                    name=name,
                    size=stats.size,
                    ready=stats.ready,
                    busy=stats.busy,
                    queued=stats.queued,
                    in_flight=stats.in_flight,
                )
            )
        return v1.PingResponse(
            message=request.message,
            protocol_version=PROTOCOL_VERSION,
            version=__version__,
            run_id=self._runtime.run_id,
            pools=pools,
        )

    def _begin_execute(self, call: ServerCall, request: ExecuteToolRequest) -> Callable[[], None] | None:
        """Begin a call outside sessions, in a pool without policies; payloads are passed on unchanged if possible."""
        if request.session_id:
            return None
        pool = self._pool(request.pool)
        limit = pool.config.max_payload
        encoding = check_encoding(request.accept, request.payload)
        params = _params(pool, request.payload)

        def on_end(result: Payload | None, error: SnakepitError | None) -> None:
            call.conclude(
                lambda: payload_answer(in_encoding(result, encoding, limit=limit)),
                None if error is None else _in_our_words(error),
            )

        try:
            return pool.calls.begin(request.tool, params, _options(call, request), on_end=on_end)
        except StreamingUnsupported as exc:
            raise _in_our_words(exc) from None

    async def _execute(self, call: ServerCall, request: ExecuteToolRequest) -> bytes:
        pool = self._pool(request.pool)
        limit = pool.config.max_payload
        params = _params(pool, request.payload)
        encoding = check_encoding(request.accept, request.payload)
        options = _options(call, request)
        try:
            if request.session_id:
                async with self._session(request, pool) as session:
                    value = await session.call(request.tool, params, options)
            else:
                value = await pool.calls.execute(request.tool, params, options)
        except StreamingUnsupported as exc:
            raise _in_our_words(exc) from None
        return payload_answer(encode(value, encoding, what="result", limit=limit))

    async def _stream(self, call: ServerCall, request: ExecuteToolRequest) -> None:
        pool = self._pool(request.pool)
        limit = pool.config.max_payload
        params = _params(pool, request.payload)
        encoding = check_encoding(request.accept, request.payload)
        options = _options(call, request)
        # The traceback of a failed stream's error refers to the stream and to this frame.
        request.payload = None
        try:
            async with AsyncExitStack() as stack:
                made: AbstractAsyncContextManager[ChunkStream]
                if request.session_id:
                    session = await stack.enter_async_context(self._session(request, pool))
                    made = session.open_stream(request.tool, params, options, _STREAM_BYTES)
                else:
                    made = pool.calls.stream(request.tool, params, options, window_bytes=_STREAM_BYTES)
                del params
                chunks = await stack.enter_async_context(made)
                chunks.on_held = call.draw_from(lambda: chunks.held)
                async for chunk in chunks:
                    await call.send(payload_answer(encode(chunk, encoding, what="chunk", limit=limit)))
        except StreamingUnsupported as exc:
            raise _in_our_words(exc) from None

    # ---- tools -------------------------------------------------------------------------------------

    async def _list_tools(self, call: ServerCall, request: v1.ListToolsRequest) -> v1.ListToolsResponse:
        if request.host:
            found = [spec_of(tool) for tool in self._client_tools.host_tools(request.session_id).values()]
        else:
            found = [_message(spec) for spec in self._pool(request.pool).tools()]
        return v1.ListToolsResponse(tools=found)

    async def _get_tool(self, call: ServerCall, request: v1.GetToolRequest) -> v1.GetToolResponse:
        if request.host:
            tool = self._client_tools.host_tools(request.session_id).get(request.tool)
            if tool is None:
                raise ToolNotFound(f"the host has no tool {request.tool!r}", details={"tool": request.tool})
            return v1.GetToolResponse(tool=spec_of(tool))
        pool = self._pool(request.pool)
        for spec in pool.tools():
            if spec.name == request.tool:
                return v1.GetToolResponse(tool=_message(spec))
        raise ToolNotFound(
            f"pool {pool.name!r} has no tool {request.tool!r}", details={"tool": request.tool, "pool": pool.name}
        )

    # ---- sessions ----------------------------------------------------------------------------------

    def _session(self, request: OfSession, pool: Pool | None = None) -> AbstractAsyncContextManager[Session]:
        """Hold the session of a request open for the request. The session must exist; ``pool`` is None if the request is
        about no pool.
        """
        pool = pool or next(iter(self._runtime.pools.values()))
        return resume_session(pool, self._runtime.sessions, request.session_id, request.generation or None)

    async def _open_session(self, call: ServerCall, request: v1.OpenSessionRequest) -> v1.OpenSessionResponse:
        pool = self._pool(request.pool)
        if request.affinity and request.affinity not in AFFINITIES:
            raise InvalidParameter(
                f"affinity must be one of {', '.join(AFFINITIES)}, not {request.affinity[:80]!r}",
                details={"path": "affinity"},
            )
        ttl: Any = UNSET if request.ttl is None else None if request.ttl == 0 else request.ttl
        id = request.session_id or None
        with self._session_shares.opening(call.client, id) as opened:
            async with pool.session(
                id, affinity=request.affinity or None, ttl=ttl, metadata=dict(request.metadata), detach=True
            ) as session:
                known = self._runtime.sessions.known(session.id)
                if known is not None:
                    opened.append(known)
                return v1.OpenSessionResponse(session=_state(await session.info()))

    async def _get_session(self, call: ServerCall, request: v1.GetSessionRequest) -> v1.GetSessionResponse:
        id, generation = check_name(request.session_id, "id"), request.generation or None
        return v1.GetSessionResponse(session=_state(await self._runtime.sessions.info(id, generation)))

    async def _heartbeat(self, call: ServerCall, request: v1.HeartbeatRequest) -> v1.HeartbeatResponse:
        async with self._session(request) as session:
            return v1.HeartbeatResponse(expires_in=session.ttl)

    async def _close_session(self, call: ServerCall, request: v1.CloseSessionRequest) -> v1.CloseSessionResponse:
        id, generation = check_name(request.session_id, "id"), request.generation or None
        return v1.CloseSessionResponse(closed=await self._runtime.sessions.end(id, generation))

    async def _put_value(self, call: ServerCall, request: v1.PutValueRequest) -> v1.PutValueResponse:
        data = packed(request.payload, limit=self._longest())
        value = None if data is not None else read(request.payload, what="payload", limit=self._longest())
        async with self._session(request) as session:
            if data is not None:
                version = await session.put_encoded(request.key, lambda: data, request.expect)
            else:
                version = await session.put(request.key, value, expect=request.expect)
        return v1.PutValueResponse(stored=version is not None, version=version or 0)

    async def _get_value(self, call: ServerCall, request: v1.GetValueRequest) -> v1.GetValueResponse:
        encoding = check_encoding(int(request.accept), None)
        async with self._session(request) as session:
            found = await session.read_encoded(request.key)
        if found is None:
            return v1.GetValueResponse()
        stored, version = Payload(MSGPACK, found[0]), found[1]
        payload = in_encoding(stored, encoding, what="value", limit=self._longest())
        return v1.GetValueResponse(payload=message_of(payload), version=version)

    async def _delete_value(self, call: ServerCall, request: v1.DeleteValueRequest) -> v1.DeleteValueResponse:
        async with self._session(request) as session:
            return v1.DeleteValueResponse(deleted=await session.delete(request.key))

    async def _list_values(self, call: ServerCall, request: v1.ListValuesRequest) -> v1.ListValuesResponse:
        async with self._session(request) as session:
            return v1.ListValuesResponse(keys=list(await session.keys()))

    def _longest(self) -> int:
        return max(pool.config.max_payload for pool in self._runtime.pools.values())

    # ---- programs ----------------------------------------------------------------------------------

    async def _put_program(self, call: ServerCall, request: v1.PutProgramRequest) -> v1.PutProgramResponse:
        await self._runtime.programs.put(
            request.name, request.data, session=request.session_id or None, ttl=request.ttl
        )
        return v1.PutProgramResponse()

    async def _get_program(self, call: ServerCall, request: v1.GetProgramRequest) -> v1.GetProgramResponse:
        found = await self._runtime.programs.get(request.name, session=request.session_id or None)
        if found is None:
            raise SnakepitError(
                f"there is no program {request.name[:256]!r}",
                code="program_not_found",
                details={"program": request.name[:256]},
            )
        return v1.GetProgramResponse(data=found)

    async def _delete_program(self, call: ServerCall, request: v1.DeleteProgramRequest) -> v1.DeleteProgramResponse:
        deleted = await self._runtime.programs.delete(request.name, session=request.session_id or None)
        return v1.DeleteProgramResponse(deleted=deleted)

    async def _list_programs(self, call: ServerCall, request: v1.ListProgramsRequest) -> v1.ListProgramsResponse:
        found = await self._runtime.programs.list(session=request.session_id or None)
        return v1.ListProgramsResponse(
            programs=[v1.ProgramState(name=p.name, size=p.size, expires_in=p.expires_in) for p in found]
        )


def _params(pool: Pool, payload: Payload | None) -> Arguments:
    """Return a tool's arguments; large ones are left to the worker to decode.

    Raises:
        InvalidPayload, InvalidParameter: They are invalid.
    """
    limit = pool.config.max_payload
    if payload is None:
        return None
    if may_stay_unread(payload, limit=limit) and pool.calls.reads(payload):
        return Encoded(payload, None)
    return Encoded(payload, params_of(payload, limit=limit))


def _options(call: ServerCall, request: ExecuteToolRequest) -> CallOptions:
    left = call.time_left
    timeout: Any = UNSET if left is None and not request.unlimited else left
    return CallOptions(
        timeout, priority=request.priority, metadata=request.metadata or None, idempotent=request.idempotent
    )


def _in_our_words(error: SnakepitError) -> SnakepitError:
    """Reword an error for a client that knows RPCs rather than ``pool.stream``."""
    if not isinstance(error, StreamingUnsupported) or isinstance(error, ToolError):
        return error
    tool = error.details.get("tool")
    if error.details.get("streaming"):
        text = f"{tool!r} gives a stream: call it by ExecuteStreamingTool"
    else:
        text = (
            f"{tool!r} gives one result, not a stream: call it by ExecuteTool; to enable streaming, make the tool a "
            "generator that yields its chunks"
        )
    return StreamingUnsupported(text, details=error.details)


def _message(spec: ToolSpec) -> v1.ToolSpec:
    return v1.ToolSpec(**msgspec.structs.asdict(spec))


def _state(info: SessionInfo) -> v1.SessionState:
    return v1.SessionState(
        session_id=info.id,
        ttl=info.ttl,
        expires_in=info.expires_in,
        metadata=dict(info.metadata),
        entries=info.entries,
        size=info.size,
        generation=info.generation,
    )
