"""A socket that feeds grpclib's protocol engine, on either event loop, with or without TLS, for servers and clients.

Neither the engine nor :mod:`ssl` over memory buffers does I/O: received data goes through both in one call, and their
output is sent at once. Only data that the socket does not accept is kept, for a second task to write. anyio waits for
readiness, so nothing here depends on asyncio or Trio.

While the unsent data exceeds a bound, the engine sends no more data, and reading continues, because two ends that send
much to each other would otherwise wait for each other. A higher bound, which only unrequested output can exceed
(answers to PING and SETTINGS, refusals), stops reading too, so a peer that causes output and does not read it gets no
further.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel
import sniffio

from snakepit_trio import _forks
from snakepit_trio._interrupts import protected
from snakepit_trio._waiting import event_loop

from .http2.engine import PipeProtocol

if TYPE_CHECKING:
    from asyncio import Transport

__all__ = ["SocketTransport", "connect"]

_READ_SIZE = 64 * 1024
#: The number of TLS records that are handled in one turn.
_RECORDS = 8
#: Seconds between two attempts to connect to a Unix socket whose queue is full.
_FULL_PAUSE = 0.01
#: Seconds and bytes for which a server reads on after it has ended a connection: closing a socket with unread data resets
#: the connection, and the peer may then never see the GOAWAY with the reason.
_LINGER = 1.0
_LINGER_BYTES = 4 * 1024 * 1024
#: Reading stops above this multiple of ``high_water``; of data there is at most twice as much.
_UNASKED = 4
_CONNECTING = (BlockingIOError, InterruptedError)


class SocketTransport:
    """The part of an asyncio transport that grpclib's engine uses, over a connected non-blocking socket.

    Args:
        sock: The socket; owned from here on, and closed at the end of :meth:`serve`, or by :meth:`abort` before that.
        tls: The TLS context; None: no TLS.
        server_side: Whether this is the server's end of the TLS handshake.
        server_hostname: The expected name in the server's certificate.

    Attributes:
        read_size: The largest read, in bytes.
        received: The bytes received so far.
        high_water: Above this many unsent bytes the engine is told to pause; below a quarter of it, to continue.
    """

    high_water = 256 * 1024

    def __init__(
        self,
        sock: socket.socket,
        *,
        tls: ssl.SSLContext | None = None,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        self.read_size = _READ_SIZE
        self.received: int = 0
        self._sock = sock
        _forks.keep(sock.fileno())
        self._protocol: PipeProtocol | None = None
        self._unsent = bytearray()
        self._corked = False
        self._soon: list[Callable[[], None]] = []
        self._held_back = False
        # Whether the received data may contain more TLS records.
        self._unfinished = False
        self._closed = False
        self._ending = False
        self._serving = False
        self._lingers = server_side
        self._scope = anyio.CancelScope()
        self._more = anyio.Event()
        self._room = anyio.Event()
        self._tls: ssl.SSLObject | None = None
        if tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            try:
                self._tls = tls.wrap_bio(
                    self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
                )
            except BaseException:
                sock.close()
                raise

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<SocketTransport {state} unsent={len(self._unsent)}>"

    def attach(self, protocol: PipeProtocol) -> None:
        """Start the engine on this socket."""
        self._protocol = protocol
        protocol.connection_made(cast("Transport", self))

    # ---- what the engine calls -------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._sock if name == "socket" else default

    def is_closing(self) -> bool:
        return self._closed or self._ending

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run a callback now, or at the end of the current receive."""
        if self._corked:
            self._soon.append(callback)
        else:
            callback()

    def write(self, data: bytes) -> None:
        if self._closed or not data:
            return
        if self._tls is not None:
            try:
                self._tls.write(data)
            except ssl.SSLError:
                self._wake(self.abort)
                return
            data = self._outgoing.read()
        self._unsent += data
        if not self._corked or len(self._unsent) > self.high_water:
            # What is kept to be sent together is no more than what may be unsent.
            self._send()

    def close(self) -> None:
        """Close the socket when the written data is sent, or can't be sent at once. Idempotent."""
        if self._closed or self._ending:
            return
        self._ending = True
        if not self._corked:
            self._send()
            self.abort()

    def abort(self) -> None:
        """Close the socket now. Idempotent."""
        if not self._closed:
            self._closed = True
            self._scope.cancel()
            if not self._serving:
                self._sock.close()

    def cork(self) -> None:
        """Keep the data written from now on until :meth:`uncork`, to send it together."""
        self._corked = True

    def uncork(self) -> None:
        """Send the kept data."""
        while self._soon:
            callbacks, self._soon = self._soon, []
            for callback in callbacks:
                callback()
        self._corked = False
        self._send()
        if self._ending:
            self.abort()

    def _send(self) -> None:
        if not self._unsent or self._closed:
            return
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._wake(self.abort)
            return
        del self._unsent[:sent]
        if self._unsent:
            self._write_later()

    def _write_later(self) -> None:
        """Let the second task write the data that the socket has not accepted."""
        self._wake(self._wake_writer)
        if len(self._unsent) > self.high_water and not self._held_back:
            self._held_back = True
            if self._protocol is not None:
                self._protocol.pause_writing()

    def _wake(self, callback: Callable[[], None]) -> None:
        """Run a callback that wakes tasks."""
        callback()

    def _wake_writer(self) -> None:
        self._more.set()

    # ---- what the tasks do -----------------------------------------------------------------------

    @protected
    async def handshake(self) -> None:
        """Perform the TLS handshake, before the engine is attached. A cancellation closes the socket.

        Raises:
            OSError: The peer is gone, or refused (``ssl.SSLError`` is one).
        """
        if self._tls is None:
            return
        try:
            done = False
            while not done:
                done = self._shake_hands(self._tls)
                while self._unsent:
                    await anyio.wait_writable(self._sock)
                    with suppress(BlockingIOError):
                        del self._unsent[: self._sock.send(self._unsent)]
                if not done:
                    await anyio.wait_readable(self._sock)
                    with suppress(BlockingIOError):
                        data = self._sock.recv(_READ_SIZE)
                        if not data:
                            raise ConnectionResetError("the peer left in the middle of the TLS handshake")
                        self._incoming.write(data)
        except BaseException:
            self.abort()
            raise

    def _shake_hands(self, tls: ssl.SSLObject) -> bool:
        """Continue the handshake as far as possible without the peer, and return whether it is complete."""
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError:
            # The peer receives the reason.
            self._unsent += self._outgoing.read()
            self._send()
            raise
        finally:
            self._unsent += self._outgoing.read()
        return True

    @protected
    async def serve(self) -> None:
        """Move bytes until the connection ends. A cancellation closes it."""
        assert self._protocol is not None
        self._serving = True
        try:
            with self._scope:
                async with anyio.create_task_group() as nursery:
                    nursery.start_soon(self._write_rest)
                    if self._tls is not None:
                        self._feed(b"")  # What came together with the end of the handshake.
                    await self._read()
                    nursery.cancel_scope.cancel()
            if self._lingers and self._ending:
                await self._linger()
        finally:
            self._closed = True
            self._sock.close()
            self._protocol.connection_lost(None)

    @protected
    async def _linger(self) -> None:
        """Let the peer read the last data, and discard what it still sends."""
        left = _LINGER_BYTES
        try:
            self._sock.shutdown(socket.SHUT_WR)
            with anyio.move_on_after(_LINGER):
                while left > 0:
                    await anyio.wait_readable(self._sock)
                    data = self._sock.recv(_READ_SIZE)
                    if not data:
                        return
                    left -= len(data)
        except OSError:
            pass  # It is gone.

    @protected
    async def _read(self) -> None:
        sock, wait_readable = self._sock, event_loop(sniffio.current_async_library()).readable
        protocol = self._protocol
        assert protocol is not None
        while not self._closed:
            if len(self._unsent) > _UNASKED * self.high_water:
                self._room = anyio.Event()
                await self._room.wait()
            if self._unfinished or protocol.unfinished:
                # Let other tasks run first.
                await anyio.lowlevel.checkpoint()
                if not self._feed(b""):
                    return
                continue
            await wait_readable(sock)
            try:
                data = sock.recv(self.read_size)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data or not self._feed(data):
                return

    def _feed(self, data: bytes) -> bool:
        """Pass received data to the engine, as much as it handles in one turn, and return whether more can come."""
        protocol = self._protocol
        assert protocol is not None
        self.received += len(data)
        self._unfinished = False
        self.cork()
        try:
            if protocol.unfinished:
                protocol.proceed()
            if self._tls is None:
                if data:
                    protocol.data_received(data)
                return True
            self._incoming.write(data)
            try:
                for _ in range(_RECORDS):
                    if protocol.unfinished:
                        break
                    plain = self._tls.read(_READ_SIZE)
                    if not plain:
                        return False
                    protocol.data_received(plain)
                self._unfinished = True
                return True
            except ssl.SSLWantReadError:
                self._unsent += self._outgoing.read()
                return True
            except ssl.SSLError:
                pass
            return False
        finally:
            self.uncork()

    @protected
    async def _write_rest(self) -> None:
        while True:
            await self._more.wait()
            self._more = anyio.Event()
            # The writer may have sent everything before this task continues; the engine must be told to continue
            # nevertheless.
            while self._unsent or self._held_back:
                await anyio.wait_writable(self._sock)
                if self._closed:
                    return
                try:
                    del self._unsent[: self._sock.send(self._unsent)]
                except BlockingIOError:
                    continue
                except OSError:
                    self.abort()
                    return
                if len(self._unsent) <= self.high_water:
                    self._room.set()
                if self._held_back and len(self._unsent) < self.high_water // 4:
                    self._held_back = False
                    assert self._protocol is not None
                    self._protocol.resume_writing()


async def connect(place: str | tuple[str, int]) -> socket.socket:
    """Return a connected non-blocking socket: to a Unix socket's path, or to a host and port. A cancellation leaves none
    open.

    Raises:
        OSError: The address does not accept a connection.
    """
    if isinstance(place, str):
        return await _connect(socket.AF_UNIX, place)
    failure: OSError | None = None
    for family, _, _, _, address in await anyio.getaddrinfo(*place, type=socket.SOCK_STREAM):
        try:
            return await _connect(family, address)
        except OSError as exc:
            failure = failure or exc
    raise failure or OSError(f"{place[0]} has no address")


async def _connect(family: int, address: Any) -> socket.socket:
    with _forks.unforked():
        sock = socket.socket(family, socket.SOCK_STREAM)
        _forks.keep(sock.fileno())
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(address)
            except _CONNECTING:
                if family == socket.AF_UNIX:
                    # Its queue of connections is full, and no event reports when that changes.
                    await anyio.sleep(_FULL_PAUSE)
                    continue
            else:
                return sock
            await anyio.wait_writable(sock)
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                raise OSError(failure, os.strerror(failure)) from None
            return sock
    except BaseException:
        sock.close()
        raise
