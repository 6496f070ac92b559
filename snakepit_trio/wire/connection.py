"""One connection to a gRPC server, with RPCs that call back instead of being awaited.

:class:`Connection` joins grpclib's protocol engine to :class:`~snakepit_trio.wire.http2.pipe.FramePipe`; it does no I/O of its
own. A driver (``snakepit_trio.wire.transports``) moves the bytes. All methods belong to the event loop's thread.
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
    """An RPC ended with another status than OK.

    Attributes:
        status: The gRPC status code; 14 (UNAVAILABLE) when the connection was lost.
        message: The server's status message, or what happened to the connection.
        trailers: What the server sent with it.
        reset_code: HTTP/2's error code with which the server has reset it; None: it has not.
        unprocessed: It was not begun by the server, for sure, and may be sent again (RFC 9113, 8.7): it was not sent, the
            server has refused it, or has ended the connection before it came to it.
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
    """What a connection needs of its driver."""

    def call_soon(self, callback: Callable[[], None]) -> object:
        """Run a callback at the end of this tick of the event loop, in this thread."""

    def abort(self) -> None:
        """Close the socket now. Idempotent."""

    async def serve(self) -> None:
        """Move bytes until the connection is over. A cancellation closes it."""


class Wire(AbstractAsyncContextManager["Wire"]):
    """A way to connect, for one event loop; a runtime holds it open.

    Attributes:
        errors: Where the unexpected exceptions of its connections are told; the runtime puts its own here.
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
            address: Where it listens.
            token: Sent with every RPC.
            max_message: Longest message that is accepted, in bytes.
            tls: Secures the connection; None: it is plain.
            name: Whose certificate the worker must show then.

        Raises:
            OSError: Nobody listens there, or (``ssl.SSLError`` is one) somebody else does.
        """


class Rpc:
    """One RPC on the way. ``on_end(status, message)`` is called exactly once, unless :meth:`cancel` came first.

    Attributes:
        trailers: What the server has sent with the status.
    """

    def __init__(
        self,
        connection: Connection,
        stream: LeanStream,
        release: Callable[[], None],
        on_message: Callable[[bytes], None],
        on_end: Callable[[int, str], None],
    ) -> None:
        #: What the server said at the end, beside the status; empty when it did not get so far.
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
        """HTTP/2's error code with which the server has reset it; None: it has not."""
        return self._stream.reset_code

    @property
    def unprocessed(self) -> bool:
        """Whether the server has said that nothing was done for it; see :class:`RpcFailure`."""
        return self._stream.unprocessed

    @property
    def unsent(self) -> int:
        """Bytes that the server has not taken yet."""
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
        # The trailers come with the end of the stream and are looked at first; an end without them is a fault.
        self._finish(_UNAVAILABLE, reason or "the server ended the stream without a status")

    def _finish(self, status: int | None, message: str) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        # Whatever fails here, whoever waits is told: nobody else will.
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
        protocol: The engine, connected.
        transport: What moves its bytes.
        token: Sent with every RPC.
        max_message: Longest message that is accepted, in bytes.
        secure: Whether there is TLS below, which the server is told.
        authority: What the server is told of how it is called.
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
        """Whether the connection is over."""
        return self._protocol.is_lost

    @property
    def max_streams(self) -> int:
        """How many RPCs the server takes at once, as far as it has said so."""
        return self._protocol.peers_max_streams

    async def serve(self) -> None:
        """Move bytes until the connection is over; a cancellation closes it. To be run in the nursery of its owner."""
        await self.transport.serve()

    def close(self) -> None:
        """Close the socket now; every RPC under way ends with UNAVAILABLE. Idempotent."""
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
            timeout: Seconds, told to the server; keeping to it is the caller's business.
            message: The only one that is sent, in one piece with what opens the RPC; None: there may be many.

        Raises:
            RpcFailure: The connection is over, or the server's limit of streams is reached.
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
        """Send one message, receive one. A cancellation resets the RPC.

        Raises:
            RpcFailure: It ended with another status than OK, or with no message.
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
        # What still refers to the list, in a cycle, does not keep the message.
        return answers.pop()
