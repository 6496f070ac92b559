"""grpclib's server for a worker: RPCs as coroutines, on connections whose streams a pipe can take over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, NoReturn

import grpclib.server
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from snakepit_trio import _private_names

from .engine import LoopProtocol

if TYPE_CHECKING:
    from grpclib._typing import IServable
    from grpclib.protocol import Stream

__all__ = [
    "RPC_ENDED",
    "GRPCError",
    "Handler",
    "PipeServer",
    "RawMessage",
    "Status",
    "duplex",
    "server_stream",
    "silence",
    "stream_below",
    "unary",
]

_private_names.require("grpclib.server")

_Rpc = Callable[[Any], Awaitable[None]]

#: The exceptions of an RPC's coroutine when its client, or the coroutine itself, has ended it.
RPC_ENDED = (GRPCError, ProtocolError, StreamTerminatedError, OSError)


class PipeServer(grpclib.server.Server):
    """grpclib's server on connections that a FramePipe can take over.

    Args:
        handlers: The services.
        on_failure: Called with an exception that prevented a connection; never returns.
    """

    def __init__(self, handlers: Collection[IServable], on_failure: Callable[[Exception], NoReturn]) -> None:
        # Without a codec it imports Google's messages where they are installed: nothing here uses them, and each start would
        # take longer by a tenth.
        super().__init__(handlers, codec=ProtoCodec())
        self._on_failure = on_failure

    def _protocol_factory(self) -> LoopProtocol:
        try:
            made = super()._protocol_factory()
            return LoopProtocol(made.handler, made.config, made.h2_config)
        except Exception as exc:
            # asyncio would say nothing, and the worker wait for a host that it has turned away.
            self._on_failure(exc)

    async def wait_closed(self) -> None:
        """Wait until the request handlers have ended.

        It does not wait for the connections, as asyncio's server does since Python 3.12, because the host hangs up only
        after its worker has ended.
        """
        await asyncio.gather(*(handler.wait_closed() for handler in self._handlers))


class RawMessage:
    """A message as bytes: all that RPCs here receive and send. grpclib's codec needs these two methods."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def SerializeToString(self) -> bytes:
        return self.data

    @classmethod
    def FromString(cls, data: bytes) -> RawMessage:
        return cls(data)


def unary(rpc: _Rpc) -> Handler:
    """An RPC with one message each way."""
    return Handler(rpc, Cardinality.UNARY_UNARY, RawMessage, RawMessage)


def server_stream(rpc: _Rpc) -> Handler:
    """An RPC with one message, and an answer of many."""
    return Handler(rpc, Cardinality.UNARY_STREAM, RawMessage, RawMessage)


def duplex(rpc: _Rpc) -> Handler:
    """An RPC with many messages each way."""
    return Handler(rpc, Cardinality.STREAM_STREAM, RawMessage, RawMessage)


def stream_below(stream: Any) -> Stream:
    """Return the HTTP/2 stream of an RPC, for a pipe to take over."""
    found: Stream = stream._stream
    return found


def silence() -> None:
    """Turn grpclib's logging off, because its information is reported elsewhere."""
    for name in ("grpclib.server", "grpclib.protocol"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
