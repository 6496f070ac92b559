"""The bridge: listens, accepts clients, and gives each a nursery for its requests."""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
import ssl
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from snakepit_trio._fair_budget import FairBudget, Share, room_for
from snakepit_trio._interrupts import protected
from snakepit_trio.wire.frames import FRAME_OVERHEAD
from snakepit_trio.wire.sockets import SocketTransport

from .client_connection import BridgeConnection, Limits
from .health import HealthService
from .listening import Door, listen, peer_of, tls_context, turn_away
from .methods import Method
from .reflection import ReflectionService
from .service import BridgeService
from .tokens import Token, held_token

if TYPE_CHECKING:
    from snakepit_trio._bulkhead import InternalErrors
    from snakepit_trio.observe.redaction import Redactor
    from snakepit_trio.runtime import Runtime
    from snakepit_trio.supervision.run import Run

__all__ = ["Bridge", "bound_bridge"]

_log = logging.getLogger(__name__)

#: Seconds. The pause when the process has no descriptors left.
_PAUSE = 0.1
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: Seconds. The time in which clients must read their last answers when the runtime closes.
_LAST_ANSWERS = 1.0


class Bridge:
    """The gRPC server of a runtime. Created by :func:`snakepit_trio.open_runtime`, as ``runtime.bridge``.

    Attributes:
        address: The address: ``unix:PATH``, or ``tcp:HOST:PORT`` with the actual port.
    """

    def __init__(
        self,
        runtime: Runtime,
        redactor: Redactor,
        door: Door,
        address: str,
        token: Token,
        tls: ssl.SSLContext | None,
    ) -> None:
        config = runtime.config.bridge
        assert config is not None
        self.address = address
        self._token = token
        self._config = config
        self._door = door
        self._tls = tls
        self._events = runtime.events
        self.errors: InternalErrors = runtime.internal_errors
        self.redactor = redactor
        self._service = BridgeService(runtime)
        self._health = HealthService(runtime, public=config.public_health)
        self.methods: Mapping[bytes, Method] = {
            **self._service.methods,
            **self._health.methods,
            **(ReflectionService().methods if config.reflection else {}),
        }
        largest = max(pool.max_payload for pool in runtime.config.pools) + FRAME_OVERHEAD
        longest = largest if config.max_message is None else config.max_message
        self._budget = FairBudget(room_for(max(longest, largest), config.max_buffered), config.max_connections, longest)
        self._limits = Limits(
            max_streams=config.max_streams,
            max_message=longest,
            max_header_size=config.max_header_size,
            handshake_timeout=config.handshake_timeout,
            idle_timeout=config.idle_timeout,
            receive_timeout=config.receive_timeout,
            keepalive_interval=config.keepalive_interval,
            keepalive_timeout=config.keepalive_timeout,
        )
        # The scopes of all clients with their peers, and of those that have not sent the token; the oldest first.
        self._clients: dict[anyio.CancelScope, Hashable] = {}
        self._strangers: dict[anyio.CancelScope, None] = {}
        self._connections: set[BridgeConnection] = set()
        self._accepting = anyio.CancelScope()
        # Sockets whose task has not begun, and never will if the runtime is cancelled at that moment.
        self._unclaimed: set[socket.socket] = set()

    def __repr__(self) -> str:
        return f"<Bridge {self.address} connections={self.connections}>"

    @property
    def token(self) -> str:
        """The token that clients send as ``authorization: Bearer TOKEN``."""
        return self._token.look()

    @property
    def connections(self) -> int:
        """The number of connected clients."""
        return len(self._clients)

    @protected
    async def serve(self) -> None:
        """Accept clients until cancelled."""
        self._events.emit("bridge.opened", None, address=self.address)
        try:
            async with anyio.create_task_group() as nursery:
                self.errors.keep(nursery, self._service.keep)
                with self._accepting:
                    while True:
                        with self.errors.bulkhead("connection") as turn:
                            await self._door.wait()
                            await self._accept(nursery)
                        if turn.failed:
                            await anyio.sleep(_PAUSE)
                await anyio.sleep_forever()
        finally:
            for sock in self._unclaimed:
                sock.close()

    async def _accept(self, nursery: anyio.abc.TaskGroup) -> None:
        for _ in range(64):
            try:
                sock, _ = self._door.sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in _EXHAUSTED:
                    raise
                _log.warning("no client can be let in: %s", os.strerror(exc.errno))
                self._make_room()
                await anyio.sleep(_PAUSE)
                return
            try:
                sock.setblocking(False)
                peer = peer_of(sock)
                if not self._has_room(peer):
                    turn_away(sock, f"max_connections is {self._config.max_connections}", secured=self._tls is not None)
                    self._events.emit_frequent("bridge.client_refused", {"connections": self.connections}, {})
                    continue
            except BaseException:
                sock.close()
                raise
            scope = anyio.CancelScope()
            self._clients[scope] = peer
            self._strangers[scope] = None
            self._unclaimed.add(sock)
            dismiss = functools.partial(self._dismiss, sock, scope)
            self.errors.start(nursery, self._welcome, sock, scope, ended="connection", on_error=dismiss)

    def _has_room(self, peer: Hashable) -> bool:
        """Return whether a peer may open one more connection; a client that has not sent the token may be closed for it.

        One peer may have as many connections as it leaves for others: half of them if it is alone, and always one.
        """
        left = self._config.max_connections - len(self._clients) - 1
        if left < 0:
            return self._make_room()
        its = 0 if peer is None else list(self._clients.values()).count(peer)
        return not its or its < left or self._make_room(peer)

    def _dismiss(self, sock: socket.socket, scope: anyio.CancelScope, exc: Exception) -> None:
        """Handle an unexpected exception that has ended a client's task, perhaps before the task began."""
        self._unclaimed.discard(sock)
        self._strangers.pop(scope, None)
        self._clients.pop(scope, None)
        sock.close()

    def _make_room(self, peer: Hashable = None) -> bool:
        """Close the oldest connection that has not sent the token, among those of a peer (None: of any peer)."""
        for scope in self._strangers:
            if peer is None or self._clients.get(scope) == peer:
                del self._strangers[scope]
                scope.cancel()
                return True
        return False

    @protected
    async def _welcome(self, sock: socket.socket, scope: anyio.CancelScope) -> None:
        """Serve one client, from its first byte to its last."""
        self._unclaimed.discard(sock)
        began = anyio.current_time()
        try:
            with scope:
                transport = SocketTransport(sock, tls=self._tls, server_side=True)
                try:
                    with anyio.fail_after(self._config.handshake_timeout):
                        await transport.handshake()
                except (OSError, TimeoutError) as exc:
                    _log.debug("a client did not come in: %s", exc)
                    return
                await self._serve(transport, sock, scope)
        finally:
            known = scope not in self._strangers and not scope.cancel_called
            self._strangers.pop(scope, None)
            self._clients.pop(scope, None)
            counts = {"duration": anyio.current_time() - began, "connections": self.connections}
            self._events.emit_frequent("bridge.client_left", counts, {"known": known})

    def _know(self, scope: anyio.CancelScope) -> None:
        """Record that a client has sent the token."""
        self._strangers.pop(scope, None)
        self._events.emit_frequent("bridge.client_joined", {"connections": self.connections}, {})

    async def _serve(self, transport: SocketTransport, sock: socket.socket, scope: anyio.CancelScope) -> None:
        connection = None
        try:
            async with anyio.create_task_group() as requests:
                connection = BridgeConnection(
                    transport,
                    self,
                    self._limits,
                    Share(self._budget),
                    f"Bearer {self.token}".encode(),
                    requests,
                    keepalive=sock.family != socket.AF_UNIX,
                    on_known=lambda: self._know(scope),
                    on_expelled=lambda reason: self._events.emit("bridge.client_expelled", None, reason=reason),
                )
                self._connections.add(connection)
                await connection.serve()
                requests.cancel_scope.cancel()
        finally:
            transport.abort()
            if connection is not None:
                self._connections.discard(connection)

    async def aclose(self, *, drain: bool) -> None:
        """Accept no more clients; with ``drain``, existing clients receive the answers to running calls. A cancellation
        closes all connections at once.
        """
        self._accepting.cancel()
        self._health.close()
        self._events.emit("bridge.closing")
        if drain:
            with anyio.move_on_after(_LAST_ANSWERS):
                async with anyio.create_task_group() as nursery:
                    for connection in list(self._connections):
                        nursery.start_soon(connection.drain)


@contextmanager
def bound_bridge(runtime: Runtime, run: Run, redactor: Redactor) -> Iterator[Bridge]:
    """Listen, and yield a bridge on that socket; clients wait until it serves.

    Args:
        runtime: The runtime.
        run: The run in whose directory its Unix socket is, unless the configuration names a path.
        redactor: Removes secrets from errors for clients.

    Raises:
        ConfigError: The configured address can't be used.
    """
    config = runtime.config.bridge
    assert config is not None
    tls = tls_context(config)
    default = os.path.join(run.run_dir, "bridge.sock")
    with held_token(config) as token, listen(config, default, run.restore) as (door, address):
        yield Bridge(runtime, redactor, door, address, token, tls)
