"""A client connection to a gRPC server, with RPCs that use callbacks instead of being awaited.

:class:`Connection` joins grpclib's protocol engine to :class:`~snakepit_trio.wire.http2.pipe.FramePipe`, without I/O of
its own. A driver (``snakepit_trio.wire.transports``) moves the bytes. All methods must be called in the event loop's
thread.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

import sniffio

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._waiting import event_loop

from .http2.engine import PipeProtocol
from .http2.lean_hpack import FixedHeaders
from .http2.lean_stream import LeanStream, Notice
from .http2.pipe import FramePipe
from .http2.rules import H2Error

if TYPE_CHECKING:
    import ssl


__all__ = ["Connection", "Rpc", "RpcFailure", "Transport", "Wire"]

_OK = 0
_UNKNOWN = 2
_UNAVAILABLE = 14


class RpcFailure(Exception):
    """An RPC ended with a status other than OK.

    Attributes:
        status: The gRPC status code; 14 (UNAVAILABLE) if the connection was lost.
        message: The server's status message, or what happened to the connection.
        trailers: The server's trailers.
        reset_code: The HTTP/2 error code with which the server reset it, or None.
        unprocessed: Whether the server certainly has not begun it, so that it may be sent again (RFC 9113, 8.7): it was
            not sent, the server refused it, or the server ended the connection before it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        trailers: Mapping[str, str] | None = None,
        *,
        reset_code: int | None = None,
        unprocessed: bool = False,
    ) -> None:
        super().__init__(f"gRPC status {status}: {message}")
        self.status: int = status
        self.message = message
        self.trailers: Mapping[str, str] | dict[str, str] = trailers or {}
        self.reset_code = reset_code
        self.unprocessed = unprocessed


class Transport(Protocol):
    """The driver of a connection."""

    def call_soon(self, callback: Callable[[], None]) -> object:
        """Run a callback at the end of this tick of the event loop, in this thread."""

    def abort(self) -> None:
        """Close the socket now. Idempotent."""

    async def serve(self) -> None:
        """Move bytes until the connection ends. A cancellation closes it."""


class Wire(AbstractAsyncContextManager["Wire"]):
    """Makes connections on one event loop; a runtime holds it open.

    Attributes:
        errors: Reports the unexpected exceptions of its connections; set by the runtime.
    """

    def __init__(self) -> None:
        self.errors: InternalErrors = InternalErrors()

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    @abstractmethod
    async def connect(
        self, address: str, *, token: str, max_message: int, tls: ssl.SSLContext | None = None, name: str = ""
    ) -> Connection:
        """Connect to a worker. A cancellation leaves no socket open.

        Args:
            address: The worker's address.
            token: Sent with every RPC.
            max_message: The largest accepted message, in bytes.
            tls: The TLS context; None: no TLS.
            name: With TLS, the expected name in the worker's certificate.

        Raises:
            OSError: No worker listens there, or (``ssl.SSLError`` is one) another server does.
        """


class Rpc:
    """One RPC. ``on_end(status, message)`` is called exactly once, unless :meth:`cancel` was called before.

    Attributes:
        trailers: The server's trailers.
    """

    def __init__(
        self,
        connection: Connection,
        stream: LeanStream,
        release: Callable[[], None],
        on_message: Callable[[bytes], None],
        on_end: Callable[[int, str], None],
    ) -> None:
        #: The server's trailers; empty if there are none yet.
        self.trailers: dict[str, str] = {}
        self._stream = stream
        self._release = release
        self._on_end: Callable[[int, str], None] | None = on_end
        stream.headers_received = Notice(self._headers)
        stream.trailers_received = Notice(self._trailers)
        self.pipe: FramePipe = FramePipe(
            stream,
            on_message=on_message,
            on_close=self._closed,
            max_message=connection.max_message,
            call_soon=connection.transport.call_soon,
        )
        self.send: Callable[..., None] = self.pipe.send
        self.end: Callable[..., None] = self.pipe.end

    @property
    def reset_code(self) -> int | None:
        """The HTTP/2 error code with which the server reset it, or None."""
        return self._stream.reset_code

    @property
    def unprocessed(self) -> bool:
        """Whether the server certainly has not begun it; see :class:`RpcFailure`."""
        return self._stream.unprocessed

    @property
    def unsent(self) -> int:
        """The bytes that the server has not accepted yet."""
        return self.pipe.unsent

    def cancel(self) -> None:
        """Reset the RPC; ``on_end`` will not be called any more."""
        self._finish(None, "")

    def _headers(self) -> None:
        headers = dict(self._stream.headers or ())
        if headers.get(":status") != "200":
            self._finish(_UNKNOWN, f"HTTP status {headers.get(':status')!r}")
        elif "grpc-status" in headers:
            self._status(headers)

    def _trailers(self) -> None:
        self._status(dict(self._stream.trailers or ()))

    def _status(self, headers: dict[str, str]) -> None:
        self.trailers = headers
        try:
            status = int(headers.get("grpc-status", ""))
        except ValueError:
            self._finish(_UNKNOWN, "no grpc-status in the trailers")
        else:
            self._finish(status, unquote(headers.get("grpc-message", ""), errors="replace"))

    def _closed(self, reason: str) -> None:
        # The trailers arrive with the end of the stream and are handled first; an end without them is a fault.
        self._finish(_UNAVAILABLE, reason or "the server ended the stream without a status")

    def _finish(self, status: int | None, message: str) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        # The waiting code is informed whatever fails here, because no other code does it.
        try:
            self.pipe.close()
            with suppress(KeyError, H2Error):
                self._release()
        finally:
            if status is not None:
                try:
                    on_end(status, message)
                except Exception:
                    on_end(status, message)
                    raise


