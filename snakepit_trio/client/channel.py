"""A client's connection to a bridge: made when it is needed, made anew when it was lost, RPCs with typed errors.

Policy: a call that can't be sent waits for a connection, within ``connect_timeout``. A call that was sent when the connection
was lost fails with ``ConnectionLost``, since nobody knows whether it ran, unless it may run twice; then it is sent again. One
that the server has surely not begun, because it has no room for it or was about to go away, can't be sent either: it waits for
room, or for another connection, as long.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.abc

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected
from snakepit_trio._timeouts import as_given
from snakepit_trio.config import TlsConfig
from snakepit_trio.errors import ConfigError, ConnectionLost, InvalidPayload, RequestTimeout, SnakepitError, ToolError
from snakepit_trio.wire import sockets
from snakepit_trio.wire.addresses import parse_address
from snakepit_trio.wire.connection import Connection, Rpc, RpcFailure
from snakepit_trio.wire.http2.client_engine import client_protocol
from snakepit_trio.wire.http2.engine import PipeProtocol
from snakepit_trio.wire.rpc_paths import BRIDGE
from snakepit_trio.wire.status import error_from_trailers

__all__ = ["LAST_WORD", "Link", "client_tls", "failure"]

M = TypeVar("M")

#: After a timeout the server, which knows it too and says more about it, has so long to say it, in seconds.
LAST_WORD = 0.25
#: What one stream may have in flight before it is taken, and all together, in bytes.
_STREAM_WINDOW = 1024 * 1024
_WINDOW = 256 * 1024 * 1024
_ATTEMPTS = 3
#: The pause before a second attempt to connect, and what it grows to, in seconds.
_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


def client_tls(tls: ssl.SSLContext | TlsConfig | str | bool | None) -> ssl.SSLContext | None:
    """The client's TLS: True for the system's authorities, a path for one's own, a TlsConfig to show a certificate too.

    Raises:
        ConfigError: A file can't be used.
    """
    if tls is None or tls is False:
        return None
    if isinstance(tls, ssl.SSLContext):
        return tls
    ca = tls.ca if isinstance(tls, TlsConfig) else tls if isinstance(tls, str) else None
    try:
        context = ssl.create_default_context(cafile=ca)
        if isinstance(tls, TlsConfig):
            context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"tls: the files can't be used: {exc}", details={"key": "tls", "expected": "PEM files"}
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    return context


def failure(status: int, message: str, trailers: Any) -> SnakepitError:
    """The exception for an RPC that failed, to be raised as it is: its cause, where it has one, is what a tool raised."""
    error = error_from_trailers(trailers, status, message)
    error.__suppress_context__ = True
    return error


def _read(answer: type[M], reply: bytes) -> M:
    try:
        return answer.parse(reply)  # type: ignore[attr-defined,no-any-return]
    except Exception as exc:
        raise InvalidPayload(f"the answer is no {answer.__name__}: {type(exc).__name__}") from None


class _Patience:
    """How a call waits that the server has not begun.

    Attributes:
        waiting: It does.
    """

    __slots__ = ("_link", "_pause", "_until", "waiting")

    def __init__(self, link: Link) -> None:
        self.waiting = False
        self._link = link
        self._until = math.inf
        self._pause = _PAUSE

    async def again(self, failed: RpcFailure | Rpc, connection: Connection) -> bool:
        """After a failure: wait until it may be sent once more; False: it may not, or was refused for too long."""
        if not failed.unprocessed:
            return False
        now = anyio.current_time()
        first = self._until == math.inf
        if first:
            self._until = now + self._link.connect_timeout
        elif now >= self._until:
            return False
        if first and connection.lost:
            return True
        self.waiting = True
        # The end of another call makes room. When none is under way, nothing tells.
        with anyio.move_on_after(min(self._pause, self._until - now)):
            await self._link.wait_freed()
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


class Opened:
    """An RPC with more messages than one.

    Attributes:
        rpc: It; another one after :meth:`again`.
    """

    rpc: Rpc

    def __init__(self, link: Link, open_one: Callable[[Connection, bytes], Rpc], first: bytes) -> None:
        self._link = link
        self._open_one = open_one
        # Sent again with each attempt, and let go of at the end: what refers to this object may be garbage that waits.
        self._first = first
        self._patience = _Patience(link)
        self._connection: Connection | None = None
        self._slots: anyio.CapacityLimiter | None = None

    async def open(self) -> None:
        """Open it. A cancellation leaves it closed.

        Raises:
            SnakepitError: It can't be opened.
        """
        while True:
            self._connection = await self._link.get()
            slots = self._link.slots
            await slots.acquire_on_behalf_of(self)
            self._slots = slots
            try:
                self.rpc = self._open_one(self._connection, self._first)
                return
            except RpcFailure as exc:
                self._release()
                if not await self._patience.again(exc, self._connection):
                    raise failure(exc.status, exc.message, exc.trailers)  # noqa: B904  # It has a cause already, or needs none.
            except BaseException:
                self._release()
                raise

    async def again(self) -> bool:
        """After its end: open it once more if the server has not begun it. Returns whether it is open.

        A cancellation leaves it closed, and it may be tried again.
        """
        assert self._connection is not None
        self._release()
        if not await self._patience.again(self.rpc, self._connection):
            return False
        await self.open()
        return True

    def close(self) -> None:
        """Cancel it. Idempotent."""
        self._first = b""
        if self._slots is not None:
            try:
                self.rpc.cancel()
            finally:
                self._release()
                self._link.tell_freed()

    def _release(self) -> None:
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release_on_behalf_of(self)


class Link:
    """The one connection of a client.

    Args:
        address: Where the bridge is.
        token: Gives what it asks for, for each connection.
        tls: How the connection is secured.
        max_message: Longest message that is taken, in bytes.
        connect_timeout: For a connection to come about, attempts included.
        errors: Where unexpected exceptions are told.

    Attributes:
        nursery: Where the connection's task runs; set by its owner before anything else.
        slots: As many as the server takes RPCs at once.
    """

    nursery: anyio.abc.TaskGroup

    def __init__(
        self,
        address: str,
        *,
        token: Callable[[], str],
        tls: ssl.SSLContext | None,
        max_message: int,
        connect_timeout: float,
        errors: InternalErrors,
    ) -> None:
        self.address = address
        self.errors = errors
        try:
            self._place = parse_address(address)
        except ValueError as exc:
            raise ConfigError(str(exc), details={"key": "address", "expected": "unix:PATH or tcp:HOST:PORT"}) from None
        self._token = token
        self._tls = tls
        self._max_message = max_message
        self.connect_timeout = connect_timeout
        self._connection: Connection | None = None
        self.slots: anyio.CapacityLimiter = anyio.CapacityLimiter(1)
        self._freed: anyio.Event | None = None
        self._connecting = anyio.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Link {self.address} {'connected' if self.connected else 'not connected'}>"

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None and not self._connection.lost

    def close(self) -> None:
        """Close the connection: what is under way fails. Idempotent."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    async def wait_freed(self) -> None:
        """Wait until an RPC is over that the server has begun."""
        if self._freed is None:
            self._freed = anyio.Event()
        await self._freed.wait()

    def tell_freed(self) -> None:
        """An RPC is over, and another may have its place with the server."""
        if self._freed is not None:
            self._freed.set()
            self._freed = None

    def start(
        self,
        function: Callable[..., Awaitable[object]],
        *args: object,
        ended: str,
        on_error: Callable[[Exception], object],
    ) -> None:
        """Start a task of the client's, in which an unexpected exception ends what it is for, and not the client."""
        self.errors.start(self.nursery, function, *args, ended=ended, on_error=on_error)

    @protected
    async def get(self) -> Connection:
        """A connection whose server has taken the token.

        Raises:
            ConnectionLost: None came about within ``connect_timeout``; says why.
            AuthenticationFailed: The token is wrong.
        """
        found = self._connection
        if found is not None and not found.lost:
            return found
        async with self._connecting:
            found = self._connection
            if found is not None and not found.lost:
                return found
            if self._closed:
                raise ConnectionLost(f"the client of {self.address} is closed")
            self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> Connection:
        why: BaseException | None = None
        pause = _PAUSE
        with anyio.move_on_after(self.connect_timeout):
            while True:
                try:
                    return await self._attempt()
                except ssl.SSLCertVerificationError as exc:
                    why = exc
                    break
                except (OSError, RpcFailure, ConnectionLost) as exc:
                    why = exc
                await anyio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        reason = getattr(why, "strerror", None) or why or "no answer in time"
        raise ConnectionLost(f"no connection to {self.address}: {reason}", details={"address": self.address})

    async def _attempt(self) -> Connection:
        sock = await sockets.connect(self._place)
        host = self._place[0] if isinstance(self._place, tuple) else "localhost"
        transport = sockets.SocketTransport(sock, tls=self._tls, server_hostname=host if self._tls else None)
        try:
            await transport.handshake()
            protocol = client_protocol(PipeProtocol, errors=self.errors, window=_WINDOW, stream_window=_STREAM_WINDOW)
            transport.attach(protocol)
            made = Connection(
                protocol,
                transport,
                token=self._token(),
                max_message=self._max_message,
                secure=self._tls is not None,
                authority=host,
            )
            self.start(made.serve, ended="connection", on_error=lambda exc: made.close())
            try:
                # The answer comes after the server's settings, with the limits that are to be kept.
                await made.unary(BRIDGE + "Ping", b"")
            except RpcFailure as exc:
                error = failure(exc.status, exc.message, exc.trailers)
                if isinstance(error, ConnectionLost):
                    raise
                raise error from None
        except BaseException:
            transport.abort()
            raise
        self.slots = anyio.CapacityLimiter(max(min(made.max_streams, 10_000), 1))
        return made

    @protected
    async def unary(
        self, method: str, request: Any, answer: type[M], *, timeout: float | None = None, again: bool = False
    ) -> M:
        """One request, one answer.

        Args:
            method: Its name in BridgeService.
            request: The message.
            answer: The class of the answer's message.
            timeout: Seconds for all of it; None: no limit on this side.
            again: It may be sent again when the connection is lost under it.

        Raises:
            SnakepitError: What the server says, or ``ConnectionLost``.
        """
        data, patience = bytes(request), _Patience(self)
        if timeout is None:
            return await self._exchange(method, data, answer, math.inf, again, patience)
        deadline = anyio.current_time() + timeout
        with anyio.CancelScope(deadline=deadline + LAST_WORD):
            return await self._exchange(method, data, answer, deadline, again, patience)
        if patience.waiting:
            raise RequestTimeout(
                f"the host had no room for the call within timeout={as_given(timeout)}",
                details={"phase": "queued", "option": "timeout", "limit": timeout},
            )
        raise RequestTimeout(
            f"no answer within timeout={as_given(timeout)}",
            details={"phase": "running", "option": "timeout", "limit": timeout},
        )

    async def _exchange(
        self, method: str, data: bytes, answer: type[M], deadline: float, again: bool, patience: _Patience
    ) -> M:
        attempt = 1
        while True:
            connection = await self.get()
            slots = self.slots
            slot = object()
            unprocessed: RpcFailure | None = None
            try:
                slots.acquire_on_behalf_of_nowait(slot)
            except anyio.WouldBlock:
                await slots.acquire_on_behalf_of(slot)
            try:
                patience.waiting = False
                left = math.inf if deadline == math.inf else max(deadline - anyio.current_time(), 0.001)
                reply = await connection.unary(BRIDGE + method, data, timeout=left)
            except RpcFailure as exc:
                error = failure(exc.status, exc.message, exc.trailers)
                lost = isinstance(error, ConnectionLost) and not isinstance(error, ToolError)
                if exc.unprocessed:
                    unprocessed = exc
                elif not (again and lost and attempt < _ATTEMPTS):
                    try:
                        raise error
                    finally:
                        # Its traceback holds this frame, with the request, which must not wait for a garbage collection.
                        del error
            else:
                return _read(answer, reply)
            finally:
                slots.release_on_behalf_of(slot)
                if unprocessed is None:
                    self.tell_freed()
            if unprocessed is None:
                attempt += 1
            elif not await patience.again(unprocessed, connection):
                raise failure(unprocessed.status, unprocessed.message, unprocessed.trailers)

    @asynccontextmanager
    async def streaming(
        self,
        method: str,
        request: Any,
        *,
        on_message: Callable[[bytes], None],
        on_end: Callable[[int, str], None],
        timeout: float | None = None,
        last: bool = True,
    ) -> AsyncIterator[Opened]:
        """An RPC with more messages than one; leaving the block cancels it.

        Args:
            method: Its name in BridgeService.
            request: The first message.
            on_message: Called with each message of the server.
            on_end: Called with the status and its message when it has ended; after :meth:`Opened.again` once more.
            timeout: Seconds for all of it, told to the server; keeping to it is the caller's business.
            last: There are no more messages.
        """
        deadline = math.inf if timeout is None else anyio.current_time() + timeout

        def open_one(connection: Connection, first: bytes) -> Rpc:
            left = math.inf if timeout is None else max(deadline - anyio.current_time(), 0.001)
            rpc = connection.rpc(BRIDGE + method, on_message=on_message, on_end=on_end, timeout=left)
            rpc.send(first)
            if last:
                rpc.end()
            return rpc

        opened = Opened(self, open_one, bytes(request))
        try:
            await opened.open()
            yield opened
        finally:
            opened.close()
