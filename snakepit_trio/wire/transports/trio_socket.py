"""A Trio socket that feeds grpclib's protocol engine directly, without an asyncio loop.

One task per connection waits until the socket is readable, reads the available data and passes it to the engine, whose
callbacks wake the waiting tasks. Writing happens at once, in the current tick; only data that the socket does not
accept is kept, for a second task to write.

Data sent during one pass of Trio's scheduler leaves together: :class:`_Tick` is an instrument that runs pending flushes
right before Trio waits for I/O, so batching costs no extra pass.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

import trio

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected
from snakepit_trio.wire.addresses import parse_address
from snakepit_trio.wire.connection import Connection, Wire
from snakepit_trio.wire.http2.client_engine import client_protocol
from snakepit_trio.wire.http2.engine import PipeProtocol
from snakepit_trio.wire.sockets import SocketTransport
from snakepit_trio.wire.sockets import connect as connect_socket

__all__ = ["TrioWire"]

_READ_SIZE = 256 * 1024


class _Tick(trio.abc.Instrument):
    """Runs callbacks at the end of each pass of the scheduler.

    Trio removes an instrument that raises, which would stop all connections; so a failing callback fails alone.
    """

    def __init__(self, errors: InternalErrors) -> None:
        self._errors = errors
        self._callbacks: list[Callable[[], None]] = []
        #: Runs a callback at the end of this pass.
        self.call_soon: Callable[[Callable[[], None]], None] = self._callbacks.append
        self._token = trio.lowlevel.current_trio_token()

    def before_io_wait(self, timeout: float) -> None:
        while self._callbacks:
            callbacks = self._callbacks.copy()
            self._callbacks.clear()
            for callback in callbacks:
                try:
                    callback()
                except Exception as exc:
                    self._errors.report(exc, "connection")

    def soon(self, callback: Callable[[], None]) -> None:
        """Run a callback that may wake tasks: Trio has already determined how long it will sleep, and this wakes it up."""
        self._token.run_sync_soon(self._run, callback)

    def _run(self, callback: Callable[[], None]) -> None:
        # An exception here would end the whole Trio run.
        with self._errors.bulkhead("connection"):
            callback()


class _PlainTransport(SocketTransport):
    """A connection without TLS: data that the socket accepts at once is not copied, and reads go directly to the engine."""

    high_water = 512 * 1024

    def __init__(self, sock: socket.socket, tick: _Tick) -> None:
        super().__init__(sock)
        self._tick = tick
        self.call_soon = tick.call_soon  # type: ignore[method-assign, assignment]

    def _wake(self, callback: Callable[[], None]) -> None:
        self._tick.soon(callback)

    def write(self, data: bytes) -> None:
        if self._closed or not data:
            return
        if not self._unsent:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                # The reader gets the same error, or the end of the stream, and ends the connection from its own task.
                self._wake(self.abort)
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._unsent += data
        self._write_later()

    def close(self) -> None:
        self.abort()

    @protected
    async def _read(self) -> None:
        protocol, sock = self._protocol, self._sock
        assert protocol is not None
        receive, feed = sock.recv, protocol.data_received
        wait_readable, fd = trio.lowlevel.wait_readable, sock.fileno()
        while not self._closed:
            await wait_readable(fd)
            try:
                data = receive(_READ_SIZE)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            feed(data)
            while protocol.unfinished and not self._closed:
                await trio.lowlevel.checkpoint()
                protocol.proceed()


class _TlsTransport(SocketTransport):
    """A connection with TLS, which also writes once per pass of the scheduler."""

    def __init__(self, sock: socket.socket, tick: _Tick, tls: ssl.SSLContext, name: str) -> None:
        super().__init__(sock, tls=tls, server_hostname=name)
        self._tick = tick

    def call_soon(self, callback: Callable[[], None]) -> None:
        if self._corked:
            super().call_soon(callback)
        else:
            self._tick.call_soon(callback)

    def _wake(self, callback: Callable[[], None]) -> None:
        self._tick.soon(callback)


class TrioWire(Wire):
    """Connections of a Trio run."""

    _tick: _Tick

    async def __aenter__(self) -> Wire:
        self._tick = _Tick(self.errors)
        trio.lowlevel.add_instrument(self._tick)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with contextlib.suppress(KeyError):  # Already removed by Trio.
            trio.lowlevel.remove_instrument(self._tick)

    async def connect(
        self, address: str, *, token: str, max_message: int, tls: ssl.SSLContext | None = None, name: str = ""
    ) -> Connection:
        sock = await connect_socket(parse_address(address))
        transport = _PlainTransport(sock, self._tick) if tls is None else _TlsTransport(sock, self._tick, tls, name)
        try:
            await transport.handshake()
            protocol = client_protocol(PipeProtocol, errors=self.errors)
            transport.attach(protocol)
        except BaseException:
            transport.abort()
            raise
        return Connection(protocol, transport, token=token, max_message=max_message, secure=tls is not None)