class Connection:
    """One connection to a worker.

    Args:
        protocol: The connected engine.
        transport: Moves the bytes.
        token: Sent with every RPC.
        max_message: The largest accepted message, in bytes.
        secure: Whether there is TLS below, which is sent to the server.
        authority: The server's name, which is sent to the server.
    """

    def __init__(
        self,
        protocol: PipeProtocol,
        transport: Transport,
        *,
        token: str,
        max_message: int,
        secure: bool = False,
        authority: str = "localhost",
    ) -> None:
        self._protocol = protocol
        self.transport = transport
        self.max_message = max_message
        self._first = ((":method", "POST"), (":scheme", "https" if secure else "http"))
        self._rest = (
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "snakepit-trio"),
            ("authorization", f"Bearer {token}"),
        )
        self._headers: dict[str, FixedHeaders] = {}

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._protocol.is_lost

    @property
    def max_streams(self) -> int:
        """The number of RPCs that the server accepts at once, as far as known."""
        return self._protocol.peers_max_streams

    async def serve(self) -> None:
        """Move bytes until the connection ends; a cancellation closes it. To be run in the owner's nursery."""
        await self.transport.serve()

    def close(self) -> None:
        """Close the socket now; every running RPC ends with UNAVAILABLE. Idempotent."""
        self._protocol.processor.close("the connection was closed")
        self.transport.abort()

    def rpc(
        self,
        path: str,
        *,
        on_message: Callable[[bytes], None],
        on_end: Callable[[int, str], None],
        timeout: float = math.inf,
        message: bytes | None = None,
    ) -> Rpc:
        """Open an RPC.

        Args:
            path: ``/package.Service/Method``.
            on_message: Called with each message of the server.
            on_end: Called once with the gRPC status and its message.
            timeout: Seconds, sent to the server; the caller enforces it.
            message: The only message, sent together with the headers; None: there may be many.

        Raises:
            RpcFailure: The connection has ended, or the server's limit of streams is reached.
        """
        protocol = self._protocol
        if protocol.is_lost:
            raise RpcFailure(_UNAVAILABLE, "the connection is closed", unprocessed=True)
        headers = self._headers.get(path)
        if headers is None:
            headers = self._headers[path] = FixedHeaders(*self._first, (":path", path), *self._rest)
        if timeout != math.inf:
            # At most 8 digits: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
            headers = headers.and_one("grpc-timeout", f"{min(max(int(timeout * 1000), 1), 99_999_999)}m")
        try:
            stream, release = protocol.open_stream(headers)
        except H2Error as exc:
            raise RpcFailure(_UNAVAILABLE, str(exc) or type(exc).__name__, unprocessed=True) from exc
        rpc = Rpc(self, stream, release, on_message, on_end)
        rpc.pipe.start()
        if message is not None:
            rpc.pipe.send_last(message)
        protocol.connection.flush()
        return rpc

    async def unary(self, path: str, request: bytes, *, timeout: float = math.inf) -> bytes:
        """Send one message, and return the answer. A cancellation resets the RPC.

        Raises:
            RpcFailure: The RPC ended with a status other than OK, or without a message.
        """
        answers: list[bytes] = []
        ended = event_loop(sniffio.current_async_library()).waiter()
        status: tuple[int, str] = (_OK, "")

        def on_end(code: int, message: str) -> None:
            nonlocal status
            status = code, message
            ended.wake()

        rpc = self.rpc(path, on_message=answers.append, on_end=on_end, timeout=timeout, message=request)
        try:
            await ended.wait()
        finally:
            rpc.cancel()
        if status[0] != _OK:
            raise RpcFailure(*status, rpc.trailers, reset_code=rpc.reset_code, unprocessed=rpc.unprocessed)
        if len(answers) != 1:
            raise RpcFailure(_UNKNOWN, f"{len(answers)} messages where one was due")
        # Removed from the list, so that a cycle that refers to the list does not keep the message.
        return answers.pop()
