"""Functions of a client that the runtime's tools may call."""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from snakepit_trio._bulkhead import internal_error
from snakepit_trio._exceptions import holds_interrupt
from snakepit_trio._interrupts import protected
from snakepit_trio._user_code import Raised, run_in_thread
from snakepit_trio.errors import ConnectionLost, ToolNotFound
from snakepit_trio.observe.redaction import redact
from snakepit_trio.wire import failures, frame_writing
from snakepit_trio.wire.connection import Rpc
from snakepit_trio.wire.generated.snakepit import v1

from .channel import Link, Opened, failure
from .values import pack, unpack

if TYPE_CHECKING:
    from .session import RemoteSession

__all__ = ["serve_tools"]


class _Server:
    """Answers the calls of one registration."""

    def __init__(self, link: Link, functions: Mapping[str, Callable[..., Any]], limit: int) -> None:
        self._link = link
        self._functions = functions
        self._limit = limit
        self._scopes: dict[int, anyio.CancelScope] = {}
        self.rpc: Rpc | None = None
        self.status: tuple[int, str] | None = None
        self.ready = anyio.Event()

    def on_message(self, message: bytes) -> None:
        call = v1.ClientToolCall.parse(message)
        if call.ready:
            self.ready.set()
        elif call.cancelled:
            scope = self._scopes.get(call.call_id)
            if scope is not None:
                scope.cancel()
        else:
            scope = self._scopes[call.call_id] = anyio.CancelScope()
            self._link.start(self._run, call, scope, ended="host_call", on_error=lambda exc: self._give_up(call, exc))

    def on_end(self, status: int, message: str) -> None:
        self.status = status, message
        self.ready.set()
        self.close()

    async def again(self, opened: Opened) -> bool:
        """Open another RPC if the host has not begun this one, and return whether one is open."""
        status, self.status, self.ready = self.status, None, anyio.Event()
        if await opened.again():
            return True
        self.status = status
        return False

    def close(self) -> None:
        for scope in self._scopes.values():
            scope.cancel()

    def _give_up(self, call: v1.ClientToolCall, exc: Exception) -> None:
        """End a call whose serving has failed; if even the error can't be sent, the registration ends."""
        self._scopes.pop(call.call_id, None)
        if self.rpc is None:
            return
        try:
            info = failures.to_info(internal_error(exc, "call"))
            reply = v1.ClientToolReply(call_id=call.call_id, error=v1.ErrorInfo.parse(frame_writing.encode_error(info)))
            self.rpc.send(bytes(v1.ClientToolFrame(reply=reply)))
        except Exception:
            self.rpc.cancel()
            raise

    @protected
    async def _run(self, call: v1.ClientToolCall, scope: anyio.CancelScope) -> None:
        reply = v1.ClientToolReply(call_id=call.call_id)
        raised = Raised()
        try:
            with scope, raised:
                reply.payload = pack(await self._call(call), what="result", limit=self._limit)
        except BaseException as exc:
            raised.exc = exc
        finally:
            self._scopes.pop(call.call_id, None)
        if raised.exc is not None:
            if holds_interrupt(raised.exc) or anyio.current_effective_deadline() == -math.inf:
                raised.again()  # Not the function's exception: a Ctrl-C, or the end of the client.
            info = failures.describe_exception(raised.exc, redact=redact)
            reply.error = v1.ErrorInfo.parse(frame_writing.encode_error(info))
        if not scope.cancelled_caught and self.rpc is not None:
            self.rpc.send(bytes(v1.ClientToolFrame(reply=reply)))

    async def _call(self, call: v1.ClientToolCall) -> Any:
        function = self._functions.get(call.tool)
        if function is None:
            raise ToolNotFound(f"this client has no tool {call.tool!r}", details={"tool": call.tool})
        params = unpack(call.payload, what="params", limit=self._limit) or {}
        if inspect.iscoroutinefunction(function):
            return await function(**params)
        return await run_in_thread(lambda: function(**params))


@asynccontextmanager
async def serve_tools(
    link: Link, functions: Mapping[str, Callable[..., Any]], session: RemoteSession | None, limit: int
) -> AsyncIterator[None]:
    """See :meth:`snakepit_trio.client.client.Client.serve_tools`."""
    specs = [
        v1.ToolSpec(name=name, description=" ".join((function.__doc__ or "").split("\n\n")[0].split()))
        for name, function in functions.items()
    ]
    request = v1.RegisterToolsRequest(tools=specs)
    if session is not None:
        request.session_id, request.generation = session.id, session.generation
    registered = await link.unary("RegisterTools", request, v1.RegisterToolsResponse)
    server = _Server(link, dict(functions), limit)
    first = v1.ClientToolFrame(registration_id=registered.registration_id)
    async with link.streaming(
        "ServeTools", first, on_message=server.on_message, on_end=server.on_end, last=False
    ) as opened:
        try:
            while True:
                server.rpc = rpc = opened.rpc
                await server.ready.wait()
                if not rpc.unprocessed or not await server.again(opened):
                    break
            if server.status is not None:
                raise (
                    failure(*server.status, rpc.trailers) if server.status[0] else ConnectionLost("the host went away")
                )
            yield
        finally:
            server.close()
