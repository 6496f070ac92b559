"""A client's connection to a bridge: opened when needed, reopened after a loss, with RPCs that raise typed errors.

Policy: a call that can't be sent waits for a connection, within ``connect_timeout``. A call that had been sent when the
connection was lost fails with ``ConnectionLost``, because it is unknown whether it ran; it is sent again only if it may
run twice. A call that the server certainly has not begun, because it had no room or was about to stop, waits for room
or another connection, within the same time.
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

#: Seconds. After a timeout the client waits this long for the server's own error, which has more details.
LAST_WORD = 0.25
#: Bytes that one stream may have in flight, and all streams together.
_STREAM_WINDOW = 1024 * 1024
_WINDOW = 256 * 1024 * 1024
_ATTEMPTS = 3
#: Seconds. The pause before the second attempt to connect, and the largest pause.
_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


def client_tls(tls: ssl.SSLContext | TlsConfig | str | bool | None) -> ssl.SSLContext | None:
    """Return the client's TLS context: True for the system's authorities, a path for a custom authority, a TlsConfig with
    a certificate.

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
    """Return the exception of a failed RPC. Raise it without ``from``: its cause, if it has one, is the tool's traceback."""
    error = error_from_trailers(trailers, status, message)
    error.__suppress_context__ = True
    return error


def _read(answer: type[M], reply: bytes) -> M:
    try:
        return answer.parse(reply)  # type: ignore[attr-defined,no-any-return]
    except Exception as exc:
        raise InvalidPayload(f"the answer is no {answer.__name__}: {type(exc).__name__}") from None


class _Patience:
    """Waits before a call that the server has not begun is sent again.

    Attributes:
        waiting: Whether it is waiting.
    """

    __slots__ = ("_link", "_pause", "_until", "waiting")

    def __init__(self, link: Link) -> None:
        self.waiting = False
        self._link = link
        self._until = math.inf
        self._pause = _PAUSE

    async def again(self, failed: RpcFailure | Rpc, connection: Connection) -> bool:
        """Wait until a failed call may be sent again; return False if it may not, or was refused for too long."""
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
        # The end of another call makes room. If none is in progress, nothing reports that there is room.
        with anyio.move_on_after(min(self._pause, self._until - now)):
            await self._link.wait_freed()
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


class Opened:
    """An RPC with more than one message.

    Attributes:
        rpc: The RPC; another one after :meth:`again`.
    """

    rpc: Rpc

    def __init__(self, link: Link, open_one: Callable[[Connection, bytes], Rpc], first: bytes) -> None:
        self._link = link
        self._open_one = open_one
        # Sent with each attempt, and released at the end, because garbage that refers to this object may live longer.
        self._first = first
        self._patience = _Patience(link)
        self._connection: Connection | None = None
        self._slots: anyio.CapacityLimiter | None = None

    async def open(self) -> None:
        """Open the RPC. A cancellation leaves it closed.

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
                    raise failure(exc.status, exc.message, exc.trailers)  # noqa: B904  # It already has a cause, or needs none.
            except BaseException:
                self._release()
                raise

    async def again(self) -> bool:
        """After the RPC's end, open it again if the server has not begun it, and return whether it is open.

        A cancellation leaves it closed, and this may be called again.
        """
        assert self._connection is not None
        self._release()
        if not await self._patience.again(self.rpc, self._connection):
            return False
        await self.open()
        return True

    def close(self) -> None:
        """Cancel the RPC. Idempotent."""
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
        address: The address of the bridge.
        token: Returns the token, for each connection.
        tls: The TLS context.
        max_message: The largest accepted message, in bytes.
        connect_timeout: Seconds for making a connection, including all attempts.
        errors: Reports unexpected exceptions.

    Attributes:
        nursery: The nursery of the connection's task; set by the owner before any use.
        slots: Limits the number of simultaneous RPCs to the server's limit.
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
        """Close the connection; RPCs in progress fail. Idempotent."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    async def wait_freed(self) -> None:
        """Wait until an RPC that the server has begun ends."""
        if self._freed is None:
            self._freed = anyio.Event()
        await self._freed.wait()

    def tell_freed(self) -> None:
        """Record the end of an RPC, so that another may take its place on the server."""
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
        """Start a task of the client; an unexpected exception ends the task's own purpose and not the client."""
        self.errors.start(self.nursery, function, *args, ended=ended, on_error=on_error)

    @protected
    async def get(self) -> Connection:
        """Return a connection whose server has accepted the token.

        Raises:
            ConnectionLost: There was none within ``connect_timeout``; the error gives the reason.
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
                # The answer arrives after the server's settings, which contain its limits.
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
        """Send one request and return its answer.

        Args:
            method: The method's name in BridgeService.
            request: The message.
            answer: The class of the answer's message.
            timeout: Seconds for the whole RPC; None: no limit on the client's side.
            again: The request may be sent again if the connection is lost.

        Raises:
            SnakepitError: The server's error, or ``ConnectionLost``.
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
                        # The traceback refers to this frame with the request, which must not wait for a garbage
                        # collection.
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
        """Open an RPC with more than one message; leaving the block cancels it.

        Args:
            method: The method's name in BridgeService.
            request: The first message.
            on_message: Called with each message of the server.
            on_end: Called with the status and its message at the end; after :meth:`Opened.again` once more.
            timeout: Seconds for the whole RPC, sent to the server; the caller enforces it.
            last: Whether this is the only message of the client.
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
