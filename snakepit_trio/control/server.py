"""The control socket of a running runtime: a Unix socket that only this user can open, see :mod:`.protocol`.

No client can hold the runtime up. Each connection is a task in the runtime's nursery; a line has a longest length and a
longest time to arrive, an answer a longest time to be taken, and the number of connections is bounded: when there are too
many, the one that has been silent for longest makes room. An action that a client has asked for is done to its end, whether or
not the client is there to hear of it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.abc

from snakepit_trio import _forks, _platform
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._interrupts import protected
from snakepit_trio._unix_door import UnixDoor
from snakepit_trio.observe.events import Event, EventBus

from . import protocol
from .operations import EVENTS, EventsOf, Operations, read_params
from .protocol import REQUEST_LIMIT, Refusal

__all__ = ["ControlServer"]

_log = logging.getLogger(__name__)

#: Connections at a time.
_MOST = 16
#: How long a connection may be silent, the rest of a line be on its way, and an answer wait to be taken, in seconds.
_SILENCE, _LINE, _TAKEN = 300.0, 10.0, 10.0
#: The pause after the system could give no descriptor for a connection, in seconds.
_NO_DESCRIPTORS = 0.25
#: Events that wait for a client before the oldest is dropped.
_EVENTS = 1000
#: Events that are sent in one piece, when so many wait.
_TOGETHER = 100
_CHUNK = 64 * 1024


class _Connection:
    """One client."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.scope = anyio.CancelScope()
        #: Since when it has been silent, on the event loop's clock; inf while something is done for it.
        self.idle_since = anyio.current_time()
        self._read = bytearray()

    async def line(self) -> bytes | None:
        """The next request; None at the end of the connection, or when it is silent for too long.

        Raises:
            Refusal: It is too long, or does not come to its end.
        """
        limit = _LINE if self._read else _SILENCE
        with anyio.move_on_after(limit) as waiting:
            while True:
                end = self._read.find(b"\n")
                if end >= 0:
                    found = bytes(self._read[:end])
                    del self._read[: end + 1]
                    return found
                if len(self._read) > REQUEST_LIMIT:
                    raise Refusal("too_large", f"a request has at most {REQUEST_LIMIT} bytes")
                data = await self._receive()
                if not data:
                    return None
                if not self._read:
                    waiting.deadline = anyio.current_time() + _LINE
                self._read += data
        if self._read:
            raise Refusal("bad_request", f"no whole line within {_LINE:g} s")
        return None

    async def _receive(self) -> bytes:
        while True:
            await anyio.wait_readable(self.sock)
            try:
                return self.sock.recv(_CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                return b""

    async def send(self, data: bytes) -> bool:
        """Send an answer. Returns whether it was taken in time."""
        rest = memoryview(data)
        with anyio.move_on_after(_TAKEN):
            while rest:
                try:
                    rest = rest[self.sock.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self.sock)
                except OSError:
                    break
        return not rest

    async def spoken(self) -> None:
        """Wait until the client says anything more, or leaves."""
        if not self._read:
            await anyio.wait_readable(self.sock)


class ControlServer:
    """Serves one runtime's control socket.

    Args:
        operations: What can be asked.
        events: The runtime's events.
        path: Where the socket is made, in a directory that only this user can enter.
        errors: Where unexpected exceptions are told; one ends a client's connection.
        restore: Makes the directory again when a cleaner has taken it.
    """

    def __init__(
        self, operations: Operations, events: EventBus, path: Path, errors: InternalErrors, restore: Callable[[], None]
    ) -> None:
        self._restore = restore
        self._operations = operations
        self._events = events
        self._path = path
        self._errors = errors
        self._connections: dict[_Connection, None] = {}

    def __repr__(self) -> str:
        return f"<ControlServer {self._path} connections={len(self._connections)}>"

    @protected
    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Serve until cancelled; the socket is then gone. Where it can't be made, a warning says why, and nothing is served."""
        try:
            self._path.unlink(missing_ok=True)
            door = UnixDoor(self._path, backlog=_MOST, restore=self._restore)
        except OSError as exc:
            _log.warning("no control socket at %s: %s", self._path, exc)
            task_status.started()
            return
        try:
            async with anyio.create_task_group() as nursery:
                task_status.started()
                while True:
                    with self._errors.bulkhead("connection") as turn:
                        await self._let_in(door, nursery)
                    if turn.failed:
                        await anyio.sleep(_NO_DESCRIPTORS)
        finally:
            door.close()

    async def _let_in(self, door: UnixDoor, nursery: anyio.abc.TaskGroup) -> None:
        """Wait for a client, and let it in."""
        await door.wait()
        try:
            sock, _ = door.sock.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as exc:
            _log.warning("the control socket can't take a connection: %s", exc)
            await anyio.sleep(_NO_DESCRIPTORS)
            return
        try:
            self._admit(sock, nursery)
        except BaseException:
            sock.close()
            raise

    def _admit(self, sock: socket.socket, nursery: anyio.abc.TaskGroup) -> None:
        sock.setblocking(False)
        _forks.keep(sock.fileno())
        if not _is_ours(sock):
            _log.warning("the control socket has turned another user away")
            sock.close()
            return
        if len(self._connections) >= _MOST:
            longest = min(self._connections, key=lambda connection: connection.idle_since)
            if longest.idle_since == math.inf:
                with contextlib.suppress(OSError):
                    sock.send(protocol.failure(None, "busy", f"there are {_MOST} connections already"))
                sock.close()
                return
            # Out of the table at once, so that the next one does not choose it again.
            del self._connections[longest]
            longest.scope.cancel()
        connection = _Connection(sock)
        self._errors.start(
            nursery, self._converse, connection, ended="connection", on_error=lambda exc: self._dismiss(connection)
        )
        self._connections[connection] = None

    def _dismiss(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)
        connection.sock.close()

    @protected
    async def _converse(self, connection: _Connection) -> None:
        try:
            with connection.scope:
                while await self._answer(connection):
                    connection.idle_since = anyio.current_time()
        finally:
            self._dismiss(connection)

    async def _answer(self, connection: _Connection) -> bool:
        """Answer one request. Returns whether another may follow."""
        id: int | str | None = None
        try:
            line = await connection.line()
        except Refusal as exc:
            # Where the next request begins is not known.
            await connection.send(protocol.failure(None, exc.code, exc.message))
            return False
        if line is None:
            return False
        connection.idle_since = math.inf
        try:
            request = protocol.parse(line)
            id = request.id
            if request.op == EVENTS:
                await self._stream(connection, id, read_params(EventsOf, request.params))
                return False
            answer = protocol.success(id, await self._operations.run(request))
        except Refusal as exc:
            answer = protocol.failure(id if exc.id is None else exc.id, exc.code, exc.message)
        except Exception as exc:
            self._errors.report(exc, "operation")
            answer = protocol.failure(id, "internal", "the operation has failed; the runtime's log says why")
        return await connection.send(answer)

    async def _stream(self, connection: _Connection, id: int | str | None, wanted: EventsOf) -> None:
        async with anyio.create_task_group() as nursery:

            @protected
            async def watch() -> None:
                await connection.spoken()
                nursery.cancel_scope.cancel()

            async with self._events.subscribe(*wanted.prefixes, capacity=_EVENTS) as events:
                if not await connection.send(protocol.success(id, {})):
                    return
                nursery.start_soon(watch)
                async for event in events:
                    lines = []
                    following: Event | None = event
                    while following is not None:
                        told = self._operations.event(following)
                        lines.append(protocol.event_line(id, told, events.dropped))
                        following = events.receive_nowait() if len(lines) < _TOGETHER else None
                    if not await connection.send(b"".join(lines)):
                        break
                nursery.cancel_scope.cancel()


def _is_ours(sock: socket.socket) -> bool:
    """Whether the other side is this user's process, as the system tells; where it doesn't, whether nobody else can reach the
    socket, by the mode of its directory."""
    try:
        peer = _platform.peer_of(sock)
        if peer is not None:
            return peer.user == os.geteuid()
        place = os.stat(os.path.dirname(os.path.abspath(sock.getsockname())))
    except OSError:
        return False
    return place.st_uid == os.geteuid() and not stat.S_IMODE(place.st_mode) & 0o077
